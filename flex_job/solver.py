"""The canonical map as linear least squares: `sum_i A_i^T C_i^2 A_i V = sum_i A_i^T C_i I_i` by L-BFGS.

Flow, latents and poses are fixed, so the loss is quadratic: the line search has a closed form, one pass through the
particles per iteration gives both the product with the search direction and, by linearity, the next gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from flex_job.events import Events
from flex_job.imaging import ImageModel
from flex_job.particles import Batch, ParticleStack

__all__ = ["LeastSquares", "SolverState", "solve"]

Array = NDArray[np.float32]
MEMORY = 8
RIDGE = 1e-2  # of the weakest shell's weight: bounds what no image sees, changes nothing that any sees


@dataclass
class SolverState:
    """Where the iteration stands: map, gradient, remembered steps and gradient changes, loss decrease so far."""

    values: Array
    gradient: Array
    steps: list[Array] = field(default_factory=list)
    changes: list[Array] = field(default_factory=list)
    iteration: int = 0
    decreases: list[float] = field(default_factory=list)
    converged: bool = False


class LeastSquares:
    """Normal equations of the particles `index`; `positions(batch)` gives their projected vertices q."""

    def __init__(
        self,
        stack: ParticleStack,
        index: NDArray[np.int64],
        model: ImageModel,
        positions: Callable[[Batch], torch.Tensor],
        *,
        band: float = 1.0,
        batch_size: int = 200,
        events: Events | None = None,
    ) -> None:
        self.stack, self.index, self.model, self.positions = stack, index, model, positions
        self.band, self.batch_size, self.events = band, batch_size, events or Events()
        self.ridge = 0.0
        self._filter: Array | None = None

    def batches(self) -> Iterator[Batch]:
        for start in range(0, len(self.index), self.batch_size):
            self.events.check_stop()
            yield self.stack.batch(self.index[start : start + self.batch_size], box=self.model.box, band=self.band)

    def first_gradient(self, values: Array | None) -> Array:
        """Gradient of the loss at `values` (zero when None); also sums the weights that make the preconditioner."""
        total = np.zeros(len(self.model.domain), np.float32)
        box = self.model.box
        weight = torch.zeros(box, box // 2 + 1, dtype=torch.float64)
        for batch in self.batches():
            weight += (batch.transfer**2 / batch.multiplicity).sum(0)
            q = self.positions(batch)
            residual = -batch.data
            if values is not None:
                residual += batch.transfer * self.model.transform(values, q)
            part, _ = self.model.gradient(residual * batch.transfer / batch.multiplicity, q)
            total += part
        self._set_filter(weight.numpy())
        return total if values is None else total + self.ridge * values

    def product(self, values: Array) -> Array:
        """sum_i A_i^T C_i^2 A_i applied to `values`, and the ridge."""
        total = self.ridge * values
        for batch in self.batches():
            q = self.positions(batch)
            spectrum = self.model.transform(values, q) * batch.transfer**2 / batch.multiplicity
            part, _ = self.model.gradient(spectrum, q)
            total += part
        return total

    def precondition(self, values: Array) -> Array:
        """Approximate inverse: without motion the product is a filter by the mean weight of each shell.

        It is zero beyond the band, so nothing is put there that the images do not hold; with few iterations this
        also keeps the noise of the last shells down.
        """
        assert self._filter is not None
        domain = self.model.domain
        spectrum = np.fft.rfftn(domain.scatter(values)) * self._filter
        return domain.gather(np.fft.irfftn(spectrum, s=(domain.box,) * 3, axes=(0, 1, 2)))

    def _set_filter(self, weight: NDArray[np.float64]) -> None:
        box, domain = self.model.box, self.model.domain
        ky, kx = np.fft.fftfreq(box, 1 / box), np.arange(box // 2 + 1)
        shell = np.rint(np.hypot(ky[:, None], kx)).astype(int)
        used = weight > 0
        count = np.bincount(shell[used], minlength=box)
        mean = np.bincount(shell[used], weight[used], minlength=box) / np.maximum(count, 1)
        # A plane through the origin holds 2 pi r of the 4 pi r^2 voxels of shell r.
        radius = np.arange(box)
        scale = domain.box**3 * self._unit() ** 2
        per_shell = scale * mean / (2 * np.maximum(radius, 0.5))
        positive = per_shell[per_shell > 0]
        if len(positive) == 0:
            raise ValueError("no particle gives weight to any frequency: expected CTFs that are not zero")
        per_shell[0] = per_shell[1]
        self.ridge = float(RIDGE * positive.min())
        kz = np.fft.fftfreq(domain.box, 1 / domain.box)
        r = np.sqrt(kz[:, None, None] ** 2 + kz[None, :, None] ** 2 + np.arange(domain.box // 2 + 1) ** 2)
        at = np.interp(r, radius, np.where(per_shell > 0, per_shell, np.inf), right=np.inf)
        self._filter = (1 / (np.maximum(at, 1e-30) + self.ridge)).astype(np.float32)

    def _unit(self) -> float:
        """Size of a coefficient per unit density at one voxel."""
        model = self.model
        return (model.domain.pixel_size_A / self.stack.pixel_size_A) ** 3 / self.stack.box


def solve(
    problem: LeastSquares,
    *,
    start: Array | None = None,
    max_iterations: int,
    tolerance: float,
    state: SolverState | None = None,
    each: Callable[[SolverState], None] = lambda state: None,
) -> SolverState:
    """Minimise from `start` (zero when none) until an iteration lowers the loss by less than `tolerance` of the whole
    decrease of this call so far, which suits a start from zero; a start near the solution is bounded by
    `max_iterations`. `state` continues an earlier call; `each` is called after every iteration (checkpoints)."""
    if state is None:
        gradient = problem.first_gradient(start)
        state = SolverState(np.zeros_like(gradient) if start is None else start.astype(np.float32), gradient)
    else:
        problem.first_gradient(None)
    while state.iteration < max_iterations and not state.converged:
        direction = -_two_loop(problem, state)
        slope = float(np.vdot(state.gradient, direction))
        if slope >= 0:
            state.converged = True
            break
        product = problem.product(direction)
        length = -slope / float(np.vdot(direction, product))
        state.values = state.values + np.float32(length) * direction
        change = np.float32(length) * product
        state.gradient = state.gradient + change
        state.steps = [*state.steps, np.float32(length) * direction][-MEMORY:]
        state.changes = [*state.changes, change][-MEMORY:]
        state.iteration += 1
        state.decreases.append(-0.5 * length * slope)
        state.converged = state.decreases[-1] < tolerance * sum(state.decreases)
        each(state)
    return state


def _two_loop(problem: LeastSquares, state: SolverState) -> Array:
    """The L-BFGS approximation of the inverse Hessian times the gradient (Nocedal 1980), around the preconditioner."""
    vector = state.gradient.copy()
    weights = []
    pairs = list(zip(state.steps, state.changes, strict=True))
    for step, change in reversed(pairs):
        weight = float(np.vdot(step, vector)) / float(np.vdot(step, change))
        vector -= np.float32(weight) * change
        weights.append(weight)
    vector = problem.precondition(vector)
    for (step, change), weight in zip(pairs, reversed(weights), strict=True):
        correction = weight - float(np.vdot(change, vector)) / float(np.vdot(step, change))
        vector += np.float32(correction) * step
    return vector
