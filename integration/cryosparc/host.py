"""cryoSPARC's side of a running job: its event log, whether it was killed, and that only a finished one is completed.

The tools' own `with job.run()` marks a job completed when Ctrl-C or a signal ends it, so it is not used here.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from flex_job.progress import Progress
from integration.common.signals import StopSignals
from integration.cryosparc.client import ENDED, RUNNING, ExternalJob, without_secrets

__all__ = ["CryosparcJob"]

POLL_S = 5.0
TRIES = 3
QUIET_S = 60.0  # between tries to reach an instance that does not answer

log = logging.getLogger("integration.cryosparc")


class CryosparcJob:
    """An external job while it runs: a context that takes signals. An instance that is not reached for a while costs
    lines of its event log, not the run."""

    def __init__(self, job: ExternalJob) -> None:
        self.job = job
        self.killed = ""
        self._signals = StopSignals()
        self._next_poll = self._quiet_until = 0.0

    def __enter__(self) -> CryosparcJob:
        self._signals.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._signals.__exit__(kind, error, where)

    @property
    def signal_name(self) -> str:
        """The signal that asked for a stop, or nothing."""
        return self._signals.name

    def should_stop(self) -> bool:
        """Whether the work should be checkpointed and ended: a signal, or the job no longer running in cryoSPARC."""
        now = time.monotonic()
        if self.signal_name or self.killed or now < self._next_poll:
            return bool(self.signal_name or self.killed)
        self._next_poll = now + POLL_S
        status = self._tried(self.job.status)
        if status is not None and status not in RUNNING:
            self.killed = status
        return bool(self.killed)

    def say(self, line: str) -> None:
        """A line for the user: here, in flex.log and in the event log."""
        self._told(line, logging.INFO, "text")

    def warn(self, line: str) -> None:
        """A line that asks the user to look: as `say`, marked as a warning in flex.log and in the event log."""
        self._told(line, logging.WARNING, "warning")

    def _told(self, line: str, level: int, mark: str) -> None:
        line = without_secrets(line)
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
        log.log(level, line)
        self._tried(lambda: self.job.log(line, mark))

    def show_progress(self, progress: Progress) -> None:
        """How far the job is, in the event log."""
        self._tried(lambda: self.job.show(progress))

    def show(self, caption: str, figure: Any) -> None:
        """A figure in the event log."""
        self._tried(lambda: self.job.log_plot(figure, caption))

    def end(self, problem: str) -> bool:
        """Mark the job completed, or failed with `problem`; one that has ended in cryoSPARC is left as it is. Returns
        whether cryoSPARC was told."""
        for _ in range(TRIES):
            try:
                if self.job.status() in ENDED:
                    return True
                if problem:
                    self.job.fail(without_secrets(problem))
                else:
                    self.job.complete()
                return True
            except Exception as error:
                log.warning("cryoSPARC could not be told of the end: %s", without_secrets(str(error)))
                time.sleep(1.0)
        return False

    def _tried(self, call: Callable[[], Any]) -> Any:
        """The result of a call to the instance; None when it does not answer, and then for a while without asking."""
        if time.monotonic() < self._quiet_until:
            return None
        try:
            return call()
        except Exception as error:
            log.warning("cryoSPARC does not answer: %s", without_secrets(str(error)))
            self._quiet_until = time.monotonic() + QUIET_S
            return None
