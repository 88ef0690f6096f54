"""How the engine talks to whoever runs it: it emits progress and asks whether to stop; it never prints or exits."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from flex_job.progress import Progress, Tracker

__all__ = ["Events", "StopRequested"]

HOUR_S = 3600.0
STEPS_AHEAD = 2.0  # the next step may take longer than the longest so far
CLOSING_S, CLOSING_PART = 60.0, 0.05  # for the last checkpoint, and the start before `started`; at most, of the budget

log = logging.getLogger("flex_job")


class StopRequested(Exception):
    """The host asked for a stop, or the time is up; everything worth keeping has been checkpointed."""


@dataclass
class Events:
    """Callbacks of one run. `message` takes a finished line, `show` each look at how far the work is, as often as
    there is news; `should_stop` is polled between minibatches.

    `max_hours` is a budget of wall-clock time, 0 for none. The run is asked to end early enough for two more steps, as
    long as the longest between two polls so far, and for a last checkpoint.
    """

    message: Callable[[str], None] = log.info
    should_stop: Callable[[], bool] = lambda: False
    max_hours: float = 0.0
    started: float = field(default_factory=time.monotonic)
    out_of_time: bool = False
    show: Callable[[Progress], None] = lambda progress: None
    _polled: float | None = None
    _longest_step: float = 0.0
    _tracker: Tracker = field(init=False)

    def __post_init__(self) -> None:
        self._tracker = Tracker(lambda progress: self.show(progress))

    def check_stop(self) -> None:
        """Raise StopRequested when the host wants the run to end."""
        if self.stop_wanted():
            raise StopRequested

    def stop_wanted(self) -> bool:
        """Whether the host wants the run to end, or its time is up; to be asked between steps."""
        if self.max_hours and not self.out_of_time:
            now, budget = time.monotonic(), HOUR_S * self.max_hours
            if self._polled is not None:  # what comes before the first poll comes once
                self._longest_step = max(self._longest_step, now - self._polled)
            self._polled = now
            margin = STEPS_AHEAD * self._longest_step + min(CLOSING_S, CLOSING_PART * budget)
            self.out_of_time = now - self.started + margin >= budget
        return self.should_stop() or self.out_of_time

    def plan(self, stages: Sequence[str]) -> None:
        """The job's stages in order."""
        self._tracker.planned = tuple(stages)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """A stage of the job; its beginning and end are shown."""
        with self._tracker.stage(name):
            yield

    @contextmanager
    def part(self, begin: float, end: float, label: str = "", *, at_least: bool = False) -> Iterator[None]:
        """What is done here is the present work from `begin` to `end` (0 to 1, as shares of time), called `label`.
        `at_least`: there may be less to do than that."""
        with self._tracker.part(begin, end, label, at_least):
            yield

    def progress(self, part: float, step: str = "", *, landmark: bool = False, **figures: float) -> None:
        """`part` (0 to 1) of the present stage, or part of it, is done; `step` says what is being done, or with
        `landmark` what has just ended. `figures` are those of `flex_job.progress.FIGURES`."""
        self._tracker.progress(part, step, landmark, figures)
