"""Files of the two half-maps and of their combination, under the names that hosts look for, and their FSC."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from flex_job.fourier import fourier_resize
from flex_job.fsc import FscCurves, compare_half_maps
from flex_job.reconstruct import HalfMaps
from flex_job.sharpen import combine, guinier_fit
from flex_job.volume import Volume, read_volume, write_volume

__all__ = ["fitted_mask", "half_map_curves", "map_files", "read_halves", "write_half_maps"]


def map_files(kind: str) -> list[str]:
    """Names of both half-maps and of their combination; `kind` is rigid or flex."""
    return [*(f"{kind}_half{half}_class001_unfil.mrc" for half in (1, 2)), f"{kind}_class001.mrc"]


def write_half_maps(folder: Path, kind: str, halves: HalfMaps, mask: Volume, bfactor_A2: float) -> dict[str, Any]:
    """Write both maps, and both combined, sharpened by `bfactor_A2` (0: by a Guinier fit); returns what the report
    needs to know of them."""
    for name, volume in zip(map_files(kind), halves.maps, strict=False):
        write_volume(folder / name, volume.data, volume.pixel_size_A)
    curves = half_map_curves(folder, kind, mask)
    first, second = (volume.data for volume in halves.maps)
    fit = guinier_fit(first, second, curves)
    combined, bfactor = combine(first, second, curves, bfactor_A2 or fit.bfactor_A2)
    write_volume(folder / map_files(kind)[-1], combined, halves.maps[0].pixel_size_A)
    return {
        "iterations": halves.iterations,
        "converged": halves.converged,
        "bfactor_A2": bfactor,
        "sharpening": fit.reason,
        "resolution_A": curves.resolution_A(),
    }


def half_map_curves(folder: Path, kind: str, mask: Volume) -> FscCurves:
    """FSC of the half-maps in `folder`, in a mask of any box."""
    first, second = read_halves(folder, kind)
    return compare_half_maps(first.data, second.data, fitted_mask(mask, first.box).data, first.pixel_size_A)


def read_halves(folder: Path, kind: str) -> tuple[Volume, Volume]:
    """Both half-maps in `folder`."""
    first, second = (read_volume(folder / name) for name in map_files(kind)[:2])
    return first, second


def fitted_mask(mask: Volume, box: int) -> Volume:
    """A mask of any box at the half-maps' one, from 0 to 1."""
    resized = fourier_resize(mask, box)
    return Volume(np.clip(resized.data, 0, 1), resized.pixel_size_A)
