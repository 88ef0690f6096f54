"""Volumes on a cubic grid, and their MRC files."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import mrcfile
import numpy as np
from numpy.typing import NDArray

__all__ = ["Volume", "read_volume", "write_volume"]


@dataclass(frozen=True)
class Volume:
    """A cubic volume: `data` float32 (z, y, x), `pixel_size_A` the voxel's edge. The origin is voxel box // 2."""

    data: NDArray[np.float32]
    pixel_size_A: float

    @property
    def box(self) -> int:
        return int(self.data.shape[0])


def read_volume(path: str | Path) -> Volume:
    """Read an MRC volume. Raises ValueError, with the path, for what is not a cubic, finite volume."""
    path = Path(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with mrcfile.open(path, permissive=False) as mrc:
                data = np.array(mrc.data, dtype=np.float32)
                pixel_size = float(mrc.voxel_size.x)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; expected an MRC volume") from None
    except Exception as error:
        raise ValueError(f"{path}: not a readable MRC volume ({error})") from error
    if data.ndim != 3 or len(set(data.shape)) != 1:
        raise ValueError(f"{path}: shape {data.shape} (z, y, x); expected a cubic volume")
    if not np.isfinite(data).all():
        raise ValueError(f"{path}: holds values that are not finite")
    return Volume(data, pixel_size)


def write_volume(path: str | Path, data: NDArray[np.floating], pixel_size_A: float) -> Path:
    """Write float32 MRC with the pixel size in its header; aside first, then renamed over `path`."""
    path = Path(path)
    aside = path.with_name(f".{path.name}.part")
    with mrcfile.new(aside, np.ascontiguousarray(data, dtype=np.float32), overwrite=True) as mrc:
        mrc.voxel_size = pixel_size_A
    os.replace(aside, path)
    return path
