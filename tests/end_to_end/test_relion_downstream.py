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
from integration.relion.write import read_latents

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


def refine_options(job: Path, out: str) -> list[object]:
    """One iteration of relion_refine from the particles' own poses."""
    (job.parents[1] / out).mkdir(parents=True, exist_ok=True)
    return [
        "--i", job.relative_to(job.parents[1]) / "particles.star", "--o", f"{out}/run", "--iter", 1, "--skip_align",
        "--ref", "Refine3D/job001/run_class001.mrc", "--ini_high", 40, "--particle_diameter", 240, "--ctf",
        "--zero_mask", "--flatten_solvent", "--solvent_mask", "MaskCreate/job002/mask.mrc", "--norm", "--scale",
        "--pad", 1, "--dont_combine_weights_via_disc",
    ]  # fmt: skip


def kept(before: Path, after: Path) -> None:
    """RELION has every particle, half-set and latent as we wrote it, in a file that we can read again."""
    ours, theirs = (starfile.read(path)["particles"].set_index("rlnImageName") for path in (before, after))
    assert set(theirs.index) == set(ours.index)
    theirs = theirs.loc[ours.index]
    for name in ("rlnRandomSubset", "rlnOpticsGroup", "flexLatent1", "flexLatentStd1"):
        assert (theirs[name] == ours[name]).all(), name
    assert read_latents(after).shape == (len(ours), 1)


def test_refine_goes_on_from_our_particles(refined: Refined, run_relion: Callable[..., str]) -> None:
    folder, _ = refined
    project = folder.parents[1]
    said = run_relion("relion_refine", "--K", 1, *refine_options(folder, "Class3D/job030"), cwd=project)
    assert "Maximization" in said
    kept(folder / "particles.star", project / "Class3D/job030/run_it001_data.star")
    theirs, ours = project / "Class3D/job030/run_it001_class001.mrc", folder / "rigid_half1_class001_unfil.mrc"
    curve = fsc_masked(*(read_volume(path).data for path in (theirs, ours, folder / "mask.mrc")))
    assert curve[1:6].min() > 0.9


def test_gold_standard_refinement_keeps_our_half_sets(refined: Refined, run_relion: Callable[..., str]) -> None:
    folder, _ = refined
    project = folder.parents[1]
    mpi = ["--allow-run-as-root", "--oversubscribe", "-n", 3, "relion_refine_mpi", "--split_random_halves"]
    run_relion("mpirun", *mpi, *refine_options(folder, "Refine3D/job031"), cwd=project)
    kept(folder / "particles.star", project / "Refine3D/job031/run_it001_data.star")
    assert (project / "Refine3D/job031/run_it001_half2_class001.mrc").is_file()
