"""Fewer, evener triangles on a closed surface: short edges are collapsed, and nothing about its shape changes.

Quadric decimation, the usual tool, leaves long thin triangles wherever a surface is flat, and tetgen then makes
worse tetrahedra of them. Here all edges grow towards the same length instead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

__all__ = ["Limits", "thinned", "triangle_edges"]

# A collapse that turns a triangle by more than about 70 degrees folds the surface.
TURNED = 0.35
ROUNDS = 100

Points = NDArray[np.float64]
Triangles = NDArray[np.int32]


def triangle_edges(triangles: NDArray[np.integer]) -> NDArray[np.integer]:
    """The edges (E, 2) of a triangle surface, each once, lower vertex number first."""
    sides = np.sort(np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]]), axis=1)
    # One number per edge sorts far faster than pairs do.
    count = np.int64(sides.max()) + 1
    return np.stack(np.divmod(np.unique(sides[:, 0] * count + sides[:, 1]), count), axis=1)


@dataclass(frozen=True)
class Limits:
    """What a thinned surface keeps to: lengths of edges, and the distance of triangles from the true surface.

    `distance(points)` (n,) is the signed distance to the true surface, positive inside; no triangle's middle goes
    farther than `outside` or `inside` from it. Without that a narrow cleft would be zipped up from its closed end,
    edge by short edge.
    """

    shortest: float
    longest: float
    outside: float
    inside: float
    distance: Callable[[Points], NDArray[np.float64]]


def thinned(points: Points, triangles: Triangles, limits: Limits) -> tuple[Points, Triangles]:
    """Collapse edges shorter than `limits.shortest` to their middles, as long as the surface stays sound.

    Topology is kept (an edge is collapsed only when its ends have just two common neighbours), no triangle is
    folded over, and `limits` hold. Each round collapses edges that do not touch one another, the shorter first.
    """
    random = np.random.default_rng(0)
    for _ in range(ROUNDS):
        chosen = _independent_short_edges(points, triangles, limits.shortest, random)
        if len(chosen) == 0:
            break
        sound = _sound(points, triangles, chosen, limits)
        if not sound.any():
            break
        points, triangles = _collapsed(points, triangles, chosen[sound])
        kept = (triangles[:, 0] != triangles[:, 1]) & (triangles[:, 1] != triangles[:, 2])
        triangles = triangles[kept & (triangles[:, 2] != triangles[:, 0])]
    used, compact = np.unique(triangles, return_inverse=True)
    return points[used], compact.reshape(-1, 3).astype(np.int32)


def _independent_short_edges(
    points: Points, triangles: Triangles, shortest: float, random: np.random.Generator
) -> NDArray[np.integer]:
    """Collapsible short edges (n, 2), no two of which share a vertex or a neighbour's edge; shorter ones win."""
    edges = triangle_edges(triangles)
    a, b = edges.T
    count = len(points)
    links = sparse.coo_matrix((np.ones(2 * len(a)), (np.r_[a, b], np.r_[b, a])), shape=(count, count)).tocsr()
    length = np.linalg.norm(points[a] - points[b], axis=1)
    # A little disorder in the ranking, so that an edge that cannot collapse does not bar its neighbours for ever.
    short = np.flatnonzero(length < shortest)
    short = short[np.argsort(length[short] + 0.2 * shortest * random.random(len(short)), kind="stable")]
    rank = np.arange(len(short))
    best = np.full(count, len(short))
    np.minimum.at(best, a[short], rank)
    np.minimum.at(best, b[short], rank)
    around = best.copy()
    np.minimum.at(around, a, best[b])
    np.minimum.at(around, b, best[a])
    chosen = edges[short[(around[a[short]] >= rank) & (around[b[short]] >= rank)]]
    common = links[chosen[:, 0]].multiply(links[chosen[:, 1]]).sum(axis=1)
    return chosen[np.asarray(common).ravel() == 2]


def _sound(points: Points, triangles: Triangles, chosen: NDArray[np.integer], limits: Limits) -> NDArray[np.bool_]:
    """Which of the `chosen` collapses (n, 2) neither fold a triangle over nor break `limits`."""
    owner = np.full(len(points), -1)
    owner[chosen] = np.arange(len(chosen))[:, None]
    moved, changed = _collapsed(points, triangles, chosen)
    touched = np.flatnonzero((owner[triangles] >= 0).any(axis=1))
    corners = changed[touched]
    gone = (corners[:, 0] == corners[:, 1]) | (corners[:, 1] == corners[:, 2]) | (corners[:, 2] == corners[:, 0])
    touched, corners = touched[~gone], corners[~gone]
    before, after = _normals(points, triangles[touched]), _normals(moved, corners)
    sizes = np.linalg.norm(before, axis=1) * np.linalg.norm(after, axis=1)
    folded = (before * after).sum(axis=1) <= TURNED * sizes
    shape = moved[corners]
    too_long = (np.linalg.norm(shape - np.roll(shape, 1, axis=1), axis=2) > limits.longest).any(axis=1)
    distance = limits.distance(shape.mean(axis=1))
    too_far = (distance < -limits.outside) | (distance > limits.inside)
    sound = np.ones(len(chosen), dtype=bool)
    # Independent collapses share no triangle, so each changed triangle has one owner.
    sound[owner[triangles[touched]].max(axis=1)[folded | too_long | too_far]] = False
    return sound


def _collapsed(points: Points, triangles: Triangles, edges: NDArray[np.integer]) -> tuple[Points, Triangles]:
    """Both ends of each edge moved to its middle and given the first one's number."""
    points = points.copy()
    points[edges[:, 0]] = points[edges].mean(axis=1)
    number = np.arange(len(points), dtype=np.int32)
    number[edges[:, 1]] = edges[:, 0]
    return points, number[triangles]


def _normals(points: Points, triangles: NDArray[np.integer]) -> Points:
    a, b, c = (points[triangles[:, k]] for k in range(3))
    return np.cross(b - a, c - a)
