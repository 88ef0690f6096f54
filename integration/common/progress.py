"""Shows a run to whoever looks at it: a live bar on a terminal, sparse lines elsewhere, and `progress.json`."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from flex_job.progress import Progress
from integration.common.progress_file import ProgressFile

__all__ = ["EVERY", "Display", "Sparse"]

EVERY = "FLEX_JOB_PROGRESS_S"  # environment variable: seconds between two lines of a stage where nothing is live
USUAL_S = 60.0
EARLY_S = 10.0  # after the beginning of a stage, for its first line; the least between lines that end no step
BAR_EVERY_S = 0.1
BAR = "|{bar:16}| "

log = logging.getLogger("integration")


class Sparse:
    """Which looks at a job are worth a line of their own: one in `every_s` for each stage, and its end."""

    def __init__(self, every_s: float | None = None) -> None:
        self.every_s = _every_s(os.environ) if every_s is None else every_s
        self._next: dict[str, float] = {}

    def wants(self, progress: Progress) -> bool:
        """Whether this one is to be shown; the next of its stage then has to wait."""
        now = time.monotonic()
        if progress.ended:
            self._next.pop(progress.stage, None)
            return True
        due = self._next.setdefault(progress.stage, now + min(self.every_s, EARLY_S))
        if not progress.landmark:
            due += max(0.0, EARLY_S - self.every_s)
        if now < due or not progress.step:
            return False
        self._next[progress.stage] = now + self.every_s
        return True


def _every_s(environment: Mapping[str, str]) -> float:
    try:
        return max(0.0, float(environment.get(EVERY, "")))
    except ValueError:
        return USUAL_S


class Display:
    """A context in which a run is shown by its first process, from `begin` to `end`. `line` prints and logs a finished
    line, `also` gets every look at the job that there is.

    Landmarks and ends of stages all go to the log. Lines that are printed meanwhile go through `say`, which keeps them
    and the bar apart.
    """

    def __init__(
        self,
        folder: Path,
        job: str,
        line: Callable[[str], None],
        also: Callable[[Progress], None] = lambda progress: None,
    ) -> None:
        self._line, self._also = line, also
        self._file, self._sparse = ProgressFile(folder, job), Sparse()
        self._bar: Any = None
        self._drawn = 0.0
        self._live = _is_live()

    def __enter__(self) -> Display:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.end("done" if kind is None else "failed")

    def begin(self) -> None:
        """The work begins in this process."""
        self._file.begin()

    def say(self, line: str) -> None:
        """One line, above the bar."""
        if self._bar is None:
            self._line(line)
            return
        self._bar.clear()
        self._line(line)
        self._bar.refresh()

    def show(self, progress: Progress) -> None:
        """One look at the job."""
        self._file.take(progress)
        self._also(progress)
        if progress.landmark or progress.ended:
            log.info("%s", progress)
        if self._live:
            self._draw(progress)
        elif self._sparse.wants(progress):
            sys.stdout.write(f"{progress}\n")
            sys.stdout.flush()

    def end(self, state: str, reason: str = "") -> None:
        """How the run ended: done, failed or stopped, and why. What comes first counts."""
        self._close_bar()
        if self._file.is_open:
            self._file.end(state, reason)

    def _draw(self, progress: Progress) -> None:
        if progress.ended:
            self._close_bar()
            sys.stdout.write(f"{progress}\n")
            sys.stdout.flush()
            return
        now = time.monotonic()
        if self._bar is not None and now - self._drawn < BAR_EVERY_S:
            return
        self._drawn = now
        if self._bar is None:
            self._bar = _bar()
        where = [progress.stage, f"({progress.place()})" if progress.place() else "", progress.percent()]
        told = [progress.time_left(), progress.step, *progress.told_figures()]
        before, after = (text.replace("{", "{{").replace("}", "}}") for text in _joined(where, told))
        self._bar.n = progress.part or 0.0
        self._bar.bar_format = f"{before} {'' if progress.part is None else BAR}{after}"
        self._bar.refresh()

    def _close_bar(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _joined(where: list[str], told: list[str]) -> tuple[str, str]:
    return " ".join(filter(None, where)), ", ".join(filter(None, told))


def _is_live() -> bool:
    """Whether stdout is a terminal that a line can be drawn again on."""
    try:
        return sys.stdout.isatty() and os.get_terminal_size(sys.stdout.fileno()).columns > 0 and "TERM" in os.environ
    except (OSError, ValueError):
        return False


def _bar() -> Any:
    from tqdm import tqdm  # where there is a terminal only

    tqdm.monitor_interval = 0  # no thread that redraws
    tqdm.set_lock(threading.RLock())  # one process draws; the usual lock is shared by processes, and starts one more
    return tqdm(total=1.0, file=sys.stdout, leave=False, dynamic_ncols=True)
