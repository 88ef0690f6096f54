"""default_pipeline.star, as far as it is read here: which jobs are finished. 3.1 writes numbers, 4 and 5 words."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from integration.relion.star import read_star, read_table

__all__ = ["PIPELINE_FILE", "FinishedJob", "finished_jobs"]

PIPELINE_FILE = "default_pipeline.star"
FINISHED = {"2", "succeeded"}


@dataclass(frozen=True)
class FinishedJob:
    """A job that ended well: `kind` is its folder's name (Refine3D), `folder` relative to the project."""

    kind: str
    number: int
    folder: Path


def finished_jobs(project: Path) -> list[FinishedJob]:
    """Jobs that ended well by the project's pipeline file, the latest first. Raises ValueError where it has none."""
    path = project / PIPELINE_FILE
    document = read_star(path)
    if document.find_block("pipeline_general") is None:
        raise ValueError(f"{path}: no table pipeline_general; expected RELION's pipeline file")
    block = document.find_block("pipeline_processes")
    table = None if block is None else read_table(block, "rlnPipeLineProcessName")
    if table is None:
        return []
    labels = ("rlnPipeLineProcessStatusLabel", "rlnPipeLineProcessStatus")
    status = next((table.strings(label) for label in labels if label in table), [""] * len(table))
    jobs = []
    for name, state in zip(table.strings("rlnPipeLineProcessName"), status, strict=True):
        match = re.fullmatch(r"(\w+)/job(\d+)/?", name)
        if match and state.lower() in FINISHED:
            jobs.append(FinishedJob(match[1], int(match[2]), Path(name)))
    return sorted(jobs, key=lambda job: -job.number)
