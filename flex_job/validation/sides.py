"""The two models that a validation compares, each with small corrections of the poses and a map of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from flex_job.flow import FlowGenerator
from flex_job.latents import inferred
from flex_job.levels import Level
from flex_job.particles import Batch
from flex_job.pose_errors import posed_batches, with_pose_errors
from flex_job.train import Trainer
from flex_job.turned_flow import TurnedFlow
from flex_job.volume import Volume

__all__ = ["Side", "make_side", "unused"]

MOST = 20_000  # particles that the maps are solved from: both have the same, and need not be the best there are


@dataclass(frozen=True)
class Side:
    """A flow (or none) with pose errors beside it, and its map in the bands of a training from coarse to fine."""

    flow: TurnedFlow
    map: Volume
    levels: Sequence[Level]

    def loss(self, batch: Batch, vertices: torch.Tensor, z: torch.Tensor, measured: torch.Tensor) -> torch.Tensor:
        """Negative log-likelihood (b,) of the coefficients that are `measured` (m,), in the finest band."""
        level = self.levels[-1]
        with torch.no_grad():
            q = level.model.positions(batch, vertices + self.flow(z))
        residual = (batch.data - batch.transfer * level.model.transform(level.values, q)) * measured
        return 0.5 * torch.view_as_real(residual).square().sum((1, 2)).double()


def unused(trainer: Trainer) -> NDArray[np.bool_]:
    """Which particles (n,) maps and pose errors do not come from: those kept aside, and of the others what is more than
    enough."""
    known = np.random.default_rng((trainer.seed, 3)).permutation(np.flatnonzero(~trainer.kept_aside))
    left_out = np.ones(len(trainer.stack), bool)
    left_out[known[:MOST]] = False
    return left_out


def make_side(trainer: Trainer, density: Volume, flow: FlowGenerator | None, latents: NDArray[np.float32]) -> Side:
    """From a map, and a flow at `latents` (n, K): the sizes of the pose errors that are left are found, each particle's
    are inferred in the coarse band, and the map is solved for again with them. Particles that the training kept aside
    have no part in it. Together."""
    left_out, bands = unused(trainer), (trainer.parameters.band_start, trainer.parameters.band_end)
    index = np.flatnonzero(~left_out)
    coarse = trainer.levels.level(density, bands[0])
    with trainer.events.part(0.0, 0.2):
        turned = with_pose_errors(trainer, coarse, flow, latents, index)
    start = np.concatenate([latents[:, : turned.own], np.zeros((len(latents), 6), np.float32)], axis=1)
    with trainer.events.part(0.2, 0.6):
        for batch in posed_batches(trainer, index, coarse.model.band):
            z = torch.from_numpy(start[batch.index]).to(trainer.device)
            start[batch.index] = inferred([coarse], turned, batch, trainer.vertices, z)[0].cpu().numpy()
    trainer.group.complete_(torch.from_numpy(start), trainer.group.own(np.arange(len(start))))
    with trainer.events.part(0.6, 1.0):
        density = trainer.solved(turned, start, left_out=left_out)
    return Side(turned, density, [trainer.levels.level(density, band) for band in bands])
