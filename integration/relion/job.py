"""Run a job the way RELION expects: exit files, log, clear errors, nodes. The work itself is in `work.py`."""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from integration.relion.host import RelionJob, relion_version, requeue_expected, write_nodes
from integration.relion.request import Request, read_request

__all__ = ["run"]

LOG_FILE = "flex.log"
LOGGERS = ("flex_job", "integration", "py.warnings")
log = logging.getLogger("integration.relion")
log.addHandler(logging.NullHandler())  # outside a job, nothing falls through to logging's own stderr


def run(job: str, options: Mapping[str, str]) -> int:
    """Run `job` (a key of JOBS) in the folder options["o"]; returns the exit code.

    `options` are texts by flag name, as the command line gave them. Progress goes to stdout, problems without a
    traceback to stderr, both and tracebacks to <o>/flex.log. Exactly one RELION_JOB_EXIT_* file is left, none where
    the scheduler will start the job again.
    """
    folder = Path(options["o"])
    try:
        with RelionJob(folder) as host, _Log(folder / LOG_FILE):
            return _run_in(host, job, options)
    except OSError as error:
        _complain(
            job, f"{folder}: the job directory cannot be written ({error.strerror}); check path, permissions, disk"
        )
        return 1


def _run_in(host: RelionJob, job: str, options: Mapping[str, str]) -> int:
    log.info("%s %s", job, " ".join(f"--{name} {value}" for name, value in options.items()))
    try:
        request, problems = read_request(job, options)
        _limit_threads(request.parameters.run.threads)
        from flex_job.events import Events, StopRequested
        from integration.relion.work import work

        try:
            work(request, problems, Events(message=_say, should_stop=host.should_stop))
            _finish_nodes(request)
        except StopRequested:
            return _stopped(host, job)
    except (Exception, KeyboardInterrupt) as error:
        log.error("%s failed", job, exc_info=True)
        _complain(job, _explain(error, host.folder))
        return host.finish("FAILURE")
    _say(f"Done: {host.folder}")
    return host.finish("SUCCESS")


def _stopped(host: RelionJob, job: str) -> int:
    """End after a stop that the engine has checkpointed; a job that comes back by itself leaves no exit file."""
    if not host.signal_name and host.aborted:
        _complain(job, "aborted; press Continue to resume")
        return host.finish("ABORTED")
    if requeue_expected():
        _say(f"Stopped by {host.signal_name}; the scheduler starts this job again, and it resumes")
        return 1
    _complain(job, f"stopped{' by ' + host.signal_name if host.signal_name else ''}; press Continue to resume")
    return host.finish("FAILURE")


def _finish_nodes(request: Request) -> None:
    folder = request.folder
    if folder.is_absolute() and folder.is_relative_to(Path.cwd()):
        folder = folder.relative_to(Path.cwd())  # node names are relative to the project, where RELION starts jobs
    write_nodes(folder, request.job.outputs, relion_version(folder))


def _limit_threads(threads: int) -> None:
    """Keep every library to `threads`. Environment variables count only before the first import."""
    # Waiting threads sleep: on a core shared with another job spinning costs half the speed (measured).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for module, variable in (("numpy", "OPENBLAS_NUM_THREADS"), ("torch", "OMP_NUM_THREADS")):
        if module not in sys.modules:
            os.environ[variable] = str(threads)
    import numba
    import torch

    torch.set_num_threads(threads)
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))


def _say(line: str) -> None:
    print(line, flush=True)
    log.info(line)


def _complain(job: str, text: str) -> None:
    print(f"flex-job {job}: {text}", file=sys.stderr, flush=True)
    log.error(text)


def _explain(error: BaseException, folder: Path) -> str:
    """What to tell the user; the traceback is in the log."""
    from flex_job.problems import InputProblems

    if isinstance(error, InputProblems):
        return str(error)
    where = f"details are in {folder / LOG_FILE}"
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; press Continue to resume"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full ({error.filename or folder}); free some space and press Continue to resume"
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        return f"out of memory; try a smaller --training_box, --reconstruct_box or --batch; {where}"
    if isinstance(error, (ValueError, OSError)):
        return f"{error}; {where}"
    return f"unexpected {type(error).__name__}: {error}; {where}"


class _Log:
    """The log file of a job while it runs; what cannot be written to it (a full disk) is dropped, not raised."""

    def __init__(self, path: Path) -> None:
        self._handler = logging.FileHandler(path, encoding="utf-8")
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
