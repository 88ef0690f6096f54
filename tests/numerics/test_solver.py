"""The map as linear least squares with a prior: against dense algebra and L-BFGS, resumed, rigid and flexible."""

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
from flex_job.fsc import fsc
from flex_job.imaging import ImageModel
from flex_job.model import FlexModel
from flex_job.operator import make_operator, rigid_domain
from flex_job.reconstruct import reconstruct
from flex_job.shell_filter import ShellFilter
from flex_job.solver import LeastSquares, prior_of, solve, unfiltered_maps
from flex_job.solver_state import SolverState, load_solver_state
from job_specs.parameters import ReconstructParameters


def problem_of(world, latents: NDArray | None = None, **arguments: object) -> LeastSquares:
    """Of all particles as one set."""
    everyone = [np.arange(len(world.stack))]
    return LeastSquares(world.stack, everyone, world.model, [world.positions(latents)], **arguments)  # type: ignore


def even_taper(world) -> NDArray[np.float32]:
    return np.ones(len(world.domain), np.float32)


def halves_of(world, **arguments: object) -> LeastSquares:
    """Of the two half-sets, in a taper that ends no more softly than the support."""
    sets = [np.flatnonzero(world.stack.halves == half) for half in (1, 2)]
    arguments = {"taper": even_taper(world)} | arguments
    return LeastSquares(world.stack, sets, world.model, [world.positions(None)] * 2, **arguments)  # type: ignore


def even_prior(problem: LeastSquares) -> torch.Tensor:
    """The same in every shell."""
    return torch.full((problem.filter.corner,), 5.0, dtype=torch.float64)


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


def taper_of(world) -> NDArray[np.float32]:
    """One that differs from voxel to voxel."""
    return np.random.default_rng(3).uniform(0.2, 1, len(world.domain)).astype(np.float32)


@pytest.mark.parametrize("tapered", [False, True])
def test_gradient_and_product_are_those_of_the_normal_equations(tiny, matrix, tapered: bool) -> None:
    a, data = matrix
    taper = taper_of(tiny) if tapered else None
    a = a * taper if tapered else a
    problem = problem_of(tiny, tiny.latents, taper=taper, batch_size=7)
    gradient = problem.start()[0][0].numpy()
    assert np.linalg.norm(gradient + a.T @ data) < 1e-5 * np.linalg.norm(a.T @ data)
    values = np.random.default_rng(0).normal(size=(1, len(tiny.domain))).astype(np.float32)
    expected = a.T @ (a @ values[0])
    found = problem.product(torch.from_numpy(values))[0].numpy()
    assert np.linalg.norm(found - expected) < 1e-5 * np.linalg.norm(expected)


def test_solution_is_that_of_dense_least_squares(tiny, matrix) -> None:
    """In all that images see: the loss and the predicted images. What none sees converges last, if ever."""
    a, data = matrix
    problem = problem_of(tiny, tiny.latents)
    state = solve(problem, max_iterations=60)
    assert state.prior is not None and len(torch.unique(state.prior)) == 1  # the ridge
    exact = np.linalg.solve(a.T @ a + float(state.prior[0]) * np.eye(a.shape[1]), a.T @ data)
    assert np.linalg.norm(a @ (state.values[0].numpy() - exact)) < 0.05 * np.linalg.norm(a @ exact)
    # The ridge changes nothing that images see.
    free = np.linalg.solve(a.T @ a + 1e-3 * float(state.prior[0]) * np.eye(a.shape[1]), a.T @ data)
    assert np.linalg.norm(a @ (free - exact)) < 0.05 * np.linalg.norm(a @ free)
    assert np.linalg.norm(exact) < np.linalg.norm(free)


def test_with_a_prior_and_a_taper_it_is_that_of_its_normal_equations(tiny, matrix) -> None:
    a, data = matrix
    taper = taper_of(tiny)
    a = a * taper
    problem = problem_of(tiny, tiny.latents, taper=taper)
    weights = problem.shell_weights(problem.start()[1])
    prior = prior_of(weights, torch.linspace(0.9, 0.4, tiny.stack.box // 2 + 1))
    state = solve(problem, max_iterations=40, state=SolverState(problem.zeros(), prior=prior))
    values = state.values[0].double().numpy()
    of_prior = problem.filter.apply(state.values, prior)[0].double().numpy()
    scale = np.linalg.norm(a.T @ data)
    assert np.linalg.norm(a.T @ (a @ values - data) + of_prior) < 1e-3 * scale
    assert np.linalg.norm(of_prior) > 0.05 * scale  # it is no small thing


def test_each_set_is_solved_for_as_if_it_were_alone(small) -> None:
    """Where nothing is taken as known of the signal; the sets do not even share the length of a step."""
    together = halves_of(small)
    both = solve(together, max_iterations=4, state=SolverState(together.zeros(), prior=even_prior(together)))
    for row, index in enumerate(together.sets):
        alone = LeastSquares(
            small.stack, [index], small.model, [small.positions(None)], taper=np.ones_like(small.values)
        )
        state = solve(alone, max_iterations=4, state=SolverState(alone.zeros(), prior=even_prior(alone)))
        assert torch.equal(state.values[0], both.values[row])


def test_filters_are_symmetric(small) -> None:
    filters, rng = ShellFilter(small.domain, "cpu"), np.random.default_rng(0)
    first, second = (torch.from_numpy(rng.normal(size=(1, len(small.domain))).astype(np.float32)) for _ in range(2))
    curve = torch.linspace(3, 0.5, 11)
    left, right = (float((filters.apply(x, curve) * y).sum()) for x, y in ((first, second), (second, first)))
    size = float((filters.apply(first, curve) * first).sum())
    assert abs(left - right) < 1e-4 * size and size > 0
    assert torch.allclose(filters.apply(first, torch.ones(5)), first, atol=1e-5)
    # each set has a curve of its own
    both = filters.apply(torch.cat([first, first]), torch.tensor([[2.0], [3.0]]))
    assert torch.allclose(both[1], 1.5 * both[0], atol=1e-5)
    # linear between shells, the last one's value beyond
    grid = filters.grid(torch.tensor([4.0, 2.0, 1.0]))
    assert grid[0, 0, :4].tolist() == [4, 2, 1, 1] and float(grid[0, 1, 1]) == pytest.approx(2 - (2**0.5 - 1))


def test_what_a_taper_makes_of_a_filter(small) -> None:
    """Against plane waves put through both, in shells inside the band, at its edge and beyond."""
    filters, box = ShellFilter(small.domain, "cpu"), small.domain.box
    taper = torch.from_numpy(small.domain.gather(small.density.data)) / float(small.density.data.max())
    curve = torch.cat([torch.linspace(3, 1, 8), torch.zeros(filters.corner - 8)])
    seen = filters.seen_through(taper, curve[None])[0]
    z, y, x = np.unravel_index(small.domain.flat_index, (box,) * 3)
    for shell in (2, 7, 9):
        found = []
        for k in ((shell, 0, 0), (0, shell, 0), (0, 0, shell)):
            phase = 2 * np.pi * (k[0] * z + k[1] * y + k[2] * x) / box
            waves = (taper * torch.from_numpy(np.stack([np.cos(phase), np.sin(phase)]).astype(np.float32))).float()
            found.append(float((filters.apply(waves, curve) * waves).sum() / waves.square().sum()))
        assert float(seen[shell]) == pytest.approx(np.mean(found), rel=0.15), shell
    assert 0 < float(seen[9]) < 0.5 * float(seen[7])


def test_shell_weights_are_what_the_product_multiplies_a_smooth_map_with(small) -> None:
    """Absolute scale: without it the first step of any solver would be off by orders."""
    problem = problem_of(small)
    weights = problem.shell_weights(problem.start()[1])
    band = int(problem.model.band.shells.max()) + 1
    assert (weights[:, :band] > 0).all() and not weights[:, band:].any()
    again = problem.filter.apply(problem.product(small.values[None]), 1 / weights[:, :band])
    assert 0.5 < float((again * small.values).sum() / small.values.square().sum()) < 2
    few = LeastSquares(small.stack, [np.arange(30)], small.model, [small.positions(None)])
    ratio = (few.shell_weights(few.start()[1]) / weights)[:, :band]
    assert 0.4 < float(ratio.min()) < float(ratio.max()) < 0.6  # half of the particles weigh about half as much


def test_the_prior_is_the_inverse_of_the_signal_that_the_halves_tell() -> None:
    weights = torch.tensor([[4.0, 4.0, 2.0, 1.0, 0.5]] * 2, dtype=torch.float64)
    prior = prior_of(weights, torch.tensor([1.0, 0.5, 0.8, 0.4], dtype=torch.float64))
    assert prior.tolist() == pytest.approx([4, 4, 0.5, 1.5, 1.5])  # the last one for the corners
    # an FSC of one or below zero, and shells that hardly any image sees, are no cause for infinities
    prior = prior_of(weights * torch.tensor([1, 1, 1, 0, 0.0]), torch.tensor([1.0, 1.0, -0.1, 0.0]).double())
    assert torch.isfinite(prior).all() and (prior > 0).all()


# -- against L-BFGS ----------------------------------------------------------------------------------------------


def lbfgs(problem: LeastSquares, weights: torch.Tensor, prior: torch.Tensor, count: int) -> list[torch.Tensor]:
    """Iterates of limited-memory BFGS (Nocedal 1980) around the same preconditioner, with exact steps."""

    def dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a.double() * b.double()).sum()

    gradient = problem.start()[0]
    values, pairs, iterates = torch.zeros_like(gradient), [], []
    for _ in range(count):
        vector, shares = gradient.clone(), []
        for step, change in reversed(pairs):
            shares.append(dot(step, vector) / dot(step, change))
            vector -= shares[-1] * change
        vector = problem.filter.apply(vector, torch.where(weights > 0, 1 / (weights + prior), 0))
        for (step, change), share in zip(pairs, reversed(shares), strict=True):
            vector += (share - dot(change, vector) / dot(step, change)) * step
        product = problem.product(-vector) - problem.filter.apply(vector, prior)
        length = dot(gradient, vector) / dot(-vector, product)
        step, change = -length * vector, length * product
        values, gradient, pairs = values + step, gradient + change, [*pairs, (step, change)]
        iterates.append(values)
    return iterates


def test_lbfgs_with_exact_steps_is_preconditioned_conjugate_gradients(small) -> None:
    """The loss is quadratic, so both go the same way; conjugate gradients remember one step for it."""
    problem, found = problem_of(small), []
    state = solve(problem, max_iterations=8, each=lambda state: found.append(state.values))
    expected = lbfgs(problem, problem.shell_weights(state.weight), state.prior, 8)
    for step, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert float((one - other).norm()) < 2e-3 * float(other.norm()), step
    assert float((found[0] - found[7]).norm()) > 0.05 * float(found[7].norm())


# -- course of the iteration -------------------------------------------------------------------------------------


def test_the_objective_falls_at_every_iteration(tiny, matrix) -> None:
    a, data = matrix
    problem, losses = problem_of(tiny, tiny.latents), [0.5 * float(data @ data)]

    def each(state: SolverState) -> None:
        values = state.values[0].double().numpy()
        losses.append(0.5 * float(np.square(data - a @ values).sum() + float(state.prior[0]) * (values @ values)))

    solve(problem, max_iterations=10, each=each)
    falls = -np.diff(losses)
    assert (falls > 0).all() and falls[-1] < 1e-3 * falls[0]


def test_gradient_kept_by_recurrence_is_the_true_one(small) -> None:
    problem = halves_of(small)
    state = solve(problem, max_iterations=12, tolerance=0.0)
    first = problem.start()[0]
    true = first + problem.product(state.values)
    assert float((state.gradient - true).norm()) < 1e-4 * float(first.norm())


def test_prior_and_agreement_settle_on_each_other(small) -> None:
    """The map is the one of its own prior: a solve with that prior from the start ends there too."""
    problem = halves_of(small)
    state = solve(problem, max_iterations=60, tolerance=1e-3)
    assert state.converged
    again = solve(problem, max_iterations=20, state=SolverState(problem.zeros(), prior=state.prior))
    assert float((again.values - state.values).norm()) < 1e-2 * float(state.values.norm())


@pytest.mark.parametrize("tolerance", [0.1, 1e-3])
def test_it_stops_when_no_shell_of_the_fsc_changes_by_more_than_the_tolerance(small, tolerance: float) -> None:
    problem, changes, curves = halves_of(small), [], []

    def each(state: SolverState) -> None:
        changes.append(state.change)
        curves.append(fsc(*problem.density(state.values)))

    state = solve(problem, max_iterations=200, tolerance=tolerance, each=each)
    assert state.converged and state.iteration == len(changes) < 200
    assert changes[-1] < tolerance and all(change >= tolerance for change in changes[:-1])
    for before, after, change in zip(curves, curves[1:], changes[1:], strict=False):
        assert change == pytest.approx(np.abs(after - before)[1:].max(), abs=1e-6)


def test_what_more_iterations_bring_is_little(small) -> None:
    """Stopping early is not what keeps the noise down."""
    problem = halves_of(small)
    stopped = solve(problem, max_iterations=200, tolerance=0.01)
    long = solve(problem, max_iterations=stopped.iteration + 12, tolerance=0.0)
    truth = small.density.data * small.support.data
    near, far = (sum(unfiltered_maps(problem, state)) for state in (stopped, long))
    assert abs(correlation(near, truth) - correlation(far, truth)) < 2e-3
    assert np.linalg.norm(near - far) < 0.05 * np.linalg.norm(far)


def test_max_iterations_is_not_convergence(small) -> None:
    state = solve(halves_of(small), max_iterations=3, tolerance=1e-6)
    assert state.iteration == 3 and not state.converged


@pytest.mark.parametrize("tolerance", [0.0, None])
@pytest.mark.parametrize("after", [1, 4])
def test_a_resumed_solve_equals_an_unbroken_one(small, after: int, tolerance: float | None) -> None:
    unbroken = solve(halves_of(small), max_iterations=6, tolerance=tolerance)
    saved = copy.deepcopy(solve(halves_of(small), max_iterations=after, tolerance=tolerance))
    resumed = solve(halves_of(small), max_iterations=6, tolerance=tolerance, state=saved)
    assert torch.equal(resumed.values, unbroken.values)
    assert resumed.change == unbroken.change and resumed.iteration == 6


@pytest.mark.parametrize("checks", [2, 6, 11])
def test_a_solve_stopped_within_a_pass_ends_as_an_unbroken_one(small, tmp_path, checks: int) -> None:
    """With four batches to a pass the stops come in the first gradient, in the first and in the second product."""
    unbroken = solve(halves_of(small, batch_size=20), max_iterations=5, tolerance=0.0)
    checkpoint = Checkpoint(tmp_path / "checkpoint.pt", "solve")
    calls = iter([False] * checks + [True])
    stopped = halves_of(small, batch_size=20, events=Events(should_stop=lambda: next(calls)))
    with pytest.raises(StopRequested):
        solve(stopped, max_iterations=5, tolerance=0.0, checkpoint=checkpoint)
    resumed = halves_of(small, batch_size=20)
    state = load_solver_state(checkpoint, resumed.voxels, resumed.group)
    assert state is not None and state.partial is not None and 0 < int(state.partial.done.sum()) < len(small.stack)
    state = solve(resumed, max_iterations=5, tolerance=0.0, state=state, checkpoint=checkpoint)
    assert torch.equal(state.values, unbroken.values) and state.change == unbroken.change
    other = halves_of(small).voxels.clone()
    other[0] += 1
    assert load_solver_state(checkpoint, other, resumed.group) is None


def test_no_weight_at_all_is_an_error(small) -> None:
    dark = replace(small, stack=replace(small.stack, scale=np.zeros_like(small.stack.scale)))
    with pytest.raises(ValueError, match="no particle gives weight"):
        solve(halves_of(dark), max_iterations=1, tolerance=0.0)


def test_a_half_without_signal_leaves_the_other_alone(small, tmp_path: Path) -> None:
    """Images of nothing at all: that half's map is zero, not NaN."""
    spoilt = without_half_2(small, tmp_path)
    state = solve(halves_of(spoilt), max_iterations=3, tolerance=0.0)
    assert not state.values[1].any() and torch.isfinite(state.values).all() and state.values[0].any()


def test_a_stop_is_honoured_between_batches(small) -> None:
    calls = iter([False] * 4 + [True] * 100)
    events = Events(should_stop=lambda: next(calls))
    with pytest.raises(StopRequested):
        solve(halves_of(small, batch_size=20, events=events), max_iterations=10, tolerance=0.0)


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


PLAIN = ReconstructParameters(max_iterations=8, oversampling=1)


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
    result = reconstruct(world.stack, world.support, None, PLAIN, Events())
    for volume in result.maps:
        assert volume.pixel_size_A == world.stack.pixel_size_A
        truth = world.density.data * world.support.data
        assert np.vdot(volume.data, truth) / np.vdot(truth, truth) == pytest.approx(1, abs=0.05)
        assert not volume.data[world.support.data == 0].any()


def without_half_2(world, folder: Path):
    """The world with the images of half 2 set to zero."""
    shape = (len(world.stack), len(world.stack.band()), 2)
    images = np.fromfile(world.stack.path, np.float16).reshape(shape)
    images[world.stack.halves == 2] = 0
    images.tofile(folder / "spoilt.f16")
    return replace(world, stack=replace(world.stack, path=folder / "spoilt.f16"))


def test_each_half_sees_its_own_particles_only(small, tmp_path: Path) -> None:
    """Spoiling the images of half 2 leaves half 1 as it was, to the last bit, where the prior is given; the prior, one
    number for each shell, is all that the halves share."""
    spoilt = without_half_2(small, tmp_path)
    before, after = (
        solve(problem, max_iterations=3, state=SolverState(problem.zeros(), prior=even_prior(problem)))
        for problem in (halves_of(small), halves_of(spoilt))
    )
    assert torch.equal(before.values[0], after.values[0])
    assert not torch.allclose(before.values[1], after.values[1])


class _StopAfter(Events):
    """Asks for a stop once `count` iterations have been told."""

    def __init__(self, count: int) -> None:
        steps: list[str] = []
        super().__init__(
            show=lambda progress: steps.append(progress.step) if progress.landmark else None,
            should_stop=lambda: sum("iteration " in step for step in steps) >= count,
        )


@pytest.mark.parametrize("count", [2, 4])
def test_a_stopped_reconstruction_goes_on_from_its_checkpoint(small, tmp_path: Path, count: int) -> None:
    """The maps are those of an unbroken run, to the last bit."""
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
    assert not result.converged and result.iterations == 2
    assert any("max_iterations (2)" in line for line in lines)


def test_rigid_positions_follow_the_pose_convention(small) -> None:
    """The solver's one-cell mesh puts a point at x where the consensus says: (R x)[:2] - origin from the centre."""
    _, vertices = rigid_domain(small.support)
    operator, stack = make_operator(small.domain), small.stack
    model = ImageModel(operator, 20, stack.band(), stack_box=20, stack_pixel_size_A=stack.pixel_size_A, oversampling=2)
    q = model.positions(stack.batch(np.array([5])), torch.from_numpy(vertices))[0].numpy()
    expected = vertices @ stack.projections[5].T - stack.origins_px[5] + 10
    assert np.abs(q - 2 * expected).max() < 1e-4
