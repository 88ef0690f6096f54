"""Half-maps through the motion (paper, "High resolution refinement and validation") and without, by one solver."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from flex_job.events import Events
from flex_job.files import written_aside
from flex_job.imaging import ImageModel
from flex_job.model import FlexModel
from flex_job.operator import MASK_LEVEL, VoxelDomain, rigid_domain, voxel_domain
from flex_job.particles import Batch, ParticleStack
from flex_job.solver import LeastSquares, SolverState, solve
from flex_job.volume import Volume
from job_specs.parameters import ReconstructParameters

__all__ = ["HalfMaps", "reconstruct"]

BATCH_PIXELS = 4_000_000  # pixels in a batch's images, so that memory does not grow with the box
Positions = Callable[[ImageModel], Callable[[Batch], torch.Tensor]]


@dataclass(frozen=True)
class HalfMaps:
    """Two maps (z, y, x) from the two half-sets, zero outside the support, and how many iterations each took."""

    maps: tuple[Volume, Volume]
    iterations: tuple[int, int]
    converged: bool


def reconstruct(
    stack: ParticleStack,
    support: Volume,
    model: FlexModel | None,
    parameters: ReconstructParameters,
    events: Events,
    *,
    checkpoint: Path | None = None,
) -> HalfMaps:
    """Both half-maps at the stack's box, from zero, in the voxels where the mask `support` holds more than a trace.

    With `model` through its flow at its latents; without, rigid: the same solver and the same voxels. A checkpoint is
    written after every iteration, in a file per half named after `checkpoint`.
    """
    if model is None:
        domain, vertices = rigid_domain(support, MASK_LEVEL)
        name = "rigid"
    else:
        domain, vertices = voxel_domain(model.mesh, support, MASK_LEVEL), model.mesh.vertices_A.astype(np.float32)
        name = "flex"
    image_model = ImageModel(
        domain,
        stack.box,
        stack_box=stack.box,
        stack_pixel_size_A=stack.pixel_size_A,
        oversampling=parameters.oversampling,
    )
    rest = torch.from_numpy(vertices)

    def positions(batch: Batch) -> torch.Tensor:
        points = rest
        if model is not None:
            with torch.no_grad():
                points = rest + model.flow(torch.from_numpy(model.latents[batch.index]))
        return image_model.positions(batch.projections, batch.origins_px, points)

    batch_size = int(np.clip(BATCH_PIXELS // image_model.fine**2, 8, 500))
    maps, iterations, converged = [], [], True
    for half in (1, 2):
        index = np.flatnonzero(stack.halves == half)
        problem = LeastSquares(stack, index, image_model, positions, batch_size=batch_size, events=events)
        state = _solve_half(problem, domain, parameters, events, f"{name} half {half}", checkpoint, half)
        maps.append(Volume(domain.scatter(state.values), stack.pixel_size_A))
        iterations.append(state.iteration)
        converged &= state.converged
    if not converged:
        events.message(
            f"{name}: stopped at max_iterations ({parameters.max_iterations}) before the tolerance "
            f"({parameters.tolerance:g}) was reached; the maps may still improve with more"
        )
    return HalfMaps((maps[0], maps[1]), (iterations[0], iterations[1]), converged)


def _solve_half(
    problem: LeastSquares,
    domain: VoxelDomain,
    parameters: ReconstructParameters,
    events: Events,
    label: str,
    checkpoint: Path | None,
    half: int,
) -> SolverState:
    path = None if checkpoint is None else checkpoint.with_name(f"{checkpoint.stem}_half{half}.pt")
    state = None if path is None else _load(path, len(domain))
    if state is not None:
        events.message(f"{label}: goes on after iteration {state.iteration}")
    began = time.monotonic()

    def each(now: SolverState) -> None:
        if path is not None:
            _save(now, path)
        gain = now.decreases[-1] / sum(now.decreases)
        events.message(f"{label}: iteration {now.iteration}, loss lowered by {gain:.2e} of all so far")

    state = solve(
        problem,
        max_iterations=parameters.max_iterations,
        tolerance=parameters.tolerance,
        state=state,
        each=each,
    )
    events.message(f"{label}: {state.iteration} iterations in {time.monotonic() - began:.0f} s")
    return state


def _save(state: SolverState, path: Path) -> None:
    tensors = {
        "values": torch.from_numpy(state.values),
        "gradient": torch.from_numpy(state.gradient),
        "steps": [torch.from_numpy(step) for step in state.steps],
        "changes": [torch.from_numpy(change) for change in state.changes],
        "iteration": state.iteration,
        "decreases": state.decreases,
        "converged": state.converged,
    }
    with written_aside(path) as file:
        torch.save(tensors, file)


def _load(path: Path, n_voxels: int) -> SolverState | None:
    if not path.exists():
        return None
    data = torch.load(path, weights_only=True)
    if len(data["values"]) != n_voxels:
        return None
    arrays: dict[str, list[NDArray[np.float32]]] = {
        name: [tensor.numpy() for tensor in data[name]] for name in ("steps", "changes")
    }
    return SolverState(
        values=data["values"].numpy(),
        gradient=data["gradient"].numpy(),
        iteration=data["iteration"],
        decreases=data["decreases"],
        converged=data["converged"],
        **arrays,
    )
