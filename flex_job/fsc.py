"""Fourier shell correlation of two half-maps: unmasked, masked, and corrected for the mask by phase randomisation.

Shells are one Fourier pixel wide, shell s has spatial frequency s / (box * pixel size), the last one, box // 2, is
Nyquist. Curves are RELION PostProcess's: every coefficient of the half transform (kx >= 0) counts once, so that the
plane kx = 0 weighs twice; phases are random from the first shell where the unmasked FSC falls below 0.8, and the
correction (Chen et al. 2013, Ultramicroscopy 135, 24-35) starts two shells beyond.

The correction is by what random phases give on average, not by one draw of them: see `randomised_masked`. RELION
draws once, so each of its corrected curves has the noise of that draw, and their mean is ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.fft
from numpy.typing import NDArray

__all__ = [
    "CurveName",
    "FscCurves",
    "compare_half_maps",
    "corrected_for_mask",
    "fsc",
    "fsc_masked",
    "low_shells",
    "mean_spread",
    "radii_by_plane",
    "randomised_masked",
    "resolution_at",
    "resolution_text",
    "shell_index",
    "shell_means",
]

CurveName = Literal["unmasked", "masked", "randomised", "corrected"]

RANDOMISE_BELOW = 0.8
"""Phases are randomised from the first shell whose unmasked FSC is below this (RELION's default)."""

SHELLS_BEFORE_CORRECTION = 2
"""The correction starts this many shells after randomisation: the jump itself leaks through the mask (RELION)."""


@dataclass(frozen=True)
class FscCurves:
    """The four curves of one pair of half-maps, each (box // 2 + 1,) float64, and where the shells lie.

    `randomised_from` is the first shell with random phases; None when there was nothing to randomise (no mask, or an
    unmasked FSC that never falls below 0.8), in which case `randomised` is zero and `corrected` equals `masked`.
    """

    unmasked: NDArray[np.float64]
    masked: NDArray[np.float64]
    randomised: NDArray[np.float64]
    corrected: NDArray[np.float64]
    frequency_per_A: NDArray[np.float64]
    randomised_from: int | None = None

    def resolution_A(self, threshold: float = 0.143, curve: CurveName = "corrected") -> float:
        """Resolution in angstrom; see `resolution_at` for curves that do not cross."""
        return resolution_at(getattr(self, curve), threshold, self.frequency_per_A)

    def resolution_text(self, threshold: float = 0.143, curve: CurveName = "corrected") -> str:
        """The same for a reader: '7.9 A', '4.0 A or better (Nyquist)' or 'none'."""
        return resolution_text(getattr(self, curve), threshold, self.frequency_per_A)


def shell_index(box: int) -> NDArray[np.int32]:
    """Shell of each coefficient of `rfftn` of a (box, box, box) map: (box, box, box // 2 + 1), corners included."""
    return np.stack([np.rint(radius).astype(np.int32) for _, radius in radii_by_plane(box)])


def fsc(a: NDArray[np.floating], b: NDArray[np.floating]) -> NDArray[np.float64]:
    """Fourier shell correlation of two maps (z, y, x): (box // 2 + 1,). A shell without power has 0.

    Raises ValueError for maps that are not cubic or not of one size.
    """
    _check_pair(a, b)
    return _correlate(_transform(a), _transform(b))


def fsc_masked(a: NDArray[np.floating], b: NDArray[np.floating], mask: NDArray[np.floating]) -> NDArray[np.float64]:
    """`fsc` of the two maps, each multiplied with `mask` (z, y, x), values in [0, 1]."""
    _check_pair(a, b)
    _check_mask(mask, a.shape)
    return _correlate(_transform(a * mask), _transform(b * mask))


def randomised_masked(
    half1: NDArray[np.floating], half2: NDArray[np.floating], mask: NDArray[np.floating], first_shell: int
) -> NDArray[np.float64]:
    """What `fsc_masked` gives on average when phases from `first_shell` on are random, in each half on its own.

    With X the part of a half that becomes random, L the rest, and M the mask: what M X1 and M X2 have in common is
    nothing on average, and the power of M X is |FT M|^2 convolved with |FT X|^2, whatever the phases. So the FSC is the
    correlation of M L1 and M L2 over the power of M (L + X), summed over shells. No phase needs to be drawn.
    """
    _check_pair(half1, half2)
    _check_mask(mask, half1.shape)
    near = [_transform(low_shells(half, first_shell) * mask) for half in (half1, half2)]
    counts = _shell_sums(np.ones(near[0].shape, np.float32))
    power = [
        _shell_sums(np.abs(transform) ** 2) + counts * mean_spread(half, mask, first_shell)
        for transform, half in zip(near, (half1, half2), strict=True)
    ]
    return _over(_shell_sums((near[0] * near[1].conj()).real), power[0] * power[1])


def low_shells(volume: NDArray[np.floating], first_shell: int) -> NDArray[np.float32]:
    """The map without its shells from `first_shell` on, which are those at a radius of at least that (RELION)."""
    return np.asarray(scipy.fft.irfftn(_part(volume, first_shell, far=False), s=volume.shape), dtype=np.float32)


def mean_spread(volume: NDArray[np.floating], mask: NDArray[np.floating], first_shell: int) -> NDArray[np.float64]:
    """Mean power per coefficient and shell, (box // 2 + 1,), of the map's shells from `first_shell` on with random
    phases, times the mask, which may lie anywhere in the box.

    In float64: near shells may have a million times the power of far ones.
    """
    far = np.abs(_part(volume, first_shell, far=True)).astype(np.float64) ** 2
    window = np.abs(_transform(mask)).astype(np.float64) ** 2
    shape = volume.shape
    both = scipy.fft.irfftn(far, s=shape) * scipy.fft.irfftn(window, s=shape)
    spread = np.asarray(scipy.fft.rfftn(both)).real / volume.size
    return np.maximum(_shell_sums(spread) / _shell_sums(np.ones(spread.shape, np.float32)), 0.0)


def compare_half_maps(
    half1: NDArray[np.floating],
    half2: NDArray[np.floating],
    mask: NDArray[np.floating] | None,
    pixel_size_A: float,
) -> FscCurves:
    """All FSC curves of two half-maps (z, y, x), as RELION's PostProcess computes them; see the module's head.

    Without a mask all curves are the unmasked one. Raises ValueError for shapes that differ, a mask that is empty or
    not in [0, 1], or a pixel size that is not positive.
    """
    _check_pair(half1, half2)
    if not pixel_size_A > 0:
        raise ValueError(f"pixel size {pixel_size_A} A; expected a positive number")
    box = half1.shape[0]
    frequency = np.arange(box // 2 + 1) / (box * pixel_size_A)
    unmasked = fsc(half1, half2)
    nothing = np.zeros_like(unmasked)
    if mask is None:
        return FscCurves(unmasked, unmasked, nothing, unmasked, frequency)
    masked = fsc_masked(half1, half2, mask)
    low = np.flatnonzero(unmasked[1:] < RANDOMISE_BELOW)
    if not len(low):
        return FscCurves(unmasked, masked, nothing, masked, frequency)
    start = int(low[0]) + 1
    randomised = randomised_masked(half1, half2, mask, start)
    return FscCurves(unmasked, masked, randomised, corrected_for_mask(masked, randomised, start), frequency, start)


def corrected_for_mask(
    masked: NDArray[np.float64], randomised: NDArray[np.float64], first_shell: int
) -> NDArray[np.float64]:
    """Masked curves (..., shells) without what the mask alone contributes, two shells after `first_shell` and on."""
    corrected = masked.copy()
    tail = np.s_[..., first_shell + SHELLS_BEFORE_CORRECTION :]
    # 1 - randomised can only vanish for a mask of a few voxels; then nothing can be said and the shell counts as 0.
    room = 1.0 - randomised[tail]
    corrected[tail] = np.where(room > 1e-6, (masked[tail] - randomised[tail]) / np.maximum(room, 1e-6), 0.0)
    return corrected


def resolution_at(curve: NDArray[np.floating], threshold: float, frequency_per_A: NDArray[np.floating]) -> float:
    """Resolution (A) where the curve first falls below `threshold`, linear in frequency between two shells.

    A curve that never falls below gives Nyquist: the data would allow more than the box can show. One that is below
    from the first shell on gives infinity: the halves share nothing at any resolution. Shell 0 (the mean) is ignored.
    RELION reports the last shell above the threshold instead, so its figure is never better than this one.
    """
    if len(curve) != len(frequency_per_A):
        raise ValueError(f"a curve of {len(curve)} shells; expected {len(frequency_per_A)}, one per frequency")
    below = np.flatnonzero(~(np.asarray(curve)[1:] >= threshold)) + 1
    if not len(below):
        return float(1.0 / frequency_per_A[-1])
    first = int(below[0])
    if first == 1:
        return float("inf")
    high, low = float(curve[first - 1]), float(curve[first])
    step = (high - threshold) / (high - low) if np.isfinite(low) else 0.0
    frequency = frequency_per_A[first - 1] + step * (frequency_per_A[first] - frequency_per_A[first - 1])
    return float(1.0 / frequency)


def resolution_text(curve: NDArray[np.floating], threshold: float, frequency_per_A: NDArray[np.floating]) -> str:
    """The resolution for a reader, with the two cases in words where the curve does not cross the threshold."""
    value = resolution_at(curve, threshold, frequency_per_A)
    if np.isinf(value):
        return "none"
    reached = bool((curve[1:] >= threshold).all())
    return f"{value:.2f} A" + (" or better (Nyquist)" if reached else "")


def radii_by_plane(box: int) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Plane by plane (kz) of an rfftn: the distance from the origin in Fourier pixels, (box, box // 2 + 1).

    A table for the whole of a large box would cost gigabytes.
    """
    k = np.fft.fftfreq(box, 1.0 / box)
    plane = k[:, None] ** 2 + np.arange(box // 2 + 1)[None, :] ** 2
    for z in range(box):
        yield z, np.sqrt(plane + k[z] ** 2)


def shell_means(transform: NDArray[np.complexfloating]) -> NDArray[np.float64]:
    """Mean amplitude in each shell, (box // 2 + 1,), of an rfftn (box, box, box // 2 + 1)."""
    return _shell_sums(np.abs(transform)) / _shell_sums(np.ones(transform.shape, np.float32))


def _correlate(a: NDArray[np.complexfloating], b: NDArray[np.complexfloating]) -> NDArray[np.float64]:
    return _over(_shell_sums((a * b.conj()).real), _shell_sums(np.abs(a) ** 2) * _shell_sums(np.abs(b) ** 2))


def _over(cross: NDArray[np.float64], power: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(power > 0, cross / np.sqrt(np.where(power > 0, power, 1.0)), 0.0)


def _transform(volume: NDArray[np.floating]) -> NDArray[np.complex64]:
    return np.asarray(scipy.fft.rfftn(np.asarray(volume, dtype=np.float32)))


def _part(volume: NDArray[np.floating], first_shell: int, far: bool) -> NDArray[np.complex64]:
    """The transform with nothing below `first_shell`, or (not `far`) with nothing from there on."""
    transform = _transform(volume)
    for z, radius in radii_by_plane(volume.shape[0]):
        transform[z][(radius < first_shell) == far] = 0.0
    return transform


def _shell_sums(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Sums in float64 of what belongs to the coefficients of an rfftn, each counted once, as RELION does."""
    box = values.shape[0]
    last = box // 2
    sums = np.zeros(last + 1)
    for z, radius in radii_by_plane(box):
        # the corners, beyond Nyquist, fall in a bin that is dropped
        clipped = np.minimum(np.rint(radius).astype(int), last + 1).ravel()
        sums += np.bincount(clipped, weights=values[z].ravel(), minlength=last + 2)[: last + 1]
    return sums


def _check_pair(a: NDArray[np.floating], b: NDArray[np.floating]) -> None:
    if a.shape != b.shape or a.ndim != 3 or len(set(a.shape)) != 1:
        raise ValueError(f"maps of shapes {a.shape} and {b.shape} (z, y, x); expected two cubic maps of one size")


def _check_mask(mask: NDArray[np.floating], shape: tuple[int, ...]) -> None:
    if mask.shape != shape:
        raise ValueError(f"mask of shape {mask.shape} for maps of shape {shape} (z, y, x); expected the same")
    low, high = float(mask.min()), float(mask.max())
    if not (low >= -1e-3 and high <= 1.001):
        raise ValueError(f"mask values from {low:.3g} to {high:.3g}; expected 0 (solvent) to 1 (molecule)")
    if high <= 0:
        raise ValueError("the mask is empty; expected values above 0 on the molecule")
