"""The closed triangle surface of a region: smooth, with triangles of the wanted size.

A marching-cubes surface of the mask itself has voxel-sized triangles and makes tetgen explode to hundreds of thousands
of cells. Here the *distance field* of the region is resampled on a grid whose step follows the wanted edge length, the
surface is thinned out to the wanted number of triangles, and a few rounds of tangential smoothing even them out.
Distance, unlike the mask's value, survives coarse sampling: a thin hinge is not lost between two grid nodes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from skimage.measure import marching_cubes

from flex_job.mesh.region import DistanceField
from flex_job.mesh.thinning import Limits, thinned, triangle_edges

__all__ = ["Surface", "extract_surface"]


# In wanted edge lengths: when all edges shorter than the first are collapsed, their mean is about 1.
SHORTEST = 0.72
LONGEST = 1.7
# How far a triangle may lie off the surface: outside, where it would close clefts, less than half a slit is deep.
OUTSIDE = 0.08
INSIDE = 0.25


@dataclass(frozen=True)
class Surface:
    """Closed triangle surface: `vertices_A` (n, 3) xyz, `triangles` (m, 3) with outward normals."""

    vertices_A: NDArray[np.float64]
    triangles: NDArray[np.int32]


def extract_surface(field: DistanceField, step_A: float, edge_A: float, smoothing: int = 8) -> Surface:
    """Surface of the region of `field`, sampled at `step_A`, with triangle edges of about `edge_A`.

    Details finer than `step_A` go; the surface is thinned out where `edge_A` is the longer of the two. `smoothing`
    rounds move vertices within the surface towards the middle of their neighbours. With edge_A <= step_A and no
    smoothing this is the plain marching-cubes surface, which never intersects itself.
    """
    coarse = field.resampled(step_A)
    # Nodes hardly off the surface make sliver triangles: push them away from it. Edges are then >= 0.25 step.
    near = 0.25 * step_A
    values = coarse.values_A
    values = np.where(np.abs(values) < near, np.where(values >= 0, near, -near), values)
    vertices, faces, _, _ = marching_cubes(values, 0.0)
    points = vertices[:, ::-1].astype(np.float64) * coarse.step_A + coarse.origin_A
    triangles = faces.astype(np.int32)
    if _signed_volume(points, triangles) < 0:
        triangles = np.ascontiguousarray(triangles[:, ::-1])
    points, triangles = _fill_cavities(points, triangles)
    if edge_A > step_A:
        limits = Limits(SHORTEST * edge_A, LONGEST * edge_A, OUTSIDE * edge_A, INSIDE * edge_A, coarse.at)
        for _ in range(2):
            points, triangles = thinned(points, triangles, limits)
            points = _relaxed(points, triangles, coarse, (smoothing + 1) // 2)
    return Surface(_relaxed(points, triangles, coarse, smoothing), triangles)


def _relaxed(
    points: NDArray[np.float64], triangles: NDArray[np.int32], field: DistanceField, rounds: int
) -> NDArray[np.float64]:
    """Tangential Laplacian smoothing on the zero level of `field`: even triangles, unchanged shape."""
    count = len(points)
    a, b = triangle_edges(triangles).T
    links = sparse.coo_matrix((np.ones(2 * len(a)), (np.r_[a, b], np.r_[b, a])), shape=(count, count)).tocsr()
    degree = np.asarray(links.sum(axis=1))
    for _ in range(rounds):
        slope = field.gradient_at(points)
        length = np.linalg.norm(slope, axis=1, keepdims=True)
        # At a ridge of the distance there is no normal: the vertex stays, or it might cross over to the other side.
        normal = np.where(length > 0.3, slope / np.maximum(length, 0.3), 0.0)
        step = np.where(length > 0.3, 0.5 * (links @ points / degree - points), 0.0)
        step -= (step * normal).sum(axis=1, keepdims=True) * normal
        points = points + step
        off = field.at(points)[:, None] / np.maximum(length, 0.3)
        points = points - np.clip(off, -0.3 * field.step_A, 0.3 * field.step_A) * normal
    return points


def _fill_cavities(
    points: NDArray[np.float64], triangles: NDArray[np.int32]
) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    """The surface without the shells that bound cavities: the mesh then fills those, and has no inner walls."""
    count = len(points)
    a, b, c = triangles.T
    links = sparse.coo_matrix((np.ones(2 * len(a)), (np.r_[a, b], np.r_[b, c])), shape=(count, count))
    pieces, label = sparse.csgraph.connected_components(links, directed=False)
    piece = label[a]
    volumes = np.array([_signed_volume(points, triangles[piece == p]) for p in range(pieces)])
    keep = volumes[piece] > 0
    used, compact = np.unique(triangles[keep], return_inverse=True)
    return points[used], compact.reshape(-1, 3).astype(np.int32)


def _signed_volume(points: NDArray[np.float64], triangles: NDArray[np.int32]) -> float:
    """Volume enclosed by the triangles; negative when their normals point inwards."""
    a, b, c = (points[triangles[:, k]] for k in range(3))
    return float(np.einsum("ij,ij->", a, np.cross(b, c))) / 6
