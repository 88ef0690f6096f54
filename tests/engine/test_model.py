"""The trained model's file: a round trip loses nothing, damage is told with the path, writing is atomic."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from flex_job.flow import FlowGenerator
from flex_job.mesh import TetMesh
from flex_job.model import FlexModel
from flex_job.volume import Volume

PIXEL_A = 2.5


@pytest.fixture
def model() -> FlexModel:
    rng = np.random.default_rng(0)
    vertices = np.concatenate([np.zeros((1, 3)), 10 * np.eye(3), [[10.0, 10, 10]]])
    mesh = TetMesh(
        vertices_A=vertices,
        cells=np.array([[0, 1, 2, 3], [1, 2, 3, 4]], np.int32),
        rigidity=np.array([0.5, 1.0], np.float32),
        motion=np.array([0, 1, 1, 1, 1], np.float32),
        segment=np.array([0, 1], np.int32),
    )
    torch.manual_seed(0)
    flow = FlowGenerator(2, 3, 8, torch.from_numpy(mesh.motion))
    torch.nn.init.normal_(flow.last.weight)
    covariance = np.eye(2, dtype=np.float32) * rng.uniform(0.1, 1, (6, 1, 1)).astype(np.float32)
    return FlexModel(
        mesh=mesh,
        flow=flow,
        latents=rng.normal(size=(6, 2)).astype(np.float32),
        covariance=covariance,
        map=Volume(rng.normal(size=(8, 8, 8)).astype(np.float32), PIXEL_A),
        support=Volume(rng.uniform(size=(8, 8, 8)).astype(np.float32), PIXEL_A),
        history=rng.normal(size=(4, 3)),
        history_names=("loss", "rigidity", "spread"),
    )


def test_round_trip_is_exact(model: FlexModel, tmp_path: Path) -> None:
    path = tmp_path / "flex_model.pt"
    assert model.save(path) == path
    again = FlexModel.load(path)
    for name in ("latents", "covariance", "history"):
        assert np.array_equal(getattr(again, name), getattr(model, name)), name
        assert getattr(again, name).dtype == getattr(model, name).dtype, name
    for name in ("map", "support"):
        assert np.array_equal(getattr(again, name).data, getattr(model, name).data)
        assert getattr(again, name).pixel_size_A == PIXEL_A
    for name in ("vertices_A", "cells", "rigidity", "motion", "segment"):
        assert np.array_equal(getattr(again.mesh, name), getattr(model.mesh, name)), name
    assert again.history_names == model.history_names
    z = np.random.default_rng(1).normal(size=(5, 2))
    assert np.array_equal(again.displacement(z), model.displacement(z))
    assert [path.name for path in tmp_path.iterdir()] == ["flex_model.pt"]


def test_held_vertices_do_not_move_and_others_do(model: FlexModel) -> None:
    u = model.displacement(np.random.default_rng(1).normal(size=(5, 2)))
    assert u.shape == (5, 5, 3) and not u[:, 0].any() and (np.abs(u[:, 1:]).max((0, 2)) > 0).all()


def test_latent_std_is_the_root_of_the_covariances_diagonal(model: FlexModel) -> None:
    assert model.latent_std == pytest.approx(np.sqrt(np.stack([np.diag(c) for c in model.covariance])))


def test_a_crash_while_writing_leaves_the_old_model_whole(
    model: FlexModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "flex_model.pt"
    model.save(path)
    before = path.read_bytes()

    def crash(*_: object) -> None:
        raise OSError("no more")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", crash)
        with pytest.raises(OSError, match="no more"):
            model.save(path)
    assert path.read_bytes() == before
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", crash)
        with pytest.raises(OSError, match="no more"):
            model.save(path)
    assert path.read_bytes() == before


def _truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _text(path: Path) -> None:
    path.write_text("data_particles\n")


def _another_file(path: Path) -> None:
    torch.save({"weights": torch.zeros(3)}, path)


def _a_list(path: Path) -> None:
    torch.save([1, 2], path)


def _newer(path: Path) -> None:
    torch.save({**torch.load(path, weights_only=True), "schema": 99}, path)


def _without_latents(path: Path) -> None:
    data = torch.load(path, weights_only=True)
    del data["latents"]
    torch.save(data, path)


def _other_flow(path: Path) -> None:
    torch.save({**torch.load(path, weights_only=True), "flow_shape": [3, 3, 8]}, path)


def _inverted_mesh(path: Path) -> None:
    data = torch.load(path, weights_only=True)
    data["mesh"]["cells"] = data["mesh"]["cells"].flip(1)[:, [1, 0, 3, 2]][:, [1, 0, 2, 3]]
    torch.save(data, path)


@pytest.mark.parametrize(
    "damage",
    [_truncated, _empty, _text, _another_file, _a_list, _newer, _without_latents, _other_flow, _inverted_mesh],
)
def test_a_damaged_model_is_refused_with_its_path(model: FlexModel, tmp_path: Path, damage) -> None:
    path = tmp_path / "flex_model.pt"
    model.save(path)
    damage(path)
    with pytest.raises(ValueError, match="flex_model.pt: not a trained model"):
        FlexModel.load(path)


def test_a_newer_schema_says_so(model: FlexModel, tmp_path: Path) -> None:
    path = model.save(tmp_path / "flex_model.pt")
    _newer(path)
    with pytest.raises(ValueError, match="schema 99; this version reads schema 1"):
        FlexModel.load(path)


def test_a_missing_model_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nothing\.pt: no such file; expected a trained model"):
        FlexModel.load(tmp_path / "nothing.pt")


class _Payload:
    def __reduce__(self):
        return print, ("executed",)


def test_code_in_a_file_is_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "flex_model.pt"
    torch.save({"schema": 1, "flow": _Payload()}, path)
    with pytest.raises(ValueError, match="not a trained model"):
        FlexModel.load(path)
    assert "executed" not in capsys.readouterr().out
