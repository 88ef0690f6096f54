"""`flex-job relion install PROJECT`: forms of our jobs, filled in with what the project has, where RELION finds them.

RELION 4 and 5 load a form from any file named job.star (Jobs > Load job.star); 3.1 loads `.gui_externaljob.star` alone,
which all versions also show when the GUI starts. `relion_pipeliner --addJobFromStar` takes any path.
"""

from __future__ import annotations

import os
import shutil
import struct
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from flex_job.files import written_aside
from flex_job.problems import InputProblems
from integration.relion.flags import INPUT_FLAGS
from integration.relion.pipeline_file import PIPELINE_FILE, FinishedJob, finished_jobs
from integration.relion.project import read_optimiser
from integration.relion.request import MODEL_FILE
from integration.relion.template import SCRIPTS, executable, render
from job_specs.jobs import JOBS, JobSpec

__all__ = ["FORMS", "GUI_FORM", "install"]

FORMS = "FlexJobs"
GUI_FORM = ".gui_externaljob.star"  # what the External tab shows when the GUI starts
ON_CONSENSUS, ON_FLEX = "Refine3D", "External"


def install(project: Path) -> Iterator[str]:
    """Write FlexJobs/<job>/job.star for each job, and the GUI's own form for `refine`; yields what it did.

    A file that exists is left as it is, which is told. Raises InputProblems before anything is written.
    """
    problems: list[str] = []
    jobs = [JOBS[name] for name in SCRIPTS]
    scripts = dict(zip((job.name for job in jobs), _executables(jobs, problems), strict=True))
    finished: list[FinishedJob] = []
    if not project.is_dir():
        problems.append(f"{project}: no such folder; expected a RELION project")
    elif not (project / PIPELINE_FILE).is_file():
        problems.append(
            f"{project}: there is no {PIPELINE_FILE} in it; expected the folder of a RELION project, in which RELION "
            "has been started before"
        )
    else:
        try:
            finished = finished_jobs(project)
        except ValueError as error:
            problems.append(str(error))
        if not os.access(project, os.W_OK):
            problems.append(f"{project}: this folder cannot be written; check its permissions")
    if problems:
        raise InputProblems(problems)
    consensus, flex = _consensus(project, finished), _flex(project, finished)
    yield _told("Refine3D", "in_part" in consensus, consensus)
    yield _told("flexible job", "in_part" in flex, flex)
    targets = [(Path(FORMS) / job.name / "job.star", job) for job in jobs]
    targets.append((Path(GUI_FORM), JOBS["refine"]))
    for target, job in targets:
        path = project / target
        if path.exists() or path.is_symlink():
            yield f"{target} is there already and was left as it is"
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        takes = {entry.kind for entry in job.inputs}
        found = flex if "model" in takes or job.name == "select" else consensus
        with written_aside(path) as file:
            file.write(render(job, {"fn_exe": scripts[job.name], **found}).encode())
        yield f"{target} written"


def _told(what: str, is_there: bool, found: Mapping[str, str]) -> str:
    if not is_there:
        return f"no finished {what} with its particles in {PIPELINE_FILE}; the inputs are left empty"
    return ", ".join(f"{name} {value}" for name, value in found.items())


def _executables(jobs: Iterable[JobSpec], problems: list[str]) -> Iterator[str]:
    """What RELION has to start for each job: its name where any shell finds it, else its full path.

    That this Python's own environment is active here says nothing of the shell that RELION is started from, so its
    folder is not searched.
    """
    own = Path(sys.executable).parent
    elsewhere = os.pathsep.join(
        place for place in os.environ.get("PATH", "").split(os.pathsep) if place and Path(place).absolute() != own
    )
    missing = []
    for job in jobs:
        name = executable(job)
        if shutil.which(name, path=elsewhere):
            yield name
            continue
        script = own / name
        if not os.access(script, os.X_OK):
            missing.append(name)
        elif any(letter.isspace() for letter in str(script)):
            problems.append(
                f"{script}: RELION takes no spaces in an executable's path; link it into a folder of the PATH"
            )
        yield str(script)
    if missing:
        problems.append(f"{', '.join(missing)}: neither on the PATH nor in {own}; install flex-job again (pip install)")


def _consensus(project: Path, finished: Iterable[FinishedJob]) -> dict[str, str]:
    """Form rows for the latest refinement with its particles: they, its map, and its mask or the latest that fits."""
    finished = list(finished)
    for job in finished:
        star = job.folder / "run_data.star"
        if job.kind != ON_CONSENSUS or not (project / star).is_file():
            continue
        rows = {"in_part": star.as_posix()}
        map_file = job.folder / "run_class001.mrc"
        if (project / map_file).is_file():
            rows["in_3dref"] = map_file.as_posix()
            own = read_optimiser(project / star, []).mask_name
            masks = [Path(own)] if own and own.split() == [own] else []
            masks += [other.folder / "mask.mrc" for other in finished if other.kind == "MaskCreate"]
            box = _box(project / map_file)
            fitting = (mask for mask in masks if box is not None and _box(project / mask) == box)
            mask = next(fitting, None)
            rows |= {"in_mask": mask.as_posix()} if mask is not None else {}
        return rows
    return {}


def _flex(project: Path, finished: Iterable[FinishedJob]) -> dict[str, str]:
    """Form rows for the latest job of ours that left a model and particles."""
    for job in finished:
        star = job.folder / "particles.star"
        if job.kind == ON_FLEX and (project / job.folder / MODEL_FILE).is_file() and (project / star).is_file():
            return {"in_part": star.as_posix(), INPUT_FLAGS["model"]: f"{job.folder.as_posix()}/"}
    return {}


def _box(path: Path) -> tuple[int, ...] | None:
    """Columns, rows and sections, the first words of an MRC file; None where it cannot be read."""
    try:
        with path.open("rb") as file:
            return struct.unpack("<3i", file.read(12))
    except (OSError, struct.error):
        return None
