"""Which stopped jobs come back, by the answers of a real SLURM 22.05, and what they leave."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flex_job.distributed import Group
from flex_job.events import Events
from integration.common.requeue import RESUMABLE, SavedWork, comes_back
from integration.relion.job import run
from integration.relion.request import Request

STARTED = "StartTime=2026-11-22T17:20:00"
JOB = {"SLURM_JOB_ID": "7"}
AGAIN = {**JOB, "SLURM_RESTART_COUNT": "1"}
WANTED = {**JOB, "FLEX_JOB_REQUEUE": "yes"}


class Scheduler:
    """Stands in for scontrol."""

    def __init__(self, answer: str | None, grants: bool = True) -> None:
        self.answer, self.grants, self.requeued = answer, grants, False

    def __call__(self, what: str, *arguments: str) -> str | None:
        if what == "requeue":
            assert arguments == ("7",)
            self.requeued = True
            return "" if self.grants else None
        assert (what, *arguments) == ("show", "job", "-o", "7")
        return self.answer


@pytest.mark.parametrize(
    ("environment", "answer", "out_of_time", "back", "asked"),
    [
        ({}, f"JobState=RUNNING Requeue=1 Restarts=1 {STARTED}", True, False, False),
        # scontrol requeue, or preempted without grace: counted already
        (JOB, f"JobState=COMPLETING Reason=None Requeue=1 Restarts=1 {STARTED}", False, True, False),
        (AGAIN, f"JobState=COMPLETING Requeue=1 Restarts=2 {STARTED}", False, True, False),
        # preempted, in its grace time: a job that ends now is over, unless it asks
        (JOB, f"JobState=RUNNING Requeue=1 Restarts=0 {STARTED} PreemptTime=2026-11-22T17:21:43", False, True, True),
        # the preemption of an earlier start, now cancelled
        (AGAIN, f"Requeue=1 Restarts=1 {STARTED} PreemptTime=2026-11-21T23:11:43", False, False, False),
        # cancelled; a signal sent by hand
        (JOB, f"JobState=COMPLETING Requeue=1 Restarts=0 {STARTED} PreemptTime=None", False, False, False),
        (WANTED, f"JobState=RUNNING Requeue=1 Restarts=0 {STARTED} PreemptTime=None", False, False, False),
        (AGAIN, f"JobState=COMPLETING Requeue=1 Restarts=1 {STARTED}", False, False, False),
        # time runs out: only where the script wants it and SLURM may
        (WANTED, f"JobState=RUNNING Requeue=1 Restarts=0 {STARTED}", True, True, True),
        (JOB, f"JobState=RUNNING Requeue=1 Restarts=0 {STARTED}", True, False, False),
        (WANTED, f"JobState=RUNNING Requeue=0 Restarts=0 {STARTED}", True, False, False),
        (JOB, f"JobState=COMPLETING Requeue=0 Restarts=1 {STARTED}", False, False, False),
        (WANTED, "", True, False, False),
        (WANTED, None, True, False, False),
    ],
)  # fmt: skip
def test_who_comes_back(
    environment: dict[str, str], answer: str | None, out_of_time: bool, back: bool, asked: bool
) -> None:
    scheduler = Scheduler(answer)
    assert comes_back(out_of_time, environment=environment, scontrol=scheduler) is back
    assert scheduler.requeued is asked


def test_a_request_that_is_refused_brings_nothing_back() -> None:
    scheduler = Scheduler(f"JobState=RUNNING Requeue=1 Restarts=0 {STARTED}", grants=False)
    assert not comes_back(True, environment=WANTED, scontrol=scheduler)
    assert scheduler.requeued


def test_a_scheduler_that_does_not_answer_brings_nothing_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not comes_back(True, environment=WANTED)


def test_saved_work_is_a_checkpoint_or_a_stage_that_is_complete(tmp_path: Path) -> None:
    manifest = tmp_path / "manifest.json"
    manifest.write_text(json.dumps({"stages": {"mesh": {"outputs": {}}, "prep": {"settings": {}}}}))
    saved = SavedWork(tmp_path)
    (tmp_path / "run.out").write_text("words only")
    manifest.write_text(json.dumps({"stages": {"mesh": {"outputs": {}}, "prep": {"settings": {}}, "train": {}}}))
    assert not saved.has_grown()
    manifest.write_text(json.dumps({"stages": {"mesh": {"outputs": {}}, "prep": {"outputs": {}}}}))
    assert saved.has_grown()
    saved = SavedWork(tmp_path)
    assert not saved.has_grown()
    (tmp_path / "checkpoint_train.pt").touch()
    assert saved.has_grown()
    manifest.write_text("{")
    assert SavedWork(tmp_path).has_grown() is False


# -- a budget of hours -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("saves", "back"), [(True, True), (True, False), (False, True), (False, False)])
def test_a_job_whose_hours_are_used_up(
    saves: bool, back: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[bool] = []

    def work(request: Request, problems: list[str], events: Events, group: Group) -> None:
        if saves:
            (request.folder / "checkpoint_train.pt").touch()
        while True:
            group.check_stop(events)

    def comes_back_if_in_order(out_of_time: bool) -> bool:
        asked.append(out_of_time)
        return out_of_time and back

    monkeypatch.setattr("integration.relion.work.work", work)
    monkeypatch.setattr("integration.relion.job.comes_back", comes_back_if_in_order)
    options = {"o": str(tmp_path), "in_parts": __file__, "max_hours": str(0.2 / 3600)}
    assert run("refine", options) == RESUMABLE
    assert asked == [saves]
    left = [path.name for path in tmp_path.glob("RELION_JOB_EXIT_*")]
    shown = capsys.readouterr()
    if saves and back:
        assert left == [] and shown.err == ""
        assert "max_hours is used up; the scheduler starts this job again" in shown.out
    else:
        assert left == ["RELION_JOB_EXIT_FAILURE"]
        assert "max_hours is used up; press Continue to resume" in shown.err
        assert ("nothing could be saved" in shown.err) is not saves
