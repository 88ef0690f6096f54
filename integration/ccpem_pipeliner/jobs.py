"""The jobs as ccpem-pipeliner sees them, found by the entry points of group ccpem_pipeliner.jobs.

Only descriptions are loaded here: nothing of the engine, no torch. The work is done by our command line in a process
of its own.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

from pipeliner.external_program_utils import ExternalProgram
from pipeliner.job_options import JobOptionValidationResult
from pipeliner.node_factory import create_node
from pipeliner.nodes import Node
from pipeliner.pipeliner_job import JobInfo, PipelinerCommand, PipelinerJob, Ref
from pipeliner.results_display_objects import ResultsDisplayObject
from pipeliner.utils import file_in_project

from integration.ccpem_pipeliner.display import resolutions, results
from integration.ccpem_pipeliner.nodes import nodes_after, nodes_before
from integration.ccpem_pipeliner.options import INPUTS, arguments, flags, job_options
from job_specs.jobs import JOBS, JobSpec, build

__all__ = ["FlexJob", "Generate", "Mesh", "Prep", "Reconstruct", "Refine", "Select", "Train", "Validate"]

PROGRAM = "flex-job"
REFERENCES = (
    Ref(
        authors=["Punjani A", "Fleet DJ"],
        title="3DFlex: determining structure and motion of flexible proteins from cryo-EM",
        journal="Nature Methods",
        year="2023",
        volume="20",
        issue="6",
        pages="860-870",
        doi="10.1038/s41592-023-01853-8",
    ),
)


class FlexJob(PipelinerJob):
    """A job of job_specs.jobs.JOBS; a subclass says which."""

    spec: ClassVar[JobSpec]
    CATEGORY_LABEL = "Continuous Heterogeneity"

    def __init_subclass__(cls, job: str) -> None:
        cls.spec = JOBS[job]
        cls.PROCESS_NAME = f"flex_job.{job}"
        cls.OUT_DIR = f"Flex{job.capitalize()}"

    def __init__(self) -> None:
        super().__init__()
        program, reason = _program()
        self.jobinfo = JobInfo(
            display_name=self.spec.title,
            version=metadata.version("flex-job"),
            job_author="the flex-job authors",
            short_desc=self.spec.help,
            long_desc=f"{self.spec.help} Motion-based flexible refinement (3DFlex), an open implementation.",
            documentation="docs/parameters.md and integration/ccpem_pipeliner/README.md of flex-job",
            external_programs=[ExternalProgram(program, name=PROGRAM)],
            references=list(REFERENCES),
        )
        self.jobinfo.alternative_unavailable_reason = reason
        self.can_continue = True  # the same command goes on where it was stopped
        self.joboptions.update(job_options(self.spec))
        self.get_runtab_options(threads=True, addtl_args=True)

    def get_commands(self) -> list[PipelinerCommand]:
        command = [self.jobinfo.programs[0].command, self.spec.name, f"--o={self.output_dir}"]
        command += [*arguments(self.spec, self.joboptions), f"--j={self.get_nr_threads()}"]
        return [PipelinerCommand([*command, *self.parse_additional_args()])]

    def create_output_nodes(self) -> None:
        for file, node_type, keywords in nodes_before(self.spec):
            self.add_output_node(file, node_type, keywords)

    def create_post_run_output_nodes(self) -> None:
        for file, node_type, keywords in nodes_after(self.spec, Path(self.output_dir)):
            self.add_output_node(file, node_type, keywords)

    def get_current_output_nodes(self) -> list[Node]:
        """What a stopped job has left so far."""
        folder = Path(self.output_dir)
        named = [*nodes_before(self.spec), *nodes_after(self.spec, folder)]
        return [create_node(str(folder / file), *node) for file, *node in named if (folder / file).is_file()]

    def additional_joboption_validation(self) -> list[JobOptionValidationResult]:
        """What our own declarations object to and the options by themselves do not see."""
        found = [] if self.joboptions["config"].value else self._declared_problems()
        return [*found, *self._left_behind()]

    def create_results_display(self) -> Sequence[ResultsDisplayObject]:
        return results(self.spec, Path(self.output_dir))

    def gather_metadata(self) -> dict[str, Any]:
        return {f"resolution_A {name}": value for name, value in resolutions(Path(self.output_dir)).items()}

    def _declared_problems(self) -> list[JobOptionValidationResult]:
        """Values that do not fit together, or are no numbers; with a YAML file only the job itself can tell."""
        inputs = {entry.flag for entry in INPUTS.values()}
        given = {name: text for name, text in flags(self.spec, self.joboptions).items() if name not in inputs}
        found = []
        for line in build(self.spec, {}, given)[1]:
            text = line.removeprefix("command line: ")
            option = self.joboptions.get(text.partition(":")[0])
            if option is None or not option.validate():  # else it has been told
                found.append(JobOptionValidationResult("error", [option] if option else [], text))
        return found

    def _left_behind(self) -> list[JobOptionValidationResult]:
        """The pipeliner copies an input from outside the project by itself, without what lies beside it."""
        option = self.joboptions[INPUTS["particles"].flag]
        beside = [INPUTS[entry.kind].flag for entry in self.spec.inputs if entry.kind in ("map", "model")]
        missing = [self.joboptions[flag].label.rstrip(":") for flag in beside if self.joboptions[flag].is_blank]
        if option.is_blank or file_in_project(option.value) or not missing:
            return []
        text = f"outside the project: it is copied without the files beside it, so give as well: {', '.join(missing)}"
        return [JobOptionValidationResult("warning", [option], text)]


class Refine(FlexJob, job="refine"):
    """The whole chain in one job directory."""


class Prep(FlexJob, job="prep"):
    """The particles alone."""


class Mesh(FlexJob, job="mesh"):
    """The mesh alone."""


class Train(FlexJob, job="train"):
    """Motion model and latents."""


class Reconstruct(FlexJob, job="reconstruct"):
    """Half-maps through a trained motion."""


class Validate(FlexJob, job="validate"):
    """Whether the motion is real."""


class Generate(FlexJob, job="generate"):
    """Maps along the motion."""


class Select(FlexJob, job="select"):
    """Particles by their latents."""


def _program() -> tuple[str, str | None]:
    """The command on the PATH, else the one installed with this Python; and why it cannot be used, if so."""
    beside = Path(sys.executable).parent / PROGRAM
    found = shutil.which(PROGRAM) or (str(beside) if beside.is_file() else PROGRAM)
    if Path(found).parent == beside.parent and importlib.util.find_spec("torch") is None:
        return found, f"{found} is installed without its requirements; put a complete flex-job first on the PATH"
    return found, None
