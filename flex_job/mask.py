"""Soft masks: made from a consensus map when the user gives none, checked when one is given."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from flex_job.volume import Volume

__all__ = ["automatic_mask", "check_mask", "lowpass", "soft_mask", "value_problem"]

# A moving domain is smeared out in a consensus map: the level is set low enough to keep it, noise permitting.
LEVEL_FRACTION = 0.15
LEVEL_SIGMAS = 3.0
# Separate pieces smaller than this part of the largest one are taken for noise.
KEEP_FRACTION = 0.05


def lowpass(volume: Volume, resolution_A: float) -> NDArray[np.float32]:
    """The map (z, y, x) with its Fourier amplitudes halved at 1 / `resolution_A` (a Gaussian, so nothing rings)."""
    # exp(-2 pi^2 s^2 k^2) = 1/2 at k = 1 / resolution
    sigma_A = resolution_A * np.sqrt(np.log(2.0) / 2.0) / np.pi
    return ndimage.gaussian_filter(volume.data, sigma_A / volume.pixel_size_A, mode="nearest", output=np.float32)


def soft_mask(binary: NDArray[np.bool_], soft_edge_px: float, grow_px: float = 0.0) -> NDArray[np.float32]:
    """1 in `binary` (z, y, x) and up to `grow_px` around it, then falling to 0 as a raised cosine over `soft_edge_px`.

    Raises ValueError when nothing is inside: no distance to it is defined then.
    """
    if not binary.any():
        raise ValueError("the mask is empty; expected at least one voxel inside")
    mask = binary.astype(np.float32)
    if soft_edge_px <= 0 and grow_px <= 0:
        return mask
    near = _around(binary, int(np.ceil(max(soft_edge_px, 0) + max(grow_px, 0))) + 1)
    beyond = np.maximum(ndimage.distance_transform_edt(~binary[near]) - max(grow_px, 0), 0)
    if soft_edge_px > 0:
        mask[near] = 0.5 + 0.5 * np.cos(np.pi * np.minimum(beyond / soft_edge_px, 1.0))
    else:
        mask[near] = beyond == 0
    return mask


def automatic_mask(
    map: Volume, lowpass_A: float = 10.0, threshold: float | None = None, dilate_A: float = 2.0, soft_A: float = 5.0
) -> Volume:
    """A soft mask around the molecule: low-pass, threshold, main pieces, holes filled, dilated, soft edge.

    `threshold` is in the map's own units, on the low-passed map; None chooses it: the higher of 15 % of the mean
    density of the molecule (a smeared moving domain is still inside) and 3 standard deviations of the solvent.
    Pieces smaller than 5 % of the largest are dropped. Raises ValueError, with the map's range, when nothing
    lies above the threshold.
    """
    smooth = lowpass(map, lowpass_A)
    level = _automatic_threshold(smooth) if threshold is None else threshold
    above = smooth > level
    if not above.any():
        raise ValueError(
            f"no voxel of the map, low-passed to {lowpass_A:g} A, is above the mask threshold {level:g} (the map's "
            f"range there is {smooth.min():g} to {smooth.max():g}); lower mask_threshold, set it to 0 for an "
            "automatic one, or give a mask"
        )
    binary = _main_pieces(above)
    near = _around(binary, 1)
    binary[near] = ndimage.binary_fill_holes(binary[near])
    pixel_size_A = map.pixel_size_A
    return Volume(soft_mask(binary, soft_A / pixel_size_A, dilate_A / pixel_size_A), pixel_size_A)


def check_mask(mask: Volume, map: Volume) -> list[str]:
    """All that makes `mask` unusable with `map`, as sentences; empty when nothing does."""
    problems = []
    if mask.box != map.box:
        problems.append(
            f"the mask's box is {mask.box} px but the map's is {map.box} px; make the mask from this map, "
            "or resample it"
        )
    if abs(mask.pixel_size_A - map.pixel_size_A) > 0.01 * map.pixel_size_A:
        problems.append(
            f"the mask's pixel size is {mask.pixel_size_A:g} A but the map's is {map.pixel_size_A:g} A; "
            "set the right one in the mask's MRC header"
        )
    values = value_problem(mask)
    if values:
        problems.append(values)
    elif (mask.data > 1e-3).mean() > 0.9:
        problems.append("the mask covers more than 90 % of the box; expected one that follows the molecule")
    return problems


def value_problem(mask: Volume) -> str | None:
    """What makes the values of `mask` no mask's, as a sentence; None when nothing does."""
    if not np.isfinite(mask.data).all():
        return "the mask holds values that are not finite; expected numbers from 0 to 1"
    low, high = float(mask.data.min()), float(mask.data.max())
    if high <= 1e-3:
        return f"the mask is empty (its largest value is {high:g}); expected 1 inside the molecule"
    if low < -0.01 or high > 1.01:
        return f"the mask's values run from {low:g} to {high:g}; expected 0 to 1 (is this a map, not a mask?)"
    return None


def _automatic_threshold(smooth: NDArray[np.float32]) -> float:
    """Level between solvent and molecule on a low-passed map: from a two-class split and the solvent's spread."""
    # The levels need no more than some hundred thousand voxels.
    smooth = smooth.ravel()[:: 1 + smooth.size // 1_000_000]
    solvent = float(np.median(smooth))
    # One-sided spread: the molecule is above the median, so what is below it is solvent alone.
    below = solvent - smooth[smooth <= solvent]
    sigma = 1.4826 * float(np.median(below))
    split = solvent + 0.3 * (float(np.quantile(smooth, 0.9995)) - solvent)
    molecule = smooth[smooth > split]
    if molecule.size == 0:
        return split
    return solvent + max(LEVEL_FRACTION * (float(molecule.mean()) - solvent), LEVEL_SIGMAS * sigma)


def _main_pieces(binary: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest connected piece, and those of at least KEEP_FRACTION of its size."""
    labels, _ = ndimage.label(binary)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    keep = sizes >= KEEP_FRACTION * sizes.max()
    keep[0] = False
    return keep[labels]


def _around(binary: NDArray[np.bool_], rim: int) -> tuple[slice, ...]:
    """The part of the grid that holds all True voxels and `rim` more on each side: spares work on empty space."""
    found = [np.flatnonzero(binary.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1))]
    return tuple(slice(max(f[0] - rim, 0), f[-1] + rim + 1) for f in found)
