"""Reading what `torch.save` wrote without trusting it: tensors, numbers, texts, containers, of the file's own size."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray

__all__ = ["array_in", "load_tensors"]


def load_tensors(file: BinaryIO) -> Any:
    """The content of an open file, on the CPU. Raises ValueError, and anything that torch raises, for others.

    Only torch's present format is read: in it nothing is packed, so nothing can grow beyond the file's size.
    """
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
    packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
    if packed or sum(entry.file_size for entry in entries) > os.fstat(file.fileno()).st_size:
        raise ValueError("its parts are packed, or larger than the file")
    file.seek(0)
    return torch.load(file, weights_only=True, map_location="cpu")


def array_in(content: Mapping[str, Any], name: str, dtype: DTypeLike, *shape: int | None) -> NDArray[Any]:
    """The tensor `name` as an array of `dtype` and `shape` (None: any length). Raises ValueError, with its name, for
    another one, for numbers that are not finite, and for a tensor that repeats its memory to seem larger."""
    tensor = content.get(name)
    if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided or not tensor.is_contiguous():
        raise ValueError(f"{name} is not a plain tensor")
    expected = ", ".join("any" if length is None else str(length) for length in shape)
    if len(shape) != tensor.ndim or any(a not in (None, b) for a, b in zip(shape, tensor.shape, strict=True)):
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; expected ({expected})")
    array = tensor.detach().numpy()
    if array.dtype != np.dtype(dtype):
        raise ValueError(f"{name} holds {array.dtype}; expected {np.dtype(dtype)}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} has values that are not finite")
    return array
