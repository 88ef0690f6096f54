"""What the header of an .npy file promises, before anything is read or allocated by it."""

from __future__ import annotations

from typing import BinaryIO

import numpy as np
from numpy.lib import format as npy

__all__ = ["MAGIC", "read_npy_header"]

MAGIC = npy.MAGIC_PREFIX
LONGEST = 10_000  # numpy's limit: longer ones can make Python's parser fail in worse ways than by an exception


def read_npy_header(file: BinaryIO, longest: int = LONGEST) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether columns come first, and type; the file is then at the first number. Raises ValueError, whatever is
    wrong, and for headers of more than `longest` characters."""
    try:
        version = npy.read_magic(file)
        reader = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        return reader(file, max_header_size=longest)
    except Exception as error:  # numpy lets pass what Python's own parsers raise
        raise ValueError(str(error)) from error
