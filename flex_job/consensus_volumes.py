"""The refined map, its halves and the mask: read from the files that a host found, and checked against each other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flex_job.consensus import PIXEL_SIZES_A
from flex_job.mask import check_mask
from flex_job.volume import Volume, read_volume

__all__ = ["NO_MAP", "VolumeFiles", "read_volumes"]

NO_MAP = Volume(np.zeros((2, 2, 2), dtype=np.float32), 1.0)
"""Stands in for a map that cannot be had, so that all else can be checked too."""


@dataclass(frozen=True)
class VolumeFiles:
    """Files of the map, its two halves (or none) and the mask."""

    map: Path | None
    halves: tuple[Path, ...] = ()
    mask: Path | None = None

    def all(self) -> list[Path]:
        return [path for path in (self.map, *self.halves, self.mask) if path is not None]


def read_volumes(files: VolumeFiles, problems: list[str]) -> tuple[Volume, tuple[Volume, Volume] | None, Volume | None]:
    """Map, half-maps and mask; a map that cannot be had is stood in for by NO_MAP, its problem noted."""
    consensus_map = _volume(files.map, problems)
    if consensus_map is not None and not consensus_map.data.any():
        problems.append(f"{files.map}: the map is zero everywhere; expected the refined map")
    halves = [volume for volume in (_volume(path, problems) for path in files.halves) if volume is not None]
    mask = _volume(files.mask, problems)
    if consensus_map is not None:
        for path, half in zip(files.halves, halves, strict=False):
            if half.box != consensus_map.box or abs(half.pixel_size_A / consensus_map.pixel_size_A - 1) > 1e-3:
                problems.append(
                    f"{path}: half-map of {half.box} px of {half.pixel_size_A:g} A; expected {consensus_map.box} px of "
                    f"{consensus_map.pixel_size_A:g} A as {files.map}"
                )
        if mask is not None:
            problems += [f"{files.mask}: {text}" for text in check_mask(mask, consensus_map)]
    return consensus_map or NO_MAP, (halves[0], halves[1]) if len(halves) == 2 else None, mask


def _volume(path: Path | None, problems: list[str]) -> Volume | None:
    if path is None:
        return None
    try:
        volume = read_volume(path)
    except ValueError as error:
        problems.append(str(error))
        return None
    low, high = PIXEL_SIZES_A
    if not low <= volume.pixel_size_A <= high:
        problems.append(
            f"{path}: pixel size {volume.pixel_size_A:g} A in the MRC header; expected a positive number, {low:g} to "
            f"{high:g}; set it in the header (relion_image_handler --angpix does)"
        )
        return None
    return volume
