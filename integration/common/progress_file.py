"""`progress.json`: how far a job is, for looks from outside. Standard library only.

Written by the first rank, aside and renamed, at most once in EVERY_S. It is not synced, for a look is of no use after a
power cut, and that it cannot be written (a full disk) ends nothing.
"""

from __future__ import annotations

import json
import os
import socket
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flex_job.progress import Progress

__all__ = ["PROGRESS_FILE", "ProgressFile", "process_start", "read_progress"]

PROGRESS_FILE = "progress.json"
SCHEMA = 1
EVERY_S = 3.0


class ProgressFile:
    """The file while its job runs. Times are seconds since 1970."""

    def __init__(self, folder: Path, job: str) -> None:
        self.path = folder / PROGRESS_FILE
        self.is_open = False
        self._content: dict[str, Any] = {
            "schema": SCHEMA,
            "job": job,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "process_start": process_start(os.getpid()),
        }
        self._due = 0.0

    def begin(self) -> None:
        """The job runs."""
        self.is_open = True
        self._content |= {"state": "running", "reason": "", "began": time.time()}
        self._write()

    def take(self, progress: Progress) -> None:
        """Keep this look, and write it if that is due, or if a stage begins or ends."""
        begins = progress.stage != self._content.get("stage")
        if begins:
            self._content["stage_began"] = time.time()
        self._content |= asdict(progress)
        self._content["known"] = self._content.get("known", {}) | dict(progress.figures)
        if begins or progress.ended or time.monotonic() >= self._due:
            self._write()

    def end(self, state: str, reason: str = "") -> None:
        """How the job ended."""
        self.is_open = False
        self._content |= {"state": state, "reason": reason}
        self._write()

    def _write(self) -> None:
        self._due = time.monotonic() + EVERY_S
        self._content["updated"] = time.time()
        part = self.path.with_name(f".{self.path.name}.part")
        try:
            part.write_text(json.dumps(self._content, indent=1) + "\n")
            os.replace(part, self.path)
        except OSError:
            with suppress(OSError):
                part.unlink(missing_ok=True)


def read_progress(folder: Path) -> dict[str, Any]:
    """What the file of a job says; empty where there is none, or none that this version can read."""
    try:
        content = json.loads((folder / PROGRESS_FILE).read_text())
        return content if content["schema"] == SCHEMA else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def process_start(pid: int) -> int:
    """When a process of this machine began, in clock ticks since its start; 0 where there is no such process. With it a
    pid that was given again to another is not mistaken."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return 0
