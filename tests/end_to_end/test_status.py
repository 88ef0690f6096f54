"""A real job watched from outside: while it runs, after SIGKILL, when it goes on, after SIGTERM."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from end_to_end.conftest import SMALL, environment

from integration.common.progress import EVERY
from integration.local.status import Status, status_of

PROGRAM = [sys.executable, "-c", "from integration.local.cli import main; main()"]
PATIENCE_S = 120.0


def asked(folder: Path) -> tuple[int, dict[str, Any]]:
    """Exit code and record of `flex-job status --json`."""
    done = subprocess.run(
        [*PROGRAM, "status", str(folder), "--json"], env=environment(), capture_output=True, text=True
    )
    return done.returncode, json.loads(done.stdout) if done.stdout else {}


def looked_at_until(folder: Path, wanted: Callable[[Status], bool]) -> None:
    """Look until the job is so far."""
    began = time.monotonic()
    while (status := status_of(folder)) is None or not wanted(status):
        assert time.monotonic() - began < PATIENCE_S, status
        time.sleep(0.02)


def in_training(status: Status) -> bool:
    return status.progress is not None and status.progress.stage == "train"


@pytest.mark.parametrize("devices", ["cpu", pytest.param("cpu:2", marks=pytest.mark.science)])
def test_a_job_is_watched_killed_and_stopped(small_project: Path, devices: str) -> None:
    name = f"External/watched-{devices.replace(':', '')}/"
    folder = small_project / name
    command = [*PROGRAM, "train", "--o", name, "--in_parts", "Refine3D/job001/run_data.star", *SMALL]
    command += ["--epochs", "400", "--map_every", "50", "--tetra_cells", "8", "--batch", "25", "--devices", devices]

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            command, cwd=small_project, env=environment() | {EVERY: "60"}, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    job = start()
    looked_at_until(folder, lambda status: in_training(status) and "loss" in status.figures)
    code, record = asked(folder)
    assert code == 3 and record["state"] == "running"
    assert record["host"] == os.uname().nodename and Path(f"/proc/{record['pid']}").exists()
    assert record["progress"]["planned"] == ["mesh", "prep", "train"] and 0 < record["progress"]["part"] < 1
    assert set(record["finished"]) == {"mesh", "prep"}

    job.kill()
    said = job.communicate()[0]
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", said) and len(re.findall("^train: ", said, re.M)) <= 3
    looked_at_until(folder, lambda status: status.state != "running")  # other ranks end with it
    code, record = asked(folder)
    assert (code, record["state"]) == (5, "stale") and record["progress"]["stage"] == "train"

    job = start()
    looked_at_until(folder, lambda status: status.state == "running" and in_training(status))
    job.send_signal(signal.SIGTERM)
    job.communicate()
    code, record = asked(folder)
    assert (code, record["state"]) == (4, "stopped") and "press Continue" in record["reason"]
