"""Points that move with the mesh: atoms of a model, points of a surface."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flex_job.mesh.locate import locate
from flex_job.mesh.tetmesh import TetMesh

__all__ = ["MeshPoints"]

INSIDE = -1e-5  # barycentric weights down to this lie in the cell: they are single precision

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class MeshPoints:
    """Where n points are in the mesh: `cell` (n,) and barycentric `weights` (n, 4). `inside` (n,) says which lie in it;
    the others go with the nearest cell, as the map's voxels do (`flex_job.mesh.locate`)."""

    mesh: TetMesh
    cell: NDArray[np.int32]
    weights: Floats
    inside: NDArray[np.bool_]

    @classmethod
    def at(cls, mesh: TetMesh, points_A: NDArray[np.floating]) -> MeshPoints:
        """Of `points_A` (n, 3) in the frame of `mesh`."""
        cell, held = locate(mesh, points_A)
        weights, inside = held.astype(np.float64), held.min(axis=1) >= INSIDE
        weights[inside] = _barycentric(mesh.vertices_A[mesh.cells[cell[inside]]], points_A[inside])
        return cls(mesh, cell, weights, inside)

    def carried(self, fields: NDArray[np.floating]) -> Floats:
        """Vector fields (..., V, 3) on the vertices, at the points (..., n, 3)."""
        corners = fields[..., self.mesh.cells[self.cell], :]
        return np.asarray(np.einsum("nk,...nka->...na", self.weights, corners), dtype=np.float64)

    def moved(self, points_A: Floats, vertices_A: Floats) -> Floats:
        """The points (n, 3) when the mesh's vertices go to `vertices_A` (V, 3)."""
        return points_A + self.carried(np.asarray(vertices_A, dtype=np.float64) - self.mesh.vertices_A)


def _barycentric(corners: Floats, points: Floats) -> Floats:
    """(n, 4) weights in double precision of points (n, 3) in tetrahedra (n, 4, 3)."""
    edges = np.swapaxes(corners[:, 1:] - corners[:, :1], 1, 2)
    rest = np.linalg.solve(edges, (points - corners[:, 0])[..., None])[..., 0]
    return np.concatenate([1 - rest.sum(axis=1, keepdims=True), rest], axis=1)
