"""Values per particle from the particle table, else the optics table, else a default; problems are collected."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from integration.relion.star import BadColumn, Table

__all__ = ["Columns"]

SHOWN = 20  # optics groups in a message


class Columns:
    """The particle table joined with the optics table, as RELION reads CTF values (CTF::readByGroup).

    A column that is missing and needed, or holds what is not a finite number, is noted in `problems` and read as
    NaN, so that reading goes on and all problems are found in one go. `optics_row` (n,) is the row in the optics
    table of each particle, zero without an optics table.
    """

    def __init__(self, particles: Table, optics: Table | None, problems: list[str]) -> None:
        self.particles, self.optics, self.problems = particles, optics, problems
        self._cache: dict[tuple[int, str], NDArray[np.float64]] = {}
        self.optics_row = self._optics_rows()

    def __len__(self) -> int:
        return len(self.particles)

    def first(
        self, labels: Sequence[str], tables: Sequence[Table | None], default: float | None
    ) -> NDArray[np.float64]:
        """Values (n,) of the first of `labels` found in the first of `tables`; `default` None: it must be there."""
        for table in tables:
            for label in labels:
                if table is not None and label in table:
                    values = self.numbers(table, label)
                    return values if table is self.particles else values[self.optics_row]
        if default is None:
            self.problems.append(
                f"no column {' or '.join(labels)} in {self._places(tables)}; "
                "give the particles as the refinement wrote them (run_data.star)"
            )
        return np.full(len(self), np.nan if default is None else default)

    def value(self, *labels: str, default: float | None = None) -> NDArray[np.float64]:
        """From the particle row, else the optics row, else `default`."""
        return self.first(labels, (self.particles, self.optics), default)

    def pose(self, label: str) -> NDArray[np.float64]:
        """A pose column, which only particles can have."""
        if label in self.particles:
            return self.numbers(self.particles, label)
        self.problems.append(f"poses missing: no column {label}; give the particles of a finished 3D refinement")
        return np.zeros(len(self))

    def numbers(self, table: Table, label: str) -> NDArray[np.float64]:
        """The whole column; noted as a problem and NaN when it does not hold finite numbers."""
        key = (id(table), label)
        if key not in self._cache:
            try:
                self._cache[key] = table.numbers(label)
            except BadColumn as error:
                self.problems.append(str(error))
                self._cache[key] = np.full(len(table), np.nan)
        return self._cache[key]

    def _places(self, tables: Sequence[Table | None]) -> str:
        return " or ".join(f"table {table.name or '(unnamed)'}" for table in tables if table is not None)

    def _optics_rows(self) -> NDArray[np.int64]:
        count = len(self.particles)
        if self.optics is None:
            return np.zeros(count, dtype=np.int64)
        for table in (self.particles, self.optics):
            if "rlnOpticsGroup" not in table:
                self.problems.append(
                    f"no column rlnOpticsGroup in table {table.name}, but there is an optics table; "
                    "give the particles as the refinement wrote them"
                )
                return np.zeros(count, dtype=np.int64)
        defined = np.nan_to_num(self.numbers(self.optics, "rlnOpticsGroup"))
        wanted = np.nan_to_num(self.numbers(self.particles, "rlnOpticsGroup"))
        listed = ", ".join(f"{number:g}" for number in np.sort(defined)[:SHOWN])
        if len(np.unique(defined)) < len(defined):
            self.problems.append(
                f"table {self.optics.name} defines an optics group twice ({listed}); number the groups differently"
            )
        order = np.argsort(defined, kind="stable")
        rows = order[np.searchsorted(defined[order], wanted).clip(0, len(defined) - 1)]
        unknown = defined[rows] != wanted
        if unknown.any():
            numbers = ", ".join(f"{number:g}" for number in np.unique(wanted[unknown])[:5])
            self.problems.append(
                f"{unknown.sum()} particles have an unknown optics group ({numbers}); the optics table defines "
                f"{listed}; correct rlnOpticsGroup or add the missing groups"
            )
            rows = np.where(unknown, 0, rows)
        return rows
