"""Run a job the way RELION expects: exit files, log, clear errors, nodes. The work itself is in `work.py`."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from flex_job.launch import Place, place_of
from integration.common.log import JobLog, explain, log_file
from integration.common.process import devices_of, limit_threads
from integration.common.ranks import describe, run_ranks
from integration.relion.host import RelionJob, relion_version, requeue_expected, write_nodes
from integration.relion.request import Request, read_request

__all__ = ["run"]

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
        with RelionJob(folder, first=rank == 0) as host, JobLog(folder, rank):
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
        limit_threads(request.parameters.run.threads)
        devices = devices_of(request.parameters.run.devices, problems)
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
        text = explain(error, host.folder / log_file(place.rank if place else 0))
        if host.first:
            _complain(job, text)
        elif group is None or not group.tell_failure(text):
            _complain(job, f"rank {place.rank if place else 0}: {text}")
        return host.finish("FAILURE")
    if host.first:
        _say(f"Done: {host.folder}")
    return host.finish("SUCCESS")


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


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")  # in one piece, for other processes may write there as well
    sys.stdout.flush()
    log.info(line)


def _complain(job: str, text: str) -> None:
    print(f"flex-job {job}: {text}", file=sys.stderr, flush=True)
    log.error(text)
