"""The canonical map of a training (paper, "Optimization of flow and structure"), latents and flow fixed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from flex_job.checkpoint import Checkpoint
from flex_job.distributed import Group
from flex_job.events import Events
from flex_job.fourier import fourier_resize
from flex_job.fsc import fsc, shell_index
from flex_job.imaging import ImageModel
from flex_job.particles import Batch, ParticleStack
from flex_job.sharpen import fsc_weights
from flex_job.solver import LeastSquares, solve
from flex_job.solver_state import load_solver_state
from flex_job.volume import Volume

__all__ = ["canonical_map"]

ITERATIONS = 2


def canonical_map(
    stack: ParticleStack,
    model: ImageModel,
    positions: Callable[[Batch], torch.Tensor],
    events: Events,
    group: Group,
    batch_size: int,
    checkpoint: Checkpoint | None = None,
    left_out: NDArray[np.bool_] | None = None,
) -> Volume:
    """The map at the stack's box that explains the particles best in the model's band, with vertices at `positions`.

    Each half-set is solved for on its own, from zero; the mean of the two maps is filtered by its signal-to-noise ratio
    as the halves' FSC tells it, 2 FSC / (1 + FSC). A map that holds the images' own noise would teach latents and flow
    to move towards that noise, and both final half-maps would then agree on it. Particles at which `left_out` (n,) is
    true have no part in it.
    """
    used = np.ones(len(stack), bool) if left_out is None else ~left_out
    sets = [np.flatnonzero((stack.halves == half) & used) for half in (1, 2)]
    problem = LeastSquares(stack, sets, model, [positions] * 2, batch_size=batch_size, events=events, group=group)
    state = load_solver_state(checkpoint, problem.voxels, group) if checkpoint else None
    state = solve(problem, max_iterations=ITERATIONS, state=state, checkpoint=checkpoint)
    box = model.box
    halves = problem.density(state.values)
    signal = fsc_weights(fsc(*halves)) ** 2
    signal[int(model.band.shells.max()) + 1 :] = 0  # beyond the band both are what the mask spreads there, and agree
    spectrum = np.fft.rfftn(0.5 * (halves[0] + halves[1]))
    spectrum *= np.append(signal, np.zeros(box))[shell_index(box)]
    mean = np.fft.irfftn(spectrum, s=(box,) * 3, axes=(0, 1, 2)).astype(np.float32)
    return fourier_resize(Volume(mean, stack.extent_A / box), stack.box)
