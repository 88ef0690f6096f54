"""What is drawn on the landscape, as files that jobs take: selections of particles, and paths for `generate`."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flex_job.files import write_csv, written_aside
from integration.common.particle_formats import particle_format
from integration.relion.template import render
from job_specs.jobs import JOBS

__all__ = ["FOLDER", "drawn_points", "save_path", "save_selection"]

FOLDER = "landscape"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,60}")
NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")


def drawn_points(path: str) -> NDArray[np.float64]:
    """Points (m, 2) of the browser's drawing "M1,2L3,4...", in the axes' units; (0, 2) when it holds none."""
    numbers = [float(number) for number in NUMBER.findall(path)]
    return np.array(numbers[: len(numbers) // 2 * 2]).reshape(-1, 2)


def save_selection(folder: Path, particles: Path, name: str, kept: NDArray[np.bool_]) -> Path:
    """The rows `kept` (n,) of the particle file, all else as it is, as a file of its format in the job's folder.

    Raises ValueError for a name that is none, or is taken, and where nothing is selected.
    """
    if not kept.any():
        raise ValueError("no particle is selected: draw round some with the lasso first")
    target = _target(folder, name, particles.suffix)
    return particle_format(particles).write_selection(particles, target, kept)


def save_path(folder: Path, name: str, points: NDArray[np.floating]) -> tuple[Path, str]:
    """The latents (m, K) as CSV, and beside it a form of RELION's External job that generates the maps there; returns
    the CSV and the same as a command line. Raises ValueError as `save_selection` does."""
    if len(points) < 2:
        raise ValueError("there is no path: choose the pen and draw one first")
    target = _target(folder, name, ".csv")
    names = [f"flexLatent{k + 1}" for k in range(points.shape[1])]
    write_csv(target, names, ([f"{value:.6g}" for value in row] for row in points.tolist()))
    form = render(JOBS["generate"], {"in_model": f"{folder}/", "latents": str(target)})
    with written_aside(target.with_name(f"{name}_job.star")) as file:
        file.write(form.encode())
    command = ["relion_flex_generate", "--o", "External/jobNNN/", "--in_model", f"{folder}/", "--latents", str(target)]
    return target, shlex.join(command)


def _target(folder: Path, name: str, suffix: str) -> Path:
    if not NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name for a file: use letters, digits, _, - and .")
    target = folder / FOLDER / f"{name}{suffix}"
    if target.exists():
        raise ValueError(f"{target} exists and is left as it is: choose another name")
    target.parent.mkdir(exist_ok=True)
    return target
