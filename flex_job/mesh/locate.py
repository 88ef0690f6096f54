"""Which cell a point lies in, and with which weights of the cell's four vertices."""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

from flex_job.mesh.tetmesh import TetMesh

__all__ = ["EXTRAPOLATION_LIMIT", "locate"]

# Farthest, in barycentric units, that a point outside the mesh may lie from its cell before its weights are held.
EXTRAPOLATION_LIMIT = 0.5
# Weights down to this are inside: rounding must not lose a point between two cells.
INSIDE = -1e-9
# Rings of bins searched for the nearest cell before all cells are.
RINGS = 4


def locate(mesh: TetMesh, points_A: NDArray[np.floating]) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Cell (P,) and barycentric weights (P, 4) of each of `points_A` (P, 3) xyz; the weights sum to one.

    A displacement at the point is the weighted sum of those at the cell's vertices; inside the mesh, affine fields
    are reproduced. A point outside gets the nearest cell with weights continued linearly (still affine) until one of
    them lies EXTRAPOLATION_LIMIT from the closest weights inside; farther out they are held there, so that a stray
    voxel never moves much more than the cell next to it. Raises ValueError for points that are not finite.
    """
    points = np.ascontiguousarray(points_A, dtype=np.float64).reshape(-1, 3)
    if not np.isfinite(points).all():
        raise ValueError("points to locate in the mesh must be finite")
    corners = np.ascontiguousarray(mesh.vertices_A[mesh.cells])
    inverse = np.ascontiguousarray(np.linalg.inv(np.swapaxes(corners[:, 1:] - corners[:, :1], 1, 2)))
    # Of each cell: its middle, the radius of the sphere round it, its heights over the four faces.
    middles = corners.mean(axis=1)
    radii = np.linalg.norm(corners - middles[:, None], axis=2).max(axis=1)
    slopes = np.concatenate([-inverse.sum(axis=1, keepdims=True), inverse], axis=1)
    bounds = np.concatenate([middles, radii[:, None], 1 / np.linalg.norm(slopes, axis=2)], axis=1)
    low, high = corners.min(axis=1), corners.max(axis=1)
    bin_A = 0.5 * float(np.median((high - low).max(axis=1)))
    origin = low.min(axis=0) - bin_A
    shape = np.ceil((high.max(axis=0) + bin_A - origin) / bin_A).astype(np.int64) + 1
    first = ((low - origin) / bin_A - 1e-6).astype(np.int64)
    last = ((high - origin) / bin_A + 1e-6).astype(np.int64)
    starts, members = _fill_bins(first, last, shape)
    cell = np.empty(len(points), dtype=np.int32)
    weights = np.empty((len(points), 4), dtype=np.float32)
    _locate(points, corners, inverse, bounds, origin, bin_A, shape, starts, members, cell, weights)
    return cell, weights


@numba.njit(cache=True)
def _fill_bins(first, last, shape):  # type: ignore[no-untyped-def]
    """Cells whose bounding box meets each bin, as compressed rows (starts, members)."""
    count = np.zeros(shape[0] * shape[1] * shape[2] + 1, dtype=np.int64)
    for sweep in range(2):
        if sweep == 1:
            count = np.cumsum(count)
            members = np.empty(count[-1], dtype=np.int32)
            fill = count[:-1].copy()
        for cell in range(len(first)):
            for i in range(first[cell, 0], last[cell, 0] + 1):
                for j in range(first[cell, 1], last[cell, 1] + 1):
                    for k in range(first[cell, 2], last[cell, 2] + 1):
                        here = (i * shape[1] + j) * shape[2] + k
                        if sweep == 0:
                            count[here + 1] += 1
                        else:
                            members[fill[here]] = cell
                            fill[here] += 1
    return count, members


@numba.njit(cache=True)
def _weights(points, p, corners, inverse, cell, out):  # type: ignore[no-untyped-def]
    """Barycentric weights of point `p` in `cell`, into `out` (4,). Returns the smallest."""
    x = points[p, 0] - corners[cell, 0, 0]
    y = points[p, 1] - corners[cell, 0, 1]
    z = points[p, 2] - corners[cell, 0, 2]
    for k in range(3):
        out[k + 1] = inverse[cell, k, 0] * x + inverse[cell, k, 1] * y + inverse[cell, k, 2] * z
    out[0] = 1.0 - out[1] - out[2] - out[3]
    return min(min(out[0], out[1]), min(out[2], out[3]))


@numba.njit(cache=True)
def _edge_distance(points, p, corners, cell, a, b):  # type: ignore[no-untyped-def]
    """Distance from point `p` to the edge of `cell` between corners a and b."""
    along, square, away = 0.0, 0.0, 0.0
    for c in range(3):
        edge = corners[cell, b, c] - corners[cell, a, c]
        along += (points[p, c] - corners[cell, a, c]) * edge
        square += edge * edge
    t = min(max(along / square, 0.0), 1.0)
    for c in range(3):
        away += (points[p, c] - (1 - t) * corners[cell, a, c] - t * corners[cell, b, c]) ** 2
    return np.sqrt(away)


@numba.njit(cache=True)
def _face_distance(points, p, corners, cell, i, j, k):  # type: ignore[no-untyped-def]
    """Distance from point `p` to a face of `cell`: to its plane where the foot lies inside, else to an edge."""
    uu = uv = vv = wu = wv = ww = 0.0
    for c in range(3):
        u = corners[cell, j, c] - corners[cell, i, c]
        v = corners[cell, k, c] - corners[cell, i, c]
        w = points[p, c] - corners[cell, i, c]
        uu, uv, vv = uu + u * u, uv + u * v, vv + v * v
        wu, wv, ww = wu + w * u, wv + w * v, ww + w * w
    area = uu * vv - uv * uv
    s, t = (vv * wu - uv * wv) / area, (uu * wv - uv * wu) / area
    if s >= 0 and t >= 0 and s + t <= 1:
        return np.sqrt(max(ww - s * wu - t * wv, 0.0))
    first = _edge_distance(points, p, corners, cell, i, j)
    second = _edge_distance(points, p, corners, cell, j, k)
    return min(first, min(second, _edge_distance(points, p, corners, cell, k, i)))


@numba.njit(cache=True)
def _nearer(points, p, corners, inverse, bounds, cell, nearest, trial):  # type: ignore[no-untyped-def]
    """The smaller of `nearest` and the distance from point `p`, outside all cells, to `cell`."""
    # Two lower bounds spare most of the exact distances: the sphere round the cell, and its face planes.
    away = 0.0
    for c in range(3):
        away += (points[p, c] - bounds[cell, c]) ** 2
    if away >= (nearest + bounds[cell, 3]) ** 2:
        return nearest
    _weights(points, p, corners, inverse, cell, trial)
    for k in range(4):
        if -trial[k] * bounds[cell, 4 + k] >= nearest:
            return nearest
    for k in range(4):
        # Only a face that the point lies outside of can be the nearest one.
        if trial[k] < 0:
            face = _face_distance(points, p, corners, cell, (k + 1) % 4, (k + 2) % 4, (k + 3) % 4)
            nearest = min(nearest, face)
    return nearest


@numba.njit(cache=True)
def _nearest(points, p, corners, inverse, bounds, bin_A, shape, middle, starts, members, trial):  # type: ignore[no-untyped-def]
    """The cell nearest to point `p`, outside all cells: in the bins round it, else among all cells."""
    nearest, chosen = np.inf, -1
    for ring in range(RINGS):
        # Cells first met in ring r are at least r - 1 bins away.
        if nearest <= (ring - 1) * bin_A:
            return chosen
        for i in range(max(middle[0] - ring, 0), min(middle[0] + ring, shape[0] - 1) + 1):
            for j in range(max(middle[1] - ring, 0), min(middle[1] + ring, shape[1] - 1) + 1):
                for k in range(max(middle[2] - ring, 0), min(middle[2] + ring, shape[2] - 1) + 1):
                    if max(abs(i - middle[0]), abs(j - middle[1]), abs(k - middle[2])) < ring:
                        continue
                    here = (i * shape[1] + j) * shape[2] + k
                    for m in range(starts[here], starts[here + 1]):
                        away = _nearer(points, p, corners, inverse, bounds, members[m], nearest, trial)
                        if away < nearest:
                            nearest, chosen = away, members[m]
    if nearest > (RINGS - 1) * bin_A:
        for cell in range(len(corners)):
            away = _nearer(points, p, corners, inverse, bounds, cell, nearest, trial)
            if away < nearest:
                nearest, chosen = away, cell
    return chosen


@numba.njit(cache=True, parallel=True)
def _locate(points, corners, inverse, bounds, origin, bin_A, shape, starts, members, cell, weights):  # type: ignore[no-untyped-def]
    """Cell and weights of each point: the first cell of its bin that holds it, else the nearest."""
    for p in numba.prange(len(points)):
        middle, trial = np.empty(3, dtype=np.int64), np.empty(4)
        for a in range(3):
            middle[a] = min(max(int(np.floor((points[p, a] - origin[a]) / bin_A)), 0), shape[a] - 1)
        here = (middle[0] * shape[1] + middle[1]) * shape[2] + middle[2]
        chosen = -1
        for m in range(starts[here], starts[here + 1]):
            if _weights(points, p, corners, inverse, members[m], trial) >= INSIDE:
                chosen = members[m]
                break
        if chosen < 0:
            chosen = _nearest(points, p, corners, inverse, bounds, bin_A, shape, middle, starts, members, trial)
            _weights(points, p, corners, inverse, chosen, trial)
            _held(trial)
        cell[p] = chosen
        for c in range(4):
            weights[p, c] = trial[c]


@numba.njit(cache=True)
def _held(weights):  # type: ignore[no-untyped-def]
    """Pull weights (4,) of a point outside back towards the cell, so that none is farther out than the limit."""
    total = 0.0
    for c in range(4):
        total += max(weights[c], 0.0)
    worst = 0.0
    for c in range(4):
        worst = max(worst, abs(weights[c] - max(weights[c], 0.0) / total))
    if worst > EXTRAPOLATION_LIMIT:
        part = EXTRAPOLATION_LIMIT / worst
        for c in range(4):
            close = max(weights[c], 0.0) / total
            weights[c] = close + part * (weights[c] - close)
