"""The log file of a job, and what its errors are called in front of a user."""

from __future__ import annotations

import errno
import logging
from pathlib import Path

__all__ = ["JobLog", "explain", "log_file"]

LOG_FILE = "flex.log"
LOGGERS = ("flex_job", "integration", "py.warnings")


def log_file(rank: int) -> str:
    return f"flex_rank{rank}.log" if rank else LOG_FILE


def explain(error: BaseException, log_file: Path) -> str:
    """What to tell the user; the traceback is in the log."""
    from flex_job.memory import out_of_memory_hint
    from flex_job.problems import InputProblems

    if isinstance(error, InputProblems):
        return str(error)
    where = f"details are in {log_file}"
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; press Continue to resume"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full ({error.filename or log_file.parent}); free some space and press Continue to resume"
    hint = out_of_memory_hint(error)
    if hint:
        return f"{hint}; {where}"
    if isinstance(error, (ValueError, OSError)):
        return f"{error}; {where}"
    return f"unexpected {type(error).__name__}: {error}; {where}"


class JobLog:
    """The log file of a job while it runs; what cannot be written to it (a full disk) is dropped, not raised.

    Ranks other than the first log to a file of their own what went wrong, and make none when all went well.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        self._handler = logging.FileHandler(folder / log_file(rank), encoding="utf-8", delay=rank > 0)
        if rank > 0:
            self._handler.setLevel(logging.ERROR)
        self._handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        self._handler.handleError = lambda record: None  # type: ignore[method-assign]

    def __enter__(self) -> None:
        logging.captureWarnings(True)
        for name in LOGGERS:
            logger = logging.getLogger(name)
            logger.addHandler(self._handler)
            logger.setLevel(logging.INFO)
            logger.propagate = False

    def __exit__(self, *error: object) -> None:
        logging.captureWarnings(False)
        for name in LOGGERS:
            logger = logging.getLogger(name)
            logger.removeHandler(self._handler)
            logger.propagate = True
        self._handler.close()
