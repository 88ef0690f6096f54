"""Maps as linear least squares, by preconditioned conjugate gradients, the half-sets in step.

Flow, latents and poses are fixed, so the density of a half-set minimises `|data - A V|^2 / 2 + x^T P x / 2` with
`V = taper x`: one pass through the particles per iteration gives the product of `sum_i A_i^T C_i^2 A_i` with the search
direction and, by linearity, the next gradient. The prior P is a filter: the inverse of the signal's variance in each
shell, as the FSC of the two half-maps tells it (Scheres 2012, J. Mol. Biol. 415, 406-418). It changes from iteration to
iteration with the FSC, at no pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray

from flex_job.checkpoint import Checkpoint, Saver
from flex_job.distributed import Group
from flex_job.events import Events
from flex_job.fsc import fsc
from flex_job.imaging import ImageModel
from flex_job.particles import Batch, ParticleStack
from flex_job.shell_filter import ShellFilter
from flex_job.solver_state import PartialSums, SolverState, save_solver_state

__all__ = ["LeastSquares", "SolverState", "moved_vertices", "solve", "unfiltered_maps"]

RIDGE = 1e-2  # of the weakest shell's weight: bounds what no image sees, changes nothing that any sees
FSC_RANGE = (0.3, 0.999)  # that a prior is made from
LEAST_WEIGHT = 1e-3  # of the largest, for the prior: bounds what hardly any image sees


def moved_vertices(
    model: ImageModel,
    rest_A: torch.Tensor,
    flow: Callable[[torch.Tensor], torch.Tensor] | None = None,
    latents: NDArray[np.float32] | None = None,
) -> Callable[[Batch], torch.Tensor]:
    """What `LeastSquares` takes as `positions`: vertices moved by `flow` at the latents (n, K), or at rest."""

    def positions(batch: Batch) -> torch.Tensor:
        points = rest_A
        if flow is not None and latents is not None:
            with torch.no_grad():
                points = rest_A + flow(torch.from_numpy(latents[batch.index]).to(rest_A.device))
        return model.positions(batch, points)

    return positions


class LeastSquares:
    """Normal equations of sets of particles in the band of `model`; `positions[s](batch)` gives the vertices q of
    particles `sets[s]`.

    All vectors (sets, n_voxels) are tensors on the model's device. The unknown times `taper` (n_voxels,) is the
    density, so that the prior lets it end as softly as a mask does; without one they are the same. The ranks of `group`
    share the particles; vectors are the same on all. A pass through the particles that is stopped gives what it has
    summed to `keep`, on the first rank; taken over as `partial`, the next pass goes on from there.
    """

    def __init__(
        self,
        stack: ParticleStack,
        sets: Sequence[NDArray[np.int64]],
        model: ImageModel,
        positions: Sequence[Callable[[Batch], torch.Tensor]],
        *,
        taper: NDArray[np.float32] | None = None,
        batch_size: int = 200,
        events: Events | None = None,
        group: Group | None = None,
    ) -> None:
        self.group = group or Group()
        self.stack, self.sets, self.model, self.positions = stack, sets, model, positions
        self.batch_size, self.events = batch_size, events or Events()
        self.filter = ShellFilter(model.domain, model.operator.device)
        self.voxels = self.filter.voxels
        self.taper = None if taper is None else torch.from_numpy(taper).to(self.voxels.device)
        self.number = np.full(len(stack), -1, np.int8)
        for number, index in enumerate(sets):
            self.number[index] = number
        self.partial: PartialSums | None = None
        self.keep: Callable[[PartialSums], None] = lambda partial: None

    def zeros(self) -> torch.Tensor:
        """A vector (sets, n_voxels)."""
        return torch.zeros((len(self.sets), len(self.voxels)), device=self.voxels.device)

    def tapered(self, values: torch.Tensor) -> torch.Tensor:
        """A vector times the taper."""
        return values if self.taper is None else self.taper * values

    def start(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The gradient of the data's loss at zero, and the sums of squared transfers (sets, m), in one pass."""
        total = self.zeros()
        weight = torch.zeros((len(self.sets), len(self.model.band)), dtype=torch.float64, device=total.device)

        def add(number: int, batch: Batch) -> None:
            weight[number] += batch.transfer.square().sum(0)
            q = self.positions[number](batch)
            total[number] -= self.model.gradient(batch.data * batch.transfer, q)[0]

        self._pass(add, total, weight)
        return self.tapered(total), weight

    def product(self, values: torch.Tensor) -> torch.Tensor:
        """sum_i A_i^T C_i^2 A_i of each set, applied to its `values`."""
        total, density = self.zeros(), self.tapered(values)

        def add(number: int, batch: Batch) -> None:
            q = self.positions[number](batch)
            spectrum = self.model.transform(density[number], q) * batch.transfer.square()
            total[number] += self.model.gradient(spectrum, q)[0]

        self._pass(add, total)
        return self.tapered(total)

    def _pass(self, add: Callable[[int, Batch], None], *sums: torch.Tensor) -> None:
        """`add` every particle to the `sums`, which are then summed over the ranks."""
        done = np.zeros(len(self.stack), bool)
        if self.partial is not None:
            done = self.partial.done.cpu().numpy()
            for total, before in zip(sums, self.partial.sums, strict=True):
                total += before if self.group.is_first else 0
            self.partial = None

        def keep() -> None:
            so_far, seen = [total.clone() for total in sums], torch.from_numpy(done).int()
            for total in (*so_far, seen):
                self.group.sum_(total)
            if self.group.is_first:
                self.keep(PartialSums(seen > 0, so_far))

        saver = Saver(keep, self.group, self.events)
        left = [self.group.batches(index[~done[index]], self.batch_size) for index in self.sets]
        mine = sum(len(index) for index in chain(*left))
        begun, seen = done.sum(), 0
        for batch in self.stack.batches(saver.checked(chain(*left)), self.model.band):
            self.events.progress((begun + seen) / max(1, begun + mine))
            seen += len(batch)
            add(int(self.number[batch.index[0]]), batch)
            done[batch.index] = True
        for total in sums:
            self.group.sum_(total)

    def shell_weights(self, weight: torch.Tensor) -> torch.Tensor:
        """What the normal equations multiply each shell of a map with when nothing moves, (sets, shells to the corners)
        float64 on the CPU, from the sums of squared transfers: <x, A x> / <x, x> of plane waves in the taper, which
        mixes the shells. Zero beyond the band without a taper."""
        band, domain = self.model.band, self.model.domain
        shells = band.shells.cpu().numpy()
        radius = np.arange(self.filter.corner)
        # A plane through the origin holds 2 pi r of the 4 pi r^2 voxels of shell r; packed coefficients are sqrt(2)
        # times the transform's, and half of them.
        count = np.bincount(shells, minlength=len(radius))
        scale = domain.box**3 * self.model.unit**2 / (2 * np.maximum(radius, 0.5)) / np.maximum(count, 1)
        found = np.stack([scale * np.bincount(shells, each, len(radius)) for each in weight.cpu().numpy()])
        if not (found > 0).any():
            raise ValueError("no particle gives weight to any frequency: expected CTFs that are not zero")
        found[:, 0] = found[:, 1]
        curves = torch.from_numpy(found)
        return curves if self.taper is None else self.filter.seen_through(self.taper, curves)

    def density(self, values: torch.Tensor) -> list[NDArray[np.float32]]:
        """The sets' maps (z, y, x)."""
        return [self.model.domain.scatter(each) for each in self.tapered(values).cpu().numpy()]

    def agreement(self, values: torch.Tensor) -> torch.Tensor:
        """FSC of the first two sets' maps. Together: ranks must not differ in the last digit."""
        return self.group.first_does(lambda: torch.from_numpy(fsc(*self.density(values)[:2])))


def ridge_of(weights: torch.Tensor) -> torch.Tensor:
    """A prior (shells,) without any knowledge of the signal."""
    return torch.full_like(weights[0], RIDGE * float(weights[weights > 0].min()))


def prior_of(weights: torch.Tensor, agreement: torch.Tensor) -> torch.Tensor:
    """Inverse variance of the signal in each shell to the corners, from shell weights (sets, shells) and the FSC of two
    half-maps.

    The noise of a half-map has the variance 1 / weight, and FSC / (1 - FSC) is the signal's over that.
    """
    curve = agreement.clamp(*FSC_RANGE)
    curve[0] = curve[1]
    mean = weights.mean(0)
    prior = mean.clamp(min=LEAST_WEIGHT * float(mean.max()))
    prior[: len(curve)] *= (1 - curve) / curve
    prior[len(curve) :] = prior[len(curve) - 1]  # the corners
    return prior


def solve(
    problem: LeastSquares,
    *,
    max_iterations: int,
    tolerance: float | None = None,
    state: SolverState | None = None,
    each: Callable[[SolverState], None] = lambda state: None,
    checkpoint: Checkpoint | None = None,
) -> SolverState:
    """Minimise from zero until no shell's FSC between the first two sets changes by more than `tolerance` in an
    iteration. `state` continues an earlier call; `each` is called after every iteration.

    Without a tolerance all `max_iterations` are done, and nothing is taken as known of the signal. With a `checkpoint`
    the state is kept after every iteration, and within one when a stop is asked for or the pass takes long;
    `load_solver_state` gives what was kept.
    """
    if state is None:
        state = SolverState(problem.zeros())

    def save(partial: PartialSums | None = None) -> None:
        if checkpoint is not None and problem.group.is_first:
            state.partial = partial
            save_solver_state(checkpoint, state, problem.voxels)

    def one_pass(number: int) -> AbstractContextManager[None]:
        passes, at_least = max_iterations + 1, tolerance is not None
        label = f"pass {number + 1} of {'at most ' if at_least else ''}{passes}"
        return problem.events.part(number / passes, (number + 1) / passes, label, at_least=at_least)

    problem.partial, problem.keep = state.partial, save
    if state.gradient is None or state.weight is None:
        with one_pass(0):
            state.gradient, state.weight = problem.start()
    weights = problem.shell_weights(state.weight)
    if state.prior is None:
        state.prior = ridge_of(weights)
        if tolerance is not None:  # what the first direction is with half signal; its length is of no concern
            even = prior_of(weights, torch.full((problem.model.box // 2 + 1,), 0.5, dtype=torch.float64))
            state.agreement = problem.agreement(_preconditioned(problem, state.gradient, weights, even))
            state.prior = prior_of(weights, state.agreement)
    while state.iteration < max_iterations and not state.converged:
        if state.direction is None or state.product is not None:
            state.direction, state.product = _direction(problem, state, weights), None
        with one_pass(state.iteration + 1):
            state.product = problem.product(state.direction)
        gradient, curved = _with_prior(problem, state)
        length = -_ratio(gradient, state.direction, curved, state.direction)
        state.values = state.values + length * state.direction
        state.gradient = state.gradient + length * state.product
        state.iteration += 1
        if tolerance is not None:
            assert state.agreement is not None
            found = problem.agreement(state.values)
            state.change = float((found - state.agreement)[1:].abs().max())
            state.agreement, state.converged = found, state.change < tolerance
            if not state.converged:
                state.prior = prior_of(weights, found)
        save()
        each(state)
    return state


def unfiltered_maps(problem: LeastSquares, state: SolverState) -> list[NDArray[np.float32]]:
    """The sets' maps (z, y, x) with what the prior takes off each shell's amplitude put back, in the taper: half-maps
    as they are expected downstream, where filtering by the FSC and sharpening follow."""
    assert state.prior is not None and state.weight is not None
    weights = problem.shell_weights(state.weight)
    gain = 1 + state.prior / weights
    last = problem.model.box // 2
    gain[:, last:] = gain[:, last : last + 1]
    return problem.density(problem.filter.apply(problem.tapered(state.values), gain))


def _with_prior(problem: LeastSquares, state: SolverState) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradient, and the normal equations applied to the direction, with the present prior."""
    assert state.prior is not None and state.gradient is not None
    assert state.product is not None and state.direction is not None
    gradient = state.gradient + problem.filter.apply(state.values, state.prior)
    return gradient, state.product + problem.filter.apply(state.direction, state.prior)


def _preconditioned(
    problem: LeastSquares, gradient: torch.Tensor, weights: torch.Tensor, prior: torch.Tensor
) -> torch.Tensor:
    """Approximate inverse: without motion the product is a filter by the mean weight of each shell. Zero where
    they have none, so that nothing is put there that the images do not hold."""
    inverse = torch.where(weights > 0, 1 / (weights + prior), 0)
    return problem.filter.apply(gradient, inverse)


def _direction(problem: LeastSquares, state: SolverState, weights: torch.Tensor) -> torch.Tensor:
    """The next search direction: downhill, and conjugate to the one before under the present prior."""
    assert state.prior is not None and state.gradient is not None
    if state.direction is None:
        return -_preconditioned(problem, state.gradient, weights, state.prior)  # from zero
    gradient, curved = _with_prior(problem, state)
    downhill = -_preconditioned(problem, gradient, weights, state.prior)
    return downhill - _ratio(downhill, curved, state.direction, curved) * state.direction


def _ratio(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    """<a, b> / <c, d> for each set (sets, 1), summed in float64; 0 where a set has nothing left to do."""
    ratios = []
    for row in range(len(a)):
        above, below = (float(torch.dot(x[row].double(), y[row].double())) for x, y in ((a, b), (c, d)))
        ratios.append([above / below if below > 0 else 0.0])
    return torch.tensor(ratios, device=a.device)
