"""The whole job on simulated particles: does it find the motion, and does it refrain where there is none?"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import mrcfile
import numpy as np
import starfile
from end_to_end.conftest import run_job
from scipy.stats import spearmanr

from flex_job.model import FlexModel
from flex_job.motion import motion_amplitude
from integration.local.status import status_of

Refined = tuple[Path, subprocess.CompletedProcess[str]]

OUTPUTS = (
    "particles.star flex_half1_class001_unfil.mrc flex_half2_class001_unfil.mrc flex_class001.mrc "
    "rigid_half1_class001_unfil.mrc rigid_half2_class001_unfil.mrc mask.mrc flex_model.pt fsc.star manifest.json "
    "logfile.pdf report.html RELION_JOB_EXIT_SUCCESS RELION_OUTPUT_NODES.star"
).split()


def test_leaves_everything_it_promises(refined: Refined) -> None:
    folder, _ = refined
    assert [name for name in OUTPUTS if not (folder / name).exists()] == []
    assert not (folder / "cache").exists()
    assert not list(folder.glob("checkpoint_*")) and not list(folder.glob(".*.part"))
    for name in folder.glob("*.mrc"):
        with mrcfile.open(name) as mrc:
            assert abs(float(mrc.voxel_size.x) - 8.0) < 1e-3


def test_status_of_a_job_that_is_done(refined: Refined) -> None:
    folder, done = refined
    status = status_of(folder)
    assert status is not None and (status.state, status.reason, status.job) == ("done", "", "refine")
    assert status.progress is not None and tuple(status.finished) == status.progress.planned
    assert {"loss", "gain_nats", "rigid_A", "flex_A"} <= set(status.figures)
    assert all(f"{stage}: done in" in done.stdout for stage in status.finished)


def test_finds_the_motion(refined: Refined) -> None:
    folder, _ = refined
    truth = np.load(folder.parents[1] / "truth/truth.npz")["latents"][:, 0]
    table = starfile.read(folder / "particles.star")["particles"]
    found = table["flexLatent1"].to_numpy()
    assert abs(spearmanr(found, truth).statistic) > 0.9
    # The stated uncertainty is honest: latents differ from the truth, on the latent's own scale, by about as much.
    slope, offset = np.polyfit(truth, found, 1)
    error = (found - slope * truth - offset) / table["flexLatentStd1"].to_numpy()
    assert 0.5 < np.median(np.abs(error)) / 0.6745 < 3


def test_particles_keep_rows_order_and_columns(refined: Refined) -> None:
    folder, _ = refined
    before = starfile.read(folder.parents[1] / "Refine3D/job001/run_data.star")
    after = starfile.read(folder / "particles.star")
    assert list(before) == list(after)
    assert before["optics"].equals(after["optics"])
    kept = after["particles"][before["particles"].columns]
    assert before["particles"].equals(kept)


def test_motion_sharpens_the_map(refined: Refined) -> None:
    folder, _ = refined
    curves = starfile.read(folder / "fsc.star")
    text = (folder / "fsc.star").read_text()
    assert "data_" in text and curves
    stages = json.loads((folder / "manifest.json").read_text())["stages"]
    assert set(stages) == {"mesh", "prep", "train", "validate", "rigid", "flex", "resolution", "gain", "report"}
    assert all(stage["seconds"] > 0 and stage["peak_MiB"] < 2048 for stage in stages.values())
    assert stages["rigid"]["results"]["converged"] and stages["flex"]["results"]["converged"]


def test_a_second_call_does_nothing_again(refined: Refined) -> None:
    folder, _ = refined
    stages = json.loads((folder / "manifest.json").read_text())["stages"]
    again = run_job(folder.parents[1], "External/job010/")
    assert again.returncode == 0, again.stderr
    assert json.loads((folder / "manifest.json").read_text())["stages"] == stages
    assert "epoch" not in again.stdout and "iteration" not in again.stdout


def test_no_motion_in_no_motion_out(still: Path) -> None:
    done = run_job(still, "External/job010/", report=False)
    assert done.returncode == 0, done.stderr
    folder = still / "External/job010"
    motion = motion_amplitude(FlexModel.load(folder / "flex_model.pt"))
    assert motion.mean_A < 8.0 / 4
    assert _mean_fsc(folder, "flex") > _mean_fsc(folder, "rigid") - 0.01


def test_pure_noise_gives_no_agreement_beyond_rigid(noise: Path) -> None:
    done = run_job(noise, "External/job010/", "--contrast", "keep", report=False)
    assert done.returncode == 0, done.stderr
    folder = noise / "External/job010"
    assert _mean_fsc(folder, "flex") < _mean_fsc(folder, "rigid") + 0.05


def _mean_fsc(folder: Path, kind: str) -> float:
    from flex_job.fsc import fsc

    halves = [mrcfile.read(folder / f"{kind}_half{half}_class001_unfil.mrc") for half in (1, 2)]
    return float(fsc(*halves)[1:].mean())
