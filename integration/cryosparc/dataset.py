"""cryoSPARC's `.cs` tables: structured numpy files, one row per item, known by its `uid`; read, joined and written."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from flex_job.files import written_aside
from flex_job.input_files import opened_input
from flex_job.npy_header import read_npy_header
from flex_job.problems import one_line

__all__ = ["Records", "find_passthroughs", "join", "read_cs", "write_cs"]

Records = dict[str, NDArray[np.generic]]
"""Columns (n, ...) by field, such as blob/path; `uid` is always there."""

EXPECTED = "a cryoSPARC table (.cs) of particles"
MOST_BYTES = 1 << 38
PARTICLES = re.compile(r"(?P<job>.+?)(_\d+)?_particles(?P<rest>.*)\.cs")  # a number: the iteration
LONGEST_HEADER = 1 << 20
NEW_FORMAT = b"\x95CSDAT"


def read_cs(path: str | Path) -> Records:
    """The columns of a `.cs` file. Raises ValueError, with the path, for what is not a whole table of plain fields.

    Nothing is unpickled, and no more is read than the file holds, whatever its header says.
    """
    path = Path(path)
    with opened_input(path, "cryoSPARC file", EXPECTED, MOST_BYTES) as file:
        if file.read(len(NEW_FORMAT)) == NEW_FORMAT:
            raise ValueError(
                f"{path}: in cryoSPARC's compressed stream format; expected the numpy format; convert it with "
                "cryosparc-tools: Dataset.load(file).save(new_file)"
            )
        file.seek(0)
        try:
            shape, _, dtype = read_npy_header(file, LONGEST_HEADER)
        except ValueError as error:
            raise ValueError(one_line(f"{path}: not a numpy file ({error}); expected {EXPECTED}")) from None
        if dtype.names is None or len(shape) != 1 or "uid" not in dtype.names:
            raise ValueError(f"{path}: a numpy file that is not a table with a uid field; expected {EXPECTED}")
        if dtype.hasobject:
            raise ValueError(f"{path}: holds Python objects, which are never read; expected {EXPECTED}")
        held = (os.fstat(file.fileno()).st_size - file.tell()) // max(dtype.itemsize, 1)
        if held < shape[0]:
            raise ValueError(f"{path}: truncated, {held} of the {shape[0]} rows its header promises; copy it again")
        table = np.fromfile(file, dtype=dtype, count=shape[0])
    records = {name: np.ascontiguousarray(table[name]) for name in dtype.names}
    if records["uid"].ndim != 1 or records["uid"].dtype.kind not in "iu":
        raise ValueError(f"{path}: uid is of {records['uid'].dtype}; expected whole numbers")
    if len(np.unique(records["uid"])) < len(table):
        raise ValueError(f"{path}: some uids are there twice; expected each particle once")
    return records


def join(main: Mapping[str, NDArray[np.generic]], others: Iterable[tuple[Path, Records]]) -> Records:
    """`main` with the fields of `others` that it lacks, matched by uid, in `main`'s order.

    Raises ValueError, with the path, when one of the others lacks some of the uids.
    """
    joined = dict(main)
    uids = joined["uid"]
    for path, other in others:
        missing = [name for name in other if name not in joined]
        if not missing:
            continue
        order = np.argsort(other["uid"], kind="stable")
        place = np.searchsorted(other["uid"], uids, sorter=order).clip(0, max(len(order) - 1, 0))
        rows = order[place] if len(order) else place
        found = other["uid"][rows] == uids if len(order) else np.zeros(len(uids), dtype=bool)
        if not found.all():
            raise ValueError(
                f"{path}: has no row for {(~found).sum()} of the {len(uids)} particles; expected the passthrough file "
                "of the same job and output"
            )
        joined |= {name: other[name][rows] for name in missing}
    return joined


def find_passthroughs(path: Path) -> list[Path]:
    """cryoSPARC's passthrough file beside a particle file: J12_passthrough_particles.cs for J12_004_particles.cs."""
    match = PARTICLES.fullmatch(path.name)
    if match is None or match["job"].endswith("_passthrough"):
        return []
    beside = path.with_name(f"{match['job']}_passthrough_particles{match['rest']}.cs")
    return [beside] if beside.is_file() else []


def write_cs(path: Path, records: Mapping[str, NDArray[np.generic]]) -> Path:
    """Write columns as a `.cs` file in numpy's format, uid first; aside, then renamed over `path`."""
    names = ["uid", *(name for name in records if name != "uid")]
    dtype = np.dtype([(name, records[name].dtype, records[name].shape[1:]) for name in names])
    table = np.empty(len(records["uid"]), dtype=dtype)
    for name in names:
        table[name] = records[name]
    with written_aside(path) as file:
        npy.write_array(file, table, version=(1, 0) if _fits_version_1(dtype) else (2, 0), allow_pickle=False)
    return path


def _fits_version_1(dtype: np.dtype[np.void]) -> bool:
    return len(str(dtype.descr)) < 60_000
