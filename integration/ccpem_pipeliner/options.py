"""Job options of ccpem-pipeliner made from job_specs, and the command-line flags made from their values."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pipeliner.data_structure import (
    NODE_ATOMCOORDS,
    NODE_DENSITYMAP,
    NODE_IMAGE3D,
    NODE_MASK3D,
    NODE_MLMODEL,
    NODE_PARAMSDATA,
    NODE_PARTICLEGROUPMETADATA,
    NODE_PROCESSDATA,
)
from pipeliner.job_options import (
    BooleanJobOption,
    FileDescription,
    FloatJobOption,
    InputNodeJobOption,
    IntJobOption,
    JobOption,
    JobOptionCondition,
    MultipleChoiceJobOption,
    StringJobOption,
)

from job_specs.jobs import Input, JobSpec
from job_specs.parameter import Parameter

__all__ = ["INPUTS", "arguments", "flags", "job_options"]

RUNNING = "Running options"  # the pipeliner's own name of the group with threads and additional arguments
THREADS = "threads"  # the pipeliner has an option of its own for these


@dataclass(frozen=True)
class _Input:
    """How an input kind of job_specs shows here: its flag, and what nodes are offered for it."""

    flag: str
    label: str
    node: str
    keywords: tuple[str, ...]
    files: FileDescription


INPUTS = {
    "particles": _Input(
        "in_parts",
        "Particles STAR file:",
        NODE_PARTICLEGROUPMETADATA,
        ("relion",),
        FileDescription("Particles STAR file", [".star"]),
    ),
    "map": _Input("in_3dref", "Map:", NODE_DENSITYMAP, (), FileDescription("Density map", [".mrc"])),
    "mask": _Input("in_mask", "Mask:", NODE_MASK3D, (), FileDescription("Mask", [".mrc"])),
    "model": _Input(
        "in_model", "Trained model:", NODE_MLMODEL, ("flex_job",), FileDescription("Motion model", ["flex_model.pt"])
    ),
}

# node types of parameters that name files, so that the pipeline knows which job they came from
FILE_NODES = {
    "atomic_model": NODE_ATOMCOORDS,
    "config": NODE_PARAMSDATA,
    "segmentation": NODE_IMAGE3D,
    "zero_motion_mask": NODE_MASK3D,
}


def job_options(job: JobSpec) -> dict[str, JobOption]:
    """Options by flag: inputs, then parameters. Main ones are in the first tab, others in one tab per group."""
    kinds: set[str] = {entry.kind for entry in job.inputs}
    options: dict[str, JobOption] = {INPUTS[entry.kind].flag: _input_option(entry, kinds) for entry in job.inputs}
    options |= {
        declared.name: _parameter_option(declared, group)
        for group, declared in job.parameters()
        if declared.name != THREADS
    }
    return options


def flags(job: JobSpec, options: Mapping[str, JobOption]) -> dict[str, str]:
    """Text by flag of what was filled in. Defaults are left out, so that they do not win over those in `config`."""
    ours = {INPUTS[entry.kind].flag for entry in job.inputs} | set(job.declared()) - {THREADS}
    return {
        name: option.value_string
        for name, option in options.items()
        if name in ours and not option.is_blank and option.value != option.default_value
    }


def arguments(job: JobSpec, options: Mapping[str, JobOption]) -> Iterator[str]:
    """The same as --flag=value, where a value that begins with a dash cannot be taken for another flag."""
    for name, value in flags(job, options).items():
        yield f"--{name}={value}"


def _input_option(entry: Input, kinds: set[str]) -> JobOption:
    shown = INPUTS[entry.kind]
    instead = entry.kind == "model" and "particles" in kinds  # the model beside the particles is taken
    return InputNodeJobOption(
        label=shown.label,
        node_type=shown.node,
        node_kwds=list(shown.keywords),
        pattern=shown.files,
        help_text=entry.help,
        is_required=entry.required and not instead,
        required_if=JobOptionCondition([(INPUTS["particles"].flag, "=", "")]) if entry.required and instead else None,
    )


def _parameter_option(declared: Parameter, group: str) -> JobOption:
    text = declared.name.replace("_", " ")
    unit = f" ({declared.unit})" if declared.unit else ""
    cryosparc = f" cryoSPARC calls it {declared.cryosparc}." if declared.cryosparc else ""
    running = group == "run"
    tab = "Main" if declared.tier == "main" else RUNNING if running else f"{group.capitalize()}, advanced"
    common = {
        "label": f"{text[0].upper()}{text[1:]}{unit}{'?' if declared.kind is bool else ':'}",
        "default_value": declared.default,
        "help_text": f"{declared.help}. Expected: {declared.expected}.{cryosparc}",
        "in_continue": running,  # another value of any other parameter makes another result
        "jobop_group": tab,
    }
    low, high = declared.bounds
    if declared.auto is not None:  # a field for numbers takes no text
        low, common["help_text"] = 0, f"{common['help_text']} 0 stands for auto."
    if declared.choices:
        return MultipleChoiceJobOption(choices=list(declared.choices), **common)
    if declared.kind is bool:
        return BooleanJobOption(**common)
    if declared.kind is int:
        return IntJobOption(hard_min=_whole(low), hard_max=_whole(high), **common)
    if declared.kind is float:
        return FloatJobOption(hard_min=low, hard_max=high, step_value=_step(declared), **common)
    if declared.file:
        return InputNodeJobOption(node_type=FILE_NODES.get(declared.name, NODE_PROCESSDATA), **common)
    return StringJobOption(**common)


def _whole(bound: float | None) -> int | None:
    return None if bound is None else int(bound)


def _step(declared: Parameter) -> float:
    """Step of a slider: the decade of the default, at most one."""
    size = abs(float(declared.default))
    return min(1.0, 10.0 ** math.floor(math.log10(size))) if size else 1.0
