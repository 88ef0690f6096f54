"""Resolution beyond the half-maps' curves: the user's masks, the atomic model, the maps and files that are written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import starfile

from flex_job.fsc import compare_half_maps
from flex_job.half_maps import map_files
from flex_job.map_model import model_density, read_model
from flex_job.report import ReportData
from flex_job.report.summary import summarise
from flex_job.resolution import (
    KINDS,
    Resolution,
    locres_file,
    resolution_files,
    resolution_problems,
    write_fsc_xml,
    write_resolution,
)
from flex_job.simulation.atoms import ANTIBODY
from flex_job.volume import Volume, read_volume, write_volume
from integration.relion.write import write_fsc_star
from job_specs.parameters import ResolutionParameters

BOX, PIXEL = 36, 6.0


def ball(radius_A: float, centre_A=(0.0, 0.0, 0.0)) -> np.ndarray:
    axis = (np.arange(BOX) - BOX // 2) * PIXEL
    x, y, z = (axis - c for c in centre_A)
    distance = np.sqrt(z[:, None, None] ** 2 + y[None, :, None] ** 2 + x**2)
    return np.clip((radius_A - distance) / (2 * PIXEL) + 0.5, 0, 1).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Half-maps of an antibody in its own frame, flex with less noise than rigid, with a mask of one side of it."""
    folder: Path = tmp_path_factory.mktemp("resolution")
    (folder / "antibody.cif.gz").write_bytes(ANTIBODY.read_bytes())
    model = read_model(folder / "antibody.cif.gz")
    middle = np.array(model.calculate_center_of_mass().tolist())
    corner = tuple(middle - BOX // 2 * PIXEL)
    empty = Volume(np.zeros((BOX,) * 3, np.float32), PIXEL, corner)
    truth = model_density(model, empty, BOX)
    truth /= truth.std()
    rng = np.random.default_rng(4)
    for kind, noise in (("rigid", 2.0), ("flex", 0.7)):
        for name in map_files(kind)[:2]:
            write_volume(folder / name, truth + noise * rng.standard_normal(truth.shape), PIXEL)
    write_volume(folder / "side.mrc", ball(30, (20, 0, 0)), PIXEL)
    np.save(folder / "corner.npy", corner)
    return folder


MASK = Volume(ball(70), PIXEL)


def consensus_map(folder: Path) -> Volume:
    return Volume(np.zeros((BOX,) * 3, np.float32), PIXEL, tuple(np.load(folder / "corner.npy")))


def curves(folder: Path, kind: str, mask: np.ndarray):
    first, second = (read_volume(folder / name).data for name in map_files(kind)[:2])
    return compare_half_maps(first, second, mask, PIXEL)


def wanted(folder: Path) -> ResolutionParameters:
    return ResolutionParameters(fsc_masks=str(folder / "side.mrc"), model_fsc=str(folder / "antibody.cif.gz"))


@pytest.fixture(scope="module")
def found(folder: Path) -> Resolution:
    rigid, flex = (curves(folder, kind, MASK.data) for kind in KINDS)
    return write_resolution(folder, rigid, flex, MASK, consensus_map(folder), wanted(folder))


def test_masks_have_the_curves_of_the_half_maps_in_them(folder: Path, found: Resolution) -> None:
    (mask,) = found.masks
    expected = curves(folder, "flex", ball(30, (20, 0, 0)))
    assert np.abs(mask.flex.corrected - expected.corrected).max() < 1e-6
    assert mask.name == "side" and mask.flex.corrected[1:].mean() > mask.rigid.corrected[1:].mean() + 0.05


def test_model_is_compared_with_the_whole_maps(folder: Path, found: Resolution) -> None:
    assert found.model is not None
    assert found.model.flex[1:].mean() > found.model.rigid[1:].mean()
    assert found.model.flex[1:5].min() > 0.95
    rigid, flex = (curves(folder, kind, MASK.data) for kind in KINDS)
    away = Volume(MASK.data * 0, PIXEL, tuple(np.load(folder / "corner.npy") + 20))
    moved = write_resolution(folder, rigid, flex, MASK, away, replace(wanted(folder), locres_sampling=0.0))
    assert moved.model is not None and moved.model.flex[6:].max() < 0.7  # negative control: another frame


def test_local_resolution_is_written_and_finer_with_less_noise(folder: Path, found: Resolution) -> None:
    assert found.local is not None
    assert found.local["flex"]["median_A"] < found.local["rigid"]["median_A"]
    for kind in KINDS:
        volume = read_volume(folder / locres_file(kind))
        assert volume.pixel_size_A == pytest.approx(PIXEL)
        assert np.median(volume.data[MASK.data > 0.5]) == pytest.approx(found.local[kind]["median_A"], rel=1e-5)
    assert all((folder / name).exists() for name in resolution_files(wanted(folder)))


def test_record_brings_everything_back(found: Resolution) -> None:
    again = Resolution.of(json.loads(json.dumps(found.record())))
    assert again.model is not None and found.model is not None
    assert np.allclose(again.masks[0].rigid.corrected, found.masks[0].rigid.corrected, atol=1e-7)
    assert again.masks[0].flex.randomised_from == found.masks[0].flex.randomised_from
    assert np.allclose(again.model.flex, found.model.flex, atol=1e-7)
    assert again.local == found.local
    assert Resolution.of(Resolution().record()) == Resolution()


def test_fsc_star_has_a_table_for_each(folder: Path, found: Resolution, tmp_path: Path) -> None:
    rigid, flex = (curves(folder, kind, MASK.data) for kind in KINDS)
    tables = starfile.read(write_fsc_star(tmp_path / "fsc.star", rigid, flex, found), always_dict=True)
    assert list(tables) == ["general", "fsc", "masks", "fsc_mask_1", "model", "fsc_model", "local_resolution"]
    corrected = tables["fsc_mask_1"]["rlnFourierShellCorrelationCorrected"]
    assert np.allclose(corrected, found.masks[0].flex.corrected, atol=1e-6)
    assert tables["masks"]["flexMaskName"][0] == str(folder / "side.mrc")
    assert np.allclose(tables["fsc_model"]["flexRigidModelFourierShellCorrelation"], found.model.rigid, atol=1e-6)
    assert list(tables["local_resolution"]["flexMapName"]) == ["flex", "rigid"]


def test_table_of_the_report(folder: Path, found: Resolution) -> None:
    rigid, flex = (curves(folder, kind, MASK.data) for kind in KINDS)
    rows = summarise(ReportData(title="", rigid=rigid, flex=flex, resolution=found)).rows
    labels = [row.label for row in rows]
    assert "FSC 0.143 in side" in labels and any(label.startswith("Map-model FSC 0.5") for label in labels)
    assert "Local resolution, median in the mask" in labels
    assert len(rows) == len(summarise(ReportData(title="", rigid=rigid, flex=flex)).rows) + 3


def test_xml_for_a_deposition(folder: Path, tmp_path: Path) -> None:
    flex = curves(folder, "flex", MASK.data)
    root = ElementTree.parse(write_fsc_xml(tmp_path / "fsc.xml", flex, "a < b & c")).getroot()
    assert root.tag == "fsc" and set(root.attrib) == {"title", "xaxis", "yaxis"}
    assert root.attrib["title"] == "a < b & c"
    points = [(child.tag, [leaf.tag for leaf in child]) for child in root]
    assert points == [("coordinate", ["x", "y"])] * len(flex.corrected)
    x, y = (np.array([float(child.find(name).text) for child in root]) for name in "xy")
    assert np.allclose(x, flex.frequency_per_A, atol=1e-6) and (np.diff(x) > 0).all()
    assert np.allclose(y, flex.corrected, atol=1e-6) and np.abs(y).max() <= 1.0


def test_problems_of_all_files_are_told(folder: Path, tmp_path: Path) -> None:
    assert resolution_problems(wanted(folder), consensus_map(folder)) == []
    write_volume(tmp_path / "seven.mrc", np.full((BOX,) * 3, 7.0), PIXEL)
    write_volume(tmp_path / "empty.mrc", np.zeros((BOX,) * 3), PIXEL)
    write_volume(tmp_path / "small.mrc", np.ones((20,) * 3), PIXEL)
    names = ("seven.mrc", "empty.mrc", "small.mrc", "none.mrc")
    bad = replace(wanted(folder), fsc_masks=", ".join(str(tmp_path / name) for name in names))
    far = Volume(MASK.data, PIXEL, (900.0, 0.0, 0.0))
    told = resolution_problems(bad, far)
    assert len(told) == 5
    for text, line in zip(("run from 7", "is empty", "expected 216.0 A", "no such file", "atoms"), told, strict=True):
        assert text in line, line
    assert len(resolution_problems(bad, None)) == 3  # what can be said without a map
