"""`flex-job status DIR`: how a job is, told from its directory by a process that has no part in it.

What is looked at: whether the folder's lock is held, RELION's exit files, `progress.json` and the stages of the
manifest. Nothing there is changed, and nothing heavy is imported.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from flex_job.lock import is_held
from flex_job.manifest import read_record
from flex_job.progress import Progress, duration
from integration.common.progress_file import process_start, read_progress

__all__ = ["EXIT_CODES", "Status", "status_of"]

EXIT_CODES = {"done": 0, "failed": 1, "running": 3, "stopped": 4, "stale": 5}  # 2 is click's: no such job
QUIET_S = 600.0  # where locks do not work and the machine is another one: a run that says nothing for so long is gone
SAME_END_S = 10.0  # between the exit file and progress.json of one end

SHOWN = ("loss", "band_A", "motion_A", "gain_nats", "rigid_A", "flex_A")

WORDS = {
    "done": "done",
    "failed": "failed",
    "running": "running",
    "stopped": "stopped, the same command goes on from there",
    "stale": "stale: its process is gone and left no word; the same command goes on from its last checkpoint",
}


@dataclass(frozen=True)
class Status:
    """A job as its directory tells. Times are seconds since 1970, `progress` the last look that the job gave,
    `finished` the seconds that each complete stage took, `figures` those of all stages as last told."""

    folder: str
    state: str
    reason: str = ""
    job: str = ""
    progress: Progress | None = None
    finished: Mapping[str, float] = field(default_factory=dict)
    figures: Mapping[str, float] = field(default_factory=dict)
    began: float | None = None
    updated: float | None = None
    pid: int | None = None
    host: str = ""

    def record(self) -> dict[str, Any]:
        """For a program."""
        return asdict(self) | {"exit_code": EXIT_CODES[self.state]}

    def lines(self, now: float) -> list[str]:
        """For a reader, at the time `now`."""
        told = [f"{self.folder}: {WORDS[self.state]}"]
        if self.reason:
            told.append(f"  why         {self.reason}")
        look = self.progress
        if look is not None and self.state != "done":
            place = f" ({look.place()})" if look.place() else ""
            told.append(f"  stage       {look.stage}{place}{', ' + look.step if look.step else ''}")
            left = self._left(now)
            part = ", ".join(
                text for text in (f"{look.percent()} of the stage" if look.percent() else "", left) if text
            )
            if part and not look.ended:
                told.append(f"  so far      {part}")
        shown = {name: value for name, value in self.figures.items() if name in SHOWN}
        if shown:
            told.append(f"  found       {', '.join(Progress('', figures=shown).told_figures())}")
        if self.finished:
            took = (f"{stage} {duration(seconds)}" for stage, seconds in self.finished.items())
            told.append(f"  finished    {', '.join(took)}")
        if self.began is not None and self.updated is not None:
            since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.began))
            told.append(f"  since       {since}, last word {duration(max(0.0, now - self.updated))} ago")
        if self.pid is not None:
            told.append(f"  process     {self.pid} on {self.host}")
        return told

    def _left(self, now: float) -> str:
        look = self.progress
        if look is None or look.left_s is None or self.state != "running" or self.updated is None:
            return ""
        left = max(0.0, look.left_s - (now - self.updated))
        return Progress(look.stage, at_least=look.at_least, left_s=left).time_left()


def status_of(folder: Path) -> Status | None:
    """The status of the job in `folder`; None where there is no job."""
    told, record = read_progress(folder), _manifest(folder)
    marks = list(folder.glob("RELION_JOB_EXIT_*"))
    held = is_held(folder)
    if not told and not record and not marks and not held:
        return None
    mark = marks[0].name.removeprefix("RELION_JOB_EXIT_") if marks else ""
    state = "running" if _is_alive(told, held, mark) else _ended(told, mark, marks)
    if state == "running" and told and _is_here(told) and not _has_process(told):
        told = {}  # of an earlier run: this one has only begun
    names = {each.name for each in fields(Progress)}
    progress = None
    if told.get("stage"):
        progress = Progress(**{name: value for name, value in told.items() if name in names})
        progress = Progress(**{**vars(progress), "planned": tuple(progress.planned)})
    stages = record.get("stages", {})
    same_run = state == told.get("state") or state == "stale"
    return Status(
        folder=str(folder),
        state=state,
        reason=told.get("reason", "") if same_run else "",
        job=told.get("job", ""),
        progress=progress,
        finished={name: stage["seconds"] for name, stage in stages.items() if "outputs" in stage},
        figures=_kept_figures(stages) | told.get("known", {}),
        began=told.get("began"),
        updated=told.get("updated"),
        pid=told.get("pid"),
        host=told.get("host", ""),
    )


def _is_alive(told: Mapping[str, Any], held: bool | None, mark: str) -> bool:
    if held:
        return True
    if mark or told.get("state") != "running":
        return False
    if _is_here(told):  # the lock may be let go a moment before the end, or may not work
        return _has_process(told)
    return held is None and time.time() - told["updated"] < QUIET_S


def _is_here(told: Mapping[str, Any]) -> bool:
    return bool(told["host"] == socket.gethostname())


def _has_process(told: Mapping[str, Any]) -> bool:
    return bool(0 < process_start(told["pid"]) == told["process_start"])


def _ended(told: Mapping[str, Any], mark: str, marks: list[Path]) -> str:
    said = told.get("state", "")
    if mark == "SUCCESS":
        return "done"
    if mark == "ABORTED":
        return "stopped"
    if mark == "FAILURE":  # also that of a job which was stopped and can go on
        together = said == "stopped" and abs(marks[0].stat().st_mtime - told["updated"]) < SAME_END_S
        return "stopped" if together else "failed"
    return said if said in ("done", "failed", "stopped") else "stale"


def _manifest(folder: Path) -> dict[str, Any]:
    for name in ("manifest.json", "manifest.previous.json"):
        record = read_record(folder / name)
        if record is not None:
            return record
    return {}


def _kept_figures(stages: Mapping[str, Any]) -> dict[str, float]:
    """Figures of complete stages, this run's or an earlier one's."""
    found: dict[str, Any] = {}
    results = {name: stage.get("results", {}) for name, stage in stages.items() if "outputs" in stage}
    found["gain_nats"] = (
        results.get("validate", {}).get("gain", {}).get("mean", results.get("gain", {}).get("mean_nats"))
    )
    for kind in ("rigid", "flex"):
        found[f"{kind}_A"] = results.get(kind, {}).get("resolution_A")
    return {name: value for name, value in found.items() if value is not None}
