"""Trajectories in CHARMM's DCD format, which viewers read onto a model: Fortran records, each between its lengths.

A header (`CORD`, counts), one line of title, the number of atoms, and for each frame the x, the y and the z as float32,
in angstroms.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flex_job.files import path_aside

__all__ = ["there_and_back"]

VERSION = 24
TITLE = b"there and back along the motion".ljust(80)


@contextmanager
def there_and_back(path: Path) -> Iterator[Callable[[NDArray[np.floating]], None]]:
    """Takes frames (n, 3) of the same n atoms, one call each; the file shows them from first to last and back, the ends
    once, as a loop. One frame at a time is in memory."""
    with path_aside(path) as aside, aside.open("w+b") as file:
        sizes: list[int] = []

        def add(positions: NDArray[np.floating]) -> None:
            if not sizes:
                file.write(_header(0, len(positions)))
            sizes.append(sum(file.write(_record(axis.tobytes())) for axis in positions.T.astype("<f4")))

        yield add
        begin, count = file.tell() - sum(sizes), len(sizes)
        for number in range(count - 2, 0, -1):
            file.seek(begin + number * sizes[0])
            frame = file.read(sizes[0])
            file.seek(0, os.SEEK_END)
            file.write(frame)
        file.seek(0)
        file.write(_header(max(2 * count - 2, count), (sizes[0] // 3 - 8) // 4))


def _header(frames: int, atoms: int) -> bytes:
    numbers = [frames, 0, 1, *[0] * 6, *[0] * 10, VERSION]  # of frames, first step, step; the tenth is a float: 0
    return (
        _record(b"CORD" + struct.pack("<20i", *numbers))
        + _record(struct.pack("<i", 1) + TITLE)
        + _record(struct.pack("<i", atoms))
    )


def _record(content: bytes) -> bytes:
    length = struct.pack("<i", len(content))
    return length + content + length
