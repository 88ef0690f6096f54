"""`validate`, and what `refine` says of its motion; two independent motion models as a job."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import starfile

from flex_job.model import FlexModel
from flex_job.validation import Verdict
from flex_job.volume import read_volume
from integration.relion.job import run
from job_specs.jobs import JOBS

PARTICLES = "Refine3D/job001/run_data.star"
QUICK = {"latent_dims": "1", "epochs": "3", "tetra_cells": "6", "map_every": "2", "fixed_latent_epochs": "1"}


@pytest.fixture(autouse=True)
def in_project(small_project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(small_project)


def test_validate_gives_a_verdict_with_its_nulls(capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path("External/job600")
    options = {"o": f"{folder}/", "in_parts": PARTICLES, **QUICK, "nulls": "2", "sample": "100"}
    assert run("validate", options) == 0
    record = json.loads((folder / "validation.json").read_text())
    verdict = Verdict.of(record)
    assert verdict.verdict in ("supported", "not supported", "undecided")
    assert verdict.gain.particles == 20 and len(verdict.nulls) == 2
    assert record["unit"] == "nats per particle"
    told = capsys.readouterr().out
    assert str(verdict) in told and "simulation 2 of 2 without motion" in told
    assert {output.file for output in JOBS["validate"].outputs} <= {path.name for path in folder.iterdir()}
    assert not list(folder.glob("checkpoint_*")) and not (folder / "cache").exists()
    assert (folder / "RELION_JOB_EXIT_SUCCESS").exists()
    # The same again does nothing; other nulls do only these again.
    assert run("validate", {**options, "nulls": "1"}) == 0
    told = capsys.readouterr().out
    assert "epoch 1/" in told and "training goes on" not in told
    assert json.loads((folder / "validation.json").read_text())["gain"] == record["gain"]


def test_validate_needs_particles_that_are_kept_aside(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("validate", {"o": "External/job601/", "in_parts": PARTICLES, **QUICK, "held_out": "0"}) == 1
    assert "--held_out: 0; expected more" in capsys.readouterr().err


def test_refine_with_independent_halves(capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path("External/job602")
    options = {"o": f"{folder}/", "in_parts": PARTICLES, **QUICK, "independent_halves": "yes"}
    assert run("refine", options) == 0
    told = capsys.readouterr().out
    assert "both motion models start from the consensus map at" in told
    assert "Two motion models, each trained on one half-set" in told
    first, second = (FlexModel.load(folder / name) for name in ("flex_model.pt", "flex_model_half2.pt"))
    assert len(first.latents) == len(second.latents) == 120
    particles = starfile.read(folder / "particles.star")["particles"]
    np.testing.assert_allclose(particles["flexLatent1"], first.latents[:, 0], atol=1e-5)
    train = json.loads((folder / "manifest.json").read_text())["stages"]["train"]
    assert set(train["outputs"]) == {"flex_model.pt", "flex_model_half2.pt"}
    assert 0 < train["results"]["agreement"]["mean_error_A"] < 50
    assert "The motion is" in told
    error = read_volume(folder / "motion_error.mrc").data
    assert 0 < error[error > 0].mean() < 50
    # Half-maps of another job go through both models too: they are the same.
    assert run("reconstruct", {"o": "External/job603/", "in_model": f"{folder}/"}) == 0
    half = "flex_half2_class001_unfil.mrc"
    assert (folder / half).read_bytes()[1024:] == Path("External/job603", half).read_bytes()[1024:]


def test_refine_chooses_latents_and_rigidity(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flex_job.training_stage.FEWEST", 100)
    folder = Path("External/job604")
    options = {"o": f"{folder}/", "in_parts": PARTICLES, **QUICK, "latent_dims": "auto", "rigidity": "auto"}
    assert run("train", options) == 0
    told = capsys.readouterr().out
    choice = json.loads((folder / "manifest.json").read_text())["stages"]["choose"]["results"]
    dims, rigidity = choice["latent_dims"], choice["rigidity"]
    assert re.search(rf"chosen by held-out images: {dims} latents?, rigidity {rigidity:g}", told)
    assert told.count("nats per held-out particle") == len(choice["tried"]) >= 4
    latents = [
        name for name in starfile.read(folder / "particles.star")["particles"] if name.startswith("flexLatentStd")
    ]
    assert len(latents) == choice["latent_dims"]
    assert not list(folder.glob("checkpoint_*"))


def test_too_few_particles_choose_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    options = {"o": "External/job606/", "in_parts": PARTICLES, **QUICK, "rigidity": "auto"}
    assert run("train", options) == 0
    assert (
        "120 particles are too few to choose settings by (1000 are needed); the usual rigidity 4, band_end 0.8"
        in capsys.readouterr().out
    )
    assert "choose" not in json.loads(Path("External/job606/manifest.json").read_text())["stages"]


def test_latents_to_start_from_leave_no_choice() -> None:
    options = {"o": "External/job605/", "in_parts": PARTICLES, **QUICK, "latent_dims": "auto"}
    assert run("train", {**options, "latent_columns": "rlnOriginXAngst"}) == 0
    table = starfile.read("External/job605/particles.star")["particles"]
    assert [name for name in table if name.startswith("flexLatent")] == ["flexLatent1", "flexLatentStd1"]
