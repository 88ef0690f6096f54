"""A small simulated RELION project that several test files share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from integration.common.progress import EVERY

os.environ[EVERY] = "0"  # tests wait for what a job says, and for no minute


@pytest.fixture(scope="session")
def small_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of 120 images of 24 px of the moving antibody, with Refine3D/job001 and MaskCreate/job002."""
    from integration.relion.simulate import simulate_project

    folder = tmp_path_factory.mktemp("project")
    simulate_project(folder, motion="one_hinge", particles=120, box=24, pixel_size_A=10.0, snr=0.5, seed=1)
    return folder
