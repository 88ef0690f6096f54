"""Killed and started again: the job goes on where it was, and ends where an unbroken run does."""

from __future__ import annotations

import shutil
import signal
import subprocess
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import starfile
from end_to_end.conftest import kill_job_at, run_job

Refined = tuple[Path, subprocess.CompletedProcess[str]]


def assert_same_result(folder: Path, unbroken: Path) -> None:
    ours, theirs = (starfile.read(f / "particles.star")["particles"] for f in (folder, unbroken))
    np.testing.assert_allclose(ours["flexLatent1"], theirs["flexLatent1"], atol=2e-3)
    np.testing.assert_array_equal(ours["rlnRandomSubset"], theirs["rlnRandomSubset"])
    for half in (1, 2):
        name = f"flex_half{half}_class001_unfil.mrc"
        a, b = mrcfile.read(folder / name), mrcfile.read(unbroken / name)
        assert np.abs(a - b).max() < 2e-3 * np.abs(b).max()


@pytest.mark.parametrize(
    "words, resumed, report",
    [
        ("epoch 3/6", "training goes on after epoch 3", False),
        ("flex: iteration 1", "flex: goes on", False),
        ("gain: done", "report: done", True),
    ],
)
def test_sigkill_and_the_same_command_again(refined: Refined, words: str, resumed: str, report: bool) -> None:
    unbroken, _ = refined
    project = unbroken.parents[1]
    job = f"External/job{100 + len(words)}/"
    said = kill_job_at(project, job, words, report=report)
    assert words in said
    folder = project / job
    assert not list(folder.glob("RELION_JOB_EXIT_*"))
    done = run_job(project, job, report=report)
    assert done.returncode == 0, done.stderr
    assert resumed in done.stdout
    assert not report or "iteration" not in done.stdout
    assert_same_result(folder, unbroken)


def test_sigterm_checkpoints_and_says_how_to_go_on(refined: Refined) -> None:
    project = refined[0].parents[1]
    said = kill_job_at(project, "External/job200/", "epoch 2/6", signal.SIGTERM, report=False)
    folder = project / "External/job200"
    assert "press Continue to resume" in said
    assert (folder / "RELION_JOB_EXIT_FAILURE").exists()
    done = run_job(project, "External/job200/", report=False)
    assert done.returncode == 0 and "training goes on after epoch" in done.stdout
    assert_same_result(folder, refined[0])


def test_changed_settings_and_inputs_are_told_before_any_work(refined: Refined) -> None:
    """A finished job keeps its results; what changed is named, RELION's half-sets in the STAR file included."""
    folder, _ = refined
    project = folder.parents[1]
    before = (folder / "flex_model.pt").read_bytes()
    done = run_job(project, "External/job010/", "--epochs", "7", "--rigidity", "3")
    assert done.returncode == 1 and (folder / "RELION_JOB_EXIT_FAILURE").exists()
    assert "rigidity: 4.0 before, 3.0 now; epochs: 6 before, 7 now" in done.stderr and "--restart yes" in done.stderr
    shutil.copytree(project / "Refine3D/job001", project / "Refine3D/job009")
    star = project / "Refine3D/job009/run_data.star"
    tables = starfile.read(star)
    tables["particles"]["rlnRandomSubset"] = 3 - tables["particles"]["rlnRandomSubset"]
    starfile.write(tables, star, overwrite=True)
    done = run_job(project, "External/job010/", "--in_parts", "Refine3D/job009/run_data.star")
    assert done.returncode == 1
    assert "run_data.star: another content" in done.stderr and "input half-sets: another" in done.stderr
    assert (folder / "flex_model.pt").read_bytes() == before
    assert run_job(project, "External/job010/").returncode == 0


def test_another_parameter_runs_only_what_depends_on_it(refined: Refined) -> None:
    folder, _ = refined
    project = folder.parents[1]
    first = kill_job_at(project, "External/job300/", "rigid: iteration", report=False)
    assert "rigid: iteration" in first
    done = run_job(project, "External/job300/", "--tolerance", "0.5", report=False)
    assert done.returncode == 0, done.stderr
    assert "epoch" not in done.stdout and "rigid: iteration" in done.stdout
