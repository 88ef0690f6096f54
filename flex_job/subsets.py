"""Subsets of the particles by their latents: within ranges, and divided into clusters.

Latents of a moving molecule are a continuum more often than separate heaps. k-means cuts a continuum into compact
pieces of about equal width and finds heaps where there are any; a Gaussian mixture of a continuum has components that
lie within one another. Latents are posterior means, drawn towards zero where the images say little: a direction counts
in their distances for as much as the data support it. What is uncertain of a single particle is told as a probability.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.vq import ClusterError, kmeans2, vq
from scipy.stats import qmc

from flex_job.problems import InputProblems

__all__ = ["Subsets", "divide"]

STARTS = 8  # of k-means, the best is taken
SAMPLE = 50_000  # particles that the centres are found from
DRAWS = 128  # of each particle's latents
CHUNK = 4096

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Subsets:
    """Clusters of n particles with K latents.

    `cluster` (n,) is 1 to k along the first latent and 0 for particles left out. `probability` (n,) is that of the
    particle's latents lying in its cluster and within the ranges, given their uncertainty. `central` (k,) is the
    particle nearest to each centre: a place where there are particles, which the centre of a bent heap may not be.
    """

    cluster: NDArray[np.int64]
    probability: Floats
    central: NDArray[np.int64]


def divide(
    latents: Floats,
    std: Floats,
    clusters: int,
    ranges: Sequence[tuple[float, float]] = (),
    min_probability: float = 0.0,
    seed: int = 0,
    among: NDArray[np.bool_] | None = None,
) -> Subsets:
    """Divide the particles whose `latents` (n, K) lie within `ranges` (low, high; of the first latents) into clusters.

    `std` (n, K) are the latents' standard deviations, independent of one another. Particles that belong to their
    cluster with less than `min_probability` are left out, and those that are not `among` (n,) where that is given.
    Raises InputProblems where nothing is left, and for more ranges than latents or more clusters than distinct
    particles.
    """
    dims = latents.shape[1]
    if len(ranges) > dims:
        raise InputProblems([f"latents_range: {len(ranges)} were given; expected at most {dims}, one per latent"])
    low, high = np.array([*ranges, *[(-np.inf, np.inf)] * (dims - len(ranges))]).T
    if among is not None and not among.any():
        raise InputProblems(["gain_range: no particle's likelihood gain lies within; widen the range"])
    within = ((latents >= low) & (latents <= high)).all(axis=1)
    kept = np.flatnonzero(within if among is None else within & among)
    if not len(kept):
        reach = ", ".join(f"{a:.3g}:{b:.3g}" for a, b in zip(latents.min(axis=0), latents.max(axis=0), strict=True))
        raise InputProblems([f"latents_range: no particle lies within; the latents are {reach}; widen the range"])
    centres = _centres(latents[kept], clusters, seed)
    nearest, distance = vq(latents[kept], centres)
    cluster = np.zeros(len(latents), dtype=np.int64)
    cluster[kept] = nearest + 1
    probability = np.zeros(len(latents))
    probability[kept] = _probability(latents[kept], std[kept], nearest, centres, low, high, seed)
    cluster[probability < min_probability] = 0
    if not cluster.any():
        raise InputProblems(
            [
                f"min_probability: {min_probability:g} was given; expected at most {probability.max():.2f}, "
                "the surest particle's"
            ]
        )
    own = [np.flatnonzero(nearest == number) for number in range(clusters)]
    central = np.array([kept[members[distance[members].argmin()]] for members in own])
    return Subsets(cluster, probability, central)


def _centres(latents: Floats, clusters: int, seed: int) -> Floats:
    """(clusters, K) by k-means, ordered along the first latent."""
    rng = np.random.default_rng(seed)
    sample = latents if len(latents) <= SAMPLE else rng.choice(latents, SAMPLE, replace=False)
    distinct = len(np.unique(sample, axis=0))
    if clusters > distinct:
        raise InputProblems(
            [f"clusters: {clusters} was given; expected at most {distinct}, the number of distinct latents selected"]
        )
    best, least = sample[:0], np.inf
    for _ in range(STARTS):
        try:
            centres, nearest = kmeans2(sample, clusters, iter=100, minit="++", seed=rng, missing="raise")
        except ClusterError:  # one ran empty
            continue
        spread = float(((sample - centres[nearest]) ** 2).sum())
        if spread < least:
            best, least = centres, spread
    if not len(best):
        raise InputProblems([f"clusters: {clusters} was given, and some of them always stay empty; expected fewer"])
    return best[np.lexsort(best.T[::-1])]


def _probability(
    latents: Floats, std: Floats, nearest: NDArray[np.integer], centres: Floats, low: Floats, high: Floats, seed: int
) -> Floats:
    """Share (n,) of draws from N(latents, std^2) within the limits and nearest to the particle's own centre."""
    draws = qmc.MultivariateNormalQMC(np.zeros(latents.shape[1]), seed=seed).random(DRAWS)
    share = np.empty(len(latents))
    for start in range(0, len(latents), CHUNK):
        part = slice(start, start + CHUNK)
        points = latents[part, None] + draws * std[part, None]  # (chunk, draws, K)
        within = ((points >= low) & (points <= high)).all(axis=2)
        cell = vq(points.reshape(-1, points.shape[2]), centres)[0].reshape(within.shape)
        share[part] = (within & (cell == nearest[part, None])).mean(axis=1)
    return share
