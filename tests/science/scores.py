"""Latents and maps against the truth, the same way for every method."""

from __future__ import annotations

from itertools import combinations_with_replacement
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from flex_job.fsc import fsc_masked
from flex_job.mask import lowpass, soft_mask
from flex_job.volume import Volume

__all__ = ["agreement", "latent_at", "map_score", "share", "state_mask"]

Floats = NDArray[np.floating]
DEGREE = 3
LOWPASS_PX, LEVEL, EDGE_PX = 4.0, 0.04, 3.0


def agreement(found: Floats, true: Floats) -> dict[str, Any]:
    """`explained` (k,): R^2 of each true latent, linear in those found (n, K). Of one of each also `rank`, the
    correlation of their ranks, whatever the sign."""
    if not true.shape[1]:
        return {}
    design = np.c_[found, np.ones(len(found))]
    left = true - design @ np.linalg.lstsq(design, true, rcond=None)[0]
    scores: dict[str, Any] = {"explained": list((1 - left.var(axis=0) / true.var(axis=0)).astype(float))}
    if found.shape[1] == true.shape[1] == 1:
        scores["rank"] = abs(float(spearmanr(found[:, 0], true[:, 0]).statistic))
    return scores


def latent_at(found: Floats, true: Floats, state: Floats) -> NDArray[np.float64]:
    """Where a method puts particles of a state (k,), on average: found (n, K) regressed on polynomials of true (n, k).

    Of a few discrete states that is the mean of the particles in it; with no true latents, the mean of all.
    """
    levels = min((len(np.unique(column)) for column in true.T), default=1)
    degree = min(DEGREE, levels - 1)

    def terms(points: Floats) -> NDArray[np.float64]:
        columns = [np.ones(len(points))]
        for order in range(1, degree + 1):
            for chosen in combinations_with_replacement(range(points.shape[1]), order):
                columns.append(points[:, list(chosen)].prod(axis=1))
        return np.stack(columns, axis=1)

    weights = np.linalg.lstsq(terms(true), found.astype(np.float64), rcond=None)[0]
    return (terms(np.asarray(state, dtype=np.float64)[None]) @ weights)[0]


def state_mask(density: Volume) -> NDArray[np.float32]:
    """A soft mask (z, y, x) about the true density of a state."""
    smooth = lowpass(density, LOWPASS_PX * density.pixel_size_A)
    return soft_mask(smooth > LEVEL * smooth.max(), EDGE_PX).astype(np.float32)


def map_score(map: Floats, density: Volume, mask: Floats) -> float:
    """Mean over the shells of the FSC of a map with the true density, both in the mask of the true density."""
    return float(fsc_masked(map, density.data, mask)[1:].mean())


def share(rigid: float, flex: float, ceiling: float) -> float:
    """How much of what could be gained over the rigid map was gained; not a number where nothing could."""
    return (flex - rigid) / (ceiling - rigid) if ceiling > rigid else float("nan")
