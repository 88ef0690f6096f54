"""The benchmarks are not run with the tests, but what they import from the code must exist."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "benchmarks"
ENVIRONMENT = os.environ | {"PYTHONPATH": str(FOLDER.parents[1])}


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.py")))
def test_benchmark_can_be_imported(name: str) -> None:
    command = [sys.executable, "-c", f"import {name}"]
    done = subprocess.run(command, cwd=FOLDER, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_projection_counts_with_the_codes_own_schedule() -> None:
    command = [sys.executable, str(FOLDER / "projection.py")]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0 and "1000000 particles" in done.stdout, done.stderr
