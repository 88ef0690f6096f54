"""Training on a small simulated data set: every start, method and optimiser; zero motion; resuming."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from engine.prepared import Prepared, one_moving_arm
from numpy.typing import NDArray
from scipy.stats import spearmanr

from flex_job import checkpoint
from flex_job.checkpoint import Checkpoint
from flex_job.events import StopRequested
from flex_job.model import FlexModel
from flex_job.operator import MASK_LEVEL, voxel_domain
from flex_job.operator.convect import convect
from flex_job.train import Trainer, train
from job_specs.parameters import TrainParameters

QUICK = TrainParameters(
    latent_dims=1, epochs=3, fixed_latent_epochs=1, map_every=0, batch=100, flow_units=16, held_out=0
)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """600 particles of 32 px with one moving arm, ready for training."""
    return one_moving_arm(tmp_path_factory.mktemp("train"), 600, 0.2)


def rank(latents: NDArray[np.floating], truth: NDArray[np.floating]) -> float:
    return abs(float(spearmanr(latents[:, 0], truth).statistic))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"latent_method": "coordinate_descent"},
        {"optimizer": "nesterov", "flow_learning_rate": 1e-4},
        {"map_every": 1},
    ],
    ids=["gauss_newton", "coordinate_descent", "nesterov", "map"],
)
def test_finds_the_motion_by_every_method(prepared: Prepared, changes: dict[str, object]) -> None:
    model = train(prepared.trainer(replace(QUICK, **changes)))
    assert rank(model.latents, prepared.truth) > 0.85
    assert model.history.shape == (3, len(model.history_names)) and np.isfinite(model.history).all()
    assert np.all(np.diff(model.history[:, 0]) <= 0)  # the band limit rises: finer from epoch to epoch
    assert (model.latent_std > 0).all() and (model.latent_std <= 1.01).all()


def test_starting_latents_are_used_and_kept_while_fixed(prepared: Prepared) -> None:
    given = 3.0 * prepared.truth[:, None] + 7
    trainer = prepared.trainer(QUICK)
    trainer.start_latents(given)
    before = trainer.latents.copy()
    np.testing.assert_allclose([before.mean(), before.std()], [0, 1], atol=1e-5)
    trainer.run_epoch()
    assert rank(trainer.latents, prepared.truth) > 0.9999
    trainer.run_epoch()
    assert np.abs(trainer.latents - before).max() > 0.1


@pytest.mark.parametrize("start, spread", [("zero", 0.0), ("random", 0.5)])
def test_other_starts(prepared: Prepared, start: str, spread: float) -> None:
    trainer = prepared.trainer(replace(QUICK, latent_start=start))
    trainer.start_latents(None)
    assert abs(trainer.latents.std() - spread) < 0.05
    trainer.run_epoch()
    assert np.isfinite(trainer.latents).all()


def test_nothing_moves_in_the_zero_motion_mask(prepared: Prepared) -> None:
    held = (prepared.mesh.vertices_A[:, 2] > 0).astype(np.float32)
    mesh = replace(prepared.mesh, motion=1 - held)
    model = train(prepared._replace(mesh=mesh).trainer(QUICK))
    u = model.displacement(model.latents[:50])
    assert np.abs(u[:, held > 0]).max() == 0
    assert np.abs(u[:, held == 0]).max() > 0


def test_standardised_latents_move_nothing(prepared: Prepared) -> None:
    trainer = prepared.trainer(replace(QUICK, latent_dims=2))
    trainer.start_latents(None)
    trainer.latents = (trainer.latents @ np.array([[2.0, 0.5], [0.0, 0.3]], np.float32)).astype(np.float32)
    with_torch = trainer.flow(torch_of(trainer.latents[:20])).detach().numpy()
    trainer.standardise_latents()
    after = trainer.flow(torch_of(trainer.latents[:20])).detach().numpy()
    np.testing.assert_allclose(after, with_torch, atol=1e-3)
    trained = ~trainer.kept_aside
    z = trainer.latents[trained]
    second = z.T @ z / len(z) + trainer.covariance[trained].mean(0)
    np.testing.assert_allclose(second, np.eye(2), atol=1e-3)


@pytest.mark.parametrize("map_every", [0, 1])
def test_the_canonical_frame_is_the_mean_of_the_particles(prepared: Prepared, map_every: int) -> None:
    """The mean displacement of every vertex is zero, and the map still explains the images in that frame."""
    trainer = prepared.trainer(replace(QUICK, map_every=map_every, flow_learning_rate=5e-3))
    kept: dict[str, NDArray[np.float32]] = {}
    rest_at_mean = trainer.rest_at_mean

    def watched() -> None:
        u = trainer.flow(torch.from_numpy(trainer.latents)).detach().numpy()
        kept["map"], kept["u"] = trainer.map.data, u
        rest_at_mean()

    trainer.rest_at_mean = watched  # type: ignore[method-assign]
    model = train(trainer)
    moved, trained = model.displacement(model.latents), ~trainer.kept_aside
    assert np.abs(moved[trained].mean(axis=0)).max() < 1e-3 and np.abs(moved).max() > 1
    drift = kept["u"][trained].mean(axis=0)
    np.testing.assert_allclose(moved, kept["u"] - drift, atol=1e-3)  # one field for all: no motion is lost
    assert map_every or np.abs(drift).max() > 0.1  # the flow had drifted, so this test can fail
    domain = voxel_domain(prepared.mesh, prepared.mask, MASK_LEVEL)
    for z, u in zip(model.latents[::200], kept["u"][::200], strict=True):
        vertices = prepared.mesh.vertices_A
        before = convect(domain, domain.gather(kept["map"]), vertices + u).data
        after = convect(domain, domain.gather(model.map.data), vertices + model.displacement(z[None])[0]).data
        assert np.linalg.norm(after - before) < 0.05 * np.linalg.norm(before)


def stopped_at(prepared: Prepared, parameters: TrainParameters, kept: Checkpoint, polls: int) -> Trainer:
    """A training that is asked to stop when it looks for the so-manieth time."""
    trainer = prepared.trainer(parameters, checkpoint=kept)
    looked = iter([False] * polls + [True])
    trainer.events.should_stop = lambda: next(looked)
    with pytest.raises(StopRequested):
        train(trainer)
    return trainer


def assert_equal(model: FlexModel, other: FlexModel) -> None:
    """To the last bit."""
    for name in ("latents", "covariance", "history"):
        np.testing.assert_array_equal(getattr(model, name), getattr(other, name), err_msg=name)
    np.testing.assert_array_equal(model.map.data, other.map.data)
    for (name, ours), theirs in zip(model.flow.state_dict().items(), other.flow.state_dict().values(), strict=True):
        assert bool((ours == theirs).all()), name


EVERY_STEP = replace(QUICK, map_every=1, epochs=2, batch=60)  # ten minibatches to a visit


@pytest.mark.parametrize(
    "polls, where",
    [(3, "start"), (11, "linear"), (14, "epoch"), (18, "map"), (40, "map"), (47, "epoch"), (55, "map"), (80, "last")],
)
def test_stopped_anywhere_it_ends_as_an_unbroken_one(
    prepared: Prepared, unbroken: FlexModel, tmp_path: Path, polls: int, where: str
) -> None:
    """Whatever the stop hits: the sums of the linear start, its latents, an epoch, the map after it, the last visit."""
    kept = Checkpoint(tmp_path / "checkpoint_train.pt", "train")
    first = stopped_at(prepared, EVERY_STEP, kept, polls)
    found = {
        "start": kept.load() is None,
        "linear": first.fields is not None,
        "epoch": first.minibatch > 0 and first.fields is None and first.epoch < 2,
        "map": first.map_due and first.minibatch == 0,
        "last": first.epoch == 2 and not first.map_due,
    }
    assert found[where], (first.epoch, first.minibatch, first.map_due)
    assert_equal(train(prepared.trainer(EVERY_STEP, checkpoint=kept)), unbroken)


@pytest.fixture(scope="module")
def unbroken(prepared: Prepared) -> FlexModel:
    return train(prepared.trainer(EVERY_STEP))


def test_stopped_at_every_look_it_still_gets_there(prepared: Prepared, unbroken: FlexModel, tmp_path: Path) -> None:
    """Each start gets a little further, through the sums of the linear start first (ten looks)."""
    kept = Checkpoint(tmp_path / "checkpoint_train.pt", "train")
    for _starts in range(200):
        trainer = prepared.trainer(EVERY_STEP, checkpoint=kept)
        looked = iter([False] * 12 + [True] * 9)
        trainer.events.should_stop = lambda looked=looked: next(looked)  # type: ignore[misc]
        try:
            model = train(trainer)
        except StopRequested:
            continue
        break
    assert _starts > 4
    assert_equal(model, unbroken)


def test_it_saves_when_it_is_time(prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[int] = []
    monkeypatch.setattr(checkpoint, "SAVE_EVERY_S", -1.0)
    monkeypatch.setattr(checkpoint, "ASK_EVERY", 1)
    kept = Checkpoint(tmp_path / "checkpoint_train.pt", "train")
    trainer = prepared.trainer(EVERY_STEP, checkpoint=kept)
    trainer.start_latents(None)
    monkeypatch.setattr(Trainer, "save", lambda self: saved.append(self.minibatch))
    trainer.run_epoch()
    assert saved == [0, 4, 8, 0, 0]  # after the epoch, and after its map


def test_a_checkpoint_of_another_training_is_not_used(prepared: Prepared, tmp_path: Path) -> None:
    stopped_at(prepared, EVERY_STEP, Checkpoint(tmp_path / "checkpoint_train.pt", "train"), 20)
    assert not prepared.trainer(EVERY_STEP, checkpoint=Checkpoint(tmp_path / "checkpoint_train.pt", "x")).resume()


def torch_of(values: NDArray[np.float32]):  # type: ignore[no-untyped-def]
    import torch

    return torch.from_numpy(values)
