"""Jobs in a real SLURM: preempted, requeued, short of time, cancelled, killed; what they leave, and how they end."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import starfile
from hosts.slurm_cluster import Cluster

from integration.relion.simulate import simulate_project

PARTICLES = "Refine3D/job001/run_data.star"
SMALL = ["--latent_dims=1", "--epochs=24", "--tetra_cells=6", "--map_every=8", "--devices=cpu"]
LONG = ["--epochs=40", "--batch=5"]  # enough work, even of a fast machine, to be stopped three times
OWN_NODE = ["--partition=low", "--gpus=1", "--cpus=2", "--j=1"]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of 120 particles that other tests have left no jobs in."""
    folder = tmp_path_factory.mktemp("queued") / "project"
    simulate_project(folder, motion="one_hinge", particles=120, box=24, pixel_size_A=10.0, snr=0.5, seed=1)
    return folder


Submit = Callable[..., str]


@pytest.fixture(scope="module")
def submit(cluster: Cluster, project: Path) -> Submit:
    """`submit("train", "External/job010/", ...)` by the command line, as a user would; gives the job's id."""
    script = Path(sys.executable).parent / "flex-job"
    assert script.is_file(), f"our scripts are not in {script.parent}: pip install -e ."

    def call(job: str, folder: str, *more: str) -> str:
        command = [script, "submit", job, "--o", folder, "--in_parts", PARTICLES, *SMALL, *OWN_NODE, *more]
        done = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        job_id = done.stdout.split()[0]
        assert json.loads((project / folder / "flex_submission.json").read_text())["id"] == job_id
        return job_id

    return call


def exit_files(folder: Path) -> list[str]:
    return sorted(path.name.removeprefix("RELION_JOB_EXIT_") for path in folder.glob("RELION_JOB_EXIT_*"))


def said(folder: Path) -> str:
    return "".join(path.read_text() for path in (folder / "run.out", folder / "run.err") if path.exists())


def epochs_since_start(folder: Path) -> int:
    """How many epochs the job has told of since it was last started."""
    now = said(folder).split("training goes on after epoch")[-1]
    return len(re.findall(r"^train: epoch \d+/", now, re.MULTILINE))


def wait_for_start(cluster: Cluster, folder: Path, starts: int, epochs: int) -> None:
    """Wait until the job has been started again so often, and is so many epochs further."""
    cluster.wait_until(
        lambda: (said(folder).count("training goes on after epoch"), epochs_since_start(folder)),
        lambda seen: seen >= (starts, epochs),
    )


def assert_same_result(folder: Path, undisturbed: Path) -> None:
    ours, theirs = (starfile.read(each / "particles.star")["particles"] for each in (folder, undisturbed))
    spread = theirs["flexLatent1"].std()
    assert spread > 0.1
    np.testing.assert_allclose(ours["flexLatent1"], theirs["flexLatent1"], atol=2e-3 * spread)
    np.testing.assert_array_equal(ours["rlnRandomSubset"], theirs["rlnRandomSubset"])
    assert list(ours["rlnImageName"]) == list(theirs["rlnImageName"])


def test_a_job_that_is_preempted_short_of_time_and_requeued_ends_as_an_undisturbed_one(
    cluster: Cluster, submit: Submit, project: Path
) -> None:
    folder, undisturbed = project / "External/job010", project / "External/job011"
    job, other = submit("train", "External/job010/", *LONG), submit("train", "External/job011/", *LONG)

    wait_for_start(cluster, folder, 0, 3)
    node = cluster.show(job)["NodeList"]
    urgent = cluster.ask(
        "sbatch",
        "--parsable",
        "-p",
        "high",
        f"--nodelist={node}",
        "--exclusive",
        "--output=/dev/null",
        "--wrap=sleep 1",
    ).strip()
    cluster.wait_for(urgent, "RUNNING", "COMPLETED")
    assert "stopped by SIGTERM; the scheduler starts this job again" in said(folder)
    assert exit_files(folder) == []

    wait_for_start(cluster, folder, 1, 1)
    cluster.ask("scancel", "--signal=USR1", job)  # as --signal=USR1@300 does shortly before the time limit
    cluster.wait_until(lambda: cluster.show(job)["Restarts"], lambda count: count == "2")
    assert "stopped by SIGUSR1; the scheduler starts this job again" in said(folder)
    assert exit_files(folder) == []

    wait_for_start(cluster, folder, 2, 1)
    cluster.ask("scontrol", "requeue", job)
    cluster.wait_until(lambda: said(folder).count("the scheduler starts this job again"), lambda count: count == 3)
    assert exit_files(folder) == []

    assert cluster.wait_for(job, "COMPLETED", "FAILED")["JobState"] == "COMPLETED"
    assert cluster.wait_for(other, "COMPLETED", "FAILED")["Restarts"] == "0"
    assert exit_files(folder) == exit_files(undisturbed) == ["SUCCESS"]
    assert (folder / "run.err").read_text().count("Traceback") == 0
    assert_same_result(folder, undisturbed)


def test_a_cancelled_job_fails_and_a_killed_one_does_too(cluster: Cluster, submit: Submit, project: Path) -> None:
    cancelled, killed = project / "External/job020", project / "External/job021"
    job, other = submit("train", "External/job020/", *LONG), submit("train", "External/job021/", *LONG)
    cluster.wait_until(lambda: said(killed), lambda text: "--in_parts" in text or "epoch" in text or text != "")
    cluster.ask("scancel", "--signal=KILL", f"{other}.0")  # as the kernel does when memory runs out
    cluster.wait_for(other, "FAILED")
    assert exit_files(killed) == ["FAILURE"]

    wait_for_start(cluster, cancelled, 0, 1)
    cluster.ask("scancel", job)
    cluster.wait_for(job, "CANCELLED")
    cluster.wait_until(lambda: exit_files(cancelled), bool, 30)
    assert exit_files(cancelled) == ["FAILURE"]
    assert "stopped by SIGTERM; press Continue to resume" in (cancelled / "run.err").read_text()


@pytest.mark.science
def test_a_time_limit_is_resumed_by_itself(cluster: Cluster, submit: Submit, project: Path) -> None:
    """SLURM's shortest limit is a minute, and it warns up to a minute early."""
    folder = project / "External/job030"
    job = submit("train", "External/job030/", "--time=1:30", "--warn=20", "--epochs=1000", "--batch=5", "--map_every=0")
    cluster.wait_until(lambda: cluster.show(job)["Restarts"], lambda count: count == "2", 400)
    cluster.ask("scancel", job)
    assert said(folder).count("stopped by SIGUSR1; the scheduler starts this job again") == 2
    assert said(folder).count("training goes on after epoch") >= 1
    assert exit_files(folder) == []


@pytest.mark.science
def test_a_budget_of_hours_needs_no_signal(cluster: Cluster, submit: Submit, project: Path) -> None:
    folder = project / "External/job031"
    hours = 40 / 3600
    job = submit("train", "External/job031/", f"--max_hours={hours}", "--epochs=1000", "--batch=5", "--map_every=0")
    cluster.wait_until(lambda: cluster.show(job)["Restarts"], lambda count: count == "1", 120)
    assert "max_hours is used up; the scheduler starts this job again" in said(folder)
    assert exit_files(folder) == []
    cluster.ask("scancel", job)

    folder = project / "External/job032"
    job = submit("train", "External/job032/", f"--max_hours={hours}", "--epochs=1000", "--batch=5", "--requeue=no")
    assert cluster.wait_for(job, "FAILED", seconds=120)["ExitCode"] == "75:0"
    assert exit_files(folder) == ["FAILURE"]
    assert "max_hours is used up; press Continue to resume" in (folder / "run.err").read_text()


@pytest.mark.science
def test_two_nodes_with_a_process_each_end_as_one(
    cluster: Cluster, submit: Submit, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")  # the nodes' names are known to SLURM only
    alone, both = project / "External/job040", project / "External/job041"
    for folder, more in (("External/job040/", []), ("External/job041/", ["--nodes=2"])):
        job = submit("train", folder, *more)
        assert cluster.wait_for(job, "COMPLETED", "FAILED", seconds=200)["JobState"] == "COMPLETED", said(both)
    assert exit_files(both) == ["SUCCESS"]
    assert json.loads((both / "manifest.json").read_text())["processes"] == 2
    assert_same_result(both, alone)


@pytest.mark.relion
def test_relion_submits_through_the_queue(
    cluster: Cluster, project: Path, relion_program: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    program, scripts = relion_program("relion_pipeliner"), Path(sys.executable).parent
    monkeypatch.setenv("PATH", f"{scripts}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(project)

    def say(*command: str) -> str:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    Path("queue.sh").write_text(say("flex-job", "submit", "relion_template", "--gpus", "1"))
    Path("train.star").write_text(say("flex-job", "relion", "template", "train"))
    arguments = "--tetra_cells=6 --epochs=2 --map_every=0 --devices=cpu"
    options = (
        f"in_part == {PARTICLES};nr_threads == 2;other_args == {arguments};"
        "do_queue == Yes;qsub == sbatch;queuename == low;qsubscript == queue.sh"
    )
    say(str(program), "--addJobFromStar", "train.star", "--addJobOptions", options)
    (folder,) = (path.parent for path in Path("External").glob("*/job.star"))
    say(str(program), "--schedule", "queued", "--RunJobs", f"{folder}/", "--sec_wait_after", "1")
    assert exit_files(folder) == ["SUCCESS"], said(folder)
    script = (folder / "run_submit.script").read_text()
    assert "srun" in re.search(r"^.*relion_flex_train.*$", script, re.MULTILINE)[0]  # type: ignore[index]
    assert "XXX" not in script
    assert re.search(rf"^{folder}/ .*[ ]2[ ]", Path("default_pipeline.star").read_text(), re.MULTILINE)
