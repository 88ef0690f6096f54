"""Arrays as text for a page."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["packed"]


def packed(values: NDArray[Any], kind: type = np.float32) -> str:
    """Numbers in C order, little-endian, as base64."""
    return base64.b64encode(np.ascontiguousarray(values, dtype=np.dtype(kind).newbyteorder("<")).tobytes()).decode()
