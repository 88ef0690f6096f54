"""Every job on a small simulated project, as RELION would call it, from files to files."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import mrcfile
import numpy as np
import pandas as pd
import pytest
import starfile

from integration.common.parameters import space_problem
from integration.relion.job import run
from integration.relion.request import read_request
from job_specs.jobs import JOBS

QUICK = {"latent_dims": "1", "epochs": "2", "tetra_cells": "6", "max_iterations": "3", "map_every": "0"}
PARTICLES = "Refine3D/job001/run_data.star"


@pytest.fixture(scope="module")
def project(small_project: Path) -> Path:
    return small_project


@pytest.fixture(autouse=True)
def in_project(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)


@pytest.fixture(scope="module")
def trained(project: Path) -> str:
    """A train job, External/job011/."""
    folder = "External/job011/"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        quick = {name: value for name, value in QUICK.items() if name in JOBS["train"].declared()}
        assert run("train", {"o": folder, "in_parts": PARTICLES, **quick}) == 0
    return folder


def files(folder: str) -> set[str]:
    return {path.name for path in Path(folder).iterdir()}


def test_train_leaves_model_mesh_and_latents(trained: str) -> None:
    expected = {output.file for output in JOBS["train"].outputs}
    assert expected <= files(trained)
    before, after = starfile.read(PARTICLES)["particles"], starfile.read(f"{trained}particles.star")["particles"]
    assert list(after.columns) == [*before.columns, "flexLatent1", "flexLatentStd1"]
    assert (after["rlnImageName"] == before["rlnImageName"]).all()
    assert json.loads(Path(trained, "manifest.json").read_text())["read"] == {"particles": PARTICLES}


def test_generate_one_frame_per_row(trained: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = "External/job012/"
    Path("points.csv").write_text("flexLatent1\n-1\n0\n1\n40\n")
    assert run("generate", {"o": folder, "in_model": trained, "latents": "points.csv"}) == 0
    assert {f"frame_00{number}.mrc" for number in range(4)} <= files(folder)
    table = pd.read_csv(Path(folder, "latents.csv"))
    assert table["frame"][1] == "frame_001.mrc" and table["flexLatent1"].tolist() == [-1, 0, 1, 40]
    assert (table["particles_near"][:3] > 1).all() and table["particles_near"][3] < 1e-3
    assert (table["displacement_std_A"] > 0).all() and table["supported"].tolist() == ["yes", "yes", "yes", "no"]
    told = capsys.readouterr().out
    assert "1 of 4 frames have no particle near and are extrapolated (frame_003.mrc)" in told
    # fewer rows the next time: no frame of the earlier run stays behind
    Path("points.csv").write_text("flexLatent1\n-1\n0.5\n")
    assert run("generate", {"o": folder, "in_parts": f"{trained}particles.star", "latents": "points.csv"}) == 0
    assert sorted(path.name for path in Path(folder).glob("frame_*.mrc")) == ["frame_000.mrc", "frame_001.mrc"]
    with mrcfile.open(f"{folder}frame_001.mrc") as mrc:
        assert mrc.data.shape == (24, 24, 24)
        assert mrc.voxel_size.x == pytest.approx(10.0)


def test_generate_paths_and_a_given_map(trained: str) -> None:
    folder = "External/job013/"
    options = {"o": folder, "in_model": f"{trained}flex_model.pt", "frames": "3"}
    assert run("generate", {**options, "in_3dref": "Refine3D/job001/run_class001.mrc"}) == 0
    assert len(list(Path(folder).glob("frame_*.mrc"))) == 3


def test_generate_tells_every_problem(trained: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("wide.csv").write_text("flexLatent1,flexLatent2\n0,0\n")
    options = {"o": "External/job014/", "in_model": trained}
    assert run("generate", {**options, "latents": "wide.csv", "in_3dref": PARTICLES, "frames": "1"}) == 1
    told = capsys.readouterr().err
    assert "frames: 1 was given" in told
    assert "2 latent columns; expected 1" in told
    assert "not an MRC volume" in told
    assert run("generate", {"o": "External/job014/", "in_model": "Refine3D"}) == 1
    assert "there is no flex_model.pt in it" in capsys.readouterr().err
    assert run("generate", {**options, "latents": "nothing.csv"}) == 1
    assert capsys.readouterr().err.count("nothing.csv") == 1
    Path("bad.pt").write_bytes(b"not a model")
    assert run("generate", {"o": "External/job014/", "in_model": "bad.pt"}) == 1
    assert "not a trained model" in capsys.readouterr().err


def test_generate_wants_a_map_of_the_models_extent(trained: str, capsys: pytest.CaptureFixture[str]) -> None:
    with mrcfile.new("small.mrc", np.zeros((24, 24, 24), dtype=np.float32), overwrite=True) as mrc:
        mrc.voxel_size = 5.0
    assert run("generate", {"o": "External/job015/", "in_model": trained, "in_3dref": "small.mrc"}) == 1
    assert "120.0 A across; expected 240.0 A" in capsys.readouterr().err


def test_reconstruct_with_the_model_of_another_job(trained: str) -> None:
    folder = "External/job016/"
    assert run("reconstruct", {"o": folder, "in_model": trained, "max_iterations": "3"}) == 0
    assert {output.file for output in JOBS["reconstruct"].outputs} <= files(folder)


def test_reconstruct_a_selection_with_its_own_latents(
    trained: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flex_job.refine.Refinement.report", lambda *curves: ())  # seconds, and tested elsewhere
    tables = starfile.read(f"{trained}particles.star")
    tables["particles"] = tables["particles"].iloc[10:90]
    Path("Select/job017").mkdir(parents=True, exist_ok=True)
    starfile.write(tables, "Select/job017/particles.star", overwrite=True)
    options = {"o": "External/job018/", "in_model": trained, "in_3dref": "Refine3D/job001/run_class001.mrc"}
    options |= {"max_iterations": "2"}
    assert run("reconstruct", {**options, "in_parts": "Select/job017/particles.star"}) == 0
    assert json.loads(Path("External/job018/manifest.json").read_text())["particles"] == 80
    # the same selection without latents cannot be matched with the model's
    tables["particles"] = tables["particles"].drop(columns=["flexLatent1", "flexLatentStd1"])
    starfile.write(tables, "Select/job017/bare.star", overwrite=True)
    options |= {"o": "External/job023/"}
    assert run("reconstruct", {**options, "in_parts": "Select/job017/bare.star"}) == 1
    assert "80 particles without flexLatent columns" in capsys.readouterr().err


def test_reconstruct_needs_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("reconstruct", {"o": "External/job019/", "in_parts": "nothing.star"}) == 1
    told = capsys.readouterr().err
    assert "--in_model was not given" in told
    assert "nothing.star: no such file" in told


def test_mesh_and_prep(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("mesh", {"o": "External/job020/", "in_parts": PARTICLES, "tetra_cells": "6"}) == 0
    assert {"mesh.npz", "mesh.png", "mask.mrc"} <= files("External/job020/")
    assert run("prep", {"o": "External/job021/", "in_parts": PARTICLES, "training_box": "16"}) == 0
    assert "120 particles of 16 px and 15.000 A" in capsys.readouterr().out


def test_a_job_that_relion_overwrites_begins_anew() -> None:
    """RELION empties the folder of a job that is overwritten, but leaves what is hidden."""
    options = {"o": "External/job022/", "in_parts": PARTICLES}
    options |= {"latent_dims": "1", "tetra_cells": "6"}
    assert run("train", {**options, "epochs": "2"}) == 0
    assert run("train", {**options, "epochs": "1"}) == 1  # not overwritten: it asks what to do
    subprocess.run("rm -rf External/job022/*", shell=True, check=True)
    assert run("train", {**options, "epochs": "1"}) == 0


def test_a_job_says_when_the_disk_is_too_small(monkeypatch: pytest.MonkeyPatch) -> None:
    request, problems = read_request("refine", {"o": "External", "in_parts": PARTICLES})
    assert problems == []
    Path("External").mkdir(exist_ok=True)
    assert space_problem(request.folder, request.parameters, 120, 24) is None
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=2**20))
    assert "MiB are needed" in str(space_problem(request.folder, request.parameters, 1_000_000, 256))
    elsewhere = replace(request.parameters.prep, scratch="Particles")
    request = replace(request, parameters=replace(request.parameters, prep=elsewhere))
    assert str(space_problem(request.folder, request.parameters, 1_000_000, 256)).startswith("Particles: ")
