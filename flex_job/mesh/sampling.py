"""Values of a volume at points and in the cells of a mesh."""

from __future__ import annotations

from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from flex_job.volume import Volume

__all__ = ["cell_points", "sample", "voxel_positions"]


def sample(volume: Volume, points_A: NDArray[np.floating]) -> NDArray[np.float64]:
    """Trilinear value at `points_A` (..., 3) xyz, angstrom from the box centre; 0 outside the box."""
    index = np.asarray(points_A)[..., ::-1] / volume.pixel_size_A + volume.box // 2
    return ndimage.map_coordinates(volume.data, np.moveaxis(index, -1, 0), order=1, output=np.float64, mode="constant")


def voxel_positions(where: NDArray[np.bool_], pixel_size_A: float) -> NDArray[np.float64]:
    """xyz (n, 3) in angstrom from the box centre of the True voxels of `where` (z, y, x), in C order."""
    zyx = np.argwhere(where) - np.array(where.shape) // 2
    return zyx[:, ::-1] * pixel_size_A


def cell_points(
    vertices_A: NDArray[np.floating], cells: NDArray[np.integer], divisions: int = 3
) -> NDArray[np.float64]:
    """Points spread evenly inside each cell, (T, n, 3); n = 20 for 3 divisions, 35 for 4."""
    steps = [i for i in product(range(divisions + 1), repeat=4) if sum(i) == divisions]
    weights = (np.array(steps) + 0.25) / (divisions + 1)
    return np.einsum("nk,tkc->tnc", weights, np.asarray(vertices_A, dtype=np.float64)[cells])
