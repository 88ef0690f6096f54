"""The map to look at: average of two half-maps, weighted by their FSC and sharpened by a B-factor.

Rosenthal & Henderson 2003 (J. Mol. Biol. 333, 721-745), with RELION PostProcess's conventions: the average is
multiplied with sqrt(2 FSC / (1 + FSC)), set to zero from the first shell whose corrected FSC is not positive, and
multiplied with exp(-B / (4 d^2)). A negative B sharpens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from flex_job.fsc import FscCurves, radii_by_plane, shell_means

__all__ = ["GuinierFit", "combine", "fsc_weights", "guinier_fit"]

FIT_FROM_A = 10.0
"""Coarser than this the fall-off is the molecule's shape, not its B-factor."""

FEWEST_SHELLS = 5
"""A slope through fewer shells is noise."""


@dataclass(frozen=True)
class GuinierFit:
    """Straight line through ln(mean amplitude) against 1/d^2: `bfactor_A2` is 4 x slope, 0 when none could be fitted.

    `reason` says in words what was fitted, or why nothing was. `correlation` is that of the fit (0 without one).
    """

    bfactor_A2: float
    reason: str
    correlation: float = 0.0


def fsc_weights(curve: NDArray[np.floating]) -> NDArray[np.float64]:
    """sqrt(2 FSC / (1 + FSC)) per shell; zero from the first shell that is not above 0 (RELION: 0.0001)."""
    positive = np.asarray(curve, dtype=np.float64).copy()
    positive[0] = 1.0  # the mean of the map carries no information on agreement
    positive[np.logical_or.accumulate(~(positive >= 1e-4))] = 0.0
    return np.sqrt(2 * positive / (1 + positive))


def guinier_fit(half1: NDArray[np.floating], half2: NDArray[np.floating], curves: FscCurves) -> GuinierFit:
    """The B-factor (A^2) of the FSC-weighted average, fitted from 10 A to the resolution at FSC 0.143.

    No B-factor is invented: with too few shells in that range, or amplitudes that do not fall off, it is 0.
    """
    return _fit(_weighted_average(half1, half2, curves), curves)


def combine(
    half1: NDArray[np.floating],
    half2: NDArray[np.floating],
    curves: FscCurves,
    bfactor: float | None = None,
) -> tuple[NDArray[np.float32], float]:
    """FSC-weighted, sharpened average of two half-maps (z, y, x), and the B-factor (A^2) that was applied.

    `bfactor` None fits it (`guinier_fit`, which also gives the reason when the result is 0); a number is applied as
    it is. Raises ValueError when curves and maps do not belong together.
    """
    transform = _weighted_average(half1, half2, curves)
    applied = _fit(transform, curves).bfactor_A2 if bfactor is None else float(bfactor)
    if applied:
        step = float(curves.frequency_per_A[1])
        for z, radius in radii_by_plane(half1.shape[0]):
            transform[z] *= np.exp(-applied / 4 * (radius * step) ** 2)
    return np.asarray(scipy.fft.irfftn(transform, s=half1.shape), dtype=np.float32), applied


def _weighted_average(
    half1: NDArray[np.floating], half2: NDArray[np.floating], curves: FscCurves
) -> NDArray[np.complex64]:
    if half1.shape != half2.shape or len(curves.corrected) != half1.shape[0] // 2 + 1:
        raise ValueError(
            f"half-maps of shapes {half1.shape} and {half2.shape} with an FSC of {len(curves.corrected)} shells; "
            "expected two maps of one size and the FSC computed from them"
        )
    average = (np.asarray(half1, dtype=np.float32) + np.asarray(half2, dtype=np.float32)) / 2
    transform = np.asarray(scipy.fft.rfftn(average))
    weights = fsc_weights(curves.corrected)
    nyquist = len(weights) - 1
    for z, radius in radii_by_plane(average.shape[0]):
        shell = np.minimum(np.rint(radius).astype(int), nyquist)
        transform[z] *= np.where(radius <= nyquist, weights[shell], 0.0)  # the corners hold no whole shell
    return transform


def _fit(transform: NDArray[np.complexfloating], curves: FscCurves) -> GuinierFit:
    amplitude = shell_means(transform)
    frequency = curves.frequency_per_A
    finest = curves.resolution_A(0.143)
    used = (frequency >= 1 / FIT_FROM_A) & (frequency <= 1 / finest) & (amplitude > 0)
    if used.sum() < FEWEST_SHELLS:
        return GuinierFit(
            0.0,
            f"no B-factor: {int(used.sum())} Fourier shells between {FIT_FROM_A:g} A and the resolution "
            f"({curves.resolution_text(0.143)}), {FEWEST_SHELLS} are needed for a fit; the map is not sharpened",
        )
    x, y = frequency[used] ** 2, np.log(amplitude[used])
    slope = float(np.polyfit(x, y, 1)[0])
    correlation = float(np.corrcoef(x, y)[0, 1])
    if slope >= 0:
        return GuinierFit(
            0.0,
            f"no B-factor: amplitudes do not fall off beyond {FIT_FROM_A:g} A; the map is not sharpened",
            correlation,
        )
    return GuinierFit(
        4 * slope, f"fitted on {int(used.sum())} Fourier shells from {FIT_FROM_A:g} to {finest:.2f} A", correlation
    )
