"""The job generate with atomic models, paths, half-maps and sizes: from a user's command to files, and bad input."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import gemmi
import mrcfile
import numpy as np
import pandas as pd
import pytest

from flex_job.manifest import Manifest
from integration.relion.job import run
from job_specs.jobs import JOBS

QUICK = {"latent_dims": "1", "epochs": "2", "tetra_cells": "6", "map_every": "0"}
PARTICLES = "Refine3D/job001/run_data.star"
QUIET = {"movie": "no"}


@pytest.fixture(autouse=True)
def in_project(small_project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(small_project)


@pytest.fixture(scope="module")
def trained(small_project: Path) -> str:
    """A train job, External/job241/, with two half-maps beside the model that are not alike."""
    folder = "External/job241/"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(small_project)
        quick = {name: value for name, value in QUICK.items() if name in JOBS["train"].declared()}
        assert run("train", {"o": folder, "in_parts": PARTICLES, **quick}) == 0
        consensus = mrcfile.read("Refine3D/job001/run_class001.mrc")
        for half in (1, 2):
            with mrcfile.new(f"{folder}flex_half{half}_class001_unfil.mrc", (2 * half * consensus)) as mrc:
                mrc.voxel_size = 10.0
    return folder


@pytest.fixture(scope="module")
def atoms(small_project: Path) -> str:
    """CA atoms on a line through the box's middle, 120 A in the frame of the map's file."""
    structure, chain = gemmi.Structure(), gemmi.Chain("A")
    for number in range(1, 8):
        residue, atom = gemmi.Residue(), gemmi.Atom()
        residue.name, residue.seqid = "ALA", gemmi.SeqId(number, " ")
        atom.name, atom.element, atom.pos = "CA", gemmi.Element("C"), gemmi.Position(108 + 3.8 * number, 120, 120)
        residue.add_atom(atom)
        chain.add_residue(residue)
    structure.add_model(gemmi.Model(1))
    structure[0].add_chain(chain)
    structure.write_pdb(str(small_project / "line.pdb"))
    return "line.pdb"


Generated = Callable[..., Path]


@pytest.fixture
def generated(trained: str) -> Generated:
    def go(number: int, expected: int = 0, **options: str) -> Path:
        folder = Path(f"External/job2{number:02d}")
        assert run("generate", {"o": f"{folder}/", "in_model": trained, **QUIET, **options}) == expected
        return folder

    return go


def places(path: Path, number: int = 0) -> np.ndarray:
    model = gemmi.read_structure(str(path))[number]
    return np.array([atom.pos.tolist() for chain in model for residue in chain for atom in residue])


def test_a_model_is_moved_into_every_frame_and_back(generated: Generated, atoms: str) -> None:
    folder = generated(42, frames="3", atomic_model=atoms, model_files="yes", rigid_residues="no")
    trajectory = gemmi.read_structure(str(folder / "frames.cif"))
    assert len(trajectory) == 3 and len(list(folder.glob("frame_*.cif"))) == 3
    first, last = places(folder / "frames.cif"), places(folder / "frames.cif", 2)
    assert np.abs(places(folder / "frame_002.cif") - last).max() < 2e-3
    assert not (folder / "canonical.cif").exists()
    assert np.abs(first - last).max() > 1e-3  # however little this model of two epochs moves
    # taken for a model that was built in the last frame, it goes back to where it came from
    shutil.copy(folder / "frame_002.cif", "built.cif")
    back = generated(43, frames="3", atomic_model="built.cif", model_frame="2", rigid_residues="no")
    assert np.abs(places(back / "canonical.cif") - places(Path(atoms))).max() < 5e-3  # files have three decimals
    assert np.abs(places(back / "frames.cif") - first).max() < 5e-3
    assert np.abs(places(back / "frames.cif", 2) - last).max() < 5e-3
    latents = pd.read_csv(folder / "latents.csv")["flexLatent1"]
    same = generated(44, frames="3", atomic_model="built.cif", model_latents=f"{latents[2]:.6g}", rigid_residues="no")
    assert np.abs(places(same / "canonical.cif") - places(back / "canonical.cif")).max() < 5e-3


def test_models_lie_where_the_consensus_maps_header_says(generated: Generated, trained: str, atoms: str) -> None:
    """An origin in the header of the map that was given to the model's job is that of the frames."""
    shutil.copytree(trained, "Moved", dirs_exist_ok=True)
    with mrcfile.new("moved.mrc", mrcfile.read("Refine3D/job001/run_class001.mrc"), overwrite=True) as mrc:
        mrc.voxel_size, mrc.header.origin = 10.0, (50.0, -30.0, 10.0)
    Manifest(Path("Moved")).describe(read={"particles": PARTICLES, "map": "moved.mrc"})
    structure = gemmi.read_structure(atoms)
    for atom in structure[0]["A"]:
        atom[0].pos += gemmi.Position(50, -30, 10)
    structure.write_pdb("moved.pdb")
    here = generated(45, frames="2", atomic_model=atoms)
    there = generated(46, frames="2", atomic_model="moved.pdb", in_model="Moved")
    assert np.abs(places(there / "frames.cif") - places(here / "frames.cif") - [50, -30, 10]).max() < 3e-3
    for folder, origin in ((here, [0, 0, 0]), (there, [50, -30, 10])):
        with mrcfile.open(folder / "frame_000.mrc") as mrc:
            assert mrc.header.origin.tolist() == pytest.approx(origin)


@pytest.mark.parametrize("path", ["clusters", "density", "particles"])
def test_other_paths(generated: Generated, trained: str, path: str) -> None:
    folder = generated(47, frames="4", path=path, path_clusters="3")
    table = pd.read_csv(folder / "latents.csv")
    assert len(table) == 4 == len(list(folder.glob("frame_*.mrc"))) and "supported" in table
    if path != "particles":
        assert (np.diff(table["flexLatent1"]) * np.sign(np.diff(table["flexLatent1"])[0]) > 0).all()


def test_a_file_of_latents_wins_over_the_path(generated: Generated) -> None:
    Path("two.csv").write_text("flexLatent1\n0.25\n-0.5\n")
    table = pd.read_csv(generated(47, latents="two.csv", path="density") / "latents.csv")
    assert table["flexLatent1"].tolist() == [0.25, -0.5]


def test_unsharpened_frames_are_of_the_half_maps_mean(generated: Generated) -> None:
    options = {"in_3dref": "Refine3D/job001/run_class001.mrc", "frames": "2"}
    sharp = mrcfile.read(generated(48, **options) / "frame_000.mrc").copy()
    mean = mrcfile.read(generated(49, frames="2", sharpened="no") / "frame_000.mrc")
    assert np.abs(mean - 3 * sharp).max() < 1e-4 * np.abs(mean).max()  # halves of two and four times the map


def test_the_box_and_the_script(generated: Generated) -> None:
    folder = generated(48, frames="2", frame_box="16", crop="yes")
    with mrcfile.open(folder / "frame_001.mrc") as mrc:
        assert mrc.data.shape[0] <= 16 and mrc.voxel_size.x == pytest.approx(15.0)
    assert "vseries play" in (folder / "series.cxc").read_text() and not list(folder.glob("series.gif"))


def test_every_problem_is_told_at_once(generated: Generated, capsys: pytest.CaptureFixture[str]) -> None:
    Path("noatoms.pdb").write_text("HEADER\nEND\n")
    generated(
        50, 1, atomic_model="noatoms.pdb", model_frame="99", model_latents="a,b", sharpened="no", frames="1",
        in_3dref="Refine3D/job001/run_class001.mrc",
    )  # fmt: skip
    told = capsys.readouterr().err
    assert "frames: 1 was given" in told
    assert "sharpened: no was given with the map" in told
    assert "model_frame and model_latents were both given; expected one of them" in told
    assert "model_latents: 'a,b' was given; expected 1 numbers separated by commas" in told
    assert not list(Path("External/job250").glob("frame_*"))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"atomic_model": "noatoms.pdb"}, r"atomic_model: noatoms.pdb: holds no atoms; expected an atomic model"),
        ({"atomic_model": "far.pdb"}, r"far.pdb: 0 % of its atoms lie in the map's box; they are at x 912 to"),
        ({"atomic_model": "gone.pdb"}, "atomic_model: gone.pdb was given"),
        ({"model_frame": "1"}, "model_frame given without atomic_model; expected the model that was built there"),
        ({"atomic_model": "line.pdb", "model_frame": "9", "frames": "3"}, "model_frame: 9 was given; expected 0 to 2"),
        ({"atomic_model": "line.pdb", "model_latents": "1e9"}, "model_latents: latents of up to 1e+09; expected at"),
        ({"atomic_model": "line.pdb", "model_latents": "0,0"}, "model_latents: '0,0' was given; expected 1 numbers"),
        ({"atomic_model": "External/job251/built.pdb"}, "built.pdb is in this job's own folder, whose files are writ"),
        ({"path": "straight"}, "path: 'straight' was given; expected one of latents, clusters, density, particles"),
        ({"sharpened": "no", "in_model": "Bare"}, "sharpened: no was given, and there is no Bare/flex_half1"),
    ],
)
def test_bad_input(
    generated: Generated,
    trained: str,
    atoms: str,
    capsys: pytest.CaptureFixture[str],
    options: dict[str, str],
    told: str,
) -> None:
    Path("noatoms.pdb").write_text("HEADER\nEND\n")
    structure = gemmi.read_structure(atoms)
    for atom in structure[0]["A"]:
        atom[0].pos += gemmi.Position(800, 0, 0)
    structure.write_pdb("far.pdb")
    Path("Bare").mkdir(exist_ok=True)
    Path("External/job251").mkdir(parents=True, exist_ok=True)
    shutil.copy(atoms, "External/job251/built.pdb")
    shutil.copy(f"{trained}flex_model.pt", "Bare")
    generated(51, 1, **options)
    assert told in capsys.readouterr().err
