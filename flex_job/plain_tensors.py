"""Reading what `torch.save` wrote without trusting it: tensors, numbers, texts, containers, of the file's own size."""

from __future__ import annotations

import os
import pickletools
import re
import zipfile
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray

from flex_job.memory import out_of_memory_hint
from flex_job.problems import one_line

__all__ = ["array_in", "load_tensors"]

CALLS = ("GLOBAL", "STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4")  # opcodes that name something to call
PROTOCOL = 2  # torch.save's; other ones have opcodes that its safe reader does not know
PLAIN = re.compile(
    r"torch (\w+Storage|Size|[a-z]+\d*)|torch\._utils (_rebuild_tensor_v2|_rebuild_parameter)|collections OrderedDict"
)


def load_tensors(file: BinaryIO) -> Any:
    """The content of an open file from where it stands to its end, on the CPU. Raises ValueError, in plain words, for
    others.

    Only torch's present format is read: in it nothing is packed, so nothing can grow beyond the file's size.
    """
    start, size = file.tell(), os.fstat(file.fileno()).st_size
    try:
        _check_archive(file, size)
        file.seek(start)
        content = torch.load(file, weights_only=True, map_location="cpu")
    except Exception as error:
        # torch's own words tell users to read the file without its safety; memory that is lacking is not the file's
        if isinstance(error, (ValueError, OSError)) or out_of_memory_hint(error):
            raise
        raise ValueError(f"it is not what torch.save writes ({type(error).__name__})") from None
    _check_content(content, size)
    return content


def _check_archive(file: BinaryIO, size: int) -> None:
    """Raises ValueError for an archive that holds more than its size, or that calls for more than plain tensors: torch
    would also call others that it holds to be safe, such as bytearray(2 ** 40)."""
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        if (
            any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
            or sum(e.file_size for e in entries) > size
        ):
            raise ValueError("its parts are packed, or larger than the file")
        for entry in entries:
            if not entry.filename.endswith("data.pkl"):
                continue
            for code, called, _ in pickletools.genops(archive.read(entry)):
                if code.name == "PROTO" and called != PROTOCOL:
                    raise ValueError(f"its pickle is of protocol {called}; expected {PROTOCOL}")
                if code.name in CALLS and not (code.name == "GLOBAL" and PLAIN.fullmatch(str(called))):
                    raise ValueError(f"it holds more than tensors, numbers and texts ({one_line(called)[:60]})")


def _check_content(content: object, size: int) -> None:
    """Raises ValueError for anything but tensors, numbers, texts and containers, and for memory that no file gave."""
    todo, seen, storages = [content], set[int](), dict[int, int]()
    while todo:
        item = todo.pop()
        if isinstance(item, torch.Tensor):
            storages[item.untyped_storage().data_ptr()] = item.untyped_storage().nbytes()
        elif isinstance(item, (dict, list, tuple)):
            if id(item) not in seen:  # one may hold itself
                seen.add(id(item))
                todo += [*item.keys(), *item.values()] if isinstance(item, dict) else item
        elif not isinstance(item, (str, bytes, int, float, complex, torch.dtype, type(None))):
            raise ValueError(f"it holds more than tensors, numbers and texts ({type(item).__name__})")
    if sum(storages.values()) > size:
        raise ValueError("its tensors are larger than the file")


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
