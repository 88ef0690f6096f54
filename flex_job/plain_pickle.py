"""Unpickling files of plain arrays, as other programs leave them, without running anything that the file asks for.

A pickle is a program. Its instructions are looked over first: only those that put data together are known, lengths
have to be there, and there may not be many. Then Python's unpickler runs it, and finds stand-ins of ours in place of
the few names that numpy's arrays need. So none of numpy's own unpickling runs, which trusts its input: it would take
any shape, and types whose inner state the file has changed.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flex_job.input_files import read_input
from flex_job.problems import one_line

__all__ = ["load_plain_pickle"]

MOST_BYTES = 4 << 30  # a box of 500 px has three arrays of half a gigabyte
MOST_STEPS = 100_000  # of the pickle's program; an array takes about thirty
DEPTH = 2  # of dicts within dicts
STEPS = frozenset(
    "PROTO FRAME STOP MARK POP NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT "
    "STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8 "
    "UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 EMPTY_LIST LIST APPEND APPENDS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 "
    "TUPLE3 EMPTY_DICT DICT SETITEM SETITEMS GET BINGET LONG_BINGET PUT BINPUT LONG_BINPUT MEMOIZE "
    "GLOBAL STACK_GLOBAL REDUCE BUILD".split()
)


def load_plain_pickle(path: str | Path, expected: str) -> NDArray[Any] | dict[str | int, Any]:
    """What the first pickle in a file holds: a numeric numpy array, or a dict of such arrays, numbers, texts and dicts
    of those; other values (lists, ...) are left out.

    Raises ValueError, with the path and what was `expected` ("a cryoSPARC mesh"), for anything else; functions and
    classes are refused before they are found.
    """
    path = Path(path)
    content = read_input(path, "file", expected, MOST_BYTES)
    try:
        _look_over(content)
        loaded = _PlainUnpickler(io.BytesIO(content), encoding="latin1").load()
        if type(loaded) not in (dict, _Array):
            raise pickle.UnpicklingError(f"it holds a {type(loaded).__name__}, expected an array or a dict")
        return _plain(loaded)
    except Exception as error:  # the unpickler raises anything
        raise ValueError(
            one_line(f"{path}: not a pickle of plain arrays ({error}); expected {expected}; export it again")
        ) from error


def _look_over(content: bytes) -> None:
    """Raises UnpicklingError, and what pickletools raises, for a program with anything but data in it."""
    for number, (step, argument, _) in enumerate(pickletools.genops(content)):
        if step.name not in STEPS:
            raise pickle.UnpicklingError(f"refused the instruction {step.name}: only plain numpy arrays are read")
        # the unpickler keeps a table as long as the highest place
        if number > MOST_STEPS or ("PUT" in step.name and int(argument or 0) > MOST_STEPS):
            raise pickle.UnpicklingError(f"more than {MOST_STEPS} instructions")


class _Type:
    """Stands in for numpy.dtype: numbers of one kind, in one byte order."""

    def __init__(self, name: Any, *flags: Any) -> None:
        self.dtype = np.dtype(name) if isinstance(name, str) and len(name) < 16 else np.dtype(object)
        if self.dtype.kind not in "biuf":
            raise pickle.UnpicklingError(f"refused an array of {self.dtype}: only numbers are read")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order = state[1]
        if order not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError(f"refused the byte order {order!r}")
        self.dtype = self.dtype.newbyteorder(order)


class _Array:
    """Stands in for an array while it is put together."""

    values: NDArray[Any] = np.zeros(0)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, by_columns, content = state
        self.values = _array(shape, kind, content, "F" if by_columns else "C")


def _reconstruct(*_: Any) -> _Array:
    return _Array()


def _from_buffer(content: Any, kind: Any, shape: Any, order: Any) -> _Array:
    array = _Array()
    array.values = _array(shape, kind, content, "F" if order == "F" else "C")
    return array


def _scalar(kind: Any, content: Any) -> Any:
    return _array((), kind, content, "C").item()


def _array(shape: Any, kind: Any, content: Any, order: str) -> NDArray[Any]:
    """The array of `shape` whose bytes are `content`: its size is that of what is there."""
    if isinstance(content, str):  # bytes of Python 2
        content = content.encode("latin1")
    if type(kind) is not _Type or not isinstance(content, (bytes, bytearray)):
        raise pickle.UnpicklingError("refused an array of anything but numbers")
    sides = tuple(int(side) for side in shape)
    if len(sides) > 4 or min(sides, default=0) < 0 or math.prod(sides) * kind.dtype.itemsize != len(content):
        raise pickle.UnpicklingError(f"an array of shape {sides} of {kind.dtype} with {len(content)} bytes")
    return np.frombuffer(content, kind.dtype).reshape(sides, order="F" if order == "F" else "C")


def _latin1(text: Any, encoding: Any = "latin1") -> bytes:
    """How protocol 2 stores bytes."""
    if encoding != "latin1" or not isinstance(text, str):
        raise pickle.UnpicklingError(f"refused text in {encoding}")
    return text.encode("latin1")


class _Maker:
    """A function that a file can call and not change."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[..., Any]) -> None:
        self._make = make

    def __call__(self, *arguments: Any) -> Any:
        return self._make(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("refused a change of a function")


STAND_INS = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Type,
    ("numpy.core.multiarray", "_reconstruct"): _Maker(_reconstruct),
    ("numpy.core.multiarray", "scalar"): _Maker(_scalar),
    ("numpy.core.numeric", "_frombuffer"): _Maker(_from_buffer),
    ("_codecs", "encode"): _Maker(_latin1),
}


class _PlainUnpickler(pickle.Unpickler):
    """Finds nothing but the stand-ins, under numpy 1's and 2's names."""

    def find_class(self, module: str, name: str) -> Any:
        known = (module.replace("numpy._core", "numpy.core"), name)
        if known not in STAND_INS:
            raise pickle.UnpicklingError(f"refused {module}.{name}: only plain numpy arrays are read")
        return STAND_INS[known]


def _plain(value: Any, depth: int = 0, made: dict[tuple[int, int], Any] | None = None) -> Any:
    """Arrays for their stand-ins, and dicts with what is plain in them. A dict may be in itself, or in a thousand
    places: each is gone through once, `made` has what became of it."""
    if type(value) is _Array:
        return value.values
    if type(value) is not dict:
        return value
    made = {} if made is None else made
    if (id(value), depth) not in made:
        known = (bool, int, float, str, _Array, *((dict,) if depth < DEPTH else ()))
        made[id(value), depth] = {
            name: _plain(entry, depth + 1, made)
            for name, entry in value.items()
            if type(name) in (str, int) and type(entry) in known
        }
    return made[id(value), depth]
