"""The two models that a validation compares, each with small corrections of the poses and a map of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from flex_job.canonical_map import canonical_map
from flex_job.flow import FlowGenerator
from flex_job.latents import inferred
from flex_job.levels import Level
from flex_job.particles import Batch
from flex_job.solver import moved_vertices
from flex_job.train import Trainer
from flex_job.validation.poses import PosedFlow, pose_fields
from flex_job.volume import Volume

__all__ = ["Side", "batch_size", "make_side", "solved_map"]

SAMPLE = 4000  # particles that the sizes of pose errors are found from
MOST = 20_000  # particles that the maps are solved from: both have the same, and need not be the best there are


@dataclass(frozen=True)
class Side:
    """A flow (or none) with pose errors beside it, and its map in the bands of a training from coarse to fine."""

    flow: PosedFlow
    map: Volume
    levels: Sequence[Level]

    def loss(self, batch: Batch, vertices: torch.Tensor, z: torch.Tensor, measured: torch.Tensor) -> torch.Tensor:
        """Negative log-likelihood (b,) of the coefficients that are `measured` (m,), in the finest band."""
        level = self.levels[-1]
        with torch.no_grad():
            q = level.model.positions(batch, vertices + self.flow(z))
        residual = (batch.data - batch.transfer * level.model.transform(level.values, q)) * measured
        return 0.5 * torch.view_as_real(residual).square().sum((1, 2)).double()


def batch_size(trainer: Trainer) -> int:
    """Particles at a time: six more derivatives of each than a training has take their memory."""
    dims = trainer.parameters.latent_dims
    return max(1, trainer.micro_batch * (dims + 1) // (dims + 7))


def used(trainer: Trainer) -> NDArray[np.int64]:
    """The particles that maps and pose errors come from, ascending: of those that were trained on."""
    index = np.random.default_rng((trainer.seed, 3)).permutation(np.flatnonzero(~trainer.kept_aside))
    return np.sort(index[:MOST])


def solved_map(trainer: Trainer, positions: Callable[[Batch], torch.Tensor]) -> Volume:
    """The map, in the training's final band, of the particles in use with their vertices at `positions`. Together."""
    model = trainer.levels.model(trainer.parameters.band_end)
    left_out = np.ones(len(trainer.stack), bool)
    left_out[used(trainer)] = False
    return canonical_map(
        trainer.stack, model, positions, trainer.events, trainer.group, trainer.micro_batch, left_out=left_out
    )


def make_side(trainer: Trainer, density: Volume, flow: FlowGenerator | None, latents: NDArray[np.float32]) -> Side:
    """From a map, and a flow at `latents` (n, K): the sizes of the pose errors that are left are found, each particle's
    are inferred in the coarse band, and the map is solved for again with them. Particles that the training kept aside
    have no part in it. Together."""
    stack, group, size, index = trainer.stack, trainer.group, batch_size(trainer), used(trainer)
    rest, own = trainer.vertices, flow.latent_dims if flow else 0
    bands = (trainer.parameters.band_start, trainer.parameters.band_end)
    coarse = trainer.levels.level(density, bands[0])
    start = np.concatenate([latents[:, :own], np.zeros((len(stack), 6), np.float32)], axis=1)

    displaced: Callable[[Batch], torch.Tensor] | None = None
    if flow is not None:

        def displaced(batch: Batch) -> torch.Tensor:
            with torch.no_grad():
                return flow(torch.from_numpy(latents[batch.index]).to(rest.device))

    sample = index[:: -(-len(index) // SAMPLE)]
    side = Side(PosedFlow(flow, pose_fields(stack, sample, trainer.mesh, coarse, size, group, displaced)), density, [])
    for batch in stack.batches(group.checked(group.batches(index, size), trainer.events), coarse.model.band):
        z = torch.from_numpy(start[batch.index]).to(rest.device)
        start[batch.index] = inferred([coarse], side.flow, batch, rest, z)[0].cpu().numpy()
    group.complete_(torch.from_numpy(start), group.own(np.arange(len(stack))))
    images = trainer.levels.model(bands[1])
    density = solved_map(trainer, moved_vertices(images, rest, side.flow, start))
    return Side(side.flow, density, [trainer.levels.level(density, band) for band in bands])
