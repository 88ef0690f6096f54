"""RELION's own programs go on from what a finished job leaves."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import starfile

from flex_job.fourier import low_pass
from flex_job.fsc import fsc_masked
from flex_job.volume import read_volume

pytestmark = pytest.mark.relion
Refined = tuple[Path, subprocess.CompletedProcess[str]]


def test_postprocess_takes_the_half_maps(refined: Refined, run_relion: Callable[..., str]) -> None:
    folder, _ = refined
    project = folder.parents[1]
    (project / "PostProcess").mkdir(exist_ok=True)
    job = folder.relative_to(project)
    run_relion(
        "relion_postprocess", "--i", job / "flex_half1_class001_unfil.mrc", "--o", "PostProcess/postprocess",
        "--mask", job / "mask.mrc", cwd=project,
    )  # fmt: skip
    general = starfile.read(project / "PostProcess/postprocess.star")["general"]
    figures = general if isinstance(general, dict) else general.iloc[0].to_dict()
    assert 16 <= float(figures["rlnFinalResolution"]) < 40
    with mrcfile.open(project / "PostProcess/postprocess.mrc") as map:
        assert abs(float(map.voxel_size.x) - 8.0) < 1e-3


def test_reconstruct_from_our_particles_gives_the_consensus_back(
    refined: Refined, run_relion: Callable[..., str]
) -> None:
    folder, _ = refined
    project = folder.parents[1]
    star = (folder / "particles.star").relative_to(project)
    run_relion("relion_reconstruct", "--i", star, "--o", "reconstructed.mrc", "--ctf", cwd=project)
    ours, consensus = read_volume(project / "reconstructed.mrc"), read_volume(project / "truth/consensus.mrc")
    mask = read_volume(folder / "mask.mrc").data
    curve = fsc_masked(low_pass(ours, 1 / 18).data, consensus.data, mask)
    assert curve[1:9].min() > 0.95  # up to half of Nyquist, 32 A
    scrambled = fsc_masked(np.ascontiguousarray(ours.data[::-1]), consensus.data, mask)
    assert scrambled[1:9].min() < 0.9
