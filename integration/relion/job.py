"""Run a job the way RELION expects: exit files, log, clear errors, nodes. The work itself is in `work.py`."""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from flex_job.launch import Place, chosen_devices, place_of, wanted_devices
from integration.relion.host import RelionJob, relion_version, requeue_expected, write_nodes
from integration.relion.ranks import describe, run_ranks
from integration.relion.request import Request, read_request

__all__ = ["run"]

LOG_FILE = "flex.log"
LOGGERS = ("flex_job", "integration", "py.warnings")
ALONE = ("mesh", "generate")  # jobs that several processes would not speed up
log = logging.getLogger("integration.relion")
log.addHandler(logging.NullHandler())  # outside a job, nothing falls through to logging's own stderr


def run(job: str, options: Mapping[str, str]) -> int:
    """Run `job` (a key of JOBS) in the folder options["o"]; returns the exit code.

    `options` are texts by flag name, as the command line gave them. Progress goes to stdout, problems without a
    traceback to stderr, both and tracebacks to <o>/flex.log. Exactly one RELION_JOB_EXIT_* file is left, none where
    the scheduler will start the job again. Under torchrun or srun only the first process speaks and leaves files; the
    others keep their tracebacks in <o>/flex_rank1.log, ...
    """
    folder = Path(options["o"])
    try:
        place = place_of(os.environ)
    except ValueError as error:
        _complain(job, str(error))
        return RelionJob(folder).finish("FAILURE")
    rank = place.rank if place else 0
    try:
        with RelionJob(folder, first=rank == 0) as host, _Log(folder, rank):
            return _run_in(host, place, job, options)
    except OSError as error:
        _complain(
            job, f"{folder}: the job directory cannot be written ({error.strerror}); check path, permissions, disk"
        )
        return 1


def _run_in(host: RelionJob, place: Place | None, job: str, options: Mapping[str, str]) -> int:
    log.info("%s %s", job, " ".join(f"--{name} {value}" for name, value in options.items()))
    group = None
    try:
        request, problems = read_request(job, options)
        _limit_threads(request.parameters.run.threads)
        devices = _devices(request, problems)
        if place is None and len(devices) > 1 and not problems and job not in ALONE:
            return _in_local_ranks(host, request, options, devices)
        from flex_job.distributed import Group, RankLost
        from flex_job.events import Events, StopRequested
        from flex_job.join import join
        from integration.relion.work import work

        group = Group.on(devices[place.local_rank % len(devices)] if place else devices[0])
        try:
            if place is not None and place.size > 1:
                group = join(place, group.device)
            events = Events(message=_say if host.first else log.info, should_stop=host.should_stop)
            work(request, problems, events, group)
            if host.first:
                _finish_nodes(request)
            group.leave()
        except StopRequested:
            group.leave()
            return _stopped(host, job)
        except RankLost as error:
            log.error("%s: another process was lost", job, exc_info=True)
            if host.first:
                _complain(job, group.told_failure() or str(error))
            return host.finish("FAILURE")
    except (Exception, KeyboardInterrupt) as error:
        log.error("%s failed", job, exc_info=True)
        text = _explain(error, host.folder / _log_file(place.rank if place else 0))
        if host.first:
            _complain(job, text)
        elif group is None or not group.tell_failure(text):
            _complain(job, f"rank {place.rank if place else 0}: {text}")
        return host.finish("FAILURE")
    if host.first:
        _say(f"Done: {host.folder}")
    return host.finish("SUCCESS")


def _devices(request: Request, problems: list[str]) -> list[str]:
    """The devices of this machine that the job is to use, one per process; what is wrong goes to `problems`."""
    text, gpus = request.parameters.run.devices, 0
    try:
        named = wanted_devices(text)
        if named is None or named[0] != "cpu":
            import torch

            gpus = torch.cuda.device_count()
        return chosen_devices(text, gpus)
    except ValueError as error:
        problems.append(str(error))
        return ["cpu"]


def _in_local_ranks(host: RelionJob, request: Request, options: Mapping[str, str], devices: list[str]) -> int:
    """Run the job in one process per device; the first of them leaves the exit file, or this does for it."""
    job, size = request.job.name, len(devices)
    _say(f"{size} processes on {', '.join(devices)}")
    threads = max(1, request.parameters.run.threads // size)
    codes = run_ranks(run, job, {**options, "threads": str(threads)}, size, lambda: host.signal_name)
    died = describe(codes)
    if died:
        _complain(job, f"{died} (for lack of memory?); press Continue to resume")
    if host.finished or (codes[0] >= 0 and requeue_expected()):
        return codes[0]
    return host.finish("FAILURE")


def _stopped(host: RelionJob, job: str) -> int:
    """End after a stop that the engine has checkpointed; a job that comes back by itself leaves no exit file."""
    if not host.first:
        return 0  # anything else would make a launcher send TERM to the first, which may have been aborted
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
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # a lost rank is told once, in our words
    for module, variable in (("numpy", "OPENBLAS_NUM_THREADS"), ("torch", "OMP_NUM_THREADS")):
        if module not in sys.modules:
            os.environ[variable] = str(threads)
    import numba
    import torch

    torch.set_num_threads(threads)
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")  # in one piece, for other processes may write there as well
    sys.stdout.flush()
    log.info(line)


def _complain(job: str, text: str) -> None:
    print(f"flex-job {job}: {text}", file=sys.stderr, flush=True)
    log.error(text)


def _explain(error: BaseException, log_file: Path) -> str:
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


def _log_file(rank: int) -> str:
    return f"flex_rank{rank}.log" if rank else LOG_FILE


class _Log:
    """The log file of a job while it runs; what cannot be written to it (a full disk) is dropped, not raised.

    Ranks other than the first log to a file of their own what went wrong, and make none when all went well.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        self._handler = logging.FileHandler(folder / _log_file(rank), encoding="utf-8", delay=rank > 0)
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
