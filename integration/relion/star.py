"""STAR files: tables of strings, exactly as written, and columns of numbers on demand.

RELION 3.1 and later keep particles in `data_particles` and optics groups in `data_optics`; 3.0 has one table for all.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gemmi import cif
from numpy.typing import NDArray

from flex_job.input_files import opened_input
from flex_job.memory import free_memory
from flex_job.problems import one_line

__all__ = ["BadColumn", "Table", "find_optics", "find_particles", "read_star", "read_table"]


MEMORY_PER_BYTE = 3  # of a file with some thirty columns
LARGEST = 1e9  # in size, of any number that is read: all have units in which they are far smaller


class BadColumn(ValueError):
    """A column holds something that is not a number."""


class Table:
    """One table of a STAR file: a loop, or a list of label-value pairs, which reads as a table of one row.

    Labels are given without the leading underscore.
    """

    def __init__(self, block: cif.Block, labels: tuple[str, ...]) -> None:
        self._block = block
        self.labels = labels
        self.name: str = block.name.strip()
        self.length = len(self.raw(labels[0])) if labels else 0

    def __len__(self) -> int:
        return self.length

    def __contains__(self, label: object) -> bool:
        return label in self.labels

    def raw(self, label: str) -> list[str]:
        """The column's strings, with quotes where the file has them."""
        return list(self._block.find_values(f"_{label}"))

    def strings(self, label: str) -> list[str]:
        """The column's strings without quotes."""
        return [cif.as_string(value) if value[0] in "'\";" else value for value in self.raw(label)]

    def numbers(self, label: str) -> NDArray[np.float64]:
        """The column as numbers. Raises BadColumn, with the row, at what is not a number of at most LARGEST in size."""
        values = self.strings(label)
        try:
            numbers = np.array(values, dtype=np.float64)
        except ValueError:
            numbers = np.array([_number(value) for value in values])
        broken = np.flatnonzero(~(np.abs(numbers) <= LARGEST))  # NaN is not <= anything
        if len(broken):
            row = int(broken[0])
            raise BadColumn(
                f"column {label} of table {self.name or '(unnamed)'} has {len(broken)} values that are not "
                f"finite numbers of at most {LARGEST:g} in size, the first is {values[row]!r} in row {row + 1}; "
                "correct them or remove these rows"
            )
        return numbers


def read_star(path: Path) -> cif.Document:
    """Parse a STAR file. Raises ValueError, with the path, for what is not one."""
    with opened_input(path, "STAR file", "a STAR file such as run_data.star", free_memory("cpu") // MEMORY_PER_BYTE):
        pass  # gemmi would wait for a pipe, and take any memory
    try:
        return cif.read_file(str(path.absolute()))
    except (ValueError, RuntimeError, OSError) as error:  # gemmi raises any of them
        reason = str(error).replace(str(path.absolute()), "line", 1)
        raise ValueError(
            one_line(f"{path}: not a readable STAR file ({reason}); expected tables that begin with data_, plain text")
        ) from None


def read_table(block: cif.Block, label: str | None = None) -> Table | None:
    """The loop of `block` that holds `label` (None: the first loop), else its label-value pairs; None: no such."""
    for item in block:
        if item.loop is not None and (label is None or f"_{label}" in item.loop.tags):
            return Table(block, tuple(tag[1:] for tag in item.loop.tags))
    pairs = tuple(str(item.pair[0])[1:] for item in block if item.pair is not None)  # type: ignore[index]
    if not pairs or (label is not None and label not in pairs):
        return None
    return Table(block, pairs)


def find_particles(document: cif.Document) -> Table | None:
    """The table of particles: that of `data_particles`, else the first with an rlnImageName column."""
    blocks = sorted(document, key=lambda block: block.name != "particles")
    for block in blocks:
        table = read_table(block, "rlnImageName")
        if table is not None:
            return table
    return None


def find_optics(document: cif.Document) -> Table | None:
    """The table of optics groups; None in files of RELION 3.0 and before."""
    block = document.find_block("optics")
    return None if block is None else read_table(block)


def _number(value: str) -> float:
    try:
        return float(value)
    except ValueError:
        return float("nan")
