"""What `flex-job cryosparc refine` was asked for: the job's place, its sources, parameters; all problems collected."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from integration.common.parameters import read_parameters
from integration.cryosparc.command import OPTIONS
from job_specs.jobs import JOBS
from job_specs.parameter import settled
from job_specs.parameters import RefineParameters

__all__ = ["Request", "Source", "read_request"]

SOURCES = ("particles", "volume", "mask")
UIDS = {"project": (r"P\d+", "P3"), "workspace": (r"W\d+", "W1"), "job": (r"J\d+", "J42")}
TITLE = "3D Flex (flex-job)"


@dataclass(frozen=True)
class Source:
    """An output of a job."""

    job: str
    output: str


@dataclass(frozen=True)
class Request:
    """One call. `job` is empty for a new one, `folder` None for the job's own."""

    project: str
    workspace: str
    job: str
    title: str
    url: str
    folder: Path | None
    sources: Mapping[str, Source]
    parameters: RefineParameters


def read_request(options: Mapping[str, str]) -> tuple[Request, list[str]]:
    """The request in `options` (text by flag name) and everything wrong with it, one line each."""
    flags = dict(options)
    own = {name: flags.pop(name, "") for name in OPTIONS if name not in SOURCES}
    given = {kind: flags.pop(kind) for kind in SOURCES if flags.get(kind)}
    parameters, problems = read_parameters(JOBS["refine"], flags)
    for name, (pattern, example) in UIDS.items():
        if own[name] and not re.fullmatch(pattern, own[name]):
            problems.append(f"--{name} {own[name]}: expected such as {example}")
    for name in ("project", *(() if own["job"] else ("workspace",))):
        if not own[name]:
            problems.append(f"--{name} was not given; expected such as {UIDS[name][1]}")
    if not parameters.train.latent_dims:  # the outputs, one for each, are declared before the run
        train = replace(parameters.train, latent_dims=settled(parameters.train).latent_dims)
        parameters = replace(parameters, train=train)
    sources = {}
    for kind, text in given.items():
        match = re.fullmatch(r"(J\d+)\.([A-Za-z]\w*)", text)
        if match is None:
            problems.append(f"--{kind} {text}: expected job and output, as in J12.{kind}")
        else:
            sources[kind] = Source(match[1], match[2])
    for kind in ("particles", "volume"):
        if kind not in given and not own["job"]:
            problems.append(f"--{kind} was not given; expected job and output, as in J12.{kind}")
    folder = Path(own["o"]) if own["o"] else None
    request = Request(
        own["project"], own["workspace"], own["job"], own["title"] or TITLE, own["url"], folder, sources, parameters
    )
    return request, problems
