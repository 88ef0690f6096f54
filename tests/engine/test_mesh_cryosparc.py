"""cryoSPARC's mesh pickle: round trip, any convention of coordinates, and nothing but arrays."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flex_job.mask import soft_mask
from flex_job.mesh import TetMesh, build_mesh, locate, read_cryosparc_mesh, write_cryosparc_mesh
from flex_job.mesh.sampling import voxel_positions
from flex_job.plain_pickle import load_plain_pickle
from flex_job.volume import Volume
from job_specs.parameters import MeshParameters

BOX, PIXEL_A = 32, 3.0


@pytest.fixture(scope="module")
def mask() -> Volume:
    z, y, x = np.indices((BOX, BOX, BOX)) - BOX // 2
    # No symmetry: axes and origins that are mixed up must show.
    binary = ((x - 2) ** 2 / 9**2 + (y + 3) ** 2 / 7**2 + z**2 / 5**2 < 1) | (
        ((x - 5) ** 2 + (z - 5) ** 2 < 9) & (abs(y) < 4)
    )
    return Volume(soft_mask(binary, 2), PIXEL_A)


@pytest.fixture(scope="module")
def mesh(mask: Volume) -> TetMesh:
    return build_mesh(mask, mask, MeshParameters(tetra_cells=16))


@pytest.fixture
def content(mesh: TetMesh, mask: Volume, tmp_path: Path) -> dict[str, Any]:
    plain = load_plain_pickle(write_cryosparc_mesh(mesh, mask, tmp_path / "mesh.pkl"), "a mesh")
    assert isinstance(plain, dict)
    return plain


def store(content: object, path: Path, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


def test_round_trip(mesh: TetMesh, mask: Volume, tmp_path: Path) -> None:
    path = write_cryosparc_mesh(mesh, mask, tmp_path / "mesh.pkl")
    again = read_cryosparc_mesh(path)
    assert np.abs(again.vertices_A - mesh.vertices_A).max() < 1e-9
    assert np.array_equal(again.cells, mesh.cells)
    assert np.array_equal(again.rigidity, mesh.rigidity)
    assert [p.name for p in tmp_path.iterdir()] == ["mesh.pkl"]


def test_exported_keys_and_voxels(mesh: TetMesh, mask: Volume, content: dict[str, Any]) -> None:
    assert set(content) == set(
        ["mask", "mask_soft", "N", "psize_A", "tm_points", "tm_cells", "tm_tetraidx_map", "tm_rweights", "version"]
    )
    assert content["N"] == BOX and content["psize_A"] == PIXEL_A and content["version"] == 1
    owner = content["tm_tetraidx_map"]
    assert np.array_equal(owner >= 0, mask.data > 0.001)
    cell, _ = locate(mesh, voxel_positions(owner >= 0, PIXEL_A))
    assert np.array_equal(owner[owner >= 0], cell)


@pytest.mark.parametrize("unit", [1.0, PIXEL_A])
@pytest.mark.parametrize("start", [0, BOX // 2])
@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0]])
def test_any_convention_of_points_is_found_from_the_voxel_map(
    unit: float, start: int, order: list[int], mesh: TetMesh, content: dict[str, Any], tmp_path: Path
) -> None:
    points = (mesh.vertices_A / PIXEL_A + BOX // 2 - start) * unit
    again = read_cryosparc_mesh(store(content | {"tm_points": points[:, order]}, tmp_path / "other.pkl"))
    assert np.abs(again.vertices_A - mesh.vertices_A).max() < 1e-9


def test_points_that_fit_no_convention_are_refused(mesh: TetMesh, content: dict[str, Any], tmp_path: Path) -> None:
    odd = content | {"tm_points": 1.7 * content["tm_points"][:, [1, 0, 2]]}
    with pytest.raises(ValueError, match="under no known convention"):
        read_cryosparc_mesh(store(odd, tmp_path / "odd.pkl"))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_pickle_protocol_is_read(protocol: int, content: dict[str, Any], tmp_path: Path) -> None:
    content = content | {"psize_A": np.float64(PIXEL_A), "N": np.int64(BOX)}
    assert len(read_cryosparc_mesh(store(content, tmp_path / "old.pkl", protocol)).cells) == len(content["tm_cells"])


class Attack:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def test_pickles_that_call_anything_are_refused_unrun(content: dict[str, Any], tmp_path: Path) -> None:
    trace = tmp_path / "ran"
    for attack in (
        Attack(os.system, f"touch {trace}"),
        Attack(eval, f"open({str(trace)!r}, 'w')"),
        Attack(getattr, "text", "upper"),
    ):
        with pytest.raises(ValueError, match=r"bad\.pkl.*refused"):
            read_cryosparc_mesh(store(content | {"mask": attack}, tmp_path / "bad.pkl"))
    assert not trace.exists()


def test_arrays_of_objects_are_refused(content: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="refused an array of object"):
        read_cryosparc_mesh(store(content | {"mask": np.array([{}], dtype=object)}, tmp_path / "bad.pkl"))
    with pytest.raises(ValueError, match="refused text"):
        load_plain_pickle(store(Attack(__import__("_codecs").encode, "x", "rot13"), tmp_path / "bad.pkl", 2), "text")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"tm_cells": np.array([[0, 1, 2, 10**6]])}, "not there"),
        ({"tm_tetraidx_map": np.zeros(5)}, "unusable entries"),
        ({"tm_tetraidx_map": np.full((BOX,) * 3, -1)}, "no voxel in any cell"),
        ({"tm_rweights": np.ones(3)}, "rigidity has shape"),
    ],
)
def test_broken_meshes_are_refused(change: dict[str, Any], says: str, content: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=says):
        read_cryosparc_mesh(store(content | change, tmp_path / "broken.pkl"))


def test_other_files_are_refused(content: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="tm_points, tm_cells.*missing"):
        read_cryosparc_mesh(store({"N": 3, "psize_A": 1.0}, tmp_path / "a.pkl"))
    with pytest.raises(ValueError, match="holds a list, expected an array or a dict"):
        read_cryosparc_mesh(store([1, 2], tmp_path / "a.pkl"))
    (tmp_path / "a.pkl").write_bytes(b"not a pickle")
    with pytest.raises(ValueError, match="not a pickle of plain arrays"):
        read_cryosparc_mesh(tmp_path / "a.pkl")
