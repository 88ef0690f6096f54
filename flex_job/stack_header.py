"""The header of an MRC image stack: how many images of what type, and where they begin."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

__all__ = ["StackHeader", "open_stack", "parse_header", "read_header"]

HEADER_BYTES = 1024
# MRC2014 modes that hold real images; 12 is the float16 of RELION 4 and later.
MODES = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2"}


@dataclass(frozen=True, slots=True)
class StackHeader:
    """What is needed to find one image in an MRC stack; `size_bytes` is the file's real length."""

    count: int
    height: int
    width: int
    dtype: np.dtype
    offset_bytes: int
    size_bytes: int

    @property
    def image_bytes(self) -> int:
        return self.height * self.width * self.dtype.itemsize

    @property
    def complete(self) -> bool:
        return self.size_bytes >= self.offset_bytes + self.count * self.image_bytes


def read_header(path: Path) -> StackHeader:
    """Parse an MRC header of either byte order. Raises ValueError, with the path, for what is not an MRC stack."""
    descriptor = open_stack(path)
    try:
        return parse_header(descriptor, path)
    finally:
        os.close(descriptor)


def open_stack(path: Path) -> int:
    """A descriptor for reading. Raises ValueError, with the path, for what is missing or not to be read."""
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such image stack; expected the file named in the particle list") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from None


def parse_header(descriptor: int, path: Path) -> StackHeader:
    """The header of an open stack; `path` is told in errors (ValueError)."""
    try:
        raw = os.pread(descriptor, HEADER_BYTES, 0)
        size = os.fstat(descriptor).st_size
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from None
    if len(raw) < HEADER_BYTES:
        raise ValueError(f"{path}: {size} bytes, shorter than an MRC header of {HEADER_BYTES}; copy the stack again")
    for order in "<>":
        width, height, count, mode = struct.unpack(f"{order}4i", raw[:16])
        (extended,) = struct.unpack(f"{order}i", raw[92:96])
        if mode in MODES and min(width, height, count) > 0 and max(width, height) < 65536 and extended >= 0:
            dtype = np.dtype(order + MODES[mode])
            return StackHeader(count, height, width, dtype, HEADER_BYTES + extended, size)
    raise ValueError(
        f"{path}: not an MRC image stack (size {width} x {height} x {count}, mode {mode}); "
        f"expected positive sizes and one of the modes {', '.join(map(str, MODES))}"
    )
