"""Poses and contrasts refined under the motion: what is off is found, what is right stays, and all is applied alike."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from engine.prepared import Prepared, one_moving_arm
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from flex_job.checkpoint import Checkpoint
from flex_job.events import Events, StopRequested
from flex_job.likelihood_gain import likelihood_gains, told_gains
from flex_job.mesh import TetMesh
from flex_job.mesh.tetmesh import vertex_weights
from flex_job.model import FlexModel
from flex_job.particles import ParticleStack
from flex_job.pose_corrections import PoseCorrections
from flex_job.pose_refinement import refine_poses
from flex_job.train import Trainer, train
from flex_job.turned_flow import TurnedFlow, rigid_unit
from flex_job.volume import Volume
from job_specs.parameters import TrainParameters

QUICK = TrainParameters(
    latent_dims=1,
    rigidity=2.0,
    epochs=4,
    band_end=0.8,
    fixed_latent_epochs=1,
    map_every=2,
    batch=100,
    flow_units=16,
)
N = 600
ERROR_DEG, ERROR_A = 5.0, 6.0


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return one_moving_arm(tmp_path_factory.mktemp("poses"), N, 0.3)


def errors(count: int = N) -> PoseCorrections:
    rng = np.random.default_rng(1)
    turns, shifts = np.deg2rad(ERROR_DEG) * rng.normal(size=(count, 3)), ERROR_A * rng.normal(size=(count, 2))
    return PoseCorrections(turns.astype(np.float32), shifts.astype(np.float32))


def wrong_poses(stack: ParticleStack) -> ParticleStack:
    return errors(len(stack)).applied(stack, np.ones(len(stack), np.float32))


def off(stack: ParticleStack, true: ParticleStack, mesh: TetMesh) -> tuple[float, float]:
    """Rms angle in degrees, and rms distance in angstroms of where the molecule's centre is seen."""
    centre = vertex_weights(mesh) @ mesh.vertices_A
    turns, places = [], []
    for each in (stack, true):
        rows = each.projections.astype(np.float64) * each.pixel_sizes_A[:, None, None]
        turns.append(np.concatenate([rows, np.cross(rows[:, 0], rows[:, 1])[:, None]], axis=1))
        places.append(rows @ centre - each.origins_px * each.pixel_sizes_A[:, None])
    angle = Rotation.from_matrix(turns[0] @ turns[1].transpose(0, 2, 1)).magnitude()
    apart = np.linalg.norm(places[0] - places[1], axis=1)
    return float(np.rad2deg(np.sqrt((angle**2).mean()))), float(np.sqrt((apart**2).mean()))


def refined(
    prepared: Prepared, stack: ParticleStack, *, poses: bool = True, scale: bool = False
) -> tuple[FlexModel, FlexModel, Trainer]:
    """Models as trained and with refined poses, and the trainer."""
    trainer = prepared.trainer(QUICK, stack)
    model = train(trainer)
    contrast = np.ones(len(stack), np.float32)
    return model, refine_poses(trainer, model, contrast, poses=poses, scale=scale), trainer


@pytest.fixture(scope="module")
def of_wrong_poses(prepared: Prepared) -> tuple[FlexModel, FlexModel, Trainer]:
    return refined(prepared, wrong_poses(prepared.stack))


def rank_correlation(model: FlexModel, truth: NDArray[np.float64]) -> float:
    ranks = [np.argsort(np.argsort(values)) for values in (model.latents[:, 0], truth)]
    return abs(float(np.corrcoef(*ranks)[0, 1]))


def test_errors_of_poses_are_found_and_latents_are_the_better_for_it(
    prepared: Prepared, of_wrong_poses: tuple[FlexModel, FlexModel, Trainer]
) -> None:
    stack = wrong_poses(prepared.stack)
    before, after, trainer = of_wrong_poses
    given = off(stack, prepared.stack, prepared.mesh)
    left = off(trainer.stack, prepared.stack, prepared.mesh)
    assert left[0] < 0.7 * given[0] and left[1] < 0.6 * given[1]
    assert rank_correlation(after, prepared.truth) > rank_correlation(before, prepared.truth)
    # the corrections that the model keeps are what the trainer went on with, and their opposite makes it worse
    assert after.corrections is not None and before.corrections is None
    ones = np.ones(N, np.float32)
    assert off(after.corrections.applied(stack, ones), prepared.stack, prepared.mesh) == left
    back = PoseCorrections(-after.corrections.turn_rad, -after.corrections.shift_A)
    worse = off(back.applied(stack, ones), prepared.stack, prepared.mesh)
    assert worse[0] > given[0] and worse[1] > given[1]


def test_exact_poses_stay(prepared: Prepared) -> None:
    before, after, trainer = refined(prepared, prepared.stack)
    moved = off(trainer.stack, prepared.stack, prepared.mesh)
    assert moved[0] < 0.2 * ERROR_DEG * 3**0.5 and moved[1] < 0.2 * ERROR_A * 2**0.5
    assert rank_correlation(after, prepared.truth) > rank_correlation(before, prepared.truth) - 0.01


def test_contrasts_are_found(prepared: Prepared) -> None:
    """Images of unequal contrast, made so by telling the engine that exact ones were brighter or fainter."""
    wrong = np.random.default_rng(2).uniform(0.6, 1.4, N).astype(np.float32)
    stack = replace(prepared.stack, scale=prepared.stack.scale / wrong)
    _, after, trainer = refined(prepared, stack, poses=False, scale=True)
    assert after.corrections is not None and after.corrections.contrast is not None
    assert not after.corrections.moved
    found = after.corrections.contrast / after.corrections.contrast.mean()
    wrong /= wrong.mean()
    assert np.sqrt(np.mean((found - wrong) ** 2)) < 0.7 * wrong.std()
    np.testing.assert_allclose(trainer.stack.scale, stack.scale * after.corrections.contrast, rtol=1e-5)
    np.testing.assert_array_equal(trainer.stack.projections, stack.projections)


def test_what_was_interrupted_goes_on(
    prepared: Prepared, of_wrong_poses: tuple[FlexModel, FlexModel, Trainer], tmp_path: Path
) -> None:
    """Between the two rounds: the second ends in the same numbers."""
    model, once, _ = of_wrong_poses
    contrast = np.ones(N, np.float32)
    said: list[str] = []

    def trainer(events: Events) -> Trainer:
        made = prepared.trainer(QUICK, wrong_poses(prepared.stack), checkpoint=Checkpoint(tmp_path / "c.pt", "key"))
        made.events = events
        return made

    stopping = Events(said.append, lambda: len(said) > 1)  # each round tells one thing
    with pytest.raises(StopRequested):
        refine_poses(trainer(stopping), model, contrast)
    again = refine_poses(trainer(Events(said.append)), model, contrast)
    assert len(said) == 3
    assert once.corrections is not None and again.corrections is not None
    np.testing.assert_array_equal(again.corrections.turn_rad, once.corrections.turn_rad)
    np.testing.assert_array_equal(again.latents, once.latents)
    np.testing.assert_array_equal(again.map.data, once.map.data)


def test_a_corrected_pose_shows_what_the_turned_particle_shows(prepared: Prepared) -> None:
    """Turn and shift as a displacement of the vertices, and as a pose: the same places in the image."""
    trainer = prepared.trainer(QUICK)
    flow = trainer.flow
    turned = TurnedFlow(flow, prepared.mesh, rigid_unit(prepared.mesh, trainer.device))
    z = torch.randn(50, 7, generator=torch.Generator().manual_seed(0)) * 8
    from flex_job.pose_refinement import _corrections, _Found

    found = _Found(
        z[:, :1].numpy(), np.zeros((50, 1, 1), np.float32), turned.motion(z).numpy(), np.ones(50, np.float32)
    )
    some = prepared.stack.select(np.arange(50))
    posed = _corrections(some, prepared.mesh, found, scale=False).applied(some, np.ones(50))
    images = trainer.levels.model(0.8)
    with torch.no_grad():
        bent = trainer.vertices + flow(z[:, :1])
        moved = trainer.vertices + turned(z)
    everyone = np.arange(50)
    seen = images.positions(posed.batch(everyone, images.band), bent)
    expected = images.positions(some.batch(everyone, images.band), moved)
    torch.testing.assert_close(seen, expected, atol=2e-4, rtol=1e-4)
    assert (seen - images.positions(some.batch(everyone, images.band), bent)).abs().max() > 0.3  # it did move


def test_a_model_keeps_its_corrections(prepared: Prepared, tmp_path: Path) -> None:
    trainer = prepared.trainer(replace(QUICK, epochs=1))
    model = train(trainer)
    assert FlexModel.load(model.save(tmp_path / "plain.pt")).corrections is None
    given = replace(errors(), contrast=np.linspace(0.5, 1.5, N, dtype=np.float32))
    views = np.concatenate([given.turn_rad, given.shift_A], axis=1)
    for corrections in (errors(), given, PoseCorrections(views[:, :3], views[:, 3:])):
        kept = FlexModel.load(replace(model, corrections=corrections).save(tmp_path / "model.pt")).corrections
        assert kept is not None
        np.testing.assert_array_equal(kept.turn_rad, corrections.turn_rad)
        np.testing.assert_array_equal(kept.shift_A, corrections.shift_A)
        assert (kept.contrast is None) == (corrections.contrast is None)
    short = PoseCorrections(given.turn_rad[1:], given.shift_A[1:])
    path = replace(model, corrections=short).save(tmp_path / "short.pt")
    with pytest.raises(ValueError, match="turn_rad"):
        FlexModel.load(path)


def test_parts_are_joined_in_the_particles_order() -> None:
    given = errors(10)
    places = [np.array([7, 1, 3]), np.array([0, 2, 4, 5, 6, 8, 9])]
    parts = [PoseCorrections(given.turn_rad[place], given.shift_A[place]) for place in places]
    joined = PoseCorrections.joined(parts, places)
    np.testing.assert_array_equal(joined.turn_rad, given.turn_rad)
    np.testing.assert_array_equal(joined.shift_A, given.shift_A)
    assert joined.contrast is None


def test_the_motion_gains_and_shuffled_latents_do_not(prepared: Prepared) -> None:
    trainer = prepared.trainer(QUICK)
    model = train(trainer)
    rigid = [Volume(prepared.map.data.copy(), prepared.map.pixel_size_A) for _ in range(2)]
    flex = [model.map, model.map]
    gains = likelihood_gains(trainer, [model], rigid, flex)
    assert gains.shape == (N,) and gains.mean() > 5 * gains.std() / N**0.5
    assert "of the particles gain" in told_gains(gains)
    # arms that are bent far gain most
    far = np.abs(prepared.truth) > 0.7
    assert gains[far].mean() > 2 * gains[~far].mean()
    # what holds noise alone gains nothing
    noise = prepared.folder / "noise.f16"
    m = len(prepared.stack.band())
    np.random.default_rng(0).normal(size=(N, m, 2)).astype(np.float16).tofile(noise)
    other = prepared.trainer(QUICK, replace(prepared.stack, path=noise))
    nothing = likelihood_gains(other, [model], rigid, flex)
    assert nothing.mean() < 3 * nothing.std() / N**0.5
