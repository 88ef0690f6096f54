"""How far off are the poses? The size of their errors, from the images, by expectation-maximisation.

A pose error is a small shift and turn of the whole particle, six numbers with a normal prior whose covariance the
images of many particles tell. It comes out as next to nothing where poses are exact, so they stay where they are.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from flex_job.band import Band
from flex_job.flow import FlowGenerator
from flex_job.latents import normal_equations
from flex_job.levels import Level
from flex_job.linear_start import expectation_maximisation
from flex_job.particles import Batch
from flex_job.train import Trainer
from flex_job.turned_flow import TurnedFlow, rigid_unit

__all__ = ["posed_batches", "with_pose_errors"]

SAMPLE = 4000  # particles that the sizes of the errors are found from
ITERATIONS = 150  # of expectation-maximisation
FIRST_GUESS_A = 2.0  # rms


def with_pose_errors(
    trainer: Trainer,
    level: Level,
    flow: FlowGenerator | None,
    latents: NDArray[np.float32],
    index: NDArray[np.int64],
    *,
    beside_latents: bool = False,
) -> TurnedFlow:
    """`flow`, or none, with pose errors of the size that those of the particles `index` (a sample is taken of many)
    have in their images, at `latents` (n, K). Together.

    Small errors change an image linearly, and so do latents about where they are. With `beside_latents` the amplitudes
    of both together are taken for normally distributed and the errors' part of their covariance is kept; without, the
    latents are taken as they are."""
    unit = TurnedFlow(flow, trainer.mesh, rigid_unit(trainer.mesh, trainer.device))  # amplitudes are angstroms rms
    free = unit.own if beside_latents else 0
    size = free + 6
    hessians, gradients = [torch.zeros(0, size, size).double()], [torch.zeros(0, size).double()]
    for batch in posed_batches(trainer, index[:: -(-len(index) // SAMPLE)], level.model.band):
        z = torch.from_numpy(latents[batch.index, : unit.own]).to(trainer.device)
        u, du = unit.with_derivative(torch.nn.functional.pad(z, (0, 6)))
        q = level.model.positions(batch, trainer.vertices + u)
        dq = level.model.directions(batch, du[:, unit.own - free :])
        hessian, gradient, _ = normal_equations(level.model, level.values, batch, q, dq)
        from_zero = gradient + (hessian[:, :, :free] @ z[:, :free, None])[..., 0]
        hessians.append(hessian.cpu().double())
        gradients.append(from_zero.cpu().double())
    prior = torch.diag(torch.tensor([1.0] * free + [FIRST_GUESS_A**2] * 6, dtype=torch.float64))
    covariance = expectation_maximisation(torch.cat(hessians), torch.cat(gradients), prior, ITERATIONS, trainer.group)
    root = unit.root @ torch.linalg.cholesky(covariance[free:, free:]).float().to(trainer.device)
    return TurnedFlow(flow, trainer.mesh, root)


def posed_batches(trainer: Trainer, index: NDArray[np.int64], band: Band) -> Iterator[Batch]:
    """This rank's of the particles, fewer at a time than in a training: each has six more derivatives. What is done of
    them is the progress of the present work."""
    dims = trainer.parameters.latent_dims
    size = max(1, trainer.micro_batch * (dims + 1) // (dims + 7))
    batches = trainer.group.batches(index, size)
    for number, batch in enumerate(trainer.stack.batches(trainer.group.checked(batches, trainer.events), band)):
        trainer.events.progress(number / len(batches))
        yield batch
