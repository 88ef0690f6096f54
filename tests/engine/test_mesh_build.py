"""Building a mesh: weights from the density, zero motion, segments, imports, fallbacks, bad input, files, picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import flex_job.mesh.build as build
from flex_job.events import Events
from flex_job.mask import soft_mask
from flex_job.mesh import TetMesh, build_mesh, draw_mesh, locate, write_cryosparc_mesh
from flex_job.mesh.sampling import voxel_positions
from flex_job.mesh.weights import RIGID_WEIGHT
from flex_job.volume import Volume
from job_specs.parameters import MeshParameters

BOX, PIXEL_A = 40, 4.0
Z, Y, X = (np.indices((BOX, BOX, BOX)) - BOX // 2) * PIXEL_A
ROD = (np.abs(X) < 60) & (Y**2 + Z**2 < 16**2)
MASK = Volume(soft_mask(ROD, 1.5), PIXEL_A)
# Density falls along x.
MAP = Volume((ROD * (60.0 - X) / 120.0).astype(np.float32), PIXEL_A)
COARSE = MeshParameters(tetra_cells=16)


def parameters(**changes: object) -> MeshParameters:
    return MeshParameters(**({"tetra_cells": 16} | changes))  # type: ignore[arg-type]


def labels(*bounds: float) -> Volume:
    """Segments 1, 2, ... along x, cut at `bounds`."""
    return Volume((ROD * (1 + np.searchsorted(bounds, X.ravel()).reshape(X.shape))).astype(np.float32), PIXEL_A)


@pytest.fixture(scope="module")
def rod() -> TetMesh:
    return build_mesh(MAP, MASK, COARSE)


def middles(mesh: TetMesh) -> NDArray[np.float64]:
    return mesh.vertices_A[mesh.cells].mean(axis=1)


def test_rigidity_is_one_where_dense_and_the_minimum_where_empty(rod: TetMesh) -> None:
    assert rod.rigidity.dtype == np.float32
    assert rod.rigidity.max() == pytest.approx(1)
    assert 0.5 <= rod.rigidity.min() < 0.55
    x, y, z = middles(rod).T
    core = y**2 + z**2 < 10**2
    assert np.corrcoef(x[core & (np.abs(x) < 50)], rod.rigidity[core & (np.abs(x) < 50)])[0, 1] < -0.9


def test_stiff_low_density_turns_the_weights_round(rod: TetMesh) -> None:
    stiff = build_mesh(MAP, MASK, parameters(stiffen_low_density=True, rigidity_min=0.2))
    usual = build_mesh(MAP, MASK, parameters(rigidity_min=0.2))
    assert np.abs(stiff.rigidity + usual.rigidity - 1.2).max() < 1e-6
    assert np.array_equal(usual.cells, rod.cells)


def test_a_map_of_nothing_gives_the_minimum_everywhere() -> None:
    mesh = build_mesh(Volume(np.zeros_like(MAP.data), PIXEL_A), MASK, COARSE)
    assert np.all(mesh.rigidity == 0.5)


def test_zero_motion_holds_every_voxel_in_its_mask(rod: TetMesh) -> None:
    held = Volume((X > 20).astype(np.float32), PIXEL_A)
    mesh = build_mesh(MAP, MASK, COARSE, zero_motion=held)
    assert mesh.motion.min() == 0 and mesh.motion.max() == 1
    cell, weights = locate(mesh, voxel_positions(MASK.data > 0, PIXEL_A))
    factor = np.einsum("pk,pk->p", weights, mesh.motion[mesh.cells[cell]])
    x = X[MASK.data > 0]
    assert np.abs(factor[x > 36]).max() < 0.05
    assert factor[x < -10].min() > 0.99
    assert np.all(rod.motion == 1)


def test_zero_motion_away_from_the_mesh_is_told() -> None:
    told: list[str] = []
    build_mesh(MAP, MASK, COARSE, Volume((Y > 60).astype(np.float32), PIXEL_A), None, Events(message=told.append))
    assert any("zero-motion mask" in line for line in told)


def test_unfused_segments_share_no_vertex_and_move_alone() -> None:
    mesh = build_mesh(MAP, MASK, COARSE, segmentation=labels(0.0))
    assert set(mesh.segment) == {1, 2}
    ours, theirs = (np.unique(mesh.cells[mesh.segment == s]) for s in (1, 2))
    assert len(np.intersect1d(ours, theirs)) == 0
    # They lie against each other: vertices at the same place, one of each.
    assert len(np.unique(mesh.vertices_A, axis=0)) < len(mesh.vertices_A)
    move = np.zeros((len(mesh.vertices_A), 3))
    move[ours] = [5, 0, 0]
    cell, weights = locate(mesh, voxel_positions(MASK.data > 0, PIXEL_A))
    moved = np.einsum("pk,pkc->pc", weights, move[mesh.cells[cell]])[:, 0]
    assert np.all(np.isclose(moved, 0, atol=1e-4) | np.isclose(moved, 5, atol=1e-4))
    assert np.all(moved[X[MASK.data > 0] < -12] > 4)


def test_fused_segments_share_their_vertices(rod: TetMesh) -> None:
    mesh = build_mesh(MAP, MASK, parameters(fuse="2-1"), segmentation=labels(0.0))
    assert set(mesh.segment) == {1, 2}
    assert np.array_equal(mesh.cells, rod.cells)


def test_only_named_pairs_are_fused() -> None:
    mesh = build_mesh(MAP, MASK, parameters(fuse="1-2"), segmentation=labels(-20.0, 20.0))
    sets = {s: np.unique(mesh.cells[mesh.segment == s]) for s in (1, 2, 3)}
    assert len(np.intersect1d(sets[1], sets[2])) > 0
    assert len(np.intersect1d(sets[2], sets[3])) == 0


def test_rigid_segments_are_far_stiffer() -> None:
    mesh = build_mesh(MAP, MASK, parameters(fuse="1-2", rigid_segments="2"), segmentation=labels(0.0))
    assert np.all(mesh.rigidity[mesh.segment == 2] == RIGID_WEIGHT)
    assert mesh.rigidity[mesh.segment == 1].max() <= 1


def test_bad_input_is_told_all_at_once() -> None:
    wrong = Volume(np.ones((20, 20, 20), np.float32), PIXEL_A)
    with pytest.raises(ValueError) as caught:
        build_mesh(MAP, wrong, parameters(fuse="1-x", rigid_segments="a"), zero_motion=wrong)
    text = str(caught.value)
    for part in ("mask's box is 20 px", "more than 90 %", "zero-motion mask's box", '"1-x"', '"a"'):
        assert part in text


@pytest.mark.parametrize(
    ("changes", "segmentation", "says"),
    [
        ({"fuse": "1-2"}, None, "need a segmentation"),
        ({"fuse": "1-1"}, labels(0.0), "not a pair"),
        ({"rigid_segments": "7"}, labels(0.0), r"\[7\]"),
        ({}, Volume(0.5 * MASK.data, PIXEL_A), "whole numbers"),
        ({}, Volume(0 * MASK.data, PIXEL_A), "segmentation is empty"),
        ({"mesh": "/nowhere/mesh.npz"}, None, "no such file"),
        ({"mesh": "/nowhere/mesh.pkl"}, None, "no such file"),
    ],
)
def test_bad_segments_and_files_are_refused(changes: dict[str, str], segmentation: Volume | None, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        build_mesh(MAP, MASK, parameters(**changes), segmentation=segmentation)


def test_empty_mask_is_refused() -> None:
    with pytest.raises(ValueError, match="mask is empty"):
        build_mesh(MAP, Volume(np.zeros_like(MAP.data), PIXEL_A), COARSE)


def test_when_tetgen_fails_a_lattice_covers_the_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("self-intersections")

    told: list[str] = []
    monkeypatch.setattr(build, "fill_surface", refuse)
    mesh = build_mesh(MAP, MASK, COARSE, events=Events(message=told.append))
    assert any("self-intersections" in line for line in told) and any("lattice" in line for line in told)
    _, weights = locate(mesh, voxel_positions(MASK.data > 0, PIXEL_A))
    assert (weights.min(axis=1) < -1e-6).mean() < 0.01


def test_same_input_gives_the_same_mesh(rod: TetMesh) -> None:
    again = build_mesh(MAP, MASK, COARSE)
    assert np.array_equal(again.vertices_A, rod.vertices_A) and np.array_equal(again.cells, rod.cells)


def test_bad_cells_make_it_try_again(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(build, "MINIMUM_QUALITY", 0.99)
    mesh = build_mesh(MAP, MASK, COARSE, events=Events(message=told.append))
    assert any("below 0.99" in line for line in told)
    assert len(mesh.cells) > 0


def test_saved_mesh_comes_back_and_is_used(rod: TetMesh, tmp_path: Path) -> None:
    path = rod.save(tmp_path / "mesh.npz")
    again = TetMesh.load(path)
    for name in ("vertices_A", "cells", "rigidity", "motion", "segment"):
        first, second = getattr(rod, name), getattr(again, name)
        assert first.dtype == second.dtype and np.array_equal(first, second)
    assert [p.name for p in tmp_path.iterdir()] == ["mesh.npz"]
    used = build_mesh(MAP, MASK, parameters(mesh=str(path)), zero_motion=Volume((X > 20) * np.float32(1), PIXEL_A))
    assert np.array_equal(used.vertices_A, rod.vertices_A)
    assert used.motion.min() == 0


def test_cryosparc_mesh_is_used(rod: TetMesh, tmp_path: Path) -> None:
    path = write_cryosparc_mesh(rod, MASK, tmp_path / "mesh.pkl")
    used = build_mesh(MAP, MASK, parameters(mesh=str(path)))
    assert np.abs(used.vertices_A - rod.vertices_A).max() < 1e-9


def test_mesh_of_another_map_is_refused_or_told(rod: TetMesh, tmp_path: Path) -> None:
    def shifted(by_A: float) -> str:
        moved = TetMesh(rod.vertices_A + by_A, rod.cells, rod.rigidity, rod.motion, rod.segment)
        return str(moved.save(tmp_path / "moved.npz"))

    with pytest.raises(ValueError, match="covers only"):
        build_mesh(MAP, MASK, parameters(mesh=shifted(60.0)))
    told: list[str] = []
    build_mesh(MAP, MASK, parameters(mesh=shifted(9.0)), events=Events(message=told.append))
    assert any("WARNING" in line and "covers only" in line for line in told)


def test_unreadable_mesh_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "mesh.npz"
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match="not a mesh written by flex-job"):
        TetMesh.load(path)
    np.savez(path, schema=99)
    with pytest.raises(ValueError, match="schema 99"):
        TetMesh.load(path)


def test_a_mesh_that_is_none_is_refused(rod: TetMesh) -> None:
    turned = rod.cells[:, [1, 0, 2, 3]]
    with pytest.raises(ValueError, match="inverted"):
        TetMesh(rod.vertices_A, turned, rod.rigidity, rod.motion, rod.segment)
    with pytest.raises(ValueError, match="rigidity has shape"):
        TetMesh(rod.vertices_A, rod.cells, rod.rigidity[:-1], rod.motion, rod.segment)
    with pytest.raises(ValueError, match="cells name vertices"):
        TetMesh(rod.vertices_A[:10], rod.cells, rod.rigidity, rod.motion[:10], rod.segment)
    with pytest.raises(ValueError, match="expected"):
        TetMesh(rod.vertices_A, rod.cells[:, :3], rod.rigidity, rod.motion, rod.segment)


def test_picture_is_drawn(rod: TetMesh, tmp_path: Path) -> None:
    path = draw_mesh(rod, MAP, tmp_path / "mesh.png", MASK)
    pixels = np.asarray(Image.open(path).convert("RGB"))
    assert pixels.shape[0] > 500 and len(np.unique(pixels.reshape(-1, 3), axis=0)) > 1000
    segmented = build_mesh(MAP, MASK, COARSE, segmentation=labels(0.0))
    other = draw_mesh(segmented, MAP, tmp_path / "segments.png")
    assert not np.array_equal(np.asarray(Image.open(other).convert("RGB")), pixels)
