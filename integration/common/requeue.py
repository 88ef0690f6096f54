"""Whether SLURM starts a job again after it was stopped, and asking it to. Standard library only.

A host that leaves word of a failure must not do so for a job that comes back, and has to for one that does not.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

__all__ = ["RESUMABLE", "SELF_REQUEUE", "SavedWork", "comes_back"]

RESUMABLE = 75  # EX_TEMPFAIL of sysexits.h: exit code of a job whose work is saved, so that the same command goes on
SELF_REQUEUE = "FLEX_JOB_REQUEUE"  # "yes" in the environment: a job whose time runs out asks to be started again
NOT_SET = ("None", "N/A", "Unknown")
PATIENCE_S = 10.0

Scontrol = Callable[..., str | None]


def comes_back(
    out_of_time: bool,
    *,
    environment: Mapping[str, str] = os.environ,
    scontrol: Scontrol | None = None,
) -> bool:
    """Whether this job, now stopped with its work saved, will be started again; asks for it where that is in order.

    `out_of_time` says that its time was running out and some work was done in it: the budget is spent, or USR1 came.
    As SLURM 22.05 does it (tried):

    - on `scontrol requeue` and on preemption without grace it has counted the restart when TERM arrives;
    - in the grace time of a preemption it has not, and a job that ends then is over: it has to ask;
    - at a time limit it never requeues: a job asks if its script says so by FLEX_JOB_REQUEUE=yes;
    - when a user cancels, nothing is counted and nothing asked.

    Where SLURM does not answer, False: a job that says FAILURE can be continued by hand, one that says nothing would
    seem to run for ever.
    """
    call, job_id = scontrol or _scontrol, environment.get("SLURM_JOB_ID", "")
    if not job_id:
        return False
    shown = dict(entry.split("=", 1) for entry in (call("show", "job", "-o", job_id) or "").split() if "=" in entry)
    if shown.get("Requeue") != "1":
        return False
    if int(shown.get("Restarts", "0")) > int(environment.get("SLURM_RESTART_COUNT") or 0):
        return True
    preempted, started = shown.get("PreemptTime", "None"), shown.get("StartTime", "None")
    # one of an earlier start stays there; both are local times in ISO 8601, whose order is that of their texts
    in_grace = preempted not in NOT_SET and started not in NOT_SET and preempted >= started
    if in_grace or (out_of_time and environment.get(SELF_REQUEUE, "").lower() in ("yes", "1", "true")):
        return call("requeue", job_id) is not None
    return False


def _scontrol(*arguments: str) -> str | None:
    """What scontrol prints, None where it fails."""
    try:
        done = subprocess.run(["scontrol", *arguments], capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


class SavedWork:
    """What a job directory held when the job started: has it saved anything since?

    A job that asks to be started again each time its time is up, and never gets as far as its next checkpoint, would
    do so for ever.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._before = self._marks()

    def has_grown(self) -> bool:
        """Whether a checkpoint was written, or a stage completed (those in the manifest have outputs)."""
        return self._marks() != self._before

    def _marks(self) -> set[tuple[str, int]]:
        marks = {(path.name, path.stat().st_mtime_ns) for path in self.folder.glob("checkpoint*")}
        try:
            stages = json.loads((self.folder / "manifest.json").read_text())["stages"].items()
        except (OSError, ValueError, KeyError, AttributeError):
            return marks
        return marks | {(name, 0) for name, stage in stages if "outputs" in stage}
