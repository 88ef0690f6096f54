"""Particles without motion: images of the rigid map at the data's own poses, CTFs, noise and contrast."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from flex_job.files import written_aside
from flex_job.levels import Level
from flex_job.particles import ParticleStack
from flex_job.validation.poses import PosedFlow

__all__ = ["simulate_rigid"]


def simulate_rigid(
    stack: ParticleStack,
    rigid: Level,
    vertices: torch.Tensor,
    fields: torch.Tensor,
    path: Path,
    *,
    seed: int,
    batch_size: int,
) -> ParticleStack:
    """A stack like `stack` of the map in `rigid`, with white noise of the level that the data were whitened to, written
    to `path`. The particles are turned and shifted along `fields` (see `pose_fields`) by as much as those of the data
    seem to be, which their poses do not tell."""
    random = torch.Generator().manual_seed(seed)
    whole, band = stack.band(), rigid.model.band
    wobble = PosedFlow(None, fields)
    with written_aside(path) as file:
        for index in np.array_split(np.arange(len(stack)), -(-len(stack) // batch_size)):
            batch = stack.batch(index, band)
            amplitudes = torch.randn(len(index), len(fields), generator=random).to(vertices.device)
            q = rigid.model.positions(batch, vertices + wobble(amplitudes))
            packed = torch.randn(len(index), len(whole), 2, generator=random)
            signal = batch.transfer * rigid.model.transform(rigid.values, q)
            packed[:, : len(band)] += torch.view_as_real(signal).cpu()
            file.write(packed.numpy().astype(np.float16).tobytes())
    return replace(stack, path=path, rows=None)
