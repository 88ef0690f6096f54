"""docs/parameters.md and docs/names.md, written from job_specs."""

from __future__ import annotations

from integration.local.options import GROUP_TITLES
from job_specs.jobs import JOBS, JobSpec
from job_specs.parameter import Parameter, parameters_of
from job_specs.parameters import RefineParameters, SimulateParameters

__all__ = ["cryosparc_names", "parameter_tables"]

INTRODUCTION = """\
# Jobs and parameters

Written by `flex-job docs > docs/parameters.md`; a test keeps it in step with `job_specs/`.

Every parameter is a flag (`--latent_dims 1` or `--latent-dims 1`), a key of the YAML file given as `--config`, and,
where marked **main**, a row of RELION's External form (`flex-job relion template` prints one). Flags win over the file.
The last column has the words of cryoSPARC's 3DFlex forms for the same quantity, where there is one; its defaults and
units can differ.
"""


NAMES = """\
# Names in cryoSPARC

Written by `flex-job docs --names`; a test keeps it in step with `job_specs/`. On the left are the words of cryoSPARC's
3DFlex forms, on the right the parameter here that is the same quantity. Values do not always carry over: see
[jobs and parameters](parameters.md), and for `rigidity`, `noise_injection` and the learning rate also
[decisions](decisions.md).

| in cryoSPARC | here | default here | what |
|---|---|---|---|
"""
NO_NAMES = """
Without a counterpart here: *latent centering* strength and power (latents are brought to their prior after each epoch),
and the learning rate of the density (it is solved for). Without one in cryoSPARC: all other rows of
[jobs and parameters](parameters.md).
"""


def cryosparc_names() -> str:
    """docs/names.md: cryoSPARC's names in the order of their alphabet."""
    defaults = RefineParameters()
    groups = ("prep", "mesh", "train", "validate", "reconstruct", "resolution", "generate", "select", "run")
    declared = {entry.name: entry for group in groups for entry in parameters_of(getattr(defaults, group))}
    named = sorted((entry for entry in declared.values() if entry.cryosparc), key=lambda entry: entry.cryosparc.lower())
    rows = []
    for entry in named:
        default = f"`{entry.default_text}`" if entry.default_text else ""
        rows.append(f"| {entry.cryosparc} | `{entry.name}` | {default} | {entry.help} |\n")
    return NAMES + "".join(rows) + NO_NAMES


def parameter_tables() -> str:
    """The whole page as Markdown."""
    parts = [INTRODUCTION, *map(_job_section, JOBS.values())]
    defaults = RefineParameters()
    for group in ("prep", "mesh", "train", "validate", "reconstruct", "resolution", "generate", "select", "run"):
        parts.append(_parameter_section(GROUP_TITLES[group], group, parameters_of(getattr(defaults, group))))
    parts.append(_parameter_section(GROUP_TITLES["simulate"], "", parameters_of(SimulateParameters)))
    return "\n".join(parts)


def _job_section(job: JobSpec) -> str:
    inputs = [f"| {entry.kind} | {entry.help} | {'yes' if entry.required else ''} |" for entry in job.inputs]
    outputs = [f"| `{entry.file}` | {entry.help} |" for entry in job.outputs]
    titles = ", ".join(GROUP_TITLES[group].lower() for group in job.groups)
    return "\n".join(
        [
            f"## Job `{job.name}`: {job.title.lower()}",
            "",
            job.help,
            "",
            "| input | what | required |",
            "|---|---|---|",
            *inputs,
            "",
            "| output | what |",
            "|---|---|",
            *outputs,
            "",
            f"Parameters: {titles}.",
            "",
        ]
    )


def _parameter_section(title: str, group: str, declared: tuple[Parameter, ...]) -> str:
    jobs = ", ".join(f"`{job.name}`" for job in JOBS.values() if group in job.groups) or "`simulate`"
    return "\n".join(
        [
            f"## {title}",
            "",
            f"Taken by {jobs}.",
            "",
            "| parameter | default | expected | what | tier | in cryoSPARC |",
            "|---|---|---|---|---|---|",
            *map(_row, declared),
            "",
        ]
    )


def _row(entry: Parameter) -> str:
    default = entry.default_text
    tier = "**main**" if entry.tier == "main" else ""
    shown = f"`{default}`" if default != "" else ""
    return f"| `{entry.name}` | {shown} | {entry.expected} | {entry.help} | {tier} | {entry.cryosparc} |"
