"""Frequency marching: which band an epoch works in, and the coarsest images and voxels that carry it.

A band at a quarter of Nyquist needs a sixteenth of the pixels and a sixty-fourth of the voxels. Coefficients are
listed by frequency (`Band`), so going from one grid to another changes nothing but how the same numbers are computed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from flex_job.fourier import fourier_resize, low_pass
from flex_job.imaging import ImageModel
from flex_job.mesh import TetMesh
from flex_job.operator import MASK_LEVEL, Operator, VoxelDomain, make_operator, voxel_domain
from flex_job.particles import ParticleStack
from flex_job.volume import Volume
from job_specs.parameters import TrainParameters

__all__ = ["Level", "Levels", "band_limit", "march_box"]

BAND_OF_BOX = 0.8  # of Nyquist: up to there the spline on the plain grid is good to a few per cent
FAINT = 0.02  # of the largest density


def band_limit(parameters: TrainParameters, epoch: int) -> float:
    """Band limit of an epoch, as a fraction of the stack's Nyquist: it rises by the same factor from epoch to epoch,
    then stays. Of a linear rise most epochs would be near its end, where they cost most."""
    p = parameters
    rise = max(1.0, p.band_epochs * p.epochs)
    return p.band_end if epoch >= rise else p.band_start * (p.band_end / p.band_start) ** (epoch / rise)


def march_box(full: int, fraction: float) -> int:
    """The smallest box, a multiple of 8 and not above `full`, that carries a fraction of the Nyquist of `full`."""
    # The slack is for rounding: a fraction that needs 24 pixels and a bit in the sixteenth digit needs 24.
    return min(full, max(16, 8 * int(np.ceil(fraction * full / BAND_OF_BOX / 8 - 1e-6))))


@dataclass(frozen=True)
class Level:
    """Images in a band, and the canonical map's `values` at the voxels of the model's domain."""

    model: ImageModel
    values: torch.Tensor


class Levels:
    """Makes levels for a particle stack on one device."""

    def __init__(self, stack: ParticleStack, mesh: TetMesh, mask: Volume, device: torch.device, *, tf32: bool) -> None:
        """`mask` at the stack's box."""
        self.stack, self.mesh, self.mask, self.device, self.tf32 = stack, mesh, mask, device, tf32
        self._operators: dict[int, Operator] = {}
        self._density: Volume | None = None
        self._levels: dict[float, Level] = {}  # of that density

    def model(self, fraction: float) -> ImageModel:
        """Images up to a fraction of Nyquist, on the coarsest grid that carries it, of all voxels of the mask."""
        return self._model(self._operator(march_box(self.stack.box, fraction)), fraction)

    def values(self, density: Volume, fraction: float) -> NDArray[np.float32]:
        """`density` (at the stack's box), band-limited, at the voxels of `model`."""
        stack = self.stack
        box = march_box(stack.box, fraction)
        cut = fraction * stack.box / 2 / stack.extent_A
        return self.domain(box).gather(low_pass(fourier_resize(density, box), cut).data)

    def level(self, density: Volume, fraction: float) -> Level:
        """The model with `density` on it, of the voxels that carry more than FAINT of the largest density.

        The others, nine in ten at a low band, change the coefficients by a few per cent, and the motion that follows
        from them by less.
        """
        if density is not self._density:
            self._density, self._levels = density, {}
        if fraction not in self._levels:
            self._levels[fraction] = self._level(density, fraction)
        return self._levels[fraction]

    def _level(self, density: Volume, fraction: float) -> Level:
        values = self.values(density, fraction)
        keep = np.abs(values) > FAINT * np.abs(values).max()
        domain = self.domain(march_box(self.stack.box, fraction)).subset(keep)
        model = self._model(make_operator(domain, self.device, tf32=self.tf32), fraction)
        return Level(model, torch.from_numpy(values[keep]).to(self.device))

    def domain(self, box: int) -> VoxelDomain:
        """All voxels of the mask at that box."""
        return self._operator(box).domain

    def _operator(self, box: int) -> Operator:
        if box not in self._operators:
            domain = voxel_domain(self.mesh, fourier_resize(self.mask, box), MASK_LEVEL)
            self._operators[box] = make_operator(domain, self.device, tf32=self.tf32)
        return self._operators[box]

    def _model(self, operator: Operator, fraction: float) -> ImageModel:
        stack, box = self.stack, operator.domain.box
        return ImageModel(
            operator,
            box,
            stack.band(min(fraction, box / stack.box)),
            stack_box=stack.box,
            stack_pixel_size_A=stack.pixel_size_A,
        )
