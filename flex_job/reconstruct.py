"""Half-maps through the motion (paper, "High resolution refinement and validation") and without, by one solver."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from flex_job.checkpoint import Checkpoint
from flex_job.distributed import Group
from flex_job.events import Events
from flex_job.imaging import ImageModel
from flex_job.model import FlexModel
from flex_job.operator import MASK_LEVEL, make_operator, rigid_domain, voxel_domain
from flex_job.particles import ParticleStack
from flex_job.solver import LeastSquares, moved_vertices, solve
from flex_job.solver_state import SolverState, load_solver_state
from flex_job.volume import Volume
from job_specs.parameters import ReconstructParameters

__all__ = ["HalfMaps", "reconstruct"]


@dataclass(frozen=True)
class HalfMaps:
    """Two maps (z, y, x) from the two half-sets, zero outside the support, and how many iterations each took."""

    maps: tuple[Volume, Volume]
    iterations: tuple[int, int]
    converged: bool


def reconstruct(
    stack: ParticleStack,
    support: Volume,
    models: Sequence[FlexModel] | None,
    parameters: ReconstructParameters,
    events: Events,
    *,
    checkpoint: Checkpoint | None = None,
    group: Group | None = None,
    tf32: bool = False,
    batch_size: int = 200,
) -> HalfMaps:
    """Both half-maps at the stack's box, from zero, in the voxels where the mask `support` holds more than a trace.

    With `models` through their flow at their latents, the same for both halves or one each; without, rigid: the same
    solver and the same voxels. Each half has its part of the `checkpoint`: see `solve`. The ranks of `group` share the
    work and all get both maps. `batch_size` particles go at a time: see `memory`.
    """
    group = group or Group()
    device = group.device
    if models is None:
        domain, vertices = rigid_domain(support, MASK_LEVEL)
        name = "rigid"
    else:
        domain, vertices = (
            voxel_domain(models[0].mesh, support, MASK_LEVEL),
            models[0].mesh.vertices_A.astype(np.float32),
        )
        name = "flex"
    image_model = ImageModel(
        make_operator(domain, device, tf32=tf32),
        stack.box,
        stack.band(),
        stack_box=stack.box,
        stack_pixel_size_A=stack.pixel_size_A,
        oversampling=parameters.oversampling,
    )
    rest = torch.from_numpy(vertices).to(device)
    positions = (
        [moved_vertices(image_model, rest)]
        if models is None
        else [moved_vertices(image_model, rest, model.flow.to(device), model.latents) for model in models]
    )

    def solve_half(half: int, those: Group) -> tuple[NDArray[np.float32], int, bool]:
        index = np.flatnonzero(stack.halves == half)
        moved = positions[(half - 1) % len(positions)]
        problem = LeastSquares(stack, index, image_model, moved, batch_size=batch_size, events=events, group=those)
        of_half = checkpoint and checkpoint.part(f"half{half}")
        state = _solve_half(problem, parameters, events, f"{name} half {half}", of_half)
        return state.values.cpu().numpy(), state.iteration, state.converged

    began = time.monotonic()
    (values_1, count_1, converged_1), (values_2, count_2, converged_2) = group.both_halves(solve_half)
    events.message(f"{name}: {count_1} and {count_2} iterations in {time.monotonic() - began:.0f} s")
    converged = converged_1 and converged_2
    if not converged:
        events.message(
            f"{name}: stopped at max_iterations ({parameters.max_iterations}) before the tolerance "
            f"({parameters.tolerance:g}) was reached; the maps may still improve with more"
        )
    first, second = (Volume(domain.scatter(values), stack.pixel_size_A) for values in (values_1, values_2))
    return HalfMaps((first, second), (count_1, count_2), converged)


def _solve_half(
    problem: LeastSquares,
    parameters: ReconstructParameters,
    events: Events,
    label: str,
    checkpoint: Checkpoint | None,
) -> SolverState:
    state = None if checkpoint is None else load_solver_state(checkpoint, problem.voxels, problem.group)
    if state is not None:
        events.message(f"{label}: goes on after iteration {state.iteration}")

    def each(now: SolverState) -> None:
        gain = now.decreases[-1] / sum(now.decreases)
        events.message(f"{label}: iteration {now.iteration}, loss lowered by {gain:.2e} of all so far")

    return solve(
        problem,
        max_iterations=parameters.max_iterations,
        tolerance=parameters.tolerance,
        state=state,
        each=each,
        checkpoint=checkpoint,
    )
