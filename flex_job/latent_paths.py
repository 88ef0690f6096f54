"""Ways through the latents: along each in turn, through clusters, where the particles are, or at particles drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter1d
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components, dijkstra
from scipy.spatial import cKDTree

from flex_job.generate import latent_path
from flex_job.model import FlexModel
from flex_job.problems import InputProblems
from flex_job.subsets import divide

__all__ = ["LatentSeries", "latent_series", "listed", "resampled"]

ENDS = (5.0, 95.0)  # percentiles: beyond them lie few particles, and what they say
MOST_POINTS = 10_000  # particles that the graph is made of
NEIGHBOURS = 10
SMOOTHED = 0.1  # of a path's length

Floats = NDArray[np.floating]


@dataclass(frozen=True)
class LatentSeries:
    """`points` (m, K), one after the other; `titles` names the parts of the series, of `lengths` frames each."""

    points: NDArray[np.floating]
    titles: tuple[str, ...]
    lengths: tuple[int, ...]

    def parts(self) -> list[slice]:
        """The frames of each part."""
        ends = np.cumsum(self.lengths).tolist()
        return [slice(end - length, end) for end, length in zip(ends, self.lengths, strict=True)]


def listed(points: Floats) -> LatentSeries:
    """Points that a user gives."""
    return LatentSeries(points, ("latents given",), (len(points),))


def latent_series(model: FlexModel, path: str, count: int, clusters: int, seed: int) -> LatentSeries:
    """`count` points for each latent (path `latents`), else in all: evenly along the way through the `clusters`, along
    that of greatest `density`, or `particles` drawn at random (all, where there are fewer).

    Raises InputProblems for more clusters than distinct particles.
    """
    z = model.latents.astype(np.float64)
    if path == "latents":
        dims = range(z.shape[1])
        points = np.concatenate([latent_path(model.latents, dimension, count) for dimension in dims])
        return LatentSeries(points, tuple(f"latent {k + 1}" for k in dims), (count,) * len(dims))
    if path == "clusters":
        return LatentSeries(_through_clusters(model, count, clusters, seed), ("through the clusters",), (count,))
    if path == "density":
        return LatentSeries(_through_particles(z, count, seed), ("where the particles are",), (count,))
    drawn = np.random.default_rng(seed).permutation(len(z))[:count]
    return LatentSeries(z[drawn], ("particles drawn at random",), (len(drawn),))


def _through_clusters(model: FlexModel, count: int, clusters: int, seed: int) -> NDArray[np.float64]:
    z = model.latents.astype(np.float64)
    try:
        found = divide(z, model.latent_std.astype(np.float64), clusters, seed=seed)
    except InputProblems as error:
        raise InputProblems([f"path_{text}" for text in error.messages]) from None  # it is told of clusters
    return resampled(_shortest_way(z[found.central]), count)


def _shortest_way(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """The points (k, K) in an order that visits all on a short way (2-opt from their order along the longest axis)."""
    centred = points - points.mean(axis=0)
    order = np.argsort(centred @ np.linalg.svd(centred, full_matrices=False)[2][0])
    apart = np.linalg.norm(points[:, None] - points[None], axis=2)

    def length(way: Sequence[int] | NDArray[np.integer]) -> float:
        return float(apart[way[:-1], way[1:]].sum())

    better = True
    while better:
        better = False
        for first in range(len(order) - 1):
            for last in range(first + 2, len(order) + 1):
                turned = np.concatenate([order[:first], order[first:last][::-1], order[last:]])
                if length(turned) < length(order) - 1e-9:
                    order, better = turned, True
    return points[order]


def _through_particles(z: NDArray[np.float64], count: int, seed: int) -> NDArray[np.float64]:
    """From one end of the longest axis to the other through neighbouring particles. A step costs the square of its
    length, so that many short ones, where particles are dense, win over few long ones."""
    sample = z if len(z) <= MOST_POINTS else np.random.default_rng(seed).choice(z, MOST_POINTS, replace=False)
    sample = np.unique(sample, axis=0)
    if len(sample) < 3:
        return resampled(sample, count)
    spread = np.linalg.svd(sample - sample.mean(axis=0), full_matrices=False)[2][0]
    along = sample @ spread
    ends = [_middle_of(sample, along, percentile) for percentile in ENDS]
    neighbours = NEIGHBOURS
    while True:
        near = min(neighbours, len(sample) - 1)
        distance, other = cKDTree(sample).query(sample, k=near + 1)
        rows = np.repeat(np.arange(len(sample)), near)
        graph = csr_array(
            (distance[:, 1:].ravel() ** 2, (rows, other[:, 1:].ravel())), shape=(len(sample), len(sample))
        )
        _, piece = connected_components(graph, directed=False)
        if piece[ends[0]] == piece[ends[1]] or near == len(sample) - 1:
            break
        neighbours *= 2  # a gap between heaps: it takes longer steps to cross
    _, before = dijkstra(graph, directed=False, indices=ends[0], return_predecessors=True)
    way = [ends[1]]
    while way[-1] != ends[0]:
        way.append(int(before[way[-1]]))
    fine = resampled(sample[way[::-1]], 200)
    return resampled(uniform_filter1d(fine, max(1, int(SMOOTHED * len(fine))), axis=0, mode="nearest"), count)


def _middle_of(sample: NDArray[np.float64], along: NDArray[np.float64], percentile: float) -> int:
    """The particle amid those whose place along the axis is about this percentile."""
    low, high = np.percentile(along, [percentile - 2.5, percentile + 2.5])
    there = np.flatnonzero((along >= low) & (along <= high))
    if not len(there):  # few particles
        return int(np.abs(along - (low + high) / 2).argmin())
    return int(there[((sample[there] - np.median(sample[there], axis=0)) ** 2).sum(axis=1).argmin()])


def resampled(way: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """`count` points (count, K) evenly along a polyline (k, K)."""
    steps = np.linalg.norm(np.diff(way, axis=0), axis=1)
    kept = np.concatenate([[True], steps > 0])
    length = np.concatenate([[0.0], np.cumsum(steps)])[kept]
    at = np.linspace(0, length[-1], count)
    return np.stack([np.interp(at, length, column) for column in way[kept].T], axis=1)
