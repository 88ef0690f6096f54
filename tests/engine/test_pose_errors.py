"""Turns and shifts beside a flow, and how large those of the particles are: motions of the whole that bend nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from engine.prepared import Prepared, one_moving_arm

from flex_job.flow import FlowGenerator
from flex_job.mesh.tetmesh import vertex_weights
from flex_job.pose_errors import with_pose_errors
from flex_job.train import Trainer, train
from flex_job.turned_flow import TurnedFlow, rigid_unit
from flex_job.validation import simulate_rigid
from job_specs.parameter import settled
from job_specs.parameters import TrainParameters

QUICK = settled(TrainParameters(latent_dims=1, epochs=4, fixed_latent_epochs=1, map_every=2, batch=100, flow_units=16))
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """1,000 particles of 32 px with one moving arm, of exact poses."""
    return one_moving_arm(tmp_path_factory.mktemp("pose_errors"), 1000, 0.1)


def rigid(data: Prepared, size_A: float) -> TurnedFlow:
    return TurnedFlow(None, data.mesh, size_A * rigid_unit(data.mesh, CPU))


def sizes_A(data: Prepared, turned: TurnedFlow) -> np.ndarray:
    """Rms (6,) of the three shifts and of what the three turns move, in angstroms over the density."""
    return torch.linalg.solve(rigid_unit(data.mesh, CPU), turned.root).norm(dim=1).numpy()


def found_in(
    data: Prepared, trainer: Trainer, flow: FlowGenerator | None, latents: np.ndarray, *, beside_latents: bool = False
) -> np.ndarray:
    level, everyone = trainer.levels.level(data.map, QUICK.band_start), np.arange(len(trainer.stack))
    return sizes_A(data, with_pose_errors(trainer, level, flow, latents, everyone, beside_latents=beside_latents))


def test_unit_amplitudes_are_one_angstrom(prepared: Prepared) -> None:
    _, slopes = rigid(prepared, 1.0).with_derivative(torch.zeros(1, 6))
    squares = slopes[0].square().sum(-1).numpy()
    np.testing.assert_allclose(squares @ vertex_weights(prepared.mesh), 1.0, rtol=1e-4)


def test_a_turn_and_shift_bends_nothing_however_large(prepared: Prepared) -> None:
    """Distances along the mesh's edges stay. Negative control: those of as large an infinitesimal turn do not."""
    turned, z = rigid(prepared, 20.0), torch.tensor([[0.5, -1.0, 0.3, 1.2, -0.7, 0.4]])
    first, second = prepared.mesh.cells[:, 0], prepared.mesh.cells[:, 1]

    def changes_A(u: torch.Tensor) -> torch.Tensor:
        before, after = turned.rest, turned.rest + u[0]
        return ((after[first] - after[second]).norm(dim=1) - (before[first] - before[second]).norm(dim=1)).abs()

    straight = torch.einsum("bk,bkva->bva", z, turned.with_derivative(torch.zeros_like(z))[1])
    assert changes_A(turned(z)).max() < 1e-3
    assert changes_A(straight).max() > 1.0


@pytest.mark.parametrize("dims", [2, 0], ids=["a flow", "no flow"])
def test_derivatives_of_a_turned_flow(prepared: Prepared, dims: int) -> None:
    torch.manual_seed(0)
    flow = FlowGenerator(dims, 1, 8, torch.ones(len(prepared.mesh.vertices_A))) if dims else None
    turned = TurnedFlow(flow, prepared.mesh, rigid_unit(prepared.mesh, CPU))
    z = torch.tensor([[0.3, -0.7, 2.0, -1.0, 0.5, 0.0, 0.0, 0.0]])[:, 2 - dims :]
    here, slopes = turned.with_derivative(z)
    assert slopes.shape == (1, dims + 6, *here.shape[1:])
    torch.testing.assert_close(here, turned(z))
    for k in range(dims + 6):
        step = torch.zeros_like(z)
        step[0, k] = 0.1
        with torch.no_grad():
            numerical = (turned(z + step) - turned(z - step)) / 0.2
        torch.testing.assert_close(slopes[:, k], numerical, atol=2e-3, rtol=1e-2)
    np.testing.assert_allclose(turned.amplitudes(turned.motion(z)).numpy(), z[:, dims:].numpy(), atol=1e-5)


@pytest.mark.parametrize("size_A, low, high", [(6.0, 4.5, 7.5), (0.0, 0.0, 2.5)], ids=["errors", "exact poses"])
def test_errors_of_rigid_particles_are_found_in_their_size(
    prepared: Prepared, size_A: float, low: float, high: float
) -> None:
    level = prepared.trainer(QUICK).levels.level(prepared.map, QUICK.band_end)
    path = prepared.folder / f"rigid_{size_A:g}.f16"
    stack = simulate_rigid(prepared.stack, level, rigid(prepared, size_A), path, seed=0, batch_size=200)
    sizes = found_in(prepared, prepared.trainer(QUICK, stack), None, np.zeros((len(stack), 0), np.float32))
    assert low <= sizes.min() and sizes.max() < high


def test_a_motion_is_no_error_of_the_pose(prepared: Prepared) -> None:
    """Exact poses of bent particles are next to exact with the flow, its latents as given or free. Negative control:
    without it they seem to be off."""
    trainer = prepared.trainer(QUICK)
    model = train(trainer)
    flow = model.flow.to(CPU)
    seeming = np.sqrt((found_in(prepared, trainer, None, model.latents) ** 2).mean())
    for beside in (False, True):
        sizes = found_in(prepared, trainer, flow, model.latents, beside_latents=beside)
        assert np.sqrt((sizes**2).mean()) < 0.7 * seeming
