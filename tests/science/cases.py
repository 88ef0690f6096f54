"""What `make science` runs: simulated data with known truth, and what is promised of each."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["CASES", "Case", "Size", "broken"]

ROOT = Path(__file__).resolve().parents[2]
Record = Mapping[str, Any]


@dataclass(frozen=True)
class Size:
    """How much is run, from the environment: SCIENCE_PARTICLES of each case, SCIENCE_AUTO (yes: the data choose the
    settings, no: the usual ones, three times as fast), SCIENCE_PEERS (yes or no) and how many
    SCIENCE_PEER_MINUTES each gets, SCIENCE_RESULTS, the folder where cases that are done are found again."""

    particles: int = int(os.environ.get("SCIENCE_PARTICLES", "2000"))
    auto: bool = os.environ.get("SCIENCE_AUTO", "yes") != "no"
    peers: bool = os.environ.get("SCIENCE_PEERS", "yes") != "no"
    peer_minutes: float = float(os.environ.get("SCIENCE_PEER_MINUTES", "10"))
    results: Path = Path(os.environ.get("SCIENCE_RESULTS", ROOT / "build/science"))
    threads: int = len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class Case:
    """A simulated data set. `simulate` goes to `simulate_project`, `flags` to the job. `states` are numbers of the
    simulation's states that maps are scored at (all when empty). `promised` is what must come out: see `broken`."""

    name: str
    title: str
    latent_dims: int = 1
    snr: float = 0.1
    pose_error_deg: float = 0.0
    simulate: Mapping[str, Any] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    states: tuple[int, ...] = ()
    promised: Mapping[str, Any] = field(default_factory=dict)
    peers: bool = False

    def simulation(self, particles: int) -> dict[str, Any]:
        """Keywords of `simulate_project`."""
        grid = {"box": 64, "pixel_size_A": 4.0, "seed": 0}
        return grid | {"particles": particles, "snr": self.snr, "pose_error_deg": self.pose_error_deg} | self.simulate


ONE = {"motion": "one_hinge"}
REAL = {"verdict": "supported"}
NOTHING = {"verdict": "not supported"}

CASES = (
    Case("one_hinge", "one hinge", simulate=ONE, promised=REAL | {"rank": 0.95, "share": 0.5}, peers=True),
    Case("one_hinge_snr03", "one hinge", snr=0.03, simulate=ONE, promised=REAL | {"rank": 0.9}),
    Case("one_hinge_snr01", "one hinge", snr=0.01, simulate=ONE),
    Case("one_hinge_pose1", "one hinge", pose_error_deg=1.0, simulate=ONE, promised=REAL | {"rank": 0.95}),
    Case("one_hinge_pose3", "one hinge", pose_error_deg=3.0, simulate=ONE, promised=REAL),
    Case("one_hinge_pose1_snr03", "one hinge", snr=0.03, pose_error_deg=1.0, simulate=ONE, promised=REAL),
    Case(
        "two_arms", "two arms", latent_dims=2, simulate={"motion": "two_hinges"}, states=(0, 2, 4),
        promised=REAL | {"explained": 0.85},
    ),
    Case(
        "large_complex", "large complex, two domains", latent_dims=2, states=(0, 2, 4),
        simulate={"motion": "two_domains", "pixel_size_A": 6.0}, promised=REAL,
    ),
    Case("micelle", "one hinge in a micelle", simulate=ONE | {"micelle": True}, promised=REAL | {"rank": 0.95}),
    Case("two_states", "two states, none between", simulate=ONE | {"two_states": True}, promised=REAL),
    Case("none", "no motion", simulate={"motion": "none"}, promised=NOTHING | {"moved_px": 0.25, "loss": 0.01}),
    Case("none_pose2", "no motion", pose_error_deg=2.0, simulate={"motion": "none"}, promised=NOTHING),
    Case(
        "noise", "noise only", snr=0.0, simulate={"motion": "none"}, flags=("--contrast", "keep"),
        promised=NOTHING | {"false_fsc": 0.02},
    ),
)  # fmt: skip


def broken(promised: Record, record: Record) -> list[str]:
    """What of the promises a record does not keep, as sentences; empty when all is well.

    `rank` and `explained` (R^2 of the worst motion) and `share` (of the worst state) are least values; `moved_px` is
    the largest mean displacement, `loss` the most that the half-maps' mean FSC may fall below the rigid one's,
    `false_fsc` the most that it may rise above.
    """
    found = []

    def ask(name: str, value: float, least: float | None = None, most: float | None = None) -> None:
        if (least is not None and not value > least) or (most is not None and not value < most):
            limit = f"more than {least:g}" if least is not None else f"less than {most:g}"
            found.append(f"{name} is {value:.4g}; {limit} is promised")

    if "verdict" in promised and record["verdict"] != promised["verdict"]:
        found.append(f"the verdict is {record['verdict']!r}; {promised['verdict']!r} is promised")
    if "rank" in promised:
        ask("rank correlation", record["rank"], least=promised["rank"])
    if "explained" in promised:
        ask("R^2", min(record["explained"]), least=promised["explained"])
    if "share" in promised:
        ask("share of the ceiling", min(state["share"] for state in record["states"]), least=promised["share"])
    if "moved_px" in promised:
        ask("mean displacement (px)", record["moved_px"], most=promised["moved_px"])
    rise = record["half_fsc"]["flex"] - record["half_fsc"]["rigid"]
    if "loss" in promised:
        ask("loss of half-map FSC", -rise, most=promised["loss"])
    if "false_fsc" in promised:
        ask("gain of half-map FSC", rise, most=promised["false_fsc"])
    return found
