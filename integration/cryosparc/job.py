"""`flex-job cryosparc refine`: an external job from its creation to its end, which is failed unless all went well."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from flex_job.distributed import Group
from flex_job.launch import place_of
from flex_job.problems import InputProblems
from integration.common.log import JobLog, explain, log_file
from integration.common.process import devices_of, limit_threads
from integration.common.ranks import describe, run_ranks
from integration.cryosparc.client import (
    ExternalJob,
    Instance,
    connect,
    traceback_without_secrets,
    without_secrets,
)
from integration.cryosparc.host import CryosparcJob
from integration.cryosparc.inputs import connect_inputs, prepare
from integration.cryosparc.outputs import declare_outputs
from integration.cryosparc.request import Request, read_request
from integration.cryosparc.work import run_rank, told_problem, work

__all__ = ["run"]

log = logging.getLogger("integration.cryosparc")
log.addHandler(logging.NullHandler())  # outside a job, nothing falls through to logging's own stderr


def run(options: Mapping[str, str]) -> int:
    """Create an external job, or go on with one, and run the flexible refinement in it; returns the exit code.

    `options` are texts by flag name. All problems with them are told before a job is made. From then on the job is
    marked failed whatever ends the process, SIGKILL aside, and completed only at the end. Progress goes to stdout, to
    flex.log in the job's folder and to the event log.
    """
    request, problems = read_request(options)
    instance = None
    try:
        limit_threads(request.parameters.run.threads)
        devices = devices_of(request.parameters.run.devices, problems)
        problems += _launcher_problems()
        instance = connect(request.url)
    except InputProblems as error:
        problems += error.messages
    try:
        if problems or instance is None:
            raise InputProblems(problems)
        job = _open_job(instance, request)
    except InputProblems as error:
        _complain(str(error))
        return 1
    with CryosparcJob(job) as host:
        return _attended(host, instance, request, options, devices)


def _launcher_problems() -> list[str]:
    try:
        place = place_of(os.environ)
    except ValueError as error:
        return [str(error)]
    if place is None or place.size == 1:
        return []
    return ["started by torchrun or srun; start it once, several GPUs are used by --devices, such as --devices 0,1"]


def _open_job(instance: Instance, request: Request) -> ExternalJob:
    if not request.job:
        return instance.create_job(request.project, request.workspace, request.title)
    try:
        return instance.find_job(request.project, request.job)
    except Exception as error:
        reason = without_secrets(" ".join(str(error).split()))[:300]
        raise InputProblems([f"--job {request.job}: no external job of {request.project} ({reason})"]) from None


def _attended(
    host: CryosparcJob, instance: Instance, request: Request, options: Mapping[str, str], devices: list[str]
) -> int:
    """All that is done once the job exists: whatever happens, cryoSPARC is told how it ended."""
    uid = host.job.uid
    problem, told = "the process ended before its work did", False
    place = _Place()
    try:
        problem = _carried_out(host, instance, request, options, devices, place)
    except BaseException as error:
        problem = _explained(error, uid, place.folder)
        log.error("%s", traceback_without_secrets(error))
        if not isinstance(error, (Exception, KeyboardInterrupt)):
            raise  # SystemExit and its like; the job is marked failed on the way
    finally:
        if problem:
            _complain(problem)
        told = host.end(problem)
        if not told:
            _complain(f"cryoSPARC could not be told that {uid} has ended; mark it by hand")
        place.close()
    return 0 if told and not problem else 1


class _Place:
    """The folder of a job and its log, once they are known; the log stays open until the job has been ended."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        self._open = ExitStack()

    def take(self, folder: Path) -> Path:
        self.folder = folder
        self._open.enter_context(JobLog(folder, 0))
        return folder

    def close(self) -> None:
        self._open.close()


def _carried_out(
    host: CryosparcJob,
    instance: Instance,
    request: Request,
    options: Mapping[str, str],
    devices: list[str],
    place: _Place,
) -> str:
    """Inputs, engine, outputs; returns why it ended early, empty when it did not."""
    job = host.job
    if not request.job:
        connect_inputs(job, request.sources)
        train = request.parameters.train
        declare_outputs(job, train.latent_dims, refines_poses=train.refine_poses or train.refine_scale)
    folder = place.take(_folder(request, job))
    job.start()
    host.say(f"{request.project} {job.uid} in {folder}")
    note = instance.version_note()
    if note:
        host.say(note)
    prepared = prepare(instance, job, request.project, folder, host.say)
    if len(devices) == 1:
        return work(host, Group.on(devices[0]), request.parameters, prepared, folder)
    host.say(f"{len(devices)} processes on {', '.join(devices)}")
    threads = max(1, request.parameters.run.threads // len(devices))
    told_problem(folder)  # of an earlier run
    given = {**options, "job": job.uid, "o": str(folder), "threads": str(threads)}
    codes = run_ranks(run_rank, "refine", given, len(devices), lambda: host.signal_name)
    if not any(codes):
        return ""
    return describe(codes) or told_problem(folder) or f"a process ended with code {max(codes)}"


def _folder(request: Request, job: ExternalJob) -> Path:
    """Where the job works: its own folder, or the one given where that is not to be had."""
    if request.folder is not None:
        request.folder.mkdir(parents=True, exist_ok=True)
        return request.folder
    own = job.folder
    if not own.is_dir() or not os.access(own, os.W_OK):
        raise InputProblems(
            [
                f"{own}: the job's folder is not seen by this machine or cannot be written by this user; give a folder "
                "to work in with --o, results are then uploaded"
            ]
        )
    return own


def _explained(error: BaseException, uid: str, folder: Path | None) -> str:
    if isinstance(error, SystemExit):
        return f"the process was made to exit (code {error.code})"
    where = (folder or Path()) / log_file(0)
    return without_secrets(explain(error, where)).replace("press Continue", f"start again with --job {uid}")


def _complain(text: str) -> None:
    print(f"flex-job cryosparc: {text}", file=sys.stderr, flush=True)
    log.error(text)
