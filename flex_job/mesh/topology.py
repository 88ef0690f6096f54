"""Which cells touch: inner faces, the boundary surface, and cutting a mesh along faces."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

__all__ = ["boundary_faces", "inner_faces", "split_along"]

# Face k of a cell is opposite its corner k; corners in the order that makes the normal point outwards.
FACES = np.array([[1, 2, 3], [0, 3, 2], [0, 1, 3], [0, 2, 1]])


def inner_faces(cells: NDArray[np.integer]) -> NDArray[np.int64]:
    """Pairs of corner triples (F, 2, 3): each inner face seen from its two cells, corresponding corners in line.

    An entry is 4 * cell + corner.
    """
    sides, order, same = _paired(cells)
    first = order[:-1][same]
    second = order[1:][same]
    return np.stack([sides[first], sides[second]], axis=1)


def boundary_faces(cells: NDArray[np.integer]) -> NDArray[np.int32]:
    """Triangles (B, 3) of vertex numbers that belong to one cell only; normals outwards for positive cells."""
    _, order, same = _paired(cells)
    alone = ~(np.r_[same, False] | np.r_[False, same])
    face = order[alone]
    return np.asarray(cells)[face // 4][np.arange(len(face))[:, None], FACES[face % 4]].astype(np.int32)


def split_along(cells: NDArray[np.integer], cut: NDArray[np.bool_]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Cut a mesh open along inner faces: cells (T, 4) with new vertex numbers, and each new vertex's old number (V',).

    `cut` (F,) marks faces of `inner_faces(cells)`. Cells round a vertex keep sharing it when a chain of uncut faces
    at that vertex joins them; otherwise each group gets its own copy. With nothing cut this also parts cells that
    hang together at a single vertex or edge only.
    """
    cells = np.asarray(cells)
    joined = inner_faces(cells)[~cut]
    corners = cells.size
    links = coo_matrix(
        (np.ones(joined.size // 2), (joined[:, 0].ravel(), joined[:, 1].ravel())), shape=(corners, corners)
    )
    count, number = connected_components(links, directed=False)
    origin = np.empty(count, dtype=np.int64)
    origin[number] = cells.ravel()
    # Old vertices in their old order, so that a mesh with nothing to part comes back as it was.
    order = np.argsort(origin, kind="stable")
    rank = np.empty(count, dtype=np.int32)
    rank[order] = np.arange(count, dtype=np.int32)
    return rank[number].reshape(cells.shape), origin[order]


def _paired(cells: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """All faces as corner ids (4 T, 3) sorted by vertex number, an order that puts twins side by side, and where.

    `same[i]` says that faces order[i] and order[i + 1] are one face.
    """
    cells = np.asarray(cells)
    corner = (4 * np.arange(len(cells))[:, None, None] + FACES[None]).reshape(-1, 3)
    vertex = cells.ravel()[corner]
    along = np.argsort(vertex, axis=1, kind="stable")
    corner, vertex = np.take_along_axis(corner, along, axis=1), np.take_along_axis(vertex, along, axis=1)
    order = np.lexsort(vertex.T[::-1])
    same = (vertex[order][1:] == vertex[order][:-1]).all(axis=1)
    return corner, order, same
