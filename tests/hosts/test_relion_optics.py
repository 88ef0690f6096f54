"""Particles of two optics groups that differ in pixel size, box and extent: one map from both, and the STAR file kept.

RELION itself scales such groups apart by the square of their extents, so the truth is what the maps are held against.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import starfile
from numpy.typing import NDArray

from flex_job.consensus import Consensus, OpticsGroup
from flex_job.events import Events
from flex_job.fsc import fsc_masked
from flex_job.prep import prepare, restore
from flex_job.reconstruct import reconstruct
from flex_job.volume import Volume, read_volume
from integration.relion.job import run
from integration.relion.read import read_consensus
from integration.relion.simulate import simulate_project
from job_specs.parameters import PrepParameters, ReconstructParameters

BOX, PIXEL = 32, 8.0
GROUPS = (
    OpticsGroup("coarse", BOX, PIXEL, 300.0, 2.7, 0.1, beam_tilt_mrad=(3.0, -2.0)),
    OpticsGroup("fine", 48, 5.0, 200.0, 2.0, 0.07),
)
MOST = int(0.8 * BOX / 2)


def simulate(folder: Path, particles: int, **options: object) -> Path:
    simulate_project(folder, particles=particles, box=BOX, pixel_size_A=PIXEL, optics=GROUPS, seed=3, **options)  # type: ignore[arg-type]
    return folder / "Refine3D/job001/run_data.star"


@pytest.fixture(scope="module")
def star(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400 particles of a molecule that does not move."""
    return simulate(tmp_path_factory.mktemp("optics"), 400, motion="none", snr=2.0)


def map_of(consensus: Consensus, folder: Path) -> NDArray[np.float32]:
    """Mean of both half-maps, without motion."""
    assert consensus.mask is not None
    cache, record = folder / "cache.f16", folder / "prep.npz"
    prepare(consensus, consensus.mask, BOX, PrepParameters(contrast="keep"), cache, record, Events())
    stack, _ = restore(consensus, BOX, cache, record)
    support = Volume((consensus.mask.data > 0.01).astype(np.float32), PIXEL)
    first, second = reconstruct(stack, support, None, ReconstructParameters(max_iterations=4), Events()).maps
    return 0.5 * (first.data + second.data)


def test_each_group_alone_gives_the_map_on_one_scale(star: Path, tmp_path: Path) -> None:
    both = read_consensus(star)
    truth = read_volume(star.parents[2] / "truth/consensus.mrc").data
    assert both.mask is not None
    inside = both.mask.data > 0.5
    scales = {}
    for number, name in enumerate(("coarse", "fine")):
        found = map_of(both.select(np.flatnonzero(both.optics_index == number)), tmp_path)
        curve = fsc_masked(found, truth, both.mask.data)[1:MOST]
        assert curve.min() > 0.9, (name, curve)
        scales[name] = float((found * truth)[inside].sum() / (truth**2)[inside].sum())
    assert scales["fine"] == pytest.approx(scales["coarse"], rel=0.05), scales
    assert scales["fine"] == pytest.approx(1.0, abs=0.1), scales


def test_one_pixel_size_for_all_does_not_pass(star: Path, tmp_path: Path) -> None:
    """Negative control: the second group read as the first. (With the first beside it, its scales fall to nothing.)"""
    right = read_consensus(star)
    right = right.select(np.flatnonzero(right.optics_index == 1))
    assert right.mask is not None
    truth = read_volume(star.parents[2] / "truth/consensus.mrc").data
    wrong = replace(right, optics=tuple(replace(group, pixel_size_A=PIXEL) for group in right.optics))
    curve = fsc_masked(map_of(wrong, tmp_path), truth, right.mask.data)[1:MOST]
    assert curve.min() < 0.6, curve


def head(path: Path) -> bytes:
    """All of the file before its particles' labels: the optics table with what is around it."""
    return path.read_bytes().partition(b"_rlnImageName")[0]


def test_a_whole_job_gives_the_map_of_both_and_keeps_the_optics_table_byte_for_byte(
    star: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(star.parents[2])
    monkeypatch.setattr("flex_job.refine.Refinement.report", lambda *curves: ())  # seconds, and tested elsewhere
    # as RELION writes it: its own columns widths, comments, a table behind the particles
    odd = star.with_name("odd_data.star")
    odd.write_bytes(b"# kept\r\n" + star.read_bytes().replace(b"\tfine", b"\t  fine ") + b"\n# the end\n")
    options = {"o": "External/job010/", "in_parts": str(odd), "in_3dref": str(star.with_name("run_class001.mrc"))}
    quick = {"latent_dims": "1", "epochs": "1", "tetra_cells": "6", "max_iterations": "2", "training_box": "24"}
    assert run("refine", {**options, **quick}) == 0
    written = Path("External/job010/particles.star")
    assert head(written) == head(odd)
    assert written.read_bytes().endswith(b"\n# the end\n")
    before, after = starfile.read(odd), starfile.read(written)
    assert after["optics"].equals(before["optics"])
    assert after["particles"][before["particles"].columns].equals(before["particles"])
    maps = [read_volume(f"External/job010/rigid_half{half}_class001_unfil.mrc") for half in (1, 2)]
    assert [(map.box, map.pixel_size_A) for map in maps] == [(BOX, pytest.approx(PIXEL))] * 2
    truth, mask = (read_volume(path).data for path in ("truth/consensus.mrc", "External/job010/mask.mrc"))
    curve = fsc_masked(0.5 * (maps[0].data + maps[1].data), truth, mask)[1:MOST]
    assert curve.min() > 0.9, curve


@pytest.mark.science
def test_motion_is_found_in_both_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from scipy.stats import spearmanr

    star = simulate(tmp_path, 2000, motion="one_hinge", snr=0.2)
    monkeypatch.chdir(tmp_path)
    options = {"o": "External/job010/", "in_parts": str(star), "latent_dims": "1", "epochs": "6", "tetra_cells": "14"}
    assert run("refine", {**options, "threads": "2"}) == 0
    particles = starfile.read("External/job010/particles.star")["particles"]
    truth = np.load("truth/truth.npz")["latents"][:, 0]
    agreement = [
        abs(spearmanr(rows["flexLatent1"], truth[rows.index]).statistic)
        for _, rows in particles.groupby("rlnOpticsGroup")
    ]
    middle, mask = read_volume("truth/state_001.mrc").data, read_volume("External/job010/mask.mrc").data
    halves = [read_volume(f"External/job010/flex_half{half}_class001_unfil.mrc").data for half in (1, 2)]
    curve = fsc_masked(0.5 * (halves[0] + halves[1]), middle, mask)[1:MOST]
    print(f"latents, rank correlation with the truth per group: {agreement}; FSC {np.round(curve, 3).tolist()}")
    assert min(agreement) > 0.85
    # Beyond half of Nyquist the flexible map depends on how strong the signal is, with one optics group as with two:
    # that is no matter of optics, so it is not judged here.
    assert curve[: BOX // 4 - 1].min() > 0.97
