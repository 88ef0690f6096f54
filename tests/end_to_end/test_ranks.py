"""Several processes at one job give what one gives, and end together when they are stopped or one of them dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import mrcfile
import numpy as np
import pytest
from end_to_end.conftest import environment

from flex_job.model import FlexModel
from integration.common.requeue import RESUMABLE
from integration.relion.simulate import simulate_project

pytestmark = pytest.mark.slow

REAL = [sys.executable, "-m", "integration.local.cli"]
PROGRAM = [sys.executable, "-m", "end_to_end.without_report"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
INPUT = ["--in_parts", "Refine3D/job001/run_data.star", "--in_mask", "MaskCreate/job002/mask.mrc"]
SMALL = "--latent_dims 1 --epochs 8 --map_every 2 --tetra_cells 10 --batch 100 --j 1".split()
TWO = ["--devices", "cpu:2"]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 particles of 32 px with one moving arm."""
    folder = tmp_path_factory.mktemp("ranks")
    simulate_project(folder, motion="one_hinge", particles=300, box=32, pixel_size_A=8.0, snr=0.2, seed=1)
    return folder


def run(project: Path, job: str, folder: str, *more: str, program: Sequence[str] = PROGRAM) -> str:
    """Run a job to success; what it printed."""
    command = [*program, job, "--o", f"External/{folder}/", *INPUT, *SMALL, *more]
    done = subprocess.run(command, cwd=project, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert exit_files(project / "External" / folder) == ["SUCCESS"]
    return done.stdout


def exit_files(folder: Path) -> list[str]:
    return sorted(path.name.removeprefix("RELION_JOB_EXIT_") for path in folder.glob("RELION_JOB_EXIT_*"))


def assert_same(folder: Path, other: Path, most: float) -> None:
    """But for rounding. The covariances carry a factor that is a quantile over the few particles: rounding may change
    which of them it falls on."""
    found = largest_difference(folder, other)
    assert found.pop("covariance") < 1e-2 and max(found.values()) < most, found


def largest_difference(folder: Path, other: Path) -> dict[str, float]:
    """Between two jobs, of each result relative to its largest value."""

    def relative(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.abs(a - b).max() / np.abs(b).max())

    a, b = (FlexModel.load(each / "flex_model.pt") for each in (folder, other))
    found = {
        "latents": relative(a.latents, b.latents),
        "covariance": relative(a.covariance, b.covariance),
        "motion": relative(a.displacement(a.latents[:50]), b.displacement(b.latents[:50])),
        "map": relative(a.map.data, b.map.data),
    }
    for path in sorted(folder.glob("*_half?_class001_unfil.mrc")):
        found[path.name] = relative(mrcfile.read(folder / path.name), mrcfile.read(path))
    return found


@pytest.fixture(scope="module")
def alone(project: Path) -> Path:
    """The project refined by one process."""
    run(project, "refine", "alone", "--devices", "cpu")
    return project / "External/alone"


@pytest.fixture(scope="module")
def by_two(project: Path) -> tuple[Path, str]:
    """The project refined by two processes that the job started; its folder and what it printed."""
    said = run(project, "refine", "two", *TWO, program=REAL)
    return project / "External/two", said


def test_two_ranks_give_what_one_gives(alone: Path, by_two: tuple[Path, str]) -> None:
    assert_same(by_two[0], alone, 1e-4)
    assert len(list(by_two[0].glob("*_half?_class001_unfil.mrc"))) == 4


def test_another_seed_gives_something_else(project: Path, alone: Path) -> None:
    run(project, "refine", "seed", "--devices", "cpu", "--seed", "7")
    found = largest_difference(project / "External/seed", alone)
    assert min(found[name] for name in ("latents", "covariance", "motion", "map")) > 5e-3, found


def test_torchrun_gives_the_same(project: Path, alone: Path) -> None:
    run(project, "refine", "torchrun", program=[*TORCHRUN, "-m", "end_to_end.without_report"])
    assert_same(project / "External/torchrun", alone, 1e-4)


def test_one_process_speaks(by_two: tuple[Path, str]) -> None:
    folder, said = by_two
    assert "2 processes on cpu, cpu" in said
    said_once = ("train: epoch", "rigid half", "flex half", "mesh", "read")
    lines = [line for line in said.splitlines() if line.startswith(said_once)]
    assert len(lines) == len(set(lines)) and sum(line.startswith("train: epoch") for line in lines) == 8
    assert not list(folder.glob("flex_rank*.log")) and not list(folder.glob("checkpoint*"))


def test_two_ranks_reconstruct_from_a_model(project: Path, alone: Path, by_two: tuple[Path, str]) -> None:
    command = [*PROGRAM, "reconstruct", "--o", "External/again/", "--in_model", "External/alone/", *TWO]
    done = subprocess.run(command, cwd=project, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    for half in (1, 2):
        a, b = (
            mrcfile.read(folder / f"flex_half{half}_class001_unfil.mrc")
            for folder in (project / "External/again", alone)
        )
        assert np.abs(a - b).max() < 1e-4 * np.abs(b).max()


def test_bad_input_is_told_once(project: Path) -> None:
    command = [*PROGRAM, "train", "--o", "External/bad/", *INPUT, *SMALL, *TWO]
    command[command.index("MaskCreate/job002/mask.mrc")] = "Refine3D/job001/run_data.star"
    done = subprocess.run(command, cwd=project, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 1 and exit_files(project / "External/bad") == ["FAILURE"]
    assert done.stderr.count("problem with the input") == 1 and "Traceback" not in done.stderr


# -- ends --------------------------------------------------------------------------------------------------------------


def ranks_of(launcher: int) -> list[int]:
    """Processes that do a launcher's work, in the order of their ranks."""
    children = []
    for folder in Path("/proc").iterdir():
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            words = (folder / "cmdline").read_text()
        except (OSError, ValueError):
            continue
        if parent == launcher and "resource_tracker" not in words:
            children.append(int(folder.name))
    return sorted(children)


class Started:
    """A job in two processes, stopped at certain words."""

    def __init__(
        self,
        project: Path,
        job: str,
        folder: str,
        words: str,
        program: Sequence[str] = PROGRAM,
        more: Sequence[str] = (),
    ) -> None:
        devices = TWO if program is PROGRAM else []
        self.process = subprocess.Popen(
            [*program, job, "--o", f"External/{folder}/", *INPUT, *SMALL, *devices, *more],
            cwd=project,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.folder, self.said = project / "External" / folder, ""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said += line
            if words in line:
                break
        self.ranks = ranks_of(self.process.pid)
        assert len(self.ranks) == 2, self.said

    def ends_within(self, seconds: float) -> str:
        """What it said, at its end."""
        began = time.monotonic()
        self.said += self.process.communicate(timeout=200)[0]
        assert time.monotonic() - began < seconds, self.said
        return self.said


LONGER = pytest.mark.science  # more of the same: not in every run of the tests


@pytest.mark.parametrize("rank", [pytest.param(0, marks=LONGER), 1])
def test_a_killed_rank_ends_the_job_and_the_same_command_goes_on(project: Path, alone: Path, rank: int) -> None:
    folder = f"killed{rank}"
    job = Started(project, "train", folder, "epoch 2/8")
    os.kill(job.ranks[rank], signal.SIGKILL)
    said = job.ends_within(30)
    assert exit_files(job.folder) == ["FAILURE"] and job.process.returncode != 0
    assert f"process {rank} was ended by SIGKILL" in said and "press Continue" in said and "Traceback" not in said
    if rank == 0:
        assert "training goes on after epoch" in run(project, "train", folder, *TWO)
        assert_same(job.folder, alone, 1e-3)


def test_a_rank_killed_in_its_half(project: Path, alone: Path) -> None:
    job = Started(project, "refine", "half", "flex: iteration 1,")
    os.kill(job.ranks[1], signal.SIGKILL)
    job.ends_within(30)
    assert exit_files(job.folder) == ["FAILURE"]
    said = run(project, "refine", "half", *TWO)
    assert "flex: goes on after iteration" in said
    assert_same(job.folder, alone, 1e-3)


@pytest.mark.parametrize("whom", ["launcher", *(pytest.param(rank, marks=LONGER) for rank in ("first", "second"))])
def test_a_stop_asked_of_any_process_saves_and_goes_on(project: Path, alone: Path, whom: str) -> None:
    folder = f"term_{whom}"
    job = Started(project, "train", folder, "epoch 2/8")
    pids = {"launcher": job.process.pid, "first": job.ranks[0], "second": job.ranks[1]}
    os.kill(pids[whom], signal.SIGTERM)
    said = job.ends_within(30)
    assert exit_files(job.folder) == ["FAILURE"] and job.process.returncode == RESUMABLE
    assert said.count("press Continue to resume") == 1 and "Traceback" not in said
    if whom == "launcher":
        assert "training goes on after epoch" in run(project, "train", folder, *TWO)
        assert_same(job.folder, alone, 1e-3)


def test_relions_abort(project: Path) -> None:
    job = Started(project, "train", "abort", "epoch 1/200", more=["--epochs", "200"])
    (job.folder / "RELION_JOB_ABORT_NOW").touch()
    said = job.ends_within(30)
    assert exit_files(job.folder) == ["ABORTED"] and job.process.returncode == 2
    assert said.count("press Continue") == 1


def test_ranks_end_with_a_killed_launcher(project: Path) -> None:
    job = Started(project, "train", "orphans", "epoch 1/8")
    job.process.kill()
    job.process.wait()
    until = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in job.ranks):
        assert time.monotonic() < until
        time.sleep(0.1)
    assert exit_files(job.folder) == []


def test_torchrun_with_a_killed_rank(project: Path) -> None:
    job = Started(project, "train", "torchkill", "epoch 2/8", [*TORCHRUN, "-m", "end_to_end.without_report"])
    os.kill(job.ranks[1], signal.SIGKILL)
    said = job.ends_within(60)
    assert exit_files(job.folder) == ["FAILURE"] and job.process.returncode != 0
    assert "press Continue" in said
