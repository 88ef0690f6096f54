"""The canonical map as linear least squares: `sum_i A_i^T C_i^2 A_i V = sum_i A_i^T C_i I_i` by L-BFGS.

Flow, latents and poses are fixed, so the loss is quadratic: the line search has a closed form, one pass through the
particles per iteration gives both the product with the search direction and, by linearity, the next gradient.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from flex_job.checkpoint import Checkpoint, Saver
from flex_job.distributed import Group
from flex_job.events import Events
from flex_job.imaging import ImageModel
from flex_job.particles import Batch, ParticleStack
from flex_job.solver_state import PartialSums, SolverState, save_solver_state

__all__ = ["LeastSquares", "SolverState", "moved_vertices", "solve"]

MEMORY = 8
RIDGE = 1e-2  # of the weakest shell's weight: bounds what no image sees, changes nothing that any sees


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
    """Normal equations of the particles `index` in the band of `model`; `positions(batch)` gives their vertices q.

    All vectors (n_voxels,) are tensors on the model's device. The ranks of `group` share the particles; vectors are the
    same on all. A pass through the particles that is stopped gives what it has summed to `keep`, on the first rank;
    taken over as `partial`, the next pass goes on from there.
    """

    def __init__(
        self,
        stack: ParticleStack,
        index: NDArray[np.int64],
        model: ImageModel,
        positions: Callable[[Batch], torch.Tensor],
        *,
        batch_size: int = 200,
        events: Events | None = None,
        group: Group | None = None,
    ) -> None:
        self.group = group or Group()
        self.stack, self.index, self.model, self.positions = stack, index, model, positions
        self.batch_size, self.events = batch_size, events or Events()
        self.ridge = 0.0
        self.voxels = torch.from_numpy(model.domain.flat_index).to(model.operator.device)
        self.partial: PartialSums | None = None
        self.keep: Callable[[PartialSums], None] = lambda partial: None
        self.weight: torch.Tensor | None = None
        self._filter: torch.Tensor | None = None

    def first_gradient(self, values: torch.Tensor | None) -> torch.Tensor:
        """Gradient of the loss at `values` (zero when None); also sums the weights that make the preconditioner."""
        device = self.model.operator.device
        total = torch.zeros(len(self.model.domain), device=device)
        weight = torch.zeros(len(self.model.band), dtype=torch.float64, device=device)

        def add(batch: Batch) -> None:
            weight.add_(batch.transfer.square().sum(0))
            q = self.positions(batch)
            residual = -batch.data
            if values is not None:
                residual += batch.transfer * self.model.transform(values, q)
            total.add_(self.model.gradient(residual * batch.transfer, q)[0])

        self._pass(add, total, weight)
        self.set_weight(weight)
        return total if values is None else total + self.ridge * values

    def product(self, values: torch.Tensor) -> torch.Tensor:
        """sum_i A_i^T C_i^2 A_i applied to `values`, and the ridge."""
        total = torch.zeros_like(values)

        def add(batch: Batch) -> None:
            q = self.positions(batch)
            spectrum = self.model.transform(values, q) * batch.transfer.square()
            total.add_(self.model.gradient(spectrum, q)[0])

        self._pass(add, total)
        return total + self.ridge * values

    def _pass(self, add: Callable[[Batch], None], *sums: torch.Tensor) -> None:
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
        indices = self.group.batches(self.index[~done[self.index]], self.batch_size)
        for batch in self.stack.batches(saver.checked(indices), self.model.band):
            add(batch)
            done[batch.index] = True
        for total in sums:
            self.group.sum_(total)

    def precondition(self, values: torch.Tensor) -> torch.Tensor:
        """Approximate inverse: without motion the product is a filter by the mean weight of each shell.

        It is zero beyond the band, so nothing is put there that the images do not hold; with few iterations this
        also keeps the noise of the last shells down.
        """
        assert self._filter is not None
        box = self.model.domain.box
        volume = torch.zeros(box**3, dtype=values.dtype, device=values.device)
        volume[self.voxels] = values
        spectrum = torch.fft.rfftn(volume.view(box, box, box)) * self._filter
        return torch.fft.irfftn(spectrum, s=(box, box, box)).reshape(-1)[self.voxels]

    def set_weight(self, weight: torch.Tensor) -> None:
        """Make preconditioner and ridge from the sum of squared transfers (m,) that `first_gradient` found."""
        self.weight = weight
        band, domain = self.model.band, self.model.domain
        shells = band.shells.cpu().numpy()
        count = np.bincount(shells)
        mean = np.bincount(shells, weight.cpu().numpy()) / np.maximum(count, 1)
        # A plane through the origin holds 2 pi r of the 4 pi r^2 voxels of shell r; packed coefficients are sqrt(2)
        # times the transform's, and half of them.
        radius = np.arange(len(mean))
        scale = domain.box**3 * self.model.unit**2
        per_shell = scale * mean / (2 * np.maximum(radius, 0.5))
        positive = per_shell[per_shell > 0]
        if len(positive) == 0:
            raise ValueError("no particle gives weight to any frequency: expected CTFs that are not zero")
        per_shell[0] = per_shell[1]
        self.ridge = float(RIDGE * positive.min())
        k = np.fft.fftfreq(domain.box, 1 / domain.box)
        r = np.sqrt(k[:, None, None] ** 2 + k[None, :, None] ** 2 + np.arange(domain.box // 2 + 1) ** 2)
        at = np.interp(r, radius, np.where(per_shell > 0, per_shell, np.inf), right=np.inf)
        inverse = (1 / (np.maximum(at, 1e-30) + self.ridge)).astype(np.float32)
        self._filter = torch.from_numpy(inverse).to(self.voxels.device)


def solve(
    problem: LeastSquares,
    *,
    start: torch.Tensor | None = None,
    max_iterations: int,
    tolerance: float,
    state: SolverState | None = None,
    each: Callable[[SolverState], None] = lambda state: None,
    checkpoint: Checkpoint | None = None,
) -> SolverState:
    """Minimise from `start` (zero when none) until an iteration lowers the loss by less than `tolerance` of the whole
    decrease of this call so far, which suits a start from zero; a start near the solution is bounded by
    `max_iterations`. `state` continues an earlier call; `each` is called after every iteration.

    With a `checkpoint` the state is kept after every iteration, and within one when a stop is asked for or the pass
    takes long; `load_solver_state` gives what was kept.
    """
    if state is None:
        state = SolverState(torch.zeros(len(problem.voxels), device=problem.voxels.device) if start is None else start)

    def save(partial: PartialSums | None = None) -> None:
        if checkpoint is not None and problem.group.is_first:
            state.partial = partial
            save_solver_state(checkpoint, state, problem.voxels)

    problem.partial, problem.keep = state.partial, save
    if state.gradient is None:
        state.gradient = problem.first_gradient(None if start is None else state.values)
        state.weight = problem.weight
    else:
        assert state.weight is not None
        problem.set_weight(state.weight)
    while state.iteration < max_iterations and not state.converged:
        if state.direction is None:
            state.direction = -_two_loop(problem, state, state.gradient)
        slope = _dot(state.gradient, state.direction)
        if problem.group.any(slope >= 0):
            state.converged = True
            break
        product = problem.product(state.direction)
        length = -slope / _dot(state.direction, product)
        step, change = length * state.direction, length * product
        state.values, state.gradient, state.direction = state.values + step, state.gradient + change, None
        state.steps = [*state.steps, step][-MEMORY:]
        state.changes = [*state.changes, change][-MEMORY:]
        state.iteration += 1
        state.decreases.append(-0.5 * length * slope)
        state.converged = problem.group.any(state.decreases[-1] < tolerance * sum(state.decreases))
        save()
        each(state)
    return state


def _two_loop(problem: LeastSquares, state: SolverState, gradient: torch.Tensor) -> torch.Tensor:
    """The L-BFGS approximation of the inverse Hessian times the gradient (Nocedal 1980), around the preconditioner."""
    vector = gradient.clone()
    weights = []
    pairs = list(zip(state.steps, state.changes, strict=True))
    for step, change in reversed(pairs):
        weight = _dot(step, vector) / _dot(step, change)
        vector -= weight * change
        weights.append(weight)
    vector = problem.precondition(vector)
    for (step, change), weight in zip(pairs, reversed(weights), strict=True):
        vector += (weight - _dot(change, vector) / _dot(step, change)) * step
    return vector


def _dot(a: torch.Tensor, b: torch.Tensor) -> float:
    """Inner product, summed in float64."""
    return float(torch.dot(a.double(), b.double()))
