"""Small simulated projects and runs of the whole job on them, as a user would start it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hosts.conftest import relion_program, run_relion

from integration.relion.simulate import simulate_project

__all__ = ["relion_program", "run_relion"]  # fixtures

PARTICLES = 1000
WITH_REPORT, WITHOUT_REPORT = ("-m", "integration.local.cli"), ("-m", "end_to_end.without_report")
SMALL = [
    "--latent_dims", "1", "--rigidity", "4", "--band_end", "0.8", "--epochs", "6", "--map_every", "3",
    "--tetra_cells", "14", "--j", "1",
]  # fmt: skip

Run = Callable[..., subprocess.CompletedProcess[str]]


def arguments(job: str, *more: str, report: bool = True) -> list[str]:
    program = WITH_REPORT if report else WITHOUT_REPORT
    return [
        sys.executable, *program, "refine", "--o", job, "--in_parts", "Refine3D/job001/run_data.star",
        "--in_mask", "MaskCreate/job002/mask.mrc", *SMALL, *more,
    ]  # fmt: skip


def environment() -> dict[str, str]:
    tests = Path(__file__).parents[1]
    return os.environ | {"PYTHONPATH": f"{tests.parent}{os.pathsep}{tests}", "PYTHONUNBUFFERED": "1"}


def run_job(project: Path, job: str, *more: str, report: bool = True) -> subprocess.CompletedProcess[str]:
    """The whole job in a process of its own, started in the project as RELION does."""
    return subprocess.run(
        arguments(job, *more, report=report),
        cwd=project,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )


def kill_job_at(project: Path, job: str, words: str, number: int = signal.SIGKILL, report: bool = True) -> str:
    """Start the job and send it a signal as soon as it says `words`; returns what it had said by then."""
    process = subprocess.Popen(
        arguments(job, report=report),
        cwd=project,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    said = []
    began = time.monotonic()
    for line in process.stdout:
        said.append(line)
        if words in line or time.monotonic() - began > 200:
            process.send_signal(number)
            break
    said.append(process.stdout.read())
    process.wait(timeout=60)
    return "".join(said)


def _project(tmp_path_factory: pytest.TempPathFactory, name: str, **options: object) -> Path:
    folder = tmp_path_factory.mktemp(name)
    settings: dict[str, object] = {"motion": "one_hinge", "particles": PARTICLES, "snr": 0.1, "seed": 1} | options
    simulate_project(folder, box=32, pixel_size_A=8.0, **settings)  # type: ignore[arg-type]
    return folder


@pytest.fixture(scope="session")
def moving(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of 1,000 particles of 32 px with one moving arm."""
    return _project(tmp_path_factory, "moving")


@pytest.fixture(scope="session")
def still(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same molecule without motion."""
    return _project(tmp_path_factory, "still", motion="none")


@pytest.fixture(scope="session")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images that hold noise only."""
    return _project(tmp_path_factory, "noise", snr=0.0)


@pytest.fixture(scope="session")
def refined(moving: Path) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The moving project refined once, without interruption: its job directory and what the job said."""
    done = run_job(moving, "External/job010/")
    assert done.returncode == 0, done.stdout + done.stderr
    return moving / "External/job010", done
