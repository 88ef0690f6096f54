"""Records of one length in a file, of which a batch needs a few, and of each only the beginning."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

__all__ = ["read_into", "read_records"]


def read_into(descriptor: int, buffer: memoryview, place: int) -> int:
    """Fill `buffer` with the bytes from `place` on; returns how many, fewer only at the end of the file. One request to
    the system may give less than was asked for."""
    held = os.preadv(descriptor, [buffer], place)
    while held < len(buffer):
        more = os.preadv(descriptor, [buffer[held:]], place + held)
        if not more:
            break
        held += more
    return held


def read_records(
    path: Path, index: NDArray[np.integer], shape: tuple[int, ...], first: int, dtype: DTypeLike = np.float16
) -> NDArray[Any]:
    """The records `index` (b,) of a file of records of `shape` (m, ...), in that order: (b, first, ...) of `dtype`.

    They are read and not mapped: mapped pages, and those around them, count as this process's memory, which then
    seems to grow with the file. All places are announced before the first is waited for, so a disk works on many at
    once. Raises ValueError, with the path, where the file ends before a record does.
    """
    shapes = (len(index), first, *shape[1:])
    item = np.dtype(dtype).itemsize
    stride, size = int(np.prod(shape)) * item, int(np.prod(shapes[1:])) * item
    places = (np.asarray(index, np.int64) * stride).tolist()
    buffer = bytearray(len(index) * size)
    rows = memoryview(buffer)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if hasattr(os, "posix_fadvise"):
            for place in places:
                os.posix_fadvise(descriptor, place, size, os.POSIX_FADV_WILLNEED)
        for number, place in enumerate(places):
            if read_into(descriptor, rows[number * size : (number + 1) * size], place) < size:
                raise ValueError(
                    f"{path}: {os.fstat(descriptor).st_size} bytes, record {index[number]} of {stride} bytes is "
                    "not whole; delete the file, it is made again"
                )
    finally:
        os.close(descriptor)
    return np.frombuffer(buffer, dtype).reshape(shapes)
