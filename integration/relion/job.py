"""Run a job the way RELION expects: exit files, log, clear errors, nodes. The work itself is in `work.py`."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from flex_job.launch import Place, place_of
from flex_job.lock import FolderInUse, FolderLock
from integration.common.log import JobLog, explain, log_file
from integration.common.process import devices_of, limit_threads
from integration.common.progress import Display
from integration.common.ranks import describe, run_ranks
from integration.common.requeue import RESUMABLE, SavedWork, comes_back
from integration.relion.host import EXIT_CODES, RelionJob, leave_failure, relion_version, write_nodes
from integration.relion.request import Request, read_request

__all__ = ["run"]

ALONE = ("mesh", "generate", "select")  # jobs that several processes would not speed up
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
        try:
            place = place_of(os.environ)
        except ValueError as error:
            _complain(job, str(error))
            leave_failure(folder)
            return EXIT_CODES["FAILURE"]
        rank = place.rank if place else 0
        # Before RelionJob, which clears the exit files: another run's must stay as they are.
        with (
            _lock(folder, rank),
            RelionJob(folder, first=rank == 0) as host,
            JobLog(folder, rank),
            Display(folder, job, _say) as display,
        ):
            return _run_in(host, place, job, options, display)
    except FolderInUse as error:
        print(f"flex-job {job}: {error}", file=sys.stderr, flush=True)
        return 1
    except OSError as error:
        _complain(
            job, f"{folder}: the job directory cannot be written ({error.strerror}); check path, permissions, disk"
        )
        return 1


def _lock(folder: Path, rank: int) -> AbstractContextManager[object]:
    """The first process has the folder for the job; the others join it when they have met."""
    return FolderLock(folder) if rank == 0 else nullcontext()


def _run_in(host: RelionJob, place: Place | None, job: str, options: Mapping[str, str], display: Display) -> int:
    log.info("%s %s", job, " ".join(f"--{name} {value}" for name, value in options.items()))
    group, saved = None, SavedWork(host.folder)
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
            # the first rank's clock is the one that counts
            hours = request.parameters.run.max_hours if host.first else 0.0
            events = Events(log.info, host.should_stop, hours)
            if host.first:
                display.begin()
                events.message, events.show = display.say, display.show
            work(request, problems, events, group)
            if host.first:
                _finish_nodes(request)
            group.leave()
        except StopRequested:
            group.leave()
            return _stopped(host, job, events.out_of_time, saved, display)
        except RankLost as error:
            log.error("%s: another process was lost", job, exc_info=True)
            if host.first:
                text = group.told_failure() or str(error)
                display.end("failed", text)
                _complain(job, text)
            return host.finish("FAILURE")
    except (Exception, KeyboardInterrupt) as error:
        log.error("%s failed", job, exc_info=True)
        text = explain(error, host.folder / log_file(place.rank if place else 0))
        display.end("failed", text)
        if host.first:
            _complain(job, text)
        elif group is None or not group.tell_failure(text):
            _complain(job, f"rank {place.rank if place else 0}: {text}")
        return host.finish("FAILURE")
    display.end("done")
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
    if host.finished or codes[0] == RESUMABLE:  # the first has left its exit file, or comes back
        return codes[0]
    return host.finish("FAILURE")


def _stopped(host: RelionJob, job: str, out_of_time: bool, saved: SavedWork, display: Display) -> int:
    """End after a stop that the engine has checkpointed; a job that comes back by itself leaves no exit file."""
    if not host.first:
        return 0  # anything else would make a launcher send TERM to the first, which may have been aborted
    if host.aborted:  # also when ccpem-pipeliner's TERM was noticed before its abort file
        display.end("stopped", "aborted; press Continue to resume")
        _complain(job, "aborted; press Continue to resume")
        return host.finish("ABORTED")
    why = f"stopped by {host.signal_name}" if host.signal_name else "max_hours is used up" if out_of_time else "stopped"
    short = out_of_time or host.signal_name == "SIGUSR1"
    if comes_back(short and saved.has_grown()):
        display.end("stopped", f"{why}; the scheduler starts this job again, and it resumes")
        _say(f"{why}; the scheduler starts this job again, and it resumes")
        return RESUMABLE
    hint = "" if not short or saved.has_grown() else "; nothing could be saved in this time, so give it more"
    display.end("stopped", f"{why}; press Continue to resume{hint}")
    _complain(job, f"{why}; press Continue to resume{hint}")
    host.finish("FAILURE")
    return RESUMABLE


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
