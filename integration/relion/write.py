"""Write results as RELION reads them: the particle STAR file with latents, and FSC curves; read latents back.

Latents travel as columns of our own, flexLatent1..K and flexLatentStd1..K, which RELION keeps (with a warning each).
"""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import starfile
from numpy.typing import NDArray

from flex_job.files import path_aside
from flex_job.fsc import FscCurves
from flex_job.input_files import read_input
from flex_job.pose_corrections import PoseCorrections
from flex_job.problems import InputProblems
from flex_job.resolution import KINDS, ModelFsc, Resolution
from integration.relion.pose_columns import pose_columns
from integration.relion.rows import copy_rows
from integration.relion.star import BadColumn, read_star, read_table

__all__ = ["GAIN", "read_latents", "write_fsc_star", "write_particles"]

# of an earlier run of ours; a cluster is one of the latents that are replaced
OWN_LABEL = r"flexLatent(Std)?\d+|flexClusterProbability|flexLikelihoodGain"
GAIN = "flexLikelihoodGain"
LATENT = re.compile("flexLatent([1-9][0-9]{0,3})")
MODEL_PREFIXES = {"flex": "flexModel", "rigid": "flexRigidModel"}
LOCAL = {"median_A": "Median", "percentile5_A": "Percentile5", "percentile95_A": "Percentile95"}
MOST_BYTES = 1 << 30  # of a CSV file: ten million particles' latents


def write_particles(
    source_star: str | Path,
    target_star: str | Path,
    latents: NDArray[np.floating],
    latent_std: NDArray[np.floating],
    *,
    corrections: PoseCorrections | None = None,
    gains: NDArray[np.floating] | None = None,
) -> Path:
    """Copy a particle STAR file, adding latents (n, K) and their standard deviations (n, K) as columns, and likelihood
    gains (n,) where there are any.

    Every other byte of the file is kept: rows, order, columns, other tables, comments. Columns of an earlier run of
    ours are replaced, and so are those of poses and contrasts that `corrections` refine (see `pose_columns`). Written
    aside and renamed, so source and target may be the same file. Raises ValueError when the numbers of rows and latents
    differ, or a value is not finite.
    """
    values = np.concatenate([np.atleast_2d(latents), np.atleast_2d(latent_std)], axis=1)
    count = values.shape[1] // 2
    if np.shape(latents) != np.shape(latent_std):
        raise ValueError(f"latents {np.shape(latents)} and latent_std {np.shape(latent_std)}: expected one shape")
    columns = {} if corrections is None else pose_columns(source_star, corrections)
    if gains is not None:
        columns[GAIN] = np.asarray(gains, dtype=np.float64)
    if not all(np.isfinite(each).all() for each in (values, *columns.values())):
        raise ValueError("latents or their standard deviations hold values that are not finite; nothing was written")
    names = [f"flexLatent{k + 1}" for k in range(count)] + [f"flexLatentStd{k + 1}" for k in range(count)]
    replaced = re.compile("|".join([OWN_LABEL, *columns]))
    return copy_rows(source_star, target_star, dict(zip(names, values.T, strict=True)) | columns, replaced)


def write_fsc_star(path: str | Path, rigid: FscCurves, flex: FscCurves, resolution: Resolution | None = None) -> Path:
    """Table `fsc` with the flexible curves under RELION's names and the rigid ones beside them; aside, then renamed.

    rlnResolution is in 1/A. Table `general` holds the resolutions at 0.143 of the corrected curves, in angstroms.
    `resolution` adds tables where it has anything to tell: `masks`, with a row for each of the user's masks, and their
    curves as `fsc_mask_1` and so on; `model` and `fsc_model`, of the atomic model, resolutions at 0.5;
    `local_resolution`, a row for the flex and one for the rigid map, angstroms inside the mask.
    """
    resolution = resolution or Resolution()
    tables: dict[str, Any] = {"general": _resolutions(rigid, flex), "fsc": _fsc_table(rigid, flex)}
    if resolution.masks:
        rows = [{"flexMaskName": mask.path} | _resolutions(mask.rigid, mask.flex) for mask in resolution.masks]
        tables["masks"] = pd.DataFrame(rows)
        for number, mask in enumerate(resolution.masks, 1):
            tables[f"fsc_mask_{number}"] = _fsc_table(mask.rigid, mask.flex)
    if resolution.model is not None:
        tables |= _model_tables(resolution.model)
    if resolution.local:
        tables["local_resolution"] = pd.DataFrame(
            [
                {"flexMapName": kind} | {f"flexLocalResolution{LOCAL[name]}": found[name] for name in LOCAL}
                for kind, found in ((kind, resolution.local[kind]) for kind in reversed(KINDS))
            ]
        )
    path = Path(path)
    with path_aside(path, ".part.star") as aside:  # starfile goes by the name's end
        starfile.write(tables, aside, overwrite=True, float_format="%.6f")
    return path


def _resolutions(rigid: FscCurves, flex: FscCurves) -> dict[str, float]:
    return {"rlnFinalResolution": flex.resolution_A(), "flexRigidFinalResolution": rigid.resolution_A()}


def _shells(frequency_per_A: NDArray[np.floating]) -> dict[str, NDArray[np.floating]]:
    frequency = np.asarray(frequency_per_A)
    angstroms = np.divide(1.0, frequency, out=np.full(len(frequency), 999.0), where=frequency > 0)  # as RELION
    index = np.arange(len(frequency))
    return {"rlnSpectralIndex": index, "rlnResolution": frequency, "rlnAngstromResolution": angstroms}


def _fsc_table(rigid: FscCurves, flex: FscCurves) -> pd.DataFrame:
    table = _shells(flex.frequency_per_A)
    names = {
        "FourierShellCorrelationCorrected": "corrected",
        "FourierShellCorrelationUnmaskedMaps": "unmasked",
        "FourierShellCorrelationMaskedMaps": "masked",
        "CorrectedFourierShellCorrelationPhaseRandomizedMaskedMaps": "randomised",
    }
    for prefix, curves in (("rln", flex), ("flexRigid", rigid)):
        table |= {f"{prefix}{name}": getattr(curves, attribute) for name, attribute in names.items()}
    return pd.DataFrame(table)


def _model_tables(model: ModelFsc) -> dict[str, Any]:
    general: dict[str, Any] = {"flexModelName": model.path}
    general |= {f"{prefix}Resolution": model.resolution_A(kind) for kind, prefix in MODEL_PREFIXES.items()}
    curves = {f"{prefix}FourierShellCorrelation": getattr(model, kind) for kind, prefix in MODEL_PREFIXES.items()}
    return {"model": general, "fsc_model": pd.DataFrame(_shells(model.frequency_per_A) | curves)}


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
    hint = "expected the header flexLatent1,... and a number for each column in every row, in plain text (UTF-8)"
    try:
        text = read_input(path, "file", "a CSV or STAR file with a row for each frame", MOST_BYTES).decode("utf-8-sig")
        header, *rows = [row for row in csv.reader(io.StringIO(text, newline=""), skipinitialspace=True) if row] or [[]]
        places = {
            place: int(match[1]) for place, name in enumerate(header) if (match := LATENT.fullmatch(name.strip()))
        }
        if len(set(places.values())) < len(places):
            raise ValueError("a flexLatent column stands in the header twice")
        for number, row in enumerate(rows, 1):
            if len(row) != len(header):
                raise ValueError(f"row {number} has {len(row)} fields and the header {len(header)}")
        return {latent: np.array([float(row[place]) for row in rows]) for place, latent in places.items()}
    except (ValueError, csv.Error) as error:
        told = str(error) if str(error).startswith(f"{path}: ") else f"{path}: not a table of numbers ({error}); {hint}"
        raise InputProblems([told]) from None


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
