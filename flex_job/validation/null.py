"""Particles without motion: images of the rigid map at the data's own poses, CTFs, noise and contrast."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from flex_job.files import written_aside
from flex_job.levels import Level
from flex_job.particles import ParticleStack
from flex_job.turned_flow import TurnedFlow

__all__ = ["simulate_rigid"]


def simulate_rigid(
    stack: ParticleStack,
    rigid: Level,
    pose_errors: TurnedFlow,
    path: Path,
    *,
    seed: int,
    batch_size: int,
) -> ParticleStack:
    """A stack like `stack` of the map in `rigid`, with white noise of the level that the data were whitened to, written
    to `path`. The particles are turned and shifted by `pose_errors`, which their poses do not tell."""
    random = torch.Generator().manual_seed(seed)
    whole, band = stack.band(), rigid.model.band
    rest = pose_errors.rest
    with written_aside(path) as file:
        for index in np.array_split(np.arange(len(stack)), -(-len(stack) // batch_size)):
            batch = stack.batch(index, band)
            amplitudes = torch.randn(len(index), pose_errors.latent_dims, generator=random).to(rest.device)
            q = rigid.model.positions(batch, rest + pose_errors(amplitudes))
            packed = torch.randn(len(index), len(whole), 2, generator=random)
            signal = batch.transfer * rigid.model.transform(rigid.values, q)
            packed[:, : len(band)] += torch.view_as_real(signal).cpu()
            file.write(packed.numpy().astype(np.float16).tobytes())
    return replace(stack, path=path, rows=None)
