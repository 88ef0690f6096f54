"""The grid of a series of maps: its size, what is cropped away, and where an atomic model has its first voxel."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from flex_job.fourier import fourier_resize
from flex_job.model import FlexModel
from flex_job.operator import MASK_LEVEL, voxel_domain
from flex_job.volume import Volume

__all__ = ["Window", "cropping_window", "on_grid", "whole_window"]

MARGIN = 3  # voxels round the moved mask: density is deposited as a spline, and band-limited

Floats = NDArray[np.floating]


def on_grid(density: Volume, box: int) -> Volume:
    """The density on `box` voxels of its extent (0: its own), so placed that its middle voxel, box // 2, stays where an
    atomic model has it."""
    if box in (0, density.box):
        return density
    resized = fourier_resize(density, box)
    moved = (density.box // 2) * density.pixel_size_A - (box // 2) * resized.pixel_size_A
    corner = (density.corner_A[0] + moved, density.corner_A[1] + moved, density.corner_A[2] + moved)
    return replace(resized, corner_A=corner)


@dataclass(frozen=True)
class Window:
    """A cube of `box` voxels from voxel `start` (xyz) of a map."""

    start: tuple[int, int, int]
    box: int

    def of(self, volume: Volume, corner_A: tuple[float, float, float]) -> Volume:
        """The part of a map whose first voxel is at `corner_A`."""
        x, y, z = self.start
        data = volume.data[z : z + self.box, y : y + self.box, x : x + self.box]
        places = zip(corner_A, self.start, strict=True)
        first = [float(corner + start * volume.pixel_size_A) for corner, start in places]
        return Volume(np.ascontiguousarray(data), volume.pixel_size_A, (first[0], first[1], first[2]))


def whole_window(box: int) -> Window:
    return Window((0, 0, 0), box)


def cropping_window(model: FlexModel, density: Volume, points: Floats, at_rest: bool = False) -> Window:
    """The smallest cube of even side that holds the moved mask at each of `points` (m, K), and the mask `at_rest`; the
    whole box where that is smaller."""
    domain = voxel_domain(model.mesh, fourier_resize(model.support, density.box), MASK_LEVEL)
    vertices, weights = domain.weights()
    low, high = np.full(3, np.inf), np.full(3, -np.inf)
    rest = model.mesh.vertices_A
    for places in [rest + model.displacement(z[None])[0] for z in points] + [rest] * at_rest:
        moved = np.einsum("nk,nka->na", weights, places[vertices])
        low, high = np.minimum(low, moved.min(axis=0)), np.maximum(high, moved.max(axis=0))
    half = density.box // 2
    first = np.floor(low / density.pixel_size_A).astype(int) + half - MARGIN
    last = np.ceil(high / density.pixel_size_A).astype(int) + half + MARGIN
    side = int((last - first + 1).max())
    box = min(side + side % 2, density.box)
    start = np.clip((first + last + 1 - box) // 2, 0, density.box - box)
    return Window((int(start[0]), int(start[1]), int(start[2])), box)
