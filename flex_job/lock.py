"""One run at a time in a job directory. Standard library only, for hosts take the lock before anything heavy is loaded.

The lock is the system's (flock) on `<folder>/.lock` and ends with the processes that hold it, whatever ended them: what
stays behind is an empty promise, not a stale lock. All ranks of a job hold it together, so a rank that has lost the
others keeps the next run out until it, too, is gone.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
from pathlib import Path
from types import TracebackType

from flex_job.problems import InputProblems

__all__ = ["FolderInUse", "FolderLock", "is_held"]

LOCK_FILE = ".lock"
SHARED = "FLEX_JOB_LOCK"  # environment variable: the lock that a process has from the one that started it
WAIT_S = 10.0  # the processes of a killed run may need a moment to end
LOOK_S = 1.0  # that of `is_held` has it for a moment
# Lustre mounted without flock, NFS without a lock daemon and the like
CANNOT_LOCK = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


class FolderInUse(InputProblems):
    """Another run works in the folder. Nothing there may be touched, exit files included."""

    def __reduce__(self) -> tuple[type[FolderInUse], tuple[list[str]]]:
        return FolderInUse, (self.messages,)


class FolderLock:
    """A context in which this job has `folder` (created when missing) for itself.

    `take` is for the process that leads a job, `join` for its other ranks once that has taken it. A folder that this
    process, or the one that started it, has already is shared with it. Raises FolderInUse when another run has it.
    Where the file system cannot lock, `works` is False and nothing is held.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.works = folder, True
        self._descriptor = -1
        self._told = False  # the processes that this one starts

    def take(self) -> FolderLock:
        """Have the folder; waits WAIT_S for another run to end."""
        self._open()
        if self._is_shared():
            return self.join()
        until = time.monotonic() + WAIT_S
        while not self._lock(fcntl.LOCK_EX):
            if time.monotonic() > until:
                self._refuse()
            time.sleep(0.2)
        if self.works:
            name = f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}"
            os.truncate(self._descriptor, 0)
            os.pwrite(self._descriptor, name.encode(), 0)
            os.environ[SHARED], self._told = f"{self.folder.resolve()}: {name}", True
        return self.join()

    def join(self) -> FolderLock:
        """Hold the folder together with the other processes of the job."""
        self._open()
        until = time.monotonic() + LOOK_S
        while not self._lock(fcntl.LOCK_SH):
            if time.monotonic() > until:
                self._refuse()
            time.sleep(0.02)
        return self

    def release(self) -> None:
        """Let go; the file stays, for to remove it would let two others each lock one of that name."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            if self._told:
                os.environ.pop(SHARED, None)

    def __del__(self) -> None:
        self.release()

    def __enter__(self) -> FolderLock:
        return self.take()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.release()

    def _open(self) -> None:
        if self._descriptor < 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / LOCK_FILE
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o664)

    def _holder(self) -> str:
        return os.pread(self._descriptor, 500, 0).decode(errors="replace")

    def _is_shared(self) -> bool:
        """Whether this process or its starter holds the folder: then the name in the file is the one it knows."""
        return os.environ.get(SHARED) == f"{self.folder.resolve()}: {self._holder()}" and self._lock(fcntl.LOCK_SH)

    def _lock(self, how: int) -> bool:
        """Whether the lock was given at once."""
        try:
            fcntl.flock(self._descriptor, how | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in CANNOT_LOCK:
                raise
            self.works = False
        return True

    def _refuse(self) -> None:
        holder = self._holder() or "another process"
        self.release()
        raise FolderInUse(
            [
                f"{self.folder}: another run works in this job directory ({holder}); expected one at a time: wait "
                f"until it has ended, or stop it, or choose another --o. If its machine is gone for good, delete "
                f"{self.folder / LOCK_FILE}"
            ]
        )


def is_held(folder: Path) -> bool | None:
    """Whether a run has `folder` now, on whatever machine; None where that cannot be told. Nothing is created."""
    path = folder / LOCK_FILE
    try:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)  # some network file systems lock no other
        except OSError:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    finally:
        os.close(descriptor)  # and with it what was locked
    return False
