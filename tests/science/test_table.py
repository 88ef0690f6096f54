"""The scores, promises and tables of `make science`, on made-up records."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from science import run
from science.cases import CASES, Size, broken
from science.scores import agreement, latent_at, map_score, share, state_mask
from science.table import MARKS, put_between_marks, tables, write_tables

from flex_job.volume import Volume


def record(**changes: Any) -> dict[str, Any]:
    state = {"latents": [0.8], "rigid": 0.7, "flex": 0.85, "ceiling": 0.9, "share": 0.75}
    return {
        "case": "one_hinge", "particles": 3000, "auto": True, "threads": 2, "seconds": {"all": 90.0}, "peak_MiB": 800.0,
        "verdict": "supported", "gain": {"mean": 13.0, "low": 11.5, "high": 14.5}, "moved_A": 3.0, "moved_px": 0.75,
        "half_fsc": {"rigid": 0.80, "flex": 0.84}, "rank": 0.99, "explained": [0.98], "states": [state],
    } | changes  # fmt: skip


# -- promises ----------------------------------------------------------------------------------------------------


def test_a_promise_that_is_kept_says_nothing() -> None:
    assert not broken(
        {"verdict": "supported", "rank": 0.95, "explained": 0.9, "share": 0.5, "false_fsc": 0.05}, record()
    )


@pytest.mark.parametrize(
    "promised, changes",
    [
        ({"verdict": "supported"}, {"verdict": "undecided"}),
        ({"rank": 0.95}, {"rank": 0.94}),
        ({"rank": 0.95}, {"rank": float("nan")}),
        ({"explained": 0.85}, {"explained": [0.99, 0.4]}),
        ({"share": 0.8}, {}),
        ({"moved_px": 0.25}, {}),
        ({"loss": 0.01}, {"half_fsc": {"rigid": 0.8, "flex": 0.78}}),
        ({"false_fsc": 0.02}, {}),
    ],
)
def test_a_promise_that_is_broken_is_told(promised: dict[str, Any], changes: dict[str, Any]) -> None:
    assert len(broken(promised, record(**changes))) == 1


# -- scores ------------------------------------------------------------------------------------------------------


def test_a_share_is_nought_for_the_rigid_map_and_one_for_the_ceiling() -> None:
    assert share(0.7, 0.7, 0.9) == 0 and share(0.7, 0.9, 0.9) == 1
    assert np.isnan(share(0.9, 0.8, 0.9))


def test_agreement_does_not_depend_on_sign_and_frame_of_the_latents() -> None:
    rng = np.random.default_rng(0)
    true = rng.uniform(-1, 1, (400, 2))
    turned = true @ np.array([[0.6, 0.8], [-2.0, 1.5]]) + 3
    assert min(agreement(turned, true)["explained"]) == pytest.approx(1)
    one = agreement(-true[:, :1], true[:, :1])
    assert one["rank"] == pytest.approx(1)
    assert agreement(rng.normal(size=(400, 1)), true[:, :1])["rank"] < 0.2  # negative control
    assert agreement(true, np.zeros((400, 0))) == {}


def test_the_latent_of_a_state_follows_a_bent_relation() -> None:
    rng = np.random.default_rng(1)
    true = rng.uniform(-1, 1, (5000, 1))
    found = np.c_[true + 0.3 * true**3, true**2] + 0.1 * rng.normal(size=(5000, 2))
    expected = [0.8 + 0.3 * 0.8**3, 0.8**2]
    assert latent_at(found, true, np.array([0.8])) == pytest.approx(expected, abs=0.02)


def test_the_latent_of_a_discrete_state_is_the_mean_of_its_particles() -> None:
    true = np.array([[-1.0], [1], [1], [-1]])
    found = np.array([[2.0], [5], [7], [3]])
    assert latent_at(found, true, np.array([1.0])) == pytest.approx([6])
    assert latent_at(found, np.zeros((4, 0)), np.zeros(0)) == pytest.approx([4.25])


def test_the_score_is_one_for_the_truth_and_sees_neither_scale_nor_what_lies_outside_the_mask() -> None:
    rng = np.random.default_rng(2)
    z, y, x = np.indices((32, 32, 32)) - 16
    data = np.exp(-(x**2 + y**2 + (z / 2) ** 2) / 18).astype(np.float32)
    density = Volume(data, 4.0)
    mask = state_mask(density)
    assert mask[16, 16, 16] == 1 and mask[0, 0, 0] == 0
    outside = rng.normal(size=data.shape).astype(np.float32) * (mask == 0)
    assert map_score(3 * data + outside, density, mask) == pytest.approx(1, abs=1e-4)
    assert map_score(np.roll(data, 3, axis=2), density, mask) < 0.9  # negative control


# -- tables and files --------------------------------------------------------------------------------------------


def test_the_tables_hold_every_figure_and_nothing_of_cases_that_were_not_run() -> None:
    states = [{"latents": [0.8], "score": 0.61}]
    peers = {
        "cryodrgn": {"seconds": 600.0, "told": "6 epochs", "explained": [0.71], "states": states},
        "recovar": {"seconds": 30.0, "failed": "no wheel |\n for this machine"},
    }
    text = tables({"one_hinge": record(peers=peers), "noise": record(states=[], rank=0.01, verdict="not supported")})
    expected = ["rank 0.990", "0.75", "supported", "13.00 (11.50 to 14.50)", "0.850"]
    for figure in [*expected, "0.610", "0.710", "600", "failed: no wheel / for this machine"]:
        assert figure in text, figure
    assert "micelle" not in text and f"2 of {len(CASES)} cases" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.count("|") > 6 for line in rows)


def test_figures_go_between_the_marks_of_a_page() -> None:
    page = f"before\n{MARKS[0]}\nold\n{MARKS[1]}\nafter\n"
    once = put_between_marks(page, "new\n")
    assert "old" not in once and once.startswith("before\n") and once.endswith("\nafter\n")
    assert put_between_marks(once, "new\n") == once
    with pytest.raises(ValueError, match="marks"):
        put_between_marks("no marks", "new")


def test_a_case_that_is_done_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = []
    monkeypatch.setattr(
        run, "_run", lambda case, size, work: runs.append(case.name) or record(particles=size.particles)
    )
    size = replace(Size(), particles=10, peers=False, results=tmp_path)
    for _ in range(2):
        assert run.record_of(CASES[0], size)["rank"] == 0.99
    assert runs == ["one_hinge"]
    assert json.loads((tmp_path / "one_hinge.json").read_text())["particles"] == 10
    run.record_of(CASES[0], replace(size, particles=20))  # another size is another experiment
    assert runs == ["one_hinge"] * 2
    assert "rank 0.990" in write_tables(size).read_text()
