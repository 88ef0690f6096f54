"""The map as linear least squares: against dense algebra and conjugate gradients, resumed, rigid and flexible."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from flex_job.checkpoint import Checkpoint
from flex_job.events import Events, StopRequested
from flex_job.flow import FlowGenerator
from flex_job.imaging import ImageModel
from flex_job.model import FlexModel
from flex_job.operator import make_operator, rigid_domain
from flex_job.reconstruct import reconstruct
from flex_job.solver import LeastSquares, solve
from flex_job.solver_state import SolverState, load_solver_state
from job_specs.parameters import ReconstructParameters


def problem_of(world, latents: NDArray | None = None, **arguments: object) -> LeastSquares:
    everyone = np.arange(len(world.stack))
    return LeastSquares(world.stack, everyone, world.model, world.positions(latents), **arguments)  # type: ignore


@pytest.fixture(scope="module")
def tiny(world_of):
    """Few voxels, so that the whole matrix can be written down."""
    return world_of(count=30, box=12, scale=50.0, noise=1.0, motion_A=4.0, sigma_px=0.8)


@pytest.fixture(scope="module")
def small(world_of):
    return world_of(count=60, box=20, scale=50.0, noise=1.0)


@pytest.fixture(scope="module")
def matrix(tiny) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A (coefficients, voxels) and data (coefficients,), column by column in float64: whitened, CTFs applied."""
    batch = tiny.stack.batch(np.arange(30))
    q = tiny.positions(tiny.latents)(batch).double()
    columns = []
    for unit in torch.eye(len(tiny.domain), dtype=torch.float64):
        column = batch.transfer * tiny.model.transform(unit, q)
        columns.append(torch.view_as_real(column).flatten())
    return torch.stack(columns, dim=1).numpy(), torch.view_as_real(batch.data).flatten().double().numpy()


# -- against dense algebra ---------------------------------------------------------------------------------------


def test_gradient_and_product_are_those_of_the_normal_equations(tiny, matrix) -> None:
    a, data = matrix
    problem = problem_of(tiny, tiny.latents, batch_size=7)
    assert np.linalg.norm(problem.first_gradient(None).numpy() + a.T @ data) < 1e-5 * np.linalg.norm(a.T @ data)
    values = np.random.default_rng(0).normal(size=len(tiny.domain)).astype(np.float32)
    expected = a.T @ (a @ values) + problem.ridge * values
    found = problem.product(torch.from_numpy(values)).numpy()
    assert np.linalg.norm(found - expected) < 1e-5 * np.linalg.norm(expected)
    expected -= a.T @ data
    found = problem.first_gradient(torch.from_numpy(values)).numpy()
    assert np.linalg.norm(found - expected) < 1e-5 * np.linalg.norm(expected)


def test_solution_is_that_of_dense_least_squares(tiny, matrix) -> None:
    """In all that images see: the loss and the predicted images. What none sees converges last, if ever."""
    a, data = matrix
    problem = problem_of(tiny, tiny.latents)
    state = solve(problem, max_iterations=60, tolerance=0.0)
    exact = np.linalg.solve(a.T @ a + problem.ridge * np.eye(a.shape[1]), a.T @ data)
    lowered = 0.5 * (data @ a @ exact)
    assert (1 - 2e-3) * lowered < sum(state.decreases) < (1 + 1e-5) * lowered
    assert np.linalg.norm(a @ (state.values.numpy() - exact)) < 0.05 * np.linalg.norm(a @ exact)


def test_the_ridge_changes_nothing_that_images_see(tiny, matrix) -> None:
    a, data = matrix
    problem = problem_of(tiny, tiny.latents)
    problem.first_gradient(None)
    free = np.linalg.lstsq(a, data, rcond=None)[0]
    bound = np.linalg.solve(a.T @ a + problem.ridge * np.eye(a.shape[1]), a.T @ data)
    assert problem.ridge > 0
    assert np.linalg.norm(a @ (free - bound)) < 0.05 * np.linalg.norm(a @ free)
    assert np.linalg.norm(bound) < np.linalg.norm(free)


def test_preconditioner_is_symmetric_and_near_the_inverse(small) -> None:
    problem = problem_of(small)
    problem.first_gradient(None)
    rng = np.random.default_rng(0)
    first, second = (torch.from_numpy(rng.normal(size=len(small.domain)).astype(np.float32)) for _ in range(2))
    left, right = torch.dot(problem.precondition(first), second), torch.dot(first, problem.precondition(second))
    sizes = [float(torch.dot(problem.precondition(each), each)) for each in (first, second)]
    assert abs(float(left - right)) < 1e-4 * np.sqrt(sizes[0] * sizes[1])
    assert min(sizes) > 0
    # Absolute scale, on a smooth map: without it the first step of any solver would be off by orders.
    again = problem.precondition(problem.product(small.values))
    assert 0.5 < float(torch.dot(again, small.values) / small.values.square().sum()) < 2


# -- against conjugate gradients ---------------------------------------------------------------------------------


def conjugate_gradients(problem: LeastSquares, count: int) -> list[torch.Tensor]:
    """Iterates of the textbook method with the same preconditioner."""
    residual = -problem.first_gradient(None)
    values = torch.zeros_like(residual)
    z = problem.precondition(residual)
    direction, iterates = z, []
    for _ in range(count):
        product = problem.product(direction)
        old = torch.dot(residual, z)
        length = old / torch.dot(direction, product)
        values, residual = values + length * direction, residual - length * product
        z = problem.precondition(residual)
        direction = z + torch.dot(residual, z) / old * direction
        iterates.append(values)
    return iterates


def test_lbfgs_with_exact_steps_is_preconditioned_conjugate_gradients(small) -> None:
    expected = conjugate_gradients(problem_of(small), 8)
    found: list[torch.Tensor] = []
    solve(problem_of(small), max_iterations=8, tolerance=0.0, each=lambda state: found.append(state.values))
    for step, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert float((one - other).norm()) < 2e-3 * float(other.norm()), step


# -- course of the iteration -------------------------------------------------------------------------------------


def test_loss_falls_at_every_iteration_by_what_is_told(tiny, matrix) -> None:
    a, data = matrix
    problem, losses = problem_of(tiny, tiny.latents), [0.5 * float(data @ data)]

    def each(state: SolverState) -> None:
        values = state.values.double().numpy()
        losses.append(0.5 * float(np.square(data - a @ values).sum() + problem.ridge * (values @ values)))

    state = solve(problem, max_iterations=10, tolerance=0.0, each=each)
    falls = -np.diff(losses)
    assert (falls > 0).all()
    assert np.abs(falls - state.decreases).max() < 1e-3 * falls.max()


def test_gradient_kept_by_recurrence_is_the_true_one(small) -> None:
    problem = problem_of(small)
    state = solve(problem, max_iterations=12, tolerance=0.0)
    true = problem.first_gradient(state.values)
    assert float((state.gradient - true).norm()) < 1e-4 * float(problem.first_gradient(None).norm())


@pytest.mark.parametrize("tolerance", [0.3, 1e-2, 1e-3])
def test_it_stops_when_an_iteration_brings_less_than_the_tolerance(small, tolerance: float) -> None:
    state = solve(problem_of(small), max_iterations=200, tolerance=tolerance)
    gains = np.array(state.decreases) / np.cumsum(state.decreases)
    assert state.converged and state.iteration == len(state.decreases) < 200
    assert gains[-1] < tolerance and (gains[:-1] >= tolerance).all()


def test_max_iterations_is_not_convergence(small) -> None:
    state = solve(problem_of(small), max_iterations=3, tolerance=1e-6)
    assert state.iteration == 3 and not state.converged


@pytest.mark.parametrize("after", [1, 3, 9])
def test_a_resumed_solve_equals_an_unbroken_one(small, after: int) -> None:
    unbroken = solve(problem_of(small), max_iterations=11, tolerance=0.0)
    saved = copy.deepcopy(solve(problem_of(small), max_iterations=after, tolerance=0.0))
    resumed = solve(problem_of(small), max_iterations=11, tolerance=0.0, state=saved)
    assert torch.equal(resumed.values, unbroken.values)
    assert resumed.decreases == unbroken.decreases and resumed.iteration == 11


def test_kept_weights_give_the_same_preconditioner(small) -> None:
    """A resumed solve skips the first gradient; its filter and ridge are those of a solve from the start."""
    whole, resumed = problem_of(small, small.latents, batch_size=17), problem_of(small, small.latents, batch_size=17)
    gradient = whole.first_gradient(None)
    resumed.set_weight(whole.weight)
    assert resumed.ridge == whole.ridge > 0
    assert torch.equal(resumed.precondition(gradient), whole.precondition(gradient))
    # Negative control: half of the particles weigh about half as much.
    few = LeastSquares(small.stack, np.arange(30), small.model, small.positions(small.latents))
    few.first_gradient(None)
    ratio = float(few.precondition(gradient).norm() / whole.precondition(gradient).norm())
    assert 1.5 < ratio < 2.5


@pytest.mark.parametrize("checks", [2, 5, 11])
def test_a_solve_stopped_within_a_pass_ends_as_an_unbroken_one(small, tmp_path, checks: int) -> None:
    """With three batches to a pass the stops come in the first gradient, in the first and in the third product."""
    unbroken = solve(problem_of(small, batch_size=20), max_iterations=5, tolerance=0.0)
    checkpoint = Checkpoint(tmp_path / "checkpoint.pt", "solve")
    calls = iter([False] * checks + [True])
    stopped = problem_of(small, batch_size=20, events=Events(should_stop=lambda: next(calls)))
    with pytest.raises(StopRequested):
        solve(stopped, max_iterations=5, tolerance=0.0, checkpoint=checkpoint)
    resumed = problem_of(small, batch_size=20)
    state = load_solver_state(checkpoint, resumed.voxels, resumed.group)
    assert state is not None and state.partial is not None and 0 < int(state.partial.done.sum()) < len(small.stack)
    state = solve(resumed, max_iterations=5, tolerance=0.0, state=state, checkpoint=checkpoint)
    assert torch.equal(state.values, unbroken.values) and state.decreases == unbroken.decreases
    other = problem_of(small).voxels.clone()
    other[0] += 1
    assert load_solver_state(checkpoint, other, resumed.group) is None


def test_a_start_near_the_solution_saves_the_first_steps(small) -> None:
    cold = solve(problem_of(small), max_iterations=2, tolerance=0.0)
    warm = solve(problem_of(small), start=cold.values, max_iterations=1, tolerance=0.0)
    assert warm.decreases[0] < 0.2 * cold.decreases[0]
    nothing = solve(problem_of(small), start=torch.zeros_like(cold.values), max_iterations=2, tolerance=0.0)
    assert float((nothing.values - cold.values).norm()) < 1e-5 * float(cold.values.norm())


def test_no_weight_at_all_is_an_error(small) -> None:
    dark = replace(small, stack=replace(small.stack, scale=np.zeros_like(small.stack.scale)))
    with pytest.raises(ValueError, match="no particle gives weight"):
        problem_of(dark).first_gradient(None)


def test_a_stop_is_honoured_between_batches(small) -> None:
    calls = iter([False] * 4 + [True] * 100)
    events = Events(should_stop=lambda: next(calls))
    with pytest.raises(StopRequested):
        solve(problem_of(small, batch_size=20, events=events), max_iterations=10, tolerance=0.0)


# -- reconstruction ----------------------------------------------------------------------------------------------


def flex_model(world, flow: FlowGenerator | None = None) -> FlexModel:
    count, dims = world.latents.shape
    return FlexModel(
        mesh=world.mesh,
        flow=flow or world.flow,
        latents=world.latents,
        covariance=np.broadcast_to(np.eye(dims, dtype=np.float32), (count, dims, dims)).copy(),
        map=world.density,
        support=world.support,
        history=np.zeros((0, 1)),
        history_names=("loss",),
    )


def correlation(one: NDArray, other: NDArray) -> float:
    one, other = one - one.mean(), other - other.mean()
    return float(np.vdot(one, other) / np.linalg.norm(one) / np.linalg.norm(other))


PLAIN = ReconstructParameters(max_iterations=12, tolerance=1e-4, oversampling=1)


@pytest.fixture(scope="module")
def still_flow(small) -> FlowGenerator:
    flow = FlowGenerator(1, 2, 32, torch.from_numpy(small.mesh.motion))
    for parameter in flow.parameters():
        torch.nn.init.zeros_(parameter)
    return flow


def test_zero_flow_is_the_rigid_reconstruction(small, still_flow: FlowGenerator) -> None:
    rigid = reconstruct(small.stack, small.support, None, PLAIN, Events())
    flex = reconstruct(small.stack, small.support, [flex_model(small, still_flow)], PLAIN, Events())
    for one, other in zip(flex.maps, rigid.maps, strict=True):
        assert np.linalg.norm(one.data - other.data) < 1e-3 * np.linalg.norm(other.data)
    assert flex.iterations == rigid.iterations


def test_the_true_flow_beats_the_rigid_reconstruction(world_of) -> None:
    world = world_of(count=150, box=20, scale=150.0, noise=1.0, motion_A=8.0, sigma_px=0.8)
    rigid = reconstruct(world.stack, world.support, None, PLAIN, Events())
    flex = reconstruct(world.stack, world.support, [flex_model(world)], PLAIN, Events())
    truth = world.density.data * world.support.data
    without = [correlation(volume.data, truth) for volume in rigid.maps]
    through = [correlation(volume.data, truth) for volume in flex.maps]
    assert min(through) > 0.98 and 1 - min(through) < 0.3 * (1 - max(without)), (without, through)
    halves = [correlation(*(volume.data for volume in result.maps)) for result in (rigid, flex)]
    assert halves[1] > halves[0]
    # Negative control: the same flow run backwards is worse than none.
    backwards = replace(flex_model(world), latents=-world.latents)
    wrong = reconstruct(world.stack, world.support, [backwards], PLAIN, Events())
    assert max(correlation(volume.data, truth) for volume in wrong.maps) < min(without)


def test_half_maps_hold_the_density_in_its_own_units(world_of) -> None:
    world = world_of(count=60, box=20, scale=500.0, motion_A=1e-3)
    result = reconstruct(world.stack, world.support, None, replace(PLAIN, max_iterations=40), Events())
    for volume in result.maps:
        assert volume.pixel_size_A == world.stack.pixel_size_A
        truth = world.density.data * world.support.data
        assert np.vdot(volume.data, truth) / np.vdot(truth, truth) == pytest.approx(1, abs=0.05)
        assert not volume.data[world.support.data == 0].any()


def test_each_half_sees_its_own_particles_only(small, tmp_path: Path) -> None:
    """Spoiling the images of half 2 leaves half 1 as it was, to the last bit."""
    shape = (len(small.stack), len(small.stack.band()), 2)
    images = np.fromfile(small.stack.path, np.float16).reshape(shape)
    images[small.stack.halves == 2] = 0
    spoilt = replace(small.stack, path=tmp_path / "spoilt.f16")
    images.tofile(spoilt.path)
    few = replace(PLAIN, max_iterations=2)
    before = reconstruct(small.stack, small.support, None, few, Events())
    after = reconstruct(spoilt, small.support, None, few, Events())
    assert np.array_equal(before.maps[0].data, after.maps[0].data)
    assert not np.allclose(before.maps[1].data, after.maps[1].data)


class _StopAfter(Events):
    """Asks for a stop once `count` iterations have been told."""

    def __init__(self, count: int) -> None:
        self.lines: list[str] = []
        super().__init__(
            message=self.lines.append,
            should_stop=lambda: sum("iteration " in line for line in self.lines) >= count,
        )


@pytest.mark.parametrize("count", [2, 7])
def test_a_stopped_reconstruction_goes_on_from_its_checkpoint(small, tmp_path: Path, count: int) -> None:
    """In the first half and in the second; the maps are those of an unbroken run, to the last bit."""
    parameters = replace(PLAIN, max_iterations=5, tolerance=0.0)
    unbroken = reconstruct(small.stack, small.support, None, parameters, Events())
    checkpoint = Checkpoint(tmp_path / "checkpoint.pt", "half-maps")
    with pytest.raises(StopRequested):
        reconstruct(small.stack, small.support, None, parameters, _StopAfter(count), checkpoint=checkpoint)
    lines: list[str] = []
    resumed = reconstruct(
        small.stack, small.support, None, parameters, Events(message=lines.append), checkpoint=checkpoint
    )
    for one, other in zip(resumed.maps, unbroken.maps, strict=True):
        assert np.array_equal(one.data, other.data)
    assert any("goes on after iteration" in line for line in lines)
    assert not list(tmp_path.glob("*.part"))


def test_a_checkpoint_of_another_support_is_not_used(small, tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "checkpoint.pt", "half-maps")
    few = replace(PLAIN, max_iterations=2)
    reconstruct(small.stack, small.support, None, few, Events(), checkpoint=checkpoint)
    smaller = replace(small.support, data=small.support.data * (small.density.data > 0.1 * small.density.data.max()))
    found = reconstruct(small.stack, smaller, None, few, Events(), checkpoint=checkpoint)
    expected = reconstruct(small.stack, smaller, None, few, Events())
    assert np.array_equal(found.maps[0].data, expected.maps[0].data)


def test_stopping_short_is_told(small) -> None:
    lines: list[str] = []
    parameters = replace(PLAIN, max_iterations=2, tolerance=1e-9)
    result = reconstruct(small.stack, small.support, None, parameters, Events(message=lines.append))
    assert not result.converged and result.iterations == (2, 2)
    assert any("max_iterations (2)" in line for line in lines)


def test_rigid_positions_follow_the_pose_convention(small) -> None:
    """The solver's one-cell mesh puts a point at x where the consensus says: (R x)[:2] - origin from the centre."""
    _, vertices = rigid_domain(small.support)
    operator, stack = make_operator(small.domain), small.stack
    model = ImageModel(operator, 20, stack.band(), stack_box=20, stack_pixel_size_A=stack.pixel_size_A, oversampling=2)
    q = model.positions(stack.batch(np.array([5])), torch.from_numpy(vertices))[0].numpy()
    expected = vertices @ stack.projections[5].T - stack.origins_px[5] + 10
    assert np.abs(q - 2 * expected).max() < 1e-4
