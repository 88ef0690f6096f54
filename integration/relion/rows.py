"""Particle STAR files copied byte for byte, but for columns that are added and rows that are left out.

RELION's layout is expected: one particle a line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flex_job.files import path_aside

__all__ = ["copy_rows", "particle_loop"]

TOKEN = re.compile(r"""'[^']*'(?=\s|$)|"[^"]*"(?=\s|$)|\S+""")


@dataclass(frozen=True)
class _Line:
    """One line of a STAR file: the loop it belongs to (counted from 1, 0 before any), and what it is there."""

    text: str
    block: str
    loop: int
    kind: str  # "label", "row" or "other"

    @property
    def label(self) -> str:
        return self.text.split()[0][1:]


def copy_rows(
    source_star: str | Path,
    target_star: str | Path,
    columns: Mapping[str, NDArray[np.generic]],
    replaced: re.Pattern[str],
    keep: NDArray[np.bool_] | None = None,
) -> Path:
    """Copy a particle STAR file with `columns` (n numbers by label) added behind its own.

    Every other byte of the file is kept: rows, order, columns, other tables, comments. Columns whose label matches
    `replaced` are taken out first; `keep` (n,) says which rows stay. Written aside and renamed, so source and target
    may be the same file. Raises ValueError where the file does not hold n particles in a line each.
    """
    source, target = Path(source_star), Path(target_star)
    loop, labels, rows = particle_loop(source)
    for label, values in columns.items():
        if len(values) != rows:
            raise ValueError(
                f"{source}: {rows} lines of particles for {len(values)} values of {label}; expected one line each"
            )
    dropped = [column for column, label in enumerate(labels) if replaced.fullmatch(label)]
    with path_aside(target) as aside, aside.open("w", encoding="utf-8", errors="surrogateescape", newline="") as out:
        column = kept = 0
        numbers = iter(zip(*(values.tolist() for values in columns.values()), strict=True)) if columns else repeat(())
        stays = iter(keep.tolist() if keep is not None else [True] * rows)
        for line in _lines(source):
            if line.loop != loop or line.kind == "other":
                out.write(line.text)
            elif line.kind == "label":
                column += 1
                if not replaced.fullmatch(line.label):
                    kept += 1
                    out.write(re.sub(r"#\d+", f"#{kept}", line.text) if dropped else line.text)
                if column == len(labels):
                    out.writelines(f"_{label} #{kept + 1 + k} \n" for k, label in enumerate(columns))
            else:
                added = " ".join(f"{number:.9g}" for number in next(numbers))
                if next(stays):
                    out.write(_with(line.text, dropped, added) if dropped or added else line.text)
    return target


def particle_loop(path: Path) -> tuple[int, list[str], int]:
    """Number of the particle loop, its labels, and its count of rows; the same table as `star.find_particles`.

    Raises ValueError where there is none.
    """
    labels: dict[int, list[str]] = {}
    rows: dict[int, int] = {}
    blocks: dict[int, str] = {}
    for line in _lines(path):
        blocks[line.loop] = line.block if line.kind == "label" else blocks.get(line.loop, "")
        if line.kind == "label":
            labels.setdefault(line.loop, []).append(line.label)
        elif line.kind == "row":
            rows[line.loop] = rows.get(line.loop, 0) + 1
    loops = [number for number, names in labels.items() if "rlnImageName" in names]
    if not loops:
        raise ValueError(f"{path}: no table with an rlnImageName column; expected a particle STAR file")
    chosen = min(loops, key=lambda number: (blocks[number] != "particles", number))
    return chosen, labels[chosen], rows.get(chosen, 0)


def _lines(path: Path) -> Iterator[_Line]:
    """The lines of a STAR file in RELION's layout (one row a line), one at a time; bytes survive the round trip."""
    block, loop, state = "", 0, "other"
    with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
        for text in file:
            bare = text.strip()
            if bare.startswith("data_") and " " not in bare:
                block, state = bare[len("data_") :], "other"
            elif bare == "loop_":
                loop, state = loop + 1, "label"
            elif bare and not bare.startswith("#") and state != "other":
                if not bare.startswith("_"):
                    state = "row"
                elif state == "row":
                    state = "other"  # a label-value pair after a loop
                yield _Line(text, block, loop, state)
                continue
            yield _Line(text, block, loop, "other")


def _with(row: str, dropped: Sequence[int], added: str) -> str:
    """The row without the tokens at `dropped`, and with `added` behind."""
    body = row.rstrip("\r\n")
    ending = row[len(body) :] or "\n"
    tokens = list(TOKEN.finditer(body)) if dropped else []
    for column in reversed(dropped):
        if column < len(tokens):
            end = tokens[column + 1].start() if column + 1 < len(tokens) else len(body)
            body = body[: tokens[column].start()] + body[end:]
    return f"{body if body.endswith((' ', chr(9))) else body + ' '}{added}{ending}"
