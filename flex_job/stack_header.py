"""The header of an MRC file, a stack of images or a volume: how many sections of what type, and where they begin.

A header is not believed: sizes are bounded, and compared with the file's, before anything of that size is made.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flex_job.input_files import open_input
from flex_job.problems import one_line

__all__ = ["LARGEST_BOX", "StackHeader", "open_stack", "parse_header", "read_header"]

HEADER_BYTES = 1024
LARGEST_BOX = 8192  # pixels; an image of it has 256 MiB
# MRC2014 modes that hold real images; 12 is the float16 of RELION 4 and later.
MODES = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2"}


@dataclass(frozen=True, slots=True)
class StackHeader:
    """What is needed to find one image in an MRC file; `size_bytes` is the file's real length.

    `pixel_size_A` is that along x, not checked: 0 when the header has none, and perhaps not finite. `origin_A` (xyz) is
    where the header places the first voxel: its ORIGIN where that is set, else its first section's number.
    """

    count: int
    height: int
    width: int
    dtype: np.dtype
    offset_bytes: int
    size_bytes: int
    pixel_size_A: float
    origin_A: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @property
    def image_bytes(self) -> int:
        return self.height * self.width * self.dtype.itemsize

    @property
    def length_problem(self) -> str | None:
        """How the file's length contradicts the header; None when it does not."""
        held = max(0, (self.size_bytes - self.offset_bytes) // self.image_bytes)
        if self.size_bytes < self.offset_bytes + self.count * self.image_bytes:
            return f"truncated, {held} of the {self.count} images its header promises are there; copy it again"
        if held > self.count:
            return (
                f"longer than its header says: {self.count} images of {self.image_bytes} bytes are promised and there "
                f"is room for {held}; the header's size or mode is wrong, write the file again"
            )
        return None


def read_header(path: Path) -> StackHeader:
    """Parse an MRC header of either byte order. Raises ValueError, with the path, for what is not an MRC stack."""
    descriptor = open_stack(path)
    try:
        return parse_header(descriptor, path)
    finally:
        os.close(descriptor)


def open_stack(path: Path) -> int:
    """A descriptor for reading. Raises ValueError, with the path, for what is missing or not to be read."""
    return open_input(path, "image stack", "the file named in the particle list")


def parse_header(descriptor: int, path: Path, kind: str = "image stack") -> StackHeader:
    """The header of an open MRC file; `path` and `kind` are told in errors (ValueError)."""
    try:
        raw = os.pread(descriptor, HEADER_BYTES, 0)
        size = os.fstat(descriptor).st_size
    except OSError as error:
        raise ValueError(
            one_line(f"{path}: cannot be read ({error.strerror}); check the path and its permissions")
        ) from None
    if len(raw) < HEADER_BYTES:
        raise ValueError(
            one_line(f"{path}: {size} bytes, shorter than an MRC header of {HEADER_BYTES}; copy the {kind} again")
        )
    for order in "<>":
        width, height, count, mode = struct.unpack(f"{order}4i", raw[:16])
        (extended,) = struct.unpack(f"{order}i", raw[92:96])
        if mode in MODES and min(width, height, count) > 0 and max(width, height) <= LARGEST_BOX and extended >= 0:
            (intervals,) = struct.unpack(f"{order}i", raw[28:32])
            (cell_A,) = struct.unpack(f"{order}f", raw[40:44])
            pixel = cell_A / intervals if intervals > 0 else 0.0
            dtype = np.dtype(order + MODES[mode])
            origin = struct.unpack(f"{order}3f", raw[196:208])
            if not any(origin):
                origin = tuple(start * pixel for start in struct.unpack(f"{order}3i", raw[16:28]))
            return StackHeader(count, height, width, dtype, HEADER_BYTES + extended, size, pixel, origin)
    width, height, count, mode = struct.unpack("<4i", raw[:16])
    raise ValueError(
        one_line(
            f"{path}: not an MRC {kind} (size {width} x {height} x {count}, mode {mode}); expected 1 to {LARGEST_BOX} "
            f"pixels a side and one of the modes {', '.join(map(str, MODES))}; give another file"
        )
    )
