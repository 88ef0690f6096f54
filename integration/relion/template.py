"""job.star of RELION's External job, filled from the job's main parameters."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from string import Template

from integration.relion.flags import INPUT_FLAGS
from job_specs.jobs import JobSpec

__all__ = ["ROWS", "SCRIPTS", "executable", "parameter_rows", "render"]

SCRIPTS = ("refine", "train", "reconstruct", "generate", "select", "validate")  # jobs with an executable of their own
ROWS = 10  # label/value rows of the External job's form
EMPTY = '""'


def executable(job: JobSpec) -> str:
    """The one token RELION takes as executable; with relion_ in it, so that queue templates keep their srun."""
    return f"relion_flex_{job.name}"


def parameter_rows(job: JobSpec) -> list[tuple[str, str]]:
    """(label, default) for the form's rows: a model to start from, then the parameters users change most.

    Raises ValueError when a job declares more main parameters than the form has rows.
    """
    rows = [(INPUT_FLAGS[entry.kind], "") for entry in job.inputs if entry.kind == "model"]
    rows += [(declared.name, declared.default_text) for _, declared in job.parameters() if declared.tier == "main"]
    if len(rows) > ROWS:
        raise ValueError(f"{job.name} declares {len(rows)} rows for RELION's form; expected at most {ROWS}")
    return rows


def render(job: JobSpec, values: Mapping[str, str] | None = None) -> str:
    """job.star of an External job that runs `job`, ready for RELION's GUI or `relion_pipeliner --addJobFromStar`.

    `values` are those of the form's own options (in_part), and of its rows by their label (in_model).
    """
    values = values or {}
    options = {
        "do_queue": "No",
        "fn_exe": executable(job),
        "in_3dref": "",
        "in_coords": "",
        "in_mask": "",
        "in_mic": "",
        "in_mov": "",
        "in_part": "",
        "min_dedicated": "1",
        "nr_threads": "4",
        "other_args": "",
        "qsub": "sbatch",
        "qsubscript": "",
        "queuename": "",
    }
    filled = parameter_rows(job)
    for number, (label, value) in enumerate(filled + [("", "")] * (ROWS - len(filled)), start=1):
        options[f"param{number}_label"] = label
        options[f"param{number}_value"] = values.get(label, value)
    options |= {name: value for name, value in values.items() if name in options}
    width = max(map(len, options)) + 2
    rows = "\n".join(f"{name:<{width}}{value or EMPTY}" for name, value in options.items())
    return Template((files("integration.relion") / "templates" / "external_job.star").read_text()).substitute(rows=rows)
