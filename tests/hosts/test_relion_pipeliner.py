"""RELION's own pipeliner adds and runs our External jobs, with nobody at a screen."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import starfile
from gemmi import cif

from integration.relion.host import relion_version
from integration.relion.install import install
from integration.relion.job import run
from integration.relion.template import render
from integration.relion.write import write_particles
from job_specs.jobs import JOBS

pytestmark = pytest.mark.relion
SCHEDULED, DONE, FAILED, ABORTED = "1", "2", "3", "4"
PARTICLES = "Refine3D/job001/run_data.star"
QUICK = {"latent_dims": "1", "epochs": "1", "tetra_cells": "6"}


@pytest.fixture(scope="module")
def project(small_project: Path) -> Path:
    return small_project


@pytest.fixture
def pipeliner(
    relion_program: Callable[[str], Path], project: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """Run relion_pipeliner in the project, with our console scripts on the PATH; gives what it printed."""
    program = relion_program("relion_pipeliner")
    scripts = Path(sys.executable).parent
    # RELION would wait for ever for an executable that is not there
    assert (scripts / "relion_flex_refine").is_file(), f"our scripts are not in {scripts}: pip install -e ."
    monkeypatch.setenv("PATH", f"{scripts}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(project)

    def call(*arguments: str) -> str:
        done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=300, check=True)
        return done.stdout + done.stderr

    return call


def pipeline(project: Path) -> tuple[dict[str, str], dict[str, str]]:
    """(status by process, type by node) of default_pipeline.star."""
    document = cif.read(str(project / "default_pipeline.star"))
    processes = document.find_block("pipeline_processes").find(["_rlnPipeLineProcessName", "_rlnPipeLineProcessStatus"])
    nodes = document.find_block("pipeline_nodes").find(["_rlnPipeLineNodeName", "_rlnPipeLineNodeType"])
    return {row[0]: row[1] for row in processes}, {row[0]: row[1] for row in nodes}


def add(pipeliner: Callable[..., str], project: Path, job: str, alias: str = "", **options: str) -> str:
    """Add an External job from our template, rows filled in; returns its name, as External/job003/."""
    star = project / f"{job}.star"
    star.write_text(render(JOBS[job]))
    table = cif.read(str(star)).find_block("joboptions_values").find(["_rlnJobOptionVariable", "_rlnJobOptionValue"])
    row_of = {row.str(1): row[0].replace("_label", "_value") for row in table if row[0].endswith("_label")}
    text = ";".join(f"{row_of.get(name, name)} == {value}" for name, value in options.items())
    known = set(pipeline(project)[0])
    pipeliner("--addJobFromStar", star.name, "--addJobOptions", text, *(["--setJobAlias", alias] if alias else []))
    (name,) = set(pipeline(project)[0]) - known
    return name


def run_job(pipeliner: Callable[..., str], name: str, *more: str) -> str:
    return pipeliner("--RunJobs", name, "--schedule", f"run_{name.split('/')[1]}", "--sec_wait_after", "1", *more)


def abort_at(folder: Path, words: str) -> threading.Thread:
    """Press the GUI's Abort, which leaves a file, as soon as run.out says `words`."""

    def press() -> None:
        end = time.monotonic() + 120
        while time.monotonic() < end:
            said = folder / "run.out"
            if said.is_file() and words in said.read_text():
                (folder / "RELION_JOB_ABORT_NOW").touch()
                return
            time.sleep(0.02)

    thread = threading.Thread(target=press)
    thread.start()
    return thread


def test_refine_through_its_states(
    pipeliner: Callable[..., str], project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One job under the alias `flexible`: scheduled, aborted, continued, done, and done by its alias."""
    options = {"in_part": PARTICLES, "nr_threads": "1", **QUICK, "epochs": "40"}
    name = add(pipeliner, project, "refine", alias="flexible", **options, other_args="--max_iterations=2")
    folder = project / name
    assert pipeline(project)[0][name] == SCHEDULED
    assert (project / "External/flexible").is_symlink()

    thread = abort_at(folder, "epoch 3/40")
    run_job(pipeliner, name)
    thread.join()
    assert pipeline(project)[0][name] == ABORTED
    assert not (folder / "RELION_JOB_ABORT_NOW").exists()
    assert not (folder / "particles.star").exists()
    assert "press Continue to resume" in (folder / "run.err").read_text()

    run_job(pipeliner, name)  # a job that was run before is continued
    status, nodes = pipeline(project)
    assert status[name] == DONE, (folder / "run.err").read_text()
    assert (folder / "run.out").read_text().count("linear start") == 1  # training went on where it was
    assert nodes[f"{name}particles.star"] == "3"
    assert nodes[f"{name}flex_half1_class001_unfil.mrc"] == "10"
    assert nodes[f"{name}flex_half2_class001_unfil.mrc"] == "10"
    assert nodes[f"{name}flex_class001.mrc"] == "6"
    assert nodes[f"{name}mask.mrc"] == "7"
    assert nodes[f"{name}logfile.pdf"] == "13"
    assert (folder / "run.err").read_text().count("\n") == 1  # that of the abort
    assert [path.name for path in folder.glob("RELION_JOB_EXIT_*")] == ["RELION_JOB_EXIT_SUCCESS"]

    # by its alias nothing is done again, and no node goes by a name that RELION can change
    capsys.readouterr()
    again = {"latent_dims": "1", "tetra_cells": "6", "epochs": "40", "max_iterations": "2"}
    assert run("refine", {"o": "External/flexible/", "in_parts": PARTICLES, **again}) == 0
    assert "epoch" not in capsys.readouterr().out
    listed = (folder / "RELION_OUTPUT_NODES.star").read_text()
    assert f"\n{name}particles.star " in listed
    assert "flexible" not in listed

    assert relion_version(folder) == 3  # by the job.star that RELION 3.1.3 left there
    list(install(project))
    assert f"in_part        {name}particles.star" in (project / "FlexJobs/select/job.star").read_text()


@pytest.mark.science  # fifteen seconds; test_relion_select.py has most of it without the pipeliner
def test_clusters_are_nodes_that_subset_selection_takes(pipeliner: Callable[..., str], project: Path) -> None:
    source = project / "External/job900/particles.star"
    source.parent.mkdir(parents=True)
    latents = np.repeat([[-1.0], [0.0], [1.0]], 40, axis=0) + np.linspace(0, 0.1, 120)[:, None]
    write_particles(project / PARTICLES, source, latents, np.full_like(latents, 0.1))
    in_part = source.relative_to(project).as_posix()
    name = add(pipeliner, project, "select", in_part=in_part, clusters="2", latents_range="-2:0.5")
    run_job(pipeliner, name)
    status, nodes = pipeline(project)
    assert status[name] == DONE, (project / name / "run.err").read_text()
    assert {nodes[f"{name}{node}.star"] for node in ("particles", "cluster_001", "cluster_002")} == {"3"}

    # RELION's own Subset selection, by class number
    known = set(status)
    options = {"fn_data": f"{name}particles.star", "do_select_values": "Yes", "select_label": "rlnClassNumber"}
    options |= {"select_minval": "2", "select_maxval": "2"}
    pipeliner("--addJob", "Select", "--addJobOptions", ";".join(f"{key} == {value}" for key, value in options.items()))
    (selection,) = set(pipeline(project)[0]) - known
    run_job(pipeliner, selection)
    status, nodes = pipeline(project)
    assert status[selection] == DONE, (project / selection / "run.err").read_text()
    assert nodes[f"{selection}particles.star"] == "3"
    theirs, ours = (starfile.read(project / path) for path in (f"{selection}particles.star", f"{name}cluster_002.star"))
    assert theirs["particles"]["rlnImageName"].tolist() == ours["particles"]["rlnImageName"].tolist()
    assert len(ours["particles"]) == 40
    assert (theirs["particles"]["flexLatent1"] == ours["particles"]["flexLatent1"]).all()

    # overwritten with another number in its form
    form = project / name / "job.star"
    form.write_text(re.sub(r"(param1_value\s+)2\b", r"\g<1>1", form.read_text()))
    run_job(pipeliner, name, "--overwrite_jobs")
    assert pipeline(project)[0][name] == DONE, (project / name / "run.err").read_text()
    assert [path.name for path in (project / name).glob("cluster_*.star")] == ["cluster_001.star"]
    assert len(starfile.read(project / name / "cluster_001.star")["particles"]) == 80


def test_relion_sees_a_failure(pipeliner: Callable[..., str], project: Path) -> None:
    name = add(pipeliner, project, "refine", in_part=PARTICLES, latent_dims="77", nr_threads="1")
    run_job(pipeliner, name)
    assert pipeline(project)[0][name] == FAILED
    told = (project / name / "run.err").read_text()
    assert "latent_dims: 77 was given" in told
    assert "Traceback" not in told


def test_relion_sees_a_mistyped_label_as_a_failure(pipeliner: Callable[..., str], project: Path) -> None:
    name = add(pipeliner, project, "refine", in_part=PARTICLES, param10_label="latent_dim", param10_value="3")
    run_job(pipeliner, name)
    assert pipeline(project)[0][name] == FAILED
    assert "--latent_dims" in (project / name / "run.err").read_text()
