"""Parameters as a user gave them, by flags and YAML file, and whether there is room for what they ask for."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from flex_job.input_files import read_input
from job_specs.jobs import JobSpec, build
from job_specs.parameter import parameters_of
from job_specs.parameters import RefineParameters

__all__ = ["read_parameters", "space_problem"]

VOLUMES_KEPT = 24  # maps, half-maps, mask and the solver's checkpoints, two of each half
CONFIG_BYTES = 1 << 16  # YAML is read a character at a time
DEEPEST = 2  # a list is in a table
LARGEST_NUMBER = 1 << 63
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
        if not place.is_dir():
            continue  # told with the other parameters
        free = shutil.disk_usage(place).free
        if free < need:
            return (
                f"{place}: {free / MIB:,.0f} MiB are free and about {need / MIB:,.0f} MiB are needed; "
                "free some space, or give --scratch another disk"
            )
    return None


def _read_config(path: str) -> tuple[dict[str, object], list[str]]:
    """Values by name, of a file of one value a line, and what is wrong with it."""
    if not path or not os.path.isfile(path):
        return {}, []  # told with the other files that are missing
    import yaml

    hint = "expected lines such as latent_dims: 2"
    try:
        text = read_input(
            Path(path), "file", f"a YAML file with {hint.removeprefix('expected ')}", CONFIG_BYTES
        ).decode()
        depth = 0
        for event in yaml.parse(text, yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            # a reference to another value may grow to any size, and brackets take time with the square of their depth
            if isinstance(event, yaml.AliasEvent) or depth > DEEPEST:
                return {}, [f"config: {path} has values within values, or refers from one to another (*); {hint}"]
        twice = _repeated(yaml.compose(text, yaml.SafeLoader))
        document = yaml.safe_load(text)
    except Exception as error:  # PyYAML lets what Python's own conversions raise pass
        return {}, [f"config: {path} is not YAML ({' '.join(str(error).split())}); {hint}"]
    if document is None:
        return {}, []
    if not isinstance(document, dict):
        return {}, [f"config: {path} holds a {type(document).__name__}; {hint}"]
    problems = [f"config: {path} gives {name} twice; expected one value; remove one" for name in twice]
    values: dict[str, object] = {}
    for name, value in document.items():
        items = value if isinstance(value, list) else [value]
        if all(_is_value(item) for item in items):
            values[str(name)] = value
        elif value is not None:
            problems.append(f"config: {path} gives {name} a {type(value).__name__}; {hint}, a number or text")
    return values, problems


def _is_value(item: object) -> bool:
    return isinstance(item, (str, float)) or (isinstance(item, int) and abs(item) < LARGEST_NUMBER)


def _repeated(node: Any) -> list[str]:
    """Names that a mapping has more than once, of which YAML would take the last."""
    names = [str(key.value) for key, _ in node.value] if node is not None and node.id == "mapping" else []
    return sorted({name for name in names if names.count(name) > 1})


def _missing_files(parameters: RefineParameters) -> list[str]:
    found = []
    for entry in fields(parameters):
        group = getattr(parameters, entry.name)
        for declared in parameters_of(group):
            path = getattr(group, declared.name)
            if declared.file and path and not os.path.isfile(path):
                wrong = "it is a folder, device or pipe" if os.path.exists(path) else "there is no such file"
                found.append(
                    f"{declared.name}: {path} was given, and {wrong}; expected a file; paths are relative to "
                    f"{Path.cwd()}"
                )
    scratch = parameters.prep.scratch
    if scratch and not (os.path.isdir(scratch) and os.access(scratch, os.W_OK)):
        found.append(f"scratch: {scratch} was given; expected an existing folder on a fast disk, to be written to")
    return found
