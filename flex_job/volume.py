"""Volumes on a cubic grid, and their MRC files."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import mrcfile
import numpy as np
from numpy.typing import NDArray

from flex_job.files import path_aside
from flex_job.input_files import open_input
from flex_job.memory import free_memory
from flex_job.problems import one_line
from flex_job.records import read_into
from flex_job.stack_header import StackHeader, parse_header

__all__ = ["Volume", "read_volume", "write_volume"]

LARGEST_VALUE = 1e15  # the sum of the squares of a hundred million such values is still a float32


@dataclass(frozen=True)
class Volume:
    """A cubic volume: `data` float32 (z, y, x), `pixel_size_A` the voxel's edge. The origin is voxel box // 2.

    `corner_A` (xyz) is where an atomic model has the first voxel: the origin of an MRC header.
    """

    data: NDArray[np.float32]
    pixel_size_A: float
    corner_A: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @property
    def box(self) -> int:
        return int(self.data.shape[0])


def read_volume(path: str | Path) -> Volume:
    """Read an MRC volume. Raises ValueError, with the path, for what is not a cubic volume of sound numbers."""
    path = Path(path)
    descriptor = open_input(path, "file", "an MRC volume")
    try:
        header = parse_header(descriptor, path, "volume")
        if not header.count == header.height == header.width:
            shape = (header.count, header.height, header.width)
            raise ValueError(one_line(f"{path}: shape {shape} (z, y, x); expected a cubic volume"))
        if header.length_problem:
            raise ValueError(one_line(f"{path}: {header.length_problem}"))
        _check_memory(path, header)
        raw = np.empty(header.count * header.image_bytes, dtype=np.uint8)
        if read_into(descriptor, raw.data, header.offset_bytes) < len(raw):
            raise ValueError(one_line(f"{path}: truncated while it was read; copy it again"))
    except OSError as error:
        raise ValueError(one_line(f"{path}: cannot be read ({error.strerror}); copy it again")) from None
    finally:
        os.close(descriptor)
    data = raw.view(header.dtype).reshape((header.count,) * 3).astype(np.float32, copy=False)
    low, high = float(data.min()), float(data.max())  # NaN if any voxel is
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError(one_line(f"{path}: holds values that are not finite (NaN or infinite); make it again"))
    if max(-low, high) > LARGEST_VALUE:
        raise ValueError(
            one_line(f"{path}: values from {low:g} to {high:g}; expected at most {LARGEST_VALUE:g}; scale it down")
        )
    return Volume(data, header.pixel_size_A, header.origin_A)


def _check_memory(path: Path, header: StackHeader) -> None:
    """Raises ValueError when the volume, as it is on disk and as float32, does not fit into the memory that is free."""
    need = header.count**3 * (header.dtype.itemsize + np.dtype(np.float32).itemsize)
    free = free_memory("cpu")
    if need > free:
        raise ValueError(
            one_line(
                f"{path}: {header.count} px a side need {need / 2**30:.1f} GiB of memory and {free / 2**30:.1f} GiB "
                "are free; give a smaller volume, or use a larger machine"
            )
        )


def write_volume(
    path: str | Path,
    data: NDArray[np.floating],
    pixel_size_A: float,
    corner_A: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> Path:
    """Write float32 MRC with pixel size and origin in its header; aside first, then renamed over `path`.

    The same volume gives the same bytes: mrcfile's label, which has the time in it, is replaced.
    """
    path = Path(path)
    with (
        path_aside(path) as aside,
        mrcfile.new(aside, np.ascontiguousarray(data, dtype=np.float32), overwrite=True) as mrc,
    ):
        mrc.voxel_size = pixel_size_A
        mrc.header.origin = corner_A
        mrc.header.label[0] = b"flex-job"
    return path
