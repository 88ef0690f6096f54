"""The signals by which schedulers and terminals ask a job to end; what the job then does is its host's affair."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType

__all__ = ["StopSignals"]

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopSignals:
    """While this context is open TERM, USR1 and Ctrl-C are noted and end nothing; a second Ctrl-C means now.

    `name` is that of the last signal that came, empty when none did.
    """

    def __init__(self) -> None:
        self.name = ""
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopSignals:
        for number in STOP_SIGNALS:
            try:
                self._previous[number] = signal.signal(number, self._on_signal)
            except ValueError:  # not the main thread: whoever runs us there handles signals
                break
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.name:
            raise KeyboardInterrupt
        self.name = signal.Signals(number).name
