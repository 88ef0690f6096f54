"""The figures on data of a useful size: `make science`. Prints each figure beside what is asked of it.

6,000 particles of 64 px of the simulated antibody, signal-to-noise 0.1 unless said otherwise, latents unknown.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import starfile
from end_to_end.conftest import environment
from numpy.typing import NDArray
from scipy.stats import spearmanr

from flex_job.events import Events
from flex_job.fsc import fsc
from flex_job.generate import frames
from flex_job.model import FlexModel
from flex_job.motion import motion_amplitude
from flex_job.refine import Refinement
from flex_job.volume import Volume, read_volume
from integration.relion.read import read_consensus
from integration.relion.simulate import simulate_project
from job_specs.parameters import RefineParameters

pytestmark = pytest.mark.science

PARTICLES, BOX, PIXEL_A, SNR = 6000, 64, 4.0, 0.1


def refine(folder: Path, dims: int, flags: Sequence[str] = (), **options: object) -> Path:
    """Simulate a project, refine it as a user would, and return the job directory."""
    settings: dict[str, object] = {"particles": PARTICLES, "box": BOX, "pixel_size_A": PIXEL_A, "snr": SNR, "seed": 0}
    simulate_project(folder, **(settings | options))  # type: ignore[arg-type]
    job = folder / "External/job010"
    command = [
        sys.executable, "-c", "from integration.local.cli import refine; refine()", "--o", f"{job}/",
        "--in_parts", str(folder / "Refine3D/job001/run_data.star"), "--latent_dims", str(dims),
        "--in_mask", str(folder / "MaskCreate/job002/mask.mrc"), "--j", str(len(os.sched_getaffinity(0))), *flags,
    ]  # fmt: skip
    began = time.monotonic()
    subprocess.run(command, check=True, env=environment())
    stages = json.loads((job / "manifest.json").read_text())["stages"]
    seconds = {name: stage["seconds"] for name, stage in stages.items()}
    peak = max(stage["peak_MiB"] for stage in stages.values())
    print(f"\nrefine took {time.monotonic() - began:.0f} s, {seconds}; peak memory {peak:.0f} MiB")
    return job


def rigid_reconstruction(folder: Path, **options: object) -> NDArray[np.float32]:
    """All particles of a simulated project, without motion."""
    settings: dict[str, object] = {"particles": PARTICLES, "box": BOX, "pixel_size_A": PIXEL_A, "snr": SNR, "seed": 0}
    simulate_project(folder, **(settings | options))  # type: ignore[arg-type]
    mask = folder / "MaskCreate/job002/mask.mrc"
    consensus = read_consensus(folder / "Refine3D/job001/run_data.star", mask_path=mask)
    Refinement(consensus, RefineParameters(), folder, Events()).half_maps("rigid", None)
    return mean_map(folder, "rigid")


def latents(job: Path) -> NDArray[np.float64]:
    table = starfile.read(job / "particles.star")["particles"]
    return table[[name for name in table if name.startswith("flexLatent") and "Std" not in name]].to_numpy()


def truth(job: Path) -> dict[str, NDArray[np.float64]]:
    return dict(np.load(job.parents[1] / "truth/truth.npz"))


def mean_map(job: Path, kind: str) -> NDArray[np.float32]:
    halves = [mrcfile.read(job / f"{kind}_half{half}_class001_unfil.mrc") for half in (1, 2)]
    return 0.5 * (halves[0] + halves[1])


def half_map_fsc(job: Path, kind: str) -> float:
    halves = [mrcfile.read(job / f"{kind}_half{half}_class001_unfil.mrc") for half in (1, 2)]
    return float(fsc(*halves)[1:].mean())


def latent_of_state(found: NDArray[np.float64], true: NDArray[np.float64], state: float) -> NDArray[np.float64]:
    """The latent whose particles are in that state on average."""
    fit = np.polyfit(found, true, 5)
    grid = np.linspace(*np.percentile(found, [1, 99]), 2000)
    return grid[[np.argmin(np.abs(np.polyval(fit, grid) - state))]]


def test_one_hinge(tmp_path: Path) -> None:
    job = refine(tmp_path / "moving", 1, motion="one_hinge")
    found, true = latents(job)[:, 0], truth(job)["latents"][:, 0]
    rank = abs(spearmanr(found, true).statistic)
    print(f"rank correlation of latent and truth {rank:.4f} (at least 0.95)")
    model, rigid, flex = FlexModel.load(job / "flex_model.pt"), mean_map(job, "rigid"), mean_map(job, "flex")
    shares = []
    for number, state in enumerate(truth(job)["state_latents"][:, 0]):
        density = read_volume(job.parents[1] / f"truth/state_{number:03d}.mrc")
        point = latent_of_state(found, true, state)
        frame = next(frames(model, Volume(flex, PIXEL_A), point[None]))
        alone = rigid_reconstruction(tmp_path / f"alone{number}", motion="one_hinge", fixed_latent=(state,))
        scores = [float(fsc(map, density.data)[1:].mean()) for map in (rigid, frame.data, alone)]
        shares.append((scores[1] - scores[0]) / (scores[2] - scores[0]))
        print(
            f"state {state:+.1f}: FSC with the truth, rigid {scores[0]:.3f}, flex {scores[1]:.3f}, all particles in "
            f"that state {scores[2]:.3f}; share of the gain {shares[-1]:.2f} (at least 0.5)"
        )
    assert rank > 0.95 and min(shares) > 0.5


def test_two_hinges(tmp_path: Path) -> None:
    job = refine(tmp_path, 2, motion="two_hinges")
    found, true = latents(job), truth(job)["latents"]
    design = np.c_[found, np.ones(len(found))]
    left = true - design @ np.linalg.lstsq(design, true, rcond=None)[0]
    explained = 1 - left.var(axis=0) / true.var(axis=0)
    print(f"R^2 of the two angles from the latents, linear: {explained[0]:.3f}, {explained[1]:.3f} (at least 0.85)")
    assert explained.min() > 0.85


def test_no_motion(tmp_path: Path) -> None:
    job = refine(tmp_path, 1, motion="none")
    moved = motion_amplitude(FlexModel.load(job / "flex_model.pt")).mean_A
    rigid, flex = half_map_fsc(job, "rigid"), half_map_fsc(job, "flex")
    print(f"no motion: mean displacement {moved / PIXEL_A:.3f} voxel (below 0.25)")
    print(f"no motion: mean FSC of half-maps rigid {rigid:.4f}, flex {flex:.4f} (lower by 0.01 at most)")
    assert moved < PIXEL_A / 4 and flex > rigid - 0.01


def test_pure_noise(tmp_path: Path) -> None:
    job = refine(tmp_path, 1, ["--contrast", "keep"], motion="none", snr=0.0)
    rigid, flex = half_map_fsc(job, "rigid"), half_map_fsc(job, "flex")
    print(f"pure noise: mean FSC of half-maps rigid {rigid:.4f}, flex {flex:.4f}")
    assert flex < rigid + 0.02
