"""How the engine talks to whoever runs it: it emits progress and asks whether to stop; it never prints or exits."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

__all__ = ["Events", "StopRequested"]

log = logging.getLogger("flex_job")


class StopRequested(Exception):
    """The host asked for a stop; everything worth keeping has been checkpointed."""


@dataclass
class Events:
    """Callbacks of one run. `message` takes a finished line; `should_stop` is polled between minibatches."""

    message: Callable[[str], None] = log.info
    should_stop: Callable[[], bool] = lambda: False
    started: float = field(default_factory=time.monotonic)

    def check_stop(self) -> None:
        """Raise StopRequested when the host wants the run to end."""
        if self.should_stop():
            raise StopRequested

    def progress(self, what: str, done: int, total: int, since: float, note: str = "") -> None:
        """One line: what, how far, time left (from the pace since `since`, time.monotonic)."""
        elapsed = time.monotonic() - since
        left = elapsed / max(done, 1) * (total - done)
        self.message(f"{what} {done}/{total}  {elapsed:.0f} s, about {left:.0f} s left{'  ' + note if note else ''}")
