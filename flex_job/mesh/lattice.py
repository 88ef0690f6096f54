"""Body-centred cubic lattice of tetrahedra over a region: the mesh that cannot fail.

Used when tetgen refuses a surface. All cells have the same good shape (mean-ratio quality 0.94); the price is a
boundary that follows the mask in steps of a cell.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flex_job.mesh.region import DistanceField
from flex_job.mesh.sampling import cell_points

__all__ = ["lattice_mesh"]


def lattice_mesh(field: DistanceField, edge_A: float) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    """Vertices (V, 3) xyz and cells (T, 4), mean edge `edge_A`, of all lattice cells that meet the region of `field`.

    A cell joins the centres of two neighbouring cubes with one edge of the face between them.
    """
    # Edges of a cell: two of the cube's side a, four of sqrt(3)/2 a.
    side = edge_A / ((2 + 4 * np.sqrt(0.75)) / 6)
    shape = np.array(field.values_A.shape)[::-1]
    counts = np.ceil((shape - 1) * field.step_A / side).astype(int) + 2
    low = field.origin_A - 0.5 * side
    # Corners and centres on one grid of half sides: corners even, centres odd.
    size = 2 * counts + 1
    cells = []
    for axis in range(3):
        u, v = (axis + 1) % 3, (axis + 2) % 3
        grid = [np.arange(1, size[a], 2) for a in range(3)]
        grid[axis] = grid[axis][:-1]
        here = np.stack(np.meshgrid(*grid, indexing="ij"), axis=-1).reshape(-1, 3)
        unit = np.eye(3, dtype=int)
        ring = [unit[axis] + s * unit[u] + t * unit[v] for s, t in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
        for k in range(4):
            corners = (here, here + 2 * unit[axis], here + ring[k], here + ring[(k + 1) % 4])
            cells.append(np.stack(corners, axis=1))
    nodes = np.concatenate(cells)
    number = nodes @ np.array([1, size[0], size[0] * size[1]])
    corner_A = low + nodes * (0.5 * side)
    flat = corner_A.reshape(-1, 3)
    inside = np.concatenate(
        [
            field.at(flat).reshape(-1, 4) > 0,
            field.at(cell_points(flat, np.arange(len(flat)).reshape(-1, 4)).reshape(-1, 3)).reshape(len(nodes), -1) > 0,
        ],
        axis=1,
    )
    keep = inside.any(axis=1)
    _, first, compact = np.unique(number[keep], return_index=True, return_inverse=True)
    return corner_A[keep].reshape(-1, 3)[first], compact.reshape(-1, 4).astype(np.int32)
