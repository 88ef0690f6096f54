"""RELION's own pipeliner adds and runs our External jobs, with nobody at a screen."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from gemmi import cif

from integration.relion.template import render
from job_specs.jobs import JOBS

pytestmark = pytest.mark.relion
DONE, FAILED = "2", "3"
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


def add(pipeliner: Callable[..., str], project: Path, job: str, **options: str) -> str:
    """Add an External job from our template, rows filled in; returns its name, as External/job003/."""
    star = project / f"{job}.star"
    star.write_text(render(JOBS[job]))
    table = cif.read(str(star)).find_block("joboptions_values").find(["_rlnJobOptionVariable", "_rlnJobOptionValue"])
    row_of = {row.str(1): row[0].replace("_label", "_value") for row in table if row[0].endswith("_label")}
    text = ";".join(f"{row_of.get(name, name)} == {value}" for name, value in options.items())
    known = set(pipeline(project)[0])
    pipeliner("--addJobFromStar", star.name, "--addJobOptions", text)
    (name,) = set(pipeline(project)[0]) - known
    return name


def run_job(pipeliner: Callable[..., str], name: str) -> str:
    return pipeliner("--RunJobs", name, "--schedule", f"run_{name.split('/')[1]}", "--sec_wait_after", "1")


def test_relion_runs_refine_and_knows_its_outputs(pipeliner: Callable[..., str], project: Path) -> None:
    name = add(
        pipeliner, project, "refine", in_part=PARTICLES, nr_threads="2", other_args="--max_iterations=2", **QUICK
    )
    run_job(pipeliner, name)
    status, nodes = pipeline(project)
    assert status[name] == DONE, (project / name / "run.err").read_text()
    assert nodes[f"{name}particles.star"] == "3"
    assert nodes[f"{name}flex_half1_class001_unfil.mrc"] == "10"
    assert nodes[f"{name}flex_half2_class001_unfil.mrc"] == "10"
    assert nodes[f"{name}flex_class001.mrc"] == "6"
    assert nodes[f"{name}mask.mrc"] == "7"
    assert nodes[f"{name}logfile.pdf"] == "13"
    assert (project / name / "run.err").read_text() == ""
    assert [path.name for path in (project / name).glob("RELION_JOB_EXIT_*")] == ["RELION_JOB_EXIT_SUCCESS"]


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
