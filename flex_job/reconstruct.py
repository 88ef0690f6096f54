"""Half-maps through the motion (paper, "High resolution refinement and validation") and without, by one solver."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from flex_job.checkpoint import Checkpoint
from flex_job.distributed import Group
from flex_job.events import Events
from flex_job.fsc import resolution_at
from flex_job.imaging import ImageModel
from flex_job.model import FlexModel
from flex_job.operator import MASK_LEVEL, make_operator, rigid_domain, voxel_domain
from flex_job.particles import ParticleStack
from flex_job.solver import LeastSquares, moved_vertices, solve, unfiltered_maps
from flex_job.solver_state import SolverState, load_solver_state
from flex_job.volume import Volume
from job_specs.parameters import ReconstructParameters

__all__ = ["HalfMaps", "reconstruct"]


@dataclass(frozen=True)
class HalfMaps:
    """Two maps (z, y, x) from the two half-sets, zero outside the support, and how many iterations they took."""

    maps: tuple[Volume, Volume]
    iterations: int
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
    """Both half-maps at the stack's box, from zero, in the mask `support`, with whose edge they fall to zero.

    With `models` through their flow at their latents, the same for both halves or one each; without, rigid: the same
    solver and the same voxels. See `solve` for the `checkpoint`. The ranks of `group` share the work and all get both
    maps. `batch_size` particles go at a time: see `memory`.
    """
    group = group or Group()
    device = group.device
    if models is None:
        domain, vertices = rigid_domain(support, MASK_LEVEL)
        name = "rigid"
    else:
        mesh = models[0].mesh
        domain, vertices = voxel_domain(mesh, support, MASK_LEVEL), mesh.vertices_A.astype(np.float32)
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
    if models is None:
        positions = [moved_vertices(image_model, rest)]
    else:
        positions = [moved_vertices(image_model, rest, model.flow.to(device), model.latents) for model in models]
    problem = LeastSquares(
        stack,
        [np.flatnonzero(stack.halves == half) for half in (1, 2)],
        image_model,
        [positions[0], positions[-1]],
        taper=((domain.gather(support.data) - MASK_LEVEL) / (1 - MASK_LEVEL)).clip(0, 1),
        batch_size=batch_size,
        events=events,
        group=group,
    )
    began = time.monotonic()
    state = None if checkpoint is None else load_solver_state(checkpoint, problem.voxels, group)
    if state is not None:
        events.message(f"{name}: goes on after iteration {state.iteration}")

    frequency = np.arange(stack.box // 2 + 1) / (stack.box * stack.pixel_size_A)

    def each(now: SolverState) -> None:
        figures = {"change": now.change}
        if now.agreement is not None:
            figures[f"{name}_A"] = resolution_at(now.agreement.numpy(), 0.143, frequency)
        passes = parameters.max_iterations + 1
        with events.part(0, 1, at_least=True):
            events.progress((now.iteration + 1) / passes, f"iteration {now.iteration}", landmark=True, **figures)

    state = solve(
        problem,
        max_iterations=parameters.max_iterations,
        tolerance=parameters.tolerance,
        state=state,
        each=each,
        checkpoint=checkpoint,
    )
    events.message(f"{name}: {state.iteration} iterations in {time.monotonic() - began:.0f} s")
    if not state.converged:
        events.message(
            f"{name}: stopped at max_iterations ({parameters.max_iterations}) before the tolerance "
            f"({parameters.tolerance:g}) was reached; the maps may still improve with more"
        )
    first, second = (Volume(data, stack.pixel_size_A) for data in unfiltered_maps(problem, state))
    return HalfMaps((first, second), state.iteration, state.converged)
