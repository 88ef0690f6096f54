"""Particles that training keeps aside, so that what it has learned can be tested on images that it has not seen."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["held_out"]

FEWEST, MOST = 200, 5000
LARGEST_PART = 0.2


def held_out(n: int, fraction: float, seed: int) -> NDArray[np.bool_]:
    """(n,) True for the particles kept aside: a seeded random choice of `fraction` of them, but at least FEWEST and at
    most MOST, and never more than LARGEST_PART of all. None for a fraction of 0."""
    count = min(max(round(fraction * n), FEWEST), MOST, int(LARGEST_PART * n)) if fraction > 0 else 0
    chosen = np.zeros(n, bool)
    chosen[np.random.default_rng((seed, 1)).permutation(n)[:count]] = True
    return chosen
