"""The ten lines of a notebook, run; run again; and with mistakes in them."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

from flex_job.problems import InputProblems
from integration.python import build_mesh, generate, prepare, read_consensus, reconstruct, train, validate

QUICK = {"latent_dims": 1, "rigidity": 4, "band_end": 0.8, "epochs": 4, "tetra_cells": 12, "threads": 1}


def test_ten_lines_do_the_whole_job_and_again_do_nothing(moving: Path, tmp_path: Path):
    before = os.getcwd()
    consensus = read_consensus(moving / "Refine3D/job001/run_data.star", mask=moving / "MaskCreate/job002/mask.mrc")
    run = prepare(consensus, tmp_path / "run", **QUICK)
    mesh = build_mesh(run)
    model = train(run)
    verdict = validate(run)
    rigid, flex = reconstruct(run)
    maps = generate(run, frames=3)
    assert os.getcwd() == before and len(mesh.cells) == len(model.mesh.cells)
    assert model.latents.shape == (len(consensus), 1) and verdict.verdict in ("supported", "not supported", "undecided")
    truth = np.load(moving / "truth/truth.npz")["latents"][:, 0]
    assert abs(np.corrcoef(model.latents[:, 0], truth)[0, 1]) > 0.8
    assert flex.fsc.corrected[1:].mean() > rigid.fsc.corrected[1:].mean()
    assert flex.combined.box == consensus.map.box == flex.halves[0].box and len(maps) == 3
    assert np.abs(maps[0].data - maps[2].data).max() > 0.1 * np.abs(maps[1].data).max()
    (at_zero,) = generate(run, np.zeros(1))
    assert np.corrcoef(at_zero.data.ravel(), maps[1].data.ravel())[0, 1] > 0.9
    del run
    began = time.monotonic()
    again = prepare(consensus, tmp_path / "run", **QUICK)
    assert np.array_equal(train(again).latents, model.latents)
    assert np.array_equal(reconstruct(again)[1].combined.data, flex.combined.data)
    assert time.monotonic() - began < 20


def test_mistakes_are_told_all_at_once(moving: Path, tmp_path: Path):
    consensus = read_consensus(moving / "Refine3D/job001/run_data.star", mask=moving / "MaskCreate/job002/mask.mrc")
    with pytest.raises(InputProblems) as told:
        prepare(consensus, tmp_path / "run", latent_dimensions=2, epochs=-1)
    assert "latent_dims" in str(told.value) and "epochs" in str(told.value)
    assert not (tmp_path / "run").exists()
    with pytest.raises(InputProblems, match="nowhere"):
        read_consensus(tmp_path / "nowhere.star")
    with pytest.raises(ValueError, match="held_out"):
        validate(prepare(consensus, tmp_path / "other", **QUICK | {"held_out": 0}))
