"""The report: its files, what it says, and that it copes with what is missing."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from engine.report_data import BOX, PIXEL, blob, full_data, grid_A, molecule
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from flex_job.report import ReportData, motion_volume, write_report
from flex_job.report.panels import WIDTH_IN, Panel, missing_panels, report_panels
from flex_job.report.panels_latents import LEARNING
from flex_job.report.scene import build_scene, enclosing_level, motion_values, resampled
from flex_job.report.summary import duration, latent_sentences, mean_fsc, summarise
from flex_job.report.surface import isosurface, principal_view, render, sample_at, side_view
from flex_job.resolution import Resolution
from flex_job.train import HISTORY
from flex_job.volume import Volume


@pytest.fixture(autouse=True)
def small_pictures(monkeypatch):
    """Reports here are looked at by nobody."""
    monkeypatch.setattr("flex_job.report.pictures.WIDTH_PX", 80)
    monkeypatch.setattr("flex_job.report.html.DPI", 40)


def drawn(data: ReportData) -> list[Panel]:
    """The report's figures, each drawn once, at a size that is quick."""
    panels = report_panels(data, build_scene(data))
    for panel in panels:
        figure = Figure(figsize=(WIDTH_IN, panel.height_in), dpi=20)
        panel.draw(figure)
        FigureCanvasAgg(figure).draw()
    return panels


def pages_of(pdf: Path) -> int:
    text = pdf.read_bytes()
    assert text.startswith(b"%PDF-") and text.rstrip().endswith(b"%%EOF")
    return len(re.findall(rb"/Type /Page\b", text))


@pytest.mark.parametrize("latent_dims", [1, 3])
def test_files_are_complete_and_need_nothing_else(tmp_path, latent_dims):
    pdf, html = write_report(full_data(latent_dims), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["logfile.pdf", "report.html"]
    assert (pdf.name, html.name) == ("logfile.pdf", "report.html")
    assert 3 <= pages_of(pdf) <= 7
    page = html.read_text(encoding="utf-8")
    assert page.count("<img") == 13 == page.count("data:image/png;base64,")
    assert not re.search(r'(src|href)="(?!data:)', page) and "http" not in page and "@import" not in page
    assert "A test &amp; its &lt;molecule&gt;" in page and "<molecule>" not in page
    assert "train.latent_dims" in page and "Converged." in page and "contrast inverted" in page
    assert "Not in this report" not in page


def test_an_empty_report_says_what_is_missing(tmp_path):
    pdf, html = write_report(ReportData(title="nothing"), tmp_path)
    assert pages_of(pdf) >= 1
    page = html.read_text(encoding="utf-8")
    assert "not compared" in page and "Not in this report" in page and "Fourier shell correlation" in page
    assert "<img" not in page


@pytest.mark.parametrize(
    "absent",
    [
        ("mesh", "latent_std", "training_limit_A", "frame_latents"),
        ("mask", "motion_A", "flex_map", "stages"),
        ("rigid", "rigid_map", "latents", "particles"),
        ("consensus_map", "rigid_map", "flex_map"),
        ("consensus_map", "rigid_map", "flex_map", "motion_A", "frames", "frame_latents"),
    ],
)
def test_missing_parts_leave_their_figures_out(absent):
    nothing = ReportData(title="")
    data = replace(full_data(), **{name: getattr(nothing, name) for name in absent})
    panels = drawn(data)
    assert 2 <= len(panels) == 13 - len(missing_panels(panels))
    assert ("Mesh" in missing_panels(panels)) == ("mesh" in absent)
    assert summarise(data).badges[-1].sentence


def test_maps_on_different_grids_go_together():
    """Motion and mask on the training box, maps on the full one."""
    small, large = full_data(), full_data(box=40, pixel=3.2)
    data = replace(large, motion_A=small.motion_A, mask=small.mask)
    assert len(drawn(data)) == 13
    assert motion_values(data).mean() == pytest.approx(motion_values(small).mean(), rel=1e-6)
    other = replace(small, mask=large.mask)
    assert motion_values(other).mean() == pytest.approx(motion_values(small).mean(), rel=0.15)


def test_empty_maps_and_collapsed_latents_are_reported_all_the_same(tmp_path):
    flat = Volume(np.zeros((BOX,) * 3, np.float32), PIXEL)
    data = replace(full_data(), rigid_map=flat, flex_map=flat, frames=(), frame_latents=None)
    data = replace(data, latents=np.zeros((5, 1)), latent_std=np.zeros((5, 1)))
    pdf, _ = write_report(data, tmp_path)
    assert pages_of(pdf) >= 1


def test_problems_are_all_named_and_nothing_is_written(tmp_path):
    data = replace(
        full_data(),
        latents=np.zeros(5),
        flex_map=Volume(np.zeros((4, 5, 6), np.float32), 1.0),
        frame_latents=np.zeros(7),
    )
    with pytest.raises(ValueError, match=r"flex_map of shape .*latents of shape .*7 frame_latents for 3 frames"):
        write_report(data, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_failed_report_leaves_the_old_one(tmp_path, monkeypatch):
    import flex_job.report.pdf

    (tmp_path / "logfile.pdf").write_text("old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(flex_job.report.pdf, "_back", fail)
    with pytest.raises(OSError, match="disk full"):
        write_report(ReportData(title="x"), tmp_path)
    assert (tmp_path / "logfile.pdf").read_text() == "old"


def test_verdict_follows_the_curves():
    data = replace(full_data(), resolution=Resolution())
    better = summarise(data)
    assert better.outcome == "better" and "better with the motion" in better.badges[-1].sentence
    assert [row.outcome for row in better.rows] == ["better"] * 4
    worse = summarise(replace(data, rigid=data.flex, flex=data.rigid))
    assert worse.outcome == "worse" and "prefer the rigid map" in worse.badges[-1].sentence
    same = summarise(replace(data, flex=data.rigid))
    assert same.outcome == "same" and "no improvement" in same.badges[-1].sentence
    assert all(row.outcome == "same" for row in same.rows)
    assert summarise(ReportData(title="")).outcome == "unknown"


def test_a_gain_within_the_training_band_only_is_said_at_the_top():
    data = full_data()
    seen = data.flex.frequency_per_A <= 1 / 12.0
    corrected = np.where(seen, np.minimum(data.rigid.corrected + 0.05, 1), data.rigid.corrected)
    summary = summarise(replace(data, flex=replace(data.rigid, corrected=corrected)))
    assert summary.outcome == "better"
    assert "does not continue beyond" in summary.findings[len(data.findings)]
    own = replace(data, flex=replace(data.rigid, corrected=corrected), independent_halves=True)
    assert not any("not continue" in line for line in summarise(own).findings)
    assert not any("not continue" in line for line in summarise(data).findings)


def test_small_motion_is_called_negligible():
    data = full_data()
    still = Volume(np.full_like(data.motion_A.data, 0.3), PIXEL)
    assert "negligible" in summarise(replace(data, motion_A=still)).badges[-1].sentence
    assert "negligible" not in summarise(data).badges[-1].sentence
    stated = summarise(replace(data, motion_mean_A=7.7))
    assert ("Mean motion", "7.7 Å") in stated.facts and "7.7 Å on average" in stated.badges[-1].sentence


def test_curves_that_never_cross_or_never_agree():
    data = full_data()
    flat = np.ones_like(data.flex.corrected)
    perfect = replace(data.flex, corrected=flat)
    nothing = replace(data.flex, corrected=0 * flat)
    assert "Nyquist" in summarise(replace(data, flex=perfect)).rows[0].flex
    rows = summarise(replace(data, rigid=nothing)).rows
    assert rows[0].rigid == "none" and rows[0].outcome == "better"
    assert summarise(replace(data, flex=nothing)).rows[0].change == "lost"
    assert summarise(replace(data, rigid=nothing, flex=nothing)).rows[0].change == "neither map reaches it"
    assert mean_fsc(perfect) == pytest.approx(1.0)
    assert np.isnan(mean_fsc(perfect, beyond_A=1.0))


@pytest.mark.parametrize(("std", "words"), [(0.1, "can be placed"), (0.8, "only roughly"), (3.0, "means little")])
def test_latent_sentences_weigh_uncertainty_against_spread(std, words):
    latents = np.random.default_rng(1).normal(size=(500, 1))
    data = ReportData(title="", latents=latents, latent_std=np.full((500, 1), std))
    assert words in latent_sentences(data)[0]


def test_many_latents_do_not_flood_the_report():
    latents = np.random.default_rng(1).normal(size=(300, 16)) * np.linspace(0.1, 1.0, 16)
    data = ReportData(title="", latents=latents, latent_std=np.full((300, 16), 0.1))
    sentences = latent_sentences(data)
    assert len(sentences) == 5 and sentences[-1].startswith("12 more")
    assert "Latent 16" in sentences[3]
    assert len(drawn(data)) == 2


def test_every_curve_of_the_training_is_put_in_words():
    assert set(HISTORY) == set(LEARNING)


def test_durations_read_well():
    assert [duration(s) for s in (3.21, 41, 185, 7800)] == ["3.2 s", "41 s", "3 min 5 s", "2 h 10 min"]


def test_surface_of_a_gaussian_has_its_radius_and_place():
    centre, sigma = np.array([12.0, -8.0, 4.0]), 9.0
    volume = Volume(blob(centre, [sigma] * 3), PIXEL)
    surface = isosurface(volume, float(np.exp(-0.5 * (15.0 / sigma) ** 2)))
    spoke = surface.points_A - centre
    radius = np.linalg.norm(spoke, axis=1)
    assert np.abs(radius - 15.0).max() < 0.5
    outward = (surface.normals * spoke).sum(axis=1) / radius
    assert outward.min() > 0.9


def test_large_and_touching_maps_are_drawn_too():
    assert isosurface(Volume(np.zeros((8, 8, 8), np.float32), 1.0), 0.5) is None
    full = Volume(np.ones((150, 150, 150), np.float32), 1.0)
    surface = isosurface(full, 0.5)
    assert np.ptp(surface.points_A, axis=0) == pytest.approx([149, 149, 149], abs=3)


def test_dust_is_left_out():
    volume = Volume(molecule() + 0.9 * blob([-48, -48, -48], [2, 2, 2]), PIXEL)
    points = isosurface(volume, 0.4).points_A
    assert points.min() > -45
    assert isosurface(volume, 0.4, hide_dust=False).points_A.min() < -45


def test_picture_is_lit_from_the_front_and_hides_what_lies_behind():
    near, far = np.array([0.0, 0.0, 20.0]), np.array([10.0, 0.0, -20.0])
    surface = isosurface(Volume(blob(near, [6] * 3) + blob(far, [6] * 3), PIXEL), 0.4)
    colour = np.where(surface.points_A[:, 2:] > 0, [1.0, 0.0, 0.0], [0.0, 0.0, 1.0])
    rgba, depth = render(surface, np.eye(3), colour, (60, 60), 120.0, np.zeros(3))
    middle = rgba[30, 30]
    assert middle[3] == 1 and middle[0] > 0.4 > middle[2]
    assert depth[30, 30] == pytest.approx(20 + 8, abs=2)
    assert rgba[0, 0, 3] == 0 and not np.isfinite(depth[0, 0])
    behind, _ = render(surface, np.diag([-1.0, 1.0, -1.0]), colour, (60, 60), 120.0, np.zeros(3))
    assert behind[30, 27, 2] > behind[30, 27, 0]


def test_views_are_rotations_that_show_the_longest_axis_across():
    surface = isosurface(Volume(blob([5, -3, 2], [6, 16, 9]), PIXEL), 0.4)
    view = principal_view(surface)
    for each in (view, side_view(view)):
        assert np.abs(each @ each.T - np.eye(3)).max() < 1e-9 and np.linalg.det(each) == pytest.approx(1)
    assert abs(view[0] @ [0, 1, 0]) > 0.99 and abs(view[2] @ [1, 0, 0]) > 0.99


def test_sampling_uses_xyz_and_fills_what_is_unknown():
    data = np.where(grid_A()[..., 0] > 40, np.nan, grid_A()[..., 0]).astype(np.float32)
    points = np.array([[8.0, 20.0, -12.0], [-10.0, 0.0, 4.0], [60.0, 0.0, 0.0]])
    assert sample_at(Volume(data, PIXEL), points) == pytest.approx([8.0, -10.0, 40.0], abs=1e-4)


def test_levels_enclose_one_volume_and_grids_are_exchanged():
    volume = Volume(molecule(), PIXEL)
    level = enclosing_level(volume, 20_000.0)
    assert (volume.data > level).sum() * PIXEL**3 == pytest.approx(20_000.0, rel=0.02)
    there = resampled(volume, 48, PIXEL / 1.5)
    assert np.abs(resampled(there, BOX, PIXEL).data - volume.data)[4:28, 4:28, 4:28].max() < 0.1
    assert resampled(volume, BOX, PIXEL) is volume


def test_motion_volume_places_the_voxels():
    volume = motion_volume(np.array([1.0, 2.0]), np.array([0, 5]), 4, 2.0)
    assert volume.data[0, 1, 1] == 2.0 and volume.data[0, 0, 0] == 1.0
    assert np.isfinite(volume.data).sum() == 2
