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

from flex_job.distributed import Group
from flex_job.events import Events
from flex_job.flow import FlowGenerator
from flex_job.imaging import ImageModel
from flex_job.particles import Batch, ParticleStack

__all__ = ["LeastSquares", "SolverState", "moved_vertices", "solve"]

MEMORY = 8
RIDGE = 1e-2  # of the weakest shell's weight: bounds what no image sees, changes nothing that any sees


@dataclass
class SolverState:
    """Where the iteration stands: map, gradient, remembered steps and gradient changes, loss decrease so far."""

    values: torch.Tensor
    gradient: torch.Tensor
    steps: list[torch.Tensor] = field(default_factory=list)
    changes: list[torch.Tensor] = field(default_factory=list)
    iteration: int = 0
    decreases: list[float] = field(default_factory=list)
    converged: bool = False


def moved_vertices(
    model: ImageModel,
    rest_A: torch.Tensor,
    flow: FlowGenerator | None = None,
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
    same on all.
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
        self._voxels = torch.from_numpy(model.domain.flat_index).to(model.operator.device)
        self._filter: torch.Tensor | None = None

    def batches(self) -> Iterator[Batch]:
        indices = self.group.batches(self.index, self.batch_size)
        yield from self.stack.batches(self.group.checked(indices, self.events), self.model.band)

    def first_gradient(self, values: torch.Tensor | None) -> torch.Tensor:
        """Gradient of the loss at `values` (zero when None); also sums the weights that make the preconditioner."""
        device = self.model.operator.device
        total = torch.zeros(len(self.model.domain), device=device)
        weight = torch.zeros(len(self.model.band), dtype=torch.float64, device=device)
        for batch in self.batches():
            weight += batch.transfer.square().sum(0)
            q = self.positions(batch)
            residual = -batch.data
            if values is not None:
                residual += batch.transfer * self.model.transform(values, q)
            total += self.model.gradient(residual * batch.transfer, q)[0]
        self.group.sum_(total)
        self._set_filter(weight)
        return total if values is None else total + self.ridge * values

    def sum_weights(self) -> None:
        """Only the weights that make the preconditioner, for a solver that goes on from a checkpoint."""
        weight = torch.zeros(len(self.model.band), dtype=torch.float64, device=self.model.operator.device)
        for batch in self.batches():
            weight += batch.transfer.square().sum(0)
        self._set_filter(weight)

    def product(self, values: torch.Tensor) -> torch.Tensor:
        """sum_i A_i^T C_i^2 A_i applied to `values`, and the ridge."""
        total = torch.zeros_like(values)
        for batch in self.batches():
            q = self.positions(batch)
            spectrum = self.model.transform(values, q) * batch.transfer.square()
            total += self.model.gradient(spectrum, q)[0]
        self.group.sum_(total)
        return total + self.ridge * values

    def precondition(self, values: torch.Tensor) -> torch.Tensor:
        """Approximate inverse: without motion the product is a filter by the mean weight of each shell.

        It is zero beyond the band, so nothing is put there that the images do not hold; with few iterations this
        also keeps the noise of the last shells down.
        """
        assert self._filter is not None
        box = self.model.domain.box
        volume = torch.zeros(box**3, dtype=values.dtype, device=values.device)
        volume[self._voxels] = values
        spectrum = torch.fft.rfftn(volume.view(box, box, box)) * self._filter
        return torch.fft.irfftn(spectrum, s=(box, box, box)).reshape(-1)[self._voxels]

    def _set_filter(self, weight: torch.Tensor) -> None:
        self.group.sum_(weight)
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
        self._filter = torch.from_numpy(inverse).to(self._voxels.device)


def solve(
    problem: LeastSquares,
    *,
    start: torch.Tensor | None = None,
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
        state = SolverState(torch.zeros_like(gradient) if start is None else start, gradient)
    else:
        problem.sum_weights()
    while state.iteration < max_iterations and not state.converged:
        direction = -_two_loop(problem, state)
        slope = _dot(state.gradient, direction)
        if problem.group.any(slope >= 0):
            state.converged = True
            break
        product = problem.product(direction)
        length = -slope / _dot(direction, product)
        step, change = length * direction, length * product
        state.values, state.gradient = state.values + step, state.gradient + change
        state.steps = [*state.steps, step][-MEMORY:]
        state.changes = [*state.changes, change][-MEMORY:]
        state.iteration += 1
        state.decreases.append(-0.5 * length * slope)
        state.converged = problem.group.any(state.decreases[-1] < tolerance * sum(state.decreases))
        each(state)
    return state


def _two_loop(problem: LeastSquares, state: SolverState) -> torch.Tensor:
    """The L-BFGS approximation of the inverse Hessian times the gradient (Nocedal 1980), around the preconditioner."""
    vector = state.gradient.clone()
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
