"""Write results as RELION reads them: the particle STAR file with latents, and FSC curves; read latents back.

Latents travel as columns of our own, flexLatent1..K and flexLatentStd1..K, which RELION keeps (with a warning each).
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import starfile
from numpy.typing import NDArray

from flex_job.fsc import FscCurves
from flex_job.problems import InputProblems
from integration.relion.star import BadColumn, read_star, read_table

__all__ = ["read_latents", "write_fsc_star", "write_particles"]

OWN_LABEL = re.compile(r"flexLatent(Std)?\d+")
LATENT = re.compile(r"flexLatent(\d+)")
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


def write_particles(
    source_star: str | Path,
    target_star: str | Path,
    latents: NDArray[np.floating],
    latent_std: NDArray[np.floating],
) -> Path:
    """Copy a particle STAR file, adding latents (n, K) and their standard deviations (n, K) as columns.

    Every other byte of the file is kept: rows, order, columns, other tables, comments. Columns of an earlier run of
    ours are replaced. Written aside and renamed, so source and target may be the same file. Raises ValueError when
    the numbers of rows and latents differ, or a latent is not finite.
    """
    source, target = Path(source_star), Path(target_star)
    values = np.concatenate([np.atleast_2d(latents), np.atleast_2d(latent_std)], axis=1)
    count = values.shape[1] // 2
    if np.shape(latents) != np.shape(latent_std):
        raise ValueError(f"latents {np.shape(latents)} and latent_std {np.shape(latent_std)}: expected one shape")
    if not np.isfinite(values).all():
        raise ValueError("latents or their standard deviations hold values that are not finite; nothing was written")
    loop, labels, rows = _particle_loop(source)
    if rows != len(values):
        raise ValueError(f"{source}: {rows} lines of particles for {len(values)} latents; expected one line each")
    dropped = [column for column, label in enumerate(labels) if OWN_LABEL.fullmatch(label)]
    added = [f"flexLatent{k + 1}" for k in range(count)] + [f"flexLatentStd{k + 1}" for k in range(count)]

    aside = target.with_name(f".{target.name}.part")
    with open(aside, "w", encoding="utf-8", errors="surrogateescape", newline="") as out:
        column = kept = row = 0
        for line in _lines(source):
            if line.loop != loop or line.kind == "other":
                out.write(line.text)
            elif line.kind == "label":
                column += 1
                if not OWN_LABEL.fullmatch(line.label):
                    kept += 1
                    out.write(re.sub(r"#\d+", f"#{kept}", line.text) if dropped else line.text)
                if column == len(labels):
                    out.writelines(f"_{label} #{kept + 1 + k} \n" for k, label in enumerate(added))
            else:
                ending = line.text[len(line.text.rstrip("\r\n")) :] or "\n"
                body = line.text.rstrip("\r\n")
                body = _without(body, dropped) if dropped else body
                numbers = " ".join(f"{value:.9g}" for value in values[row].tolist())
                out.write(f"{body if body.endswith((' ', chr(9))) else body + ' '}{numbers}{ending}")
                row += 1
        out.flush()
        os.fsync(out.fileno())
    os.replace(aside, target)
    return target


def write_fsc_star(path: str | Path, rigid: FscCurves, flex: FscCurves) -> Path:
    """Table `fsc` with the flexible curves under RELION's names and the rigid ones beside them; aside, then renamed.

    rlnResolution is in 1/A. Table `general` holds the resolutions at 0.143 of the corrected curves, in angstroms.
    """
    path = Path(path)
    frequency = np.asarray(flex.frequency_per_A)
    angstroms = np.divide(1.0, frequency, out=np.full(len(frequency), 999.0), where=frequency > 0)  # as RELION
    table = {
        "rlnSpectralIndex": np.arange(len(frequency)),
        "rlnResolution": frequency,
        "rlnAngstromResolution": angstroms,
    }
    names = {
        "FourierShellCorrelationCorrected": "corrected",
        "FourierShellCorrelationUnmaskedMaps": "unmasked",
        "FourierShellCorrelationMaskedMaps": "masked",
        "CorrectedFourierShellCorrelationPhaseRandomizedMaskedMaps": "randomised",
    }
    for prefix, curves in (("rln", flex), ("flexRigid", rigid)):
        table |= {f"{prefix}{name}": getattr(curves, attribute) for name, attribute in names.items()}
    general = {"rlnFinalResolution": flex.resolution_A(), "flexRigidFinalResolution": rigid.resolution_A()}
    aside = path.with_name(f".{path.stem}.part.star")
    starfile.write({"general": general, "fsc": pd.DataFrame(table)}, aside, overwrite=True, float_format="%.6f")
    os.replace(aside, path)
    return path


def read_latents(path: str | Path) -> NDArray[np.float64]:
    """Latents (m, K), a row each, from the columns flexLatent1..K of a CSV file (with a header) or a STAR file.

    Other columns are ignored. Raises InputProblems for missing columns, gaps in their numbers, and non-numbers.
    """
    path = Path(path)
    columns = _star_latents(path) if path.suffix == ".star" else _csv_latents(path)
    numbers = sorted(columns)
    if not numbers or numbers != list(range(1, len(numbers) + 1)):
        found = ", ".join(f"flexLatent{number}" for number in numbers) or "none"
        raise InputProblems(
            [f"{path}: latent columns found: {found}; expected flexLatent1, flexLatent2, ... with no gap"]
        )
    latents = np.stack([columns[number] for number in numbers], axis=1)
    if not len(latents) or not np.isfinite(latents).all():
        raise InputProblems([f"{path}: expected at least one row, and finite numbers only, in the flexLatent columns"])
    return latents


def _csv_latents(path: Path) -> dict[int, NDArray[np.float64]]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file, skipinitialspace=True))
        names = {
            name: match for name in (rows[0] if rows else {}) if name and (match := LATENT.fullmatch(name.strip()))
        }
        return {int(match[1]): np.array([float(row[name]) for row in rows]) for name, match in names.items()}
    except OSError as error:
        raise InputProblems([f"{path}: cannot be read ({error.strerror}); expected a CSV or STAR file"]) from None
    except (TypeError, ValueError, csv.Error) as error:
        raise InputProblems(
            [f"{path}: not a table of numbers ({error}); expected the header flexLatent1,..."]
        ) from None


def _star_latents(path: Path) -> dict[int, NDArray[np.float64]]:
    try:
        for block in read_star(path):
            table = read_table(block, "flexLatent1")
            if table is not None:
                matches = {label: match for label in table.labels if (match := LATENT.fullmatch(label))}
                return {int(match[1]): table.numbers(label) for label, match in matches.items()}
    except (BadColumn, ValueError) as error:
        raise InputProblems([str(error)]) from None
    return {}


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


def _particle_loop(path: Path) -> tuple[int, list[str], int]:
    """Number of the particle loop, its labels, and its count of rows; the same table as `star.find_particles`."""
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


def _without(body: str, dropped: list[int]) -> str:
    """The row without the tokens at `dropped`."""
    tokens = list(TOKEN.finditer(body))
    for column in reversed(dropped):
        if column < len(tokens):
            end = tokens[column + 1].start() if column + 1 < len(tokens) else len(body)
            body = body[: tokens[column].start()] + body[end:]
    return body
