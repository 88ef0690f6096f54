"""Training on a small simulated data set: every start, method and optimiser; zero motion; resuming."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import spearmanr

from flex_job.events import Events, StopRequested
from flex_job.mesh import TetMesh, build_mesh
from flex_job.particles import ParticleStack
from flex_job.prep import prepare, restore
from flex_job.train import Trainer, train
from flex_job.volume import Volume
from integration.relion.read import read_consensus
from integration.relion.simulate import simulate_project
from job_specs.parameters import MeshParameters, PrepParameters, TrainParameters

QUICK = TrainParameters(latent_dims=1, epochs=3, fixed_latent_epochs=1, map_every=0, batch=100, flow_units=16)


class Prepared(NamedTuple):
    stack: ParticleStack
    mesh: TetMesh
    map: Volume
    mask: Volume
    truth: NDArray[np.float64]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """600 particles of 32 px with one moving arm, ready for training."""
    folder = tmp_path_factory.mktemp("train")
    simulate_project(folder, motion="one_hinge", particles=600, box=32, pixel_size_A=8.0, snr=0.2, seed=3)
    consensus = read_consensus(
        folder / "Refine3D/job001/run_data.star", mask_path=folder / "MaskCreate/job002/mask.mrc"
    )
    assert consensus.mask is not None
    cache, record = folder / "prep.f16", folder / "prep.npz"
    prepare(consensus, consensus.mask, 32, PrepParameters(), cache, record, Events())
    stack, calibration = restore(consensus, 32, cache, record)
    mesh = build_mesh(consensus.map, consensus.mask, MeshParameters(tetra_cells=12))
    density = Volume(consensus.map.data * np.float32(calibration.gain), consensus.map.pixel_size_A)
    truth = np.load(folder / "truth/truth.npz")["latents"][:, 0]
    return Prepared(stack, mesh, density, consensus.mask, truth)


def trainer_of(prepared: Prepared, parameters: TrainParameters, **more: object) -> Trainer:
    return Trainer(  # type: ignore[misc]
        prepared.stack, prepared.mesh, prepared.map, prepared.mask, parameters, Events(), **more
    )


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
    model = train(trainer_of(prepared, replace(QUICK, **changes)))
    assert rank(model.latents, prepared.truth) > 0.85
    assert model.history.shape == (3, len(model.history_names)) and np.isfinite(model.history).all()
    assert np.all(np.diff(model.history[:, 0]) <= 0)  # the band limit rises: finer from epoch to epoch
    assert (model.latent_std > 0).all() and (model.latent_std <= 1.01).all()


def test_starting_latents_are_used_and_kept_while_fixed(prepared: Prepared) -> None:
    given = 3.0 * prepared.truth[:, None] + 7
    trainer = trainer_of(prepared, QUICK)
    trainer.start_latents(given)
    before = trainer.latents.copy()
    np.testing.assert_allclose([before.mean(), before.std()], [0, 1], atol=1e-5)
    trainer.run_epoch()
    assert rank(trainer.latents, prepared.truth) > 0.9999
    trainer.run_epoch()
    assert np.abs(trainer.latents - before).max() > 0.1


@pytest.mark.parametrize("start, spread", [("zero", 0.0), ("random", 0.5)])
def test_other_starts(prepared: Prepared, start: str, spread: float) -> None:
    trainer = trainer_of(prepared, replace(QUICK, latent_start=start))
    trainer.start_latents(None)
    assert abs(trainer.latents.std() - spread) < 0.05
    trainer.run_epoch()
    assert np.isfinite(trainer.latents).all()


def test_nothing_moves_in_the_zero_motion_mask(prepared: Prepared) -> None:
    held = (prepared.mesh.vertices_A[:, 2] > 0).astype(np.float32)
    mesh = replace(prepared.mesh, motion=1 - held)
    model = train(trainer_of(prepared._replace(mesh=mesh), QUICK))
    u = model.displacement(model.latents[:50])
    assert np.abs(u[:, held > 0]).max() == 0
    assert np.abs(u[:, held == 0]).max() > 0


def test_standardised_latents_move_nothing(prepared: Prepared) -> None:
    trainer = trainer_of(prepared, replace(QUICK, latent_dims=2))
    trainer.start_latents(None)
    trainer.latents = (trainer.latents @ np.array([[2.0, 0.5], [0.0, 0.3]], np.float32)).astype(np.float32)
    with_torch = trainer.flow(torch_of(trainer.latents[:20])).detach().numpy()
    trainer.standardise_latents()
    after = trainer.flow(torch_of(trainer.latents[:20])).detach().numpy()
    np.testing.assert_allclose(after, with_torch, atol=1e-3)
    second = trainer.latents.T @ trainer.latents / len(trainer.latents) + trainer.covariance.mean(0)
    np.testing.assert_allclose(second, np.eye(2), atol=1e-3)


def test_resumed_equals_unbroken(prepared: Prepared, tmp_path: Path) -> None:
    unbroken = train(trainer_of(prepared, QUICK, checkpoint=tmp_path / "a.pt"))
    first = trainer_of(prepared, QUICK, checkpoint=tmp_path / "b.pt")

    def stop() -> bool:
        return first.epoch >= 2

    first.events.should_stop = stop
    with pytest.raises(StopRequested):
        train(first)
    second = trainer_of(prepared, QUICK, checkpoint=tmp_path / "b.pt")
    assert second.resume() and second.epoch == 2
    resumed = train(second)
    np.testing.assert_allclose(resumed.latents, unbroken.latents, atol=1e-4)
    np.testing.assert_allclose(resumed.map.data, unbroken.map.data, atol=1e-4 * np.abs(unbroken.map.data).max())


def torch_of(values: NDArray[np.float32]):  # type: ignore[no-untyped-def]
    import torch

    return torch.from_numpy(values)
