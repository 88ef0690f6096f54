"""The job `select`: particles by their latents, as STAR files per cluster and as class numbers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flex_job.events import Events
from flex_job.files import write_csv
from flex_job.problems import InputProblems
from flex_job.report.clusters import draw_clusters
from flex_job.subsets import Subsets, divide
from integration.relion.request import Request
from integration.relion.rows import copy_rows
from integration.relion.star import BadColumn, find_particles, read_star
from integration.relion.write import GAIN, read_latents
from job_specs.parameters import ranges_in

__all__ = ["select"]

CLASS = re.compile("rlnClassNumber|flexClusterProbability")


def select(request: Request, problems: list[str], events: Events) -> None:
    """particles.star and cluster_001.star, ... with rlnClassNumber and flexClusterProbability; a table and a picture.

    Rows, order, optics groups and all other columns are the input's. Clusters are found anew at each call: it takes
    seconds. Raises InputProblems with everything that is wrong.
    """
    star, found = request.inputs.get("particles"), list(problems)
    latents = std = np.zeros((0, 1))
    if star is not None and star.is_file():
        try:
            latents = read_latents(star)
            std = _deviations(star, latents.shape[1])
        except InputProblems as error:
            found += error.messages
    if found or star is None:
        raise InputProblems(found)
    wanted, seed = request.parameters.select, request.parameters.run.seed
    kept = _gaining(star, ranges_in(wanted.gain_range)) if wanted.gain_range.strip() else None
    ranges = ranges_in(wanted.latents_range)
    subsets = divide(latents, std, wanted.clusters, ranges, wanted.min_probability, seed, kept)
    events.check_stop()
    _write(request.folder, star, subsets, latents, events)
    draw_clusters(request.folder / "clusters.png", latents, subsets)


def _deviations(star: Path, dims: int) -> NDArray[np.float64]:
    """(n, dims) standard deviations of the latents. Raises InputProblems where a column is missing or not numbers."""
    table = find_particles(read_star(star))
    names = [f"flexLatentStd{k + 1}" for k in range(dims)]
    missing = [name for name in names if table is None or name not in table]
    if table is None or missing:
        raise InputProblems([f"{star}: no columns {', '.join(missing)}; expected the particles.star of a flexible job"])
    try:
        std = np.stack([table.numbers(name) for name in names], axis=1)
    except BadColumn as error:
        raise InputProblems([f"{star}: {error}"]) from None
    if (std < 0).any():
        raise InputProblems([f"{star}: flexLatentStd columns hold negative numbers; expected standard deviations"])
    return std


def _gaining(star: Path, ranges: Sequence[tuple[float, float]]) -> NDArray[np.bool_]:
    """(n,) Whose likelihood gain lies in the one range. Raises InputProblems where the file does not say."""
    table = find_particles(read_star(star))
    if table is None or GAIN not in table:
        raise InputProblems([f"gain_range: {star} has no column {GAIN}; expected the particles.star of a job refine"])
    try:
        gains = table.numbers(GAIN)
    except BadColumn as error:
        raise InputProblems([f"{star}: {error}"]) from None
    low, high = ranges[0]
    return (gains >= low) & (gains <= high)


def _write(folder: Path, star: Path, subsets: Subsets, latents: NDArray[np.float64], events: Events) -> None:
    columns = {"rlnClassNumber": subsets.cluster, "flexClusterProbability": subsets.probability}
    names, counts = [], np.bincount(subsets.cluster, minlength=len(subsets.central) + 1)
    for number, count in enumerate(counts.tolist()[1:], start=1):
        if not count:
            events.message(f"cluster {number}: no particle belongs to it surely enough")
            continue
        names.append(f"cluster_{number:03d}.star")
        copy_rows(star, folder / names[-1], columns, CLASS, subsets.cluster == number)
        surely = subsets.probability[subsets.cluster == number].mean()
        events.message(f"{names[-1]}: {count} particles, which belong there with a probability of {surely:.2f} (mean)")
    copy_rows(star, folder / "particles.star", columns, CLASS, subsets.cluster > 0)
    events.message(f"particles.star: {counts[1:].sum()} of {len(latents)} particles")
    for stale in folder.glob("cluster_*.star"):  # of an earlier run with more clusters
        if stale.name not in names:
            stale.unlink()
    _write_centres(folder / "clusters.csv", counts.tolist()[1:], latents[subsets.central])


def _write_centres(path: Path, counts: list[int], centres: NDArray[np.float64]) -> None:
    names = ["cluster", "particles", *(f"flexLatent{k + 1}" for k in range(centres.shape[1]))]
    rows = enumerate(zip(counts, centres.tolist(), strict=True), start=1)
    write_csv(path, names, ([number, count, *(f"{value:.6g}" for value in row)] for number, (count, row) in rows))
