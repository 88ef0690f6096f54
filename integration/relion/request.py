"""What a job was asked for: options and YAML file turned into parameters and paths, all problems collected."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from integration.relion.flags import INPUT_FLAGS
from job_specs.jobs import JOBS, Input, JobSpec, build
from job_specs.parameter import parameters_of
from job_specs.parameters import RefineParameters

__all__ = ["Request", "read_request", "space_problem"]

MODEL_FILE = "flex_model.pt"
VOLUMES_KEPT = 12  # maps, half-maps, mask and the solver's checkpoints
HALF_FLOAT_BYTES, FLOAT_BYTES, MIB = 2, 4, 2**20


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
    folder = Path(flags.pop("o"))
    given = {kind: flags.pop(flag) for kind, flag in INPUT_FLAGS.items() if flag in flags}
    inputs = {kind: Path(text) for kind, text in given.items()}
    config, problems = _read_config(flags.get("config", ""))
    parameters, found = build(job, config, flags)
    problems += found + _missing_files(parameters)
    if "model" not in inputs and "particles" in inputs:
        beside = inputs["particles"].with_name(MODEL_FILE)
        inputs |= {"model": beside} if beside.is_file() else {}
    for entry in job.inputs:
        problems += _input_problems(entry, inputs)
    if "model" in inputs and inputs["model"].is_dir():
        inputs["model"] /= MODEL_FILE
    return Request(job, folder, inputs, parameters), problems


def _input_problems(entry: Input, inputs: Mapping[str, Path]) -> list[str]:
    flag, path = INPUT_FLAGS[entry.kind], inputs.get(entry.kind)
    if path is None:
        return [f"--{flag} was not given; expected: {entry.help}"] if entry.required else []
    if entry.kind == "model" and path.is_dir() and not (path / MODEL_FILE).is_file():
        return [f"--{flag} {path}: there is no {MODEL_FILE} in it; expected the job directory of a trained model"]
    if not path.exists():
        return [f"--{flag} {path}: no such file; paths are relative to {Path.cwd()}"]
    return []


def space_problem(request: Request, particles: int, box: int) -> str | None:
    """A line when the disk has no room for the cached particles and the maps; `box` is the consensus box."""
    prep, wanted = request.parameters.prep, request.parameters.reconstruct.reconstruct_box
    boxes = {min(prep.training_box or box, box), min(wanted or box, box)}
    cache = particles * sum(size**2 for size in boxes) * HALF_FLOAT_BYTES  # a half transform holds box^2 numbers
    maps = VOLUMES_KEPT * box**3 * FLOAT_BYTES
    there = sum(path.stat().st_size for path in request.folder.rglob("*") if path.is_file())
    scratch = Path(prep.scratch) if prep.scratch else request.folder
    needs = {scratch: cache}
    needs[request.folder] = needs.get(request.folder, 0) + maps - there
    for place, need in needs.items():
        free = shutil.disk_usage(place).free
        if free < need:
            return (
                f"{place}: {free / MIB:,.0f} MiB are free and about {need / MIB:,.0f} MiB are needed; "
                "free some space, or give --scratch another disk"
            )
    return None


def _read_config(path: str) -> tuple[dict[str, object], list[str]]:
    if not path:
        return {}, []
    import yaml

    try:
        document = yaml.safe_load(Path(path).read_text())
    except OSError:
        return {}, []  # reported with the other files that are missing
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        return {}, [
            f"config: {path} is not YAML ({' '.join(str(error).split())}); expected lines such as latent_dims: 2"
        ]
    if document is None:
        return {}, []
    if not isinstance(document, dict):
        return {}, [f"config: {path} holds a {type(document).__name__}; expected lines such as latent_dims: 2"]
    return {str(name): value for name, value in document.items() if value is not None}, []


def _missing_files(parameters: RefineParameters) -> list[str]:
    found = []
    for entry in fields(parameters):
        group = getattr(parameters, entry.name)
        for declared in parameters_of(group):
            path = getattr(group, declared.name)
            if declared.file and path and not Path(path).is_file():
                found.append(
                    f"{declared.name}: {path} was given, and there is no such file; paths are relative to {Path.cwd()}"
                )
    scratch = parameters.prep.scratch
    if scratch and not Path(scratch).is_dir():
        found.append(f"scratch: {scratch} was given; expected an existing folder on a fast disk")
    return found
