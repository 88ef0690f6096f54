"""What the data say about a mesh: rigidity per cell from the density, freedom to move per vertex from a mask."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flex_job.mesh.sampling import cell_points, sample
from flex_job.volume import Volume

__all__ = ["RIGID_WEIGHT", "motion_factor", "rigidity_weights"]

# Cells of a rigid segment: far stiffer than the densest ordinary cell (weight 1).
RIGID_WEIGHT = 20.0


def rigidity_weights(
    vertices_A: NDArray[np.float64],
    cells: NDArray[np.int32],
    map: Volume,
    rigidity_min: float = 0.5,
    stiffen_low_density: bool = False,
) -> NDArray[np.float32]:
    """Weights w_j (T,) of the local rigidity, linear in the mean density of the cell (3DFlex eq. 5).

    The densest cells (the highest 5 %) have weight 1, empty ones `rigidity_min`, so that the space round the protein
    may stretch. `stiffen_low_density` turns that round: empty cells have 1 and the densest `rigidity_min`, which
    keeps a weak periphery from flapping.
    """
    mean = sample(map, cell_points(vertices_A, cells)).mean(axis=1)
    density = np.maximum(mean, 0.0)
    top = float(np.quantile(density, 0.95))
    relative = np.minimum(density / top, 1.0) if top > 0 else np.zeros_like(density)
    if stiffen_low_density:
        relative = 1.0 - relative
    return (rigidity_min + (1.0 - rigidity_min) * relative).astype(np.float32)


def motion_factor(
    vertices_A: NDArray[np.float64], cells: NDArray[np.int32], zero_motion: Volume | None
) -> NDArray[np.float32]:
    """Factor (V,) on each vertex's displacement: 0 in the zero-motion mask, 1 away from it, its soft edge between.

    All vertices of a cell that lies mostly in the mask are held as well, so that density in the mask stands still
    although the corners of its cell may stick out.
    """
    if zero_motion is None:
        return np.ones(len(vertices_A), dtype=np.float32)
    held = np.clip(sample(zero_motion, vertices_A), 0.0, 1.0)
    inside = sample(zero_motion, cell_points(vertices_A, cells)).mean(axis=1) > 0.5
    held[np.unique(cells[inside])] = 1.0
    return (1.0 - held).astype(np.float32)
