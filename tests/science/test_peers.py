"""What is recorded of other methods: their scores, or in words why there are none. None of them is run."""

from __future__ import annotations

import pickle
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.against_cryodrgn import environment
from numpy.typing import NDArray
from science import peers
from science.cases import Size

from flex_job.volume import read_volume, write_volume

BOX = 24
SIZE = replace(Size(), peer_minutes=1.0)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """Two states of a blob, a hundred particles."""
    (tmp_path / "truth").mkdir()
    z, y, x = np.indices((BOX, BOX, BOX)) - BOX // 2
    for number, at in enumerate((-2, 2)):
        data = np.exp(-((x - at) ** 2 + y**2 + (z / 2) ** 2) / 8).astype(np.float32)
        write_volume(tmp_path / f"truth/state_{number:03d}.mrc", data, 4.0)
    latents = np.random.default_rng(0).uniform(-1, 1, (100, 1))
    np.savez(tmp_path / "truth/truth.npz", latents=latents)
    return tmp_path


def states(work: Path) -> peers.States:
    return [(work / f"truth/state_{number:03d}.mrc", np.array([at])) for number, at in enumerate((-1.0, 1.0))]


def true_maps(work: Path) -> list[NDArray[np.float32]]:
    return [read_volume(path).data for path, _ in states(work)]


def test_scores_are_recorded_and_a_failure_does_not_stop_the_next(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def good(work: Path, folder: Path, size: Size, dims: int) -> peers.Found:
        def maps_at(points: NDArray[np.float64]) -> list[NDArray[np.float32]]:
            asked.append(points)
            return true_maps(work)

        return 3 * np.load(work / "truth/truth.npz")["latents"] + 1, maps_at, "its defaults"

    def bad(work: Path, folder: Path, size: Size, dims: int) -> peers.Found:
        raise RuntimeError("no wheel\nfor this machine")

    monkeypatch.setattr(peers, "PEERS", {"bad": bad, "good": good})
    found = peers.peer_records(work, SIZE, 1, states(work))
    assert found["bad"]["failed"] == "no wheel for this machine" and found["bad"]["seconds"] >= 0
    assert found["good"]["told"] == "its defaults" and found["good"]["rank"] == pytest.approx(1)
    assert [state["score"] for state in found["good"]["states"]] == pytest.approx([1, 1], abs=1e-3)
    assert asked[0].ravel() == pytest.approx([-2, 4])  # where it puts the states


@pytest.mark.parametrize("change", ["mirrored", "magnified", "negative"])
def test_maps_in_another_frame_are_no_figures(work: Path, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    rng = np.random.default_rng(1)
    lumps = rng.normal(size=(BOX, BOX, BOX)).astype(np.float32)
    for path, _ in states(work):
        write_volume(path, read_volume(path).data * lumps, 4.0)
    changed: dict[str, Any] = {
        "mirrored": lambda map: map[::-1, :, :].copy(),
        "magnified": lambda map: map.repeat(2, 0).repeat(2, 1).repeat(2, 2)[12:36, 12:36, 12:36],
        "negative": lambda map: -map,
    }

    def run(work: Path, folder: Path, size: Size, dims: int) -> peers.Found:
        maps = [changed[change](map) for map in true_maps(work)]
        return np.load(work / "truth/truth.npz")["latents"], lambda points: maps, ""

    monkeypatch.setattr(peers, "PEERS", {"method": run})
    assert "another frame" in peers.peer_records(work, SIZE, 1, states(work))["method"]["failed"]


def test_an_epoch_that_was_cut_off_is_not_used(tmp_path: Path) -> None:
    assert peers._last_epoch(tmp_path)[0] == 0
    latents = np.random.default_rng(2).normal(size=(50, 2)).astype(np.float32)
    whole = pickle.dumps(latents)
    for epoch, content in ((9, whole), (10, whole), (11, whole[:-20]), (12, b"")):
        (tmp_path / f"z.{epoch}.pkl").write_bytes(content)
    last, found = peers._last_epoch(tmp_path)
    assert last == 10 and np.array_equal(found, latents)


def test_what_pip_says_is_told_where_a_method_cannot_be_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(command: list[Any], **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, int("pip" in command), stderr="ERROR: no\nmatching distribution")

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(RuntimeError, match=r"recovar==0.*: ERROR: no matching distribution"):
        environment(tmp_path, [], "recovar", (peers.RECOVAR,))


def test_an_environment_is_made_once(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/method").touch()
    assert environment(tmp_path, [], "method", ("nothing-of-that-name",)) == tmp_path / "bin"
