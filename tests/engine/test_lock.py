"""One run at a time in a job directory: another is refused with the holder's name, and no death leaves a stale lock."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from flex_job import lock
from flex_job.lock import FolderInUse, FolderLock
from integration.relion.job import run

HOLD = (
    "import sys; from pathlib import Path; from flex_job.lock import FolderLock\n"
    "held = FolderLock(Path(sys.argv[1])).{how}()\n"
    "print('held', flush=True); sys.stdin.read()"
)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "WAIT_S", 0.3)
    monkeypatch.delenv(lock.SHARED, raising=False)


def holder(folder: Path, how: str = "take") -> subprocess.Popen[str]:
    """Another process that has the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD.format(how=how), str(folder)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def test_another_process_is_refused_with_host_and_process_until_the_holder_dies(tmp_path: Path) -> None:
    process = holder(tmp_path / "job")
    with pytest.raises(FolderInUse) as refused:
        FolderLock(tmp_path / "job").take()
    text = str(refused.value)
    assert f"process {process.pid} on {socket.gethostname()}" in text and "choose another --o" in text
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with FolderLock(tmp_path / "job"):
        assert str(os.getpid()) in (tmp_path / "job/.lock").read_text()


def test_a_rank_that_is_left_over_keeps_the_folder(tmp_path: Path) -> None:
    process = holder(tmp_path, "join")
    with pytest.raises(FolderInUse):
        FolderLock(tmp_path).take()
    end(process)
    FolderLock(tmp_path).take().release()


def test_what_this_process_holds_its_engine_and_its_ranks_share(tmp_path: Path) -> None:
    with FolderLock(tmp_path), FolderLock(tmp_path):
        process = holder(tmp_path)  # started by the holder: it finds the name in its environment
        end(process)
    assert lock.SHARED not in os.environ
    with FolderLock(tmp_path):
        os.environ.pop(lock.SHARED)
        with pytest.raises(FolderInUse):  # negative control: nobody told it
            FolderLock(tmp_path).take()


def test_a_job_in_a_folder_that_is_in_use_leaves_it_as_it_is(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """An exit file, or the removal of one, would be news of the other run."""
    (tmp_path / "RELION_JOB_ABORT_NOW").touch()
    process = holder(tmp_path)
    assert run("refine", {"o": str(tmp_path), "in_parts": "none.star"}) == 1
    assert {path.name for path in tmp_path.iterdir()} == {".lock", "RELION_JOB_ABORT_NOW"}
    said = capfd.readouterr().err
    assert "another run works in this job directory" in said and "none.star" not in said
    end(process)
    assert run("refine", {"o": str(tmp_path), "in_parts": "none.star"}) == 1
    assert (tmp_path / "RELION_JOB_EXIT_FAILURE").exists() and "none.star" in capfd.readouterr().err


def test_other_folders_are_free(tmp_path: Path) -> None:
    with FolderLock(tmp_path / "a"), FolderLock(tmp_path / "b"):
        pass


def test_a_file_system_without_locks_is_said_and_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", cannot)
    with FolderLock(tmp_path) as held:
        assert not held.works
