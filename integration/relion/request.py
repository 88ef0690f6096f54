"""What a job was asked for: options and YAML file turned into parameters and paths, all problems collected."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from integration.common.parameters import read_parameters
from integration.relion.flags import INPUT_FLAGS
from integration.relion.host import without_alias
from job_specs.jobs import JOBS, Input, JobSpec
from job_specs.parameters import RefineParameters

__all__ = ["Request", "read_request"]

MODEL_FILE = "flex_model.pt"


@dataclass(frozen=True)
class Request:
    """One call of a job. `inputs` has the paths that were given, by input kind; `model` ends in flex_model.pt."""

    job: JobSpec
    folder: Path
    inputs: Mapping[str, Path]
    parameters: RefineParameters


def read_request(job_name: str, options: Mapping[str, str]) -> tuple[Request, list[str]]:
    """The request in `options` (text by flag name) and everything wrong with it, one line each."""
    job = JOBS[job_name]
    flags = dict(options)
    folder = without_alias(Path(flags.pop("o")))
    given = {kind: flags.pop(flag) for kind, flag in INPUT_FLAGS.items() if flag in flags}
    inputs = {kind: without_alias(Path(text)) for kind, text in given.items()}
    parameters, problems = read_parameters(job, flags)
    if "model" not in inputs and "particles" in inputs:
        model = _model_of(inputs["particles"])
        inputs |= {"model": model} if model is not None else {}
    for entry in job.inputs:
        problems += _input_problems(entry, inputs)
    if "model" in inputs and os.path.isdir(inputs["model"]):
        inputs["model"] /= MODEL_FILE
    return Request(job, folder, inputs, parameters), problems


def _model_of(particles: Path) -> Path | None:
    """The trained model beside the particles, or that of the job from which they were selected."""
    beside = particles.parent / MODEL_FILE
    if os.path.isfile(beside):
        return beside
    try:
        model = json.loads((particles.parent / "manifest.json").read_text())["read"]["model"]
        return Path(model) if os.path.isfile(model) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None  # of another program, or damaged


def _input_problems(entry: Input, inputs: Mapping[str, Path]) -> list[str]:
    flag, path = INPUT_FLAGS[entry.kind], inputs.get(entry.kind)
    if path is None:
        return [f"--{flag} was not given; expected: {entry.help}"] if entry.required else []
    if entry.kind == "model" and os.path.isdir(path):
        if os.path.isfile(path / MODEL_FILE):
            return []
        return [f"--{flag} {path}: there is no {MODEL_FILE} in it; expected the job directory of a trained model"]
    if os.path.isfile(path):
        return []
    found = "not a file but a folder, device or pipe" if os.path.exists(path) else "no such file"
    return [f"--{flag} {path}: {found}; expected: {entry.help}; paths are relative to {Path.cwd()}"]
