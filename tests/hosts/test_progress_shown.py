"""How a run is shown: a bar on a terminal, sparse plain lines elsewhere, progress.json; and what status makes of it."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from flex_job.lock import FolderLock, is_held
from flex_job.progress import Progress
from integration.common.progress import EVERY, Display, Sparse
from integration.common.progress_file import PROGRESS_FILE, ProgressFile, process_start, read_progress
from integration.local.status import EXIT_CODES, Status, status_of
from integration.local.status_command import status_command
from integration.relion.job import run

ROOT = Path(__file__).parents[2]


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        for module in ("progress", "progress_file"):
            monkeypatch.setattr(f"integration.common.{module}.time.monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


# -- lines -------------------------------------------------------------------------------------------------------------


def test_one_line_a_minute_for_each_stage_and_its_end(clock: Clock) -> None:
    sparse, told = Sparse(60.0), []
    for second in range(600):
        clock.now = 1000.0 + second
        for stage in ("one", "two"):
            if sparse.wants(Progress(stage, "step", second / 600, landmark=second % 7 == 0)):
                told.append((stage, second))
    seconds = [second for stage, second in told if stage == "one"]
    assert seconds == [second for stage, second in told if stage == "two"]
    assert 9 <= len(seconds) <= 10 and seconds[0] <= 14 and min(np.diff(seconds)) >= 60
    assert sparse.wants(Progress("one", part=1.0, ended=True))


def test_a_short_stage_is_one_line_and_no_wait_shows_every_step(clock: Clock) -> None:
    usual, eager = Sparse(60.0), Sparse(0.0)
    looks = [Progress("mesh"), Progress("mesh", "step 1", landmark=True), Progress("mesh", "half of step 2")]
    assert [usual.wants(look) for look in looks] == [False] * 3
    assert [eager.wants(look) for look in looks] == [False, True, False]
    assert usual.wants(Progress("mesh", ended=True))


@pytest.mark.parametrize("given, expected", [("5", 5.0), ("", 60.0), ("often", 60.0), ("-3", 0.0)])
def test_the_interval_is_the_environments(given: str, expected: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(EVERY, given)
    assert Sparse().every_s == expected


PROGRAM = """
import sys, time; from pathlib import Path
from flex_job.events import Events
from integration.common.progress import Display
with Display(Path(sys.argv[1]), "refine", lambda line: print(line, flush=True)) as display:
    display.begin()
    events = Events(display.say, show=display.show)
    with events.stage("train"):
        for step in range(40):
            events.progress(step / 40, f"epoch {step} of 40", loss=0.5)
            time.sleep(0.01)
            if step == 20:
                events.message("a line of its own")
"""


def on_a_terminal(folder: Path) -> str:
    """What the program writes to a terminal."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 120))
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(folder)], stdout=theirs, cwd=ROOT, env=os.environ | {"TERM": "xterm"}
    )
    os.close(theirs)
    seen = b""
    while select.select([ours], [], [], 20)[0]:
        try:
            seen += os.read(ours, 4096)
        except OSError:
            break
    assert process.wait(timeout=20) == 0
    os.close(ours)
    return seen.decode()


def test_a_bar_on_a_terminal_and_lines_above_it(tmp_path: Path) -> None:
    seen = on_a_terminal(tmp_path)
    assert re.search(r"\rtrain \d+% \|.*\| \d+ s left, epoch \d+ of 40, loss 0.50000", seen)
    assert len(re.findall(r"\rtrain", seen)) > 3
    assert re.search(r"^\s*a line of its own\s*$", seen.replace("\r", "\n"), re.MULTILINE)
    assert re.search(r"train: done in \d+ s, loss 0.50000$", seen.rstrip())


def test_no_control_characters_where_there_is_no_terminal(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=True,
        env=os.environ | {EVERY: "60"},
    )  # fmt: skip
    assert re.fullmatch(r"a line of its own\ntrain: done in \d+ s, loss 0.50000\n", done.stdout) and not done.stderr


# -- progress.json -----------------------------------------------------------------------------------------------------


def test_the_file_is_written_now_and_then_and_at_each_change(tmp_path: Path, clock: Clock) -> None:
    file, stamps = ProgressFile(tmp_path, "refine"), []
    file.begin()
    for tenth in range(100):
        clock.now = 1000.0 + tenth / 10
        file.take(Progress("train", "step", tenth / 100, figures={"loss": 1.0 - tenth / 1000}))
        stamps.append(read_progress(tmp_path)["part"])
    assert len(set(stamps)) == 4  # of ten seconds
    file.take(Progress("train", part=1.0, ended=True))
    assert read_progress(tmp_path)["part"] == 1.0
    file.take(Progress("flex", "pass 1", 0.0))
    assert read_progress(tmp_path)["stage"] == "flex" and read_progress(tmp_path)["known"]["loss"] < 1
    assert [path.name for path in tmp_path.iterdir()] == [PROGRESS_FILE]


@pytest.mark.parametrize(
    "full", [lambda path: path.mkdir(), lambda path: path.with_name(".progress.json.part").mkdir()]
)
def test_a_file_that_cannot_be_written_ends_nothing(tmp_path: Path, full: Callable[[Path], None]) -> None:
    full(tmp_path / PROGRESS_FILE)
    with Display(tmp_path, "refine", lambda line: None) as display:
        display.begin()
        display.show(Progress("train", "epoch 1/2", 0.5, landmark=True))
    assert read_progress(tmp_path) == {}


def test_a_full_disk_ends_nothing_and_leaves_the_last_look_whole(tmp_path: Path) -> None:
    file = ProgressFile(tmp_path, "refine")
    file.begin()
    before = read_progress(tmp_path)
    file.path = Path("/dev/full/progress.json")
    file.take(Progress("train", "step", 0.5))
    (tmp_path / ".progress.json.part").symlink_to("/dev/full")  # ENOSPC at the first byte
    file.path = tmp_path / PROGRESS_FILE
    file.end("done")
    assert read_progress(tmp_path) == before


@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema": 99, "state": "running"}', "null"])
def test_a_damaged_file_is_no_file(tmp_path: Path, content: str) -> None:
    (tmp_path / PROGRESS_FILE).write_text(content)
    assert read_progress(tmp_path) == {} and status_of(tmp_path) is None


# -- status ------------------------------------------------------------------------------------------------------------


def asked(folder: Path, *more: str) -> tuple[int, str]:
    """Exit code and output of `flex-job status`."""
    done = CliRunner().invoke(status_command(), [str(folder), *more], standalone_mode=False)
    return (done.return_value, done.output) if done.exception is None else (2, str(done.exception))


def begun(folder: Path) -> ProgressFile:
    """As a run of this process leaves it in the middle."""
    file = ProgressFile(folder, "refine")
    file.begin()
    file.take(Progress("train", "epoch 3/12", 0.25, left_s=90.0, figures={"loss": 0.9}, planned=("mesh", "train")))
    return file


def test_no_job(tmp_path: Path) -> None:
    code, told = asked(tmp_path)
    assert code == 2 and "no job has run here" in told
    (tmp_path / ".lock").touch()  # that another look left
    assert status_of(tmp_path) is None


def test_running_is_told_by_the_lock(tmp_path: Path) -> None:
    begun(tmp_path)
    with FolderLock(tmp_path):
        code, told = asked(tmp_path)
    assert code == EXIT_CODES["running"] == 3
    assert f"{tmp_path}: running" in told and "train (stage 2 of 2), epoch 3/12" in told
    assert "25% of the stage, 90 s left" in told and "loss 0.9" in told and f"process     {os.getpid()} on" in told


def test_without_a_lock_running_is_told_by_the_process_itself(tmp_path: Path) -> None:
    begun(tmp_path)
    assert status_of(tmp_path).state == "running"  # type: ignore[union-attr]
    content = json.loads((tmp_path / PROGRESS_FILE).read_text())
    for change in ({"process_start": 1}, {"pid": 2**22 + 1}, {"host": "another"}):
        (tmp_path / PROGRESS_FILE).write_text(json.dumps(content | change))
        assert status_of(tmp_path).state == "stale", change  # type: ignore[union-attr]


def test_where_locks_do_not_work_another_machine_is_believed_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun(tmp_path)
    content = json.loads((tmp_path / PROGRESS_FILE).read_text()) | {"host": "another"}
    monkeypatch.setattr("integration.local.status.is_held", lambda folder: None)
    for age, state in ((60.0, "running"), (3600.0, "stale")):
        (tmp_path / PROGRESS_FILE).write_text(json.dumps(content | {"updated": time.time() - age}))
        assert status_of(tmp_path).state == state  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "said, mark, state",
    [
        ("done", "SUCCESS", "done"), ("done", "", "done"), ("failed", "FAILURE", "failed"), ("failed", "", "failed"),
        ("stopped", "FAILURE", "stopped"), ("stopped", "ABORTED", "stopped"), ("stopped", "", "stopped"),
        ("running", "FAILURE", "failed"), ("running", "SUCCESS", "done"),
    ],
)  # fmt: skip
def test_how_it_ended(tmp_path: Path, said: str, mark: str, state: str) -> None:
    file = begun(tmp_path)
    if said != "running":
        file.end(said, "the reason")
    if mark:
        (tmp_path / f"RELION_JOB_EXIT_{mark}").touch()
    code, told = asked(tmp_path)
    assert f"{tmp_path}: {state}" in told and code == EXIT_CODES[state]
    assert ("the reason" in told) == (said == state)
    record = json.loads(asked(tmp_path, "--json")[1])
    assert record["state"] == state and record["exit_code"] == code and record["progress"]["step"] == "epoch 3/12"
    with FolderLock(tmp_path):  # begun again, and not yet at work
        assert status_of(tmp_path).state == "running"  # type: ignore[union-attr]


def test_an_old_failure_after_a_stop_is_a_failure(tmp_path: Path) -> None:
    begun(tmp_path).end("stopped", "stopped by SIGTERM")
    mark = tmp_path / "RELION_JOB_EXIT_FAILURE"
    mark.touch()
    os.utime(mark, (time.time() + 3600,) * 2)
    assert status_of(tmp_path).state == "failed"  # type: ignore[union-attr]


def test_a_look_does_not_disturb(tmp_path: Path) -> None:
    assert is_held(tmp_path) is False and not list(tmp_path.iterdir())
    for _ in range(20):  # taken between two looks
        with FolderLock(tmp_path):
            assert is_held(tmp_path) is True
        assert is_held(tmp_path) is False


def test_time_left_grows_less_while_nothing_is_said() -> None:
    status = Status("job", "running", progress=Progress("train", part=0.5, left_s=100.0), began=0.0, updated=1000.0)
    assert "70 s left" in "\n".join(status.lines(1030.0)) and "0 s left" in "\n".join(status.lines(5000.0))


def test_a_relion_job_that_fails_says_so_to_a_look(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("refine", {"o": f"{tmp_path}/job/", "in_parts": "nowhere.star"}) == 1
    status = status_of(tmp_path / "job")
    assert status is not None and status.state == "failed" and "nowhere.star" in status.reason
    assert status.pid == os.getpid() and process_start(os.getpid()) > 0
