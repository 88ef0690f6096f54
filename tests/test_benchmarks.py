"""The benchmarks are not run with the tests, but what they import from the code must exist."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "benchmarks"
IMPORT_ALL = """
import importlib, sys, traceback
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except Exception:
        traceback.print_exc()
    else:
        print("imported", name)
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(FOLDER.parents[1])}
    return subprocess.run([sys.executable, *arguments], cwd=FOLDER, env=environment, capture_output=True, text=True)


NAMES = sorted(path.stem for path in FOLDER.glob("*.py"))


@pytest.fixture(scope="module")
def imported() -> subprocess.CompletedProcess[str]:
    return run("-c", IMPORT_ALL, *NAMES)  # in one process: most of the time is torch's import


@pytest.mark.parametrize("name", NAMES)
def test_benchmark_can_be_imported(imported: subprocess.CompletedProcess[str], name: str) -> None:
    assert f"imported {name}" in imported.stdout.splitlines(), imported.stderr


def test_projection_counts_with_the_codes_own_schedule() -> None:
    done = run("projection.py")
    assert done.returncode == 0 and "1000000 particles" in done.stdout, done.stderr
