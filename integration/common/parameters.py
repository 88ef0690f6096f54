"""Parameters as a user gave them, by flags and YAML file, and whether there is room for what they ask for."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

from job_specs.jobs import JobSpec, build
from job_specs.parameter import parameters_of
from job_specs.parameters import RefineParameters

__all__ = ["read_parameters", "space_problem"]

VOLUMES_KEPT = 12  # maps, half-maps, mask and the solver's checkpoints
HALF_FLOAT_BYTES, FLOAT_BYTES, MIB = 2, 4, 2**20


def read_parameters(job: JobSpec, flags: Mapping[str, str]) -> tuple[RefineParameters, list[str]]:
    """Parameters from `flags` (text by name) and from the file of the flag `config`, and everything wrong with them."""
    config, problems = _read_config(flags.get("config", ""))
    parameters, found = build(job, config, flags)
    return parameters, problems + found + _missing_files(parameters)


def space_problem(folder: Path, parameters: RefineParameters, particles: int, box: int) -> str | None:
    """A line when the disk has no room for the cached particles and the maps; `box` is the consensus box."""
    prep, wanted = parameters.prep, parameters.reconstruct.reconstruct_box
    boxes = {min(prep.training_box or box, box), min(wanted or box, box)}
    cache = particles * sum(size**2 for size in boxes) * HALF_FLOAT_BYTES  # a half transform holds box^2 numbers
    maps = VOLUMES_KEPT * box**3 * FLOAT_BYTES
    there = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    scratch = Path(prep.scratch) if prep.scratch else folder
    needs = {scratch: cache}
    needs[folder] = needs.get(folder, 0) + maps - there
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
