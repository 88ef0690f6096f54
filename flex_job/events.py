"""How the engine talks to whoever runs it: it emits progress and asks whether to stop; it never prints or exits."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

__all__ = ["Events", "StopRequested"]

HOUR_S = 3600.0
STEPS_AHEAD = 2.0  # the next step may take longer than the longest so far
CLOSING_S, CLOSING_PART = 60.0, 0.05  # for the last checkpoint, and the start before `started`; at most, of the budget

log = logging.getLogger("flex_job")


class StopRequested(Exception):
    """The host asked for a stop, or the time is up; everything worth keeping has been checkpointed."""


@dataclass
class Events:
    """Callbacks of one run. `message` takes a finished line; `should_stop` is polled between minibatches.

    `max_hours` is a budget of wall-clock time, 0 for none. The run is asked to end early enough for two more steps, as
    long as the longest between two polls so far, and for a last checkpoint.
    """

    message: Callable[[str], None] = log.info
    should_stop: Callable[[], bool] = lambda: False
    max_hours: float = 0.0
    started: float = field(default_factory=time.monotonic)
    out_of_time: bool = False
    _polled: float | None = None
    _longest_step: float = 0.0

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

    def progress(self, what: str, done: int, total: int, since: float, note: str = "", first: int = 0) -> None:
        """One line: what, how far, time left (from the pace since `since`, time.monotonic, when `first` were done)."""
        elapsed = time.monotonic() - since
        left = elapsed / max(done - first, 1) * (total - done)
        self.message(f"{what} {done}/{total}  {elapsed:.0f} s, about {left:.0f} s left{'  ' + note if note else ''}")
