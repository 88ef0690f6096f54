"""Likelihood gain of the motion over none, on images and Fourier coefficients that it was not fitted to.

Particles that training has kept aside are compared with two models: the flexible one, and a rigid one whose map comes
from the same particles. Each particle's latents (and, in both models, small corrections of its pose) are inferred from
one half of its Fourier coefficients, and the likelihood is measured on the other; then the halves change places. Noise
is independent between the two, so a model that only explains noise loses.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from flex_job.latents import inferred
from flex_job.pose_errors import posed_batches
from flex_job.train import Trainer
from flex_job.validation.sides import Side

__all__ = ["Gain", "held_out_gain"]


@dataclass(frozen=True)
class Gain:
    """`flex` (n,): log-likelihood of the flexible less that of the rigid model, in nats, of each particle on the
    coefficients that its latents did not see. `shuffled` (n,): the same with another particle's latents."""

    flex: NDArray[np.float64]
    shuffled: NDArray[np.float64]


def held_out_gain(trainer: Trainer, flex: Side, rigid: Side) -> Gain:
    """Gain on the particles that the training kept aside. Together."""
    stack, group, rest = trainer.stack, trainer.group, trainer.vertices
    index = np.flatnonzero(trainer.kept_aside)
    band = flex.levels[-1].model.band
    random = np.random.default_rng((trainer.seed, 2))
    half = torch.from_numpy(random.random(len(band)) < 0.5).to(rest.device)
    gains = torch.zeros(len(stack), 2, dtype=torch.float64)
    for batch in posed_batches(trainer, index, band):
        for seen in (half, ~half):
            part = batch.only(seen)
            z, pose = (
                inferred(side.levels, side.flow, part, rest, rest.new_zeros(len(batch), side.flow.latent_dims))[0]
                for side in (flex, rigid)
            )
            own = flex.flow.own
            anothers = torch.cat([z[:, :own].roll(1, 0), z[:, own:]], dim=1)
            base = rigid.loss(batch, rest, pose, ~seen)
            for column, at in enumerate((z, anothers)):
                gains[batch.index, column] += (base - flex.loss(batch, rest, at, ~seen)).cpu()
    group.complete_(gains, group.own(np.arange(len(stack))))
    return Gain(*gains[index].numpy().T)
