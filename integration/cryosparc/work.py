"""The engine's part of an external job, in one process or in several: consensus in, refinement, outputs."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from flex_job.consensus import Consensus
from flex_job.distributed import Group, RankLost
from flex_job.embeddings import given_embedding
from flex_job.events import Events, StopRequested
from flex_job.join import join
from flex_job.launch import place_of
from flex_job.lock import FolderLock
from flex_job.mesh.inputs import mesh_problems
from flex_job.problems import InputProblems
from flex_job.refine import refine
from flex_job.resolution import resolution_problems
from integration.common.log import JobLog, explain, log_file
from integration.common.parameters import space_problem
from integration.common.process import devices_of, limit_threads
from integration.common.progress import Display
from integration.common.signals import StopSignals
from integration.cryosparc.client import connect, without_secrets
from integration.cryosparc.dataset import read_cs, write_cs
from integration.cryosparc.figures import result_figures
from integration.cryosparc.host import CryosparcJob
from integration.cryosparc.inputs import FOLDER, Prepared
from integration.cryosparc.outputs import save_outputs
from integration.cryosparc.read import latent_fields, read_consensus
from integration.cryosparc.request import read_request
from integration.cryosparc.write import with_latents
from job_specs.parameters import RefineParameters, names_in

__all__ = ["run_rank", "told_problem", "work"]

PROBLEM = "problem.txt"
log = logging.getLogger("integration.cryosparc")


def work(
    host: CryosparcJob | StopSignals, group: Group, parameters: RefineParameters, prepared: Prepared, folder: Path
) -> str:
    """Refine, and save the outputs; returns why it stopped early, empty when it did not.

    The first rank has the job as `host`, others only signals.
    """
    if not isinstance(host, CryosparcJob):
        return _work(host, group, parameters, prepared, folder, None)
    with FolderLock(folder), Display(folder, "refine", host.say, host.show_progress) as display:
        display.begin()
        problem = _work(host, group, parameters, prepared, folder, display)
        if problem:
            display.end("stopped", without_secrets(problem))
    return problem


def _work(
    host: CryosparcJob | StopSignals,
    group: Group,
    parameters: RefineParameters,
    prepared: Prepared,
    folder: Path,
    display: Display | None,
) -> str:
    job = host if isinstance(host, CryosparcJob) else None
    say = display.say if display else log.info
    records = read_cs(prepared.particles)
    parameters = _with_given_latents(parameters, list(records), say)
    consensus = _consensus(parameters, prepared, folder, job.warn if job else log.warning)
    should_stop = host.should_stop if isinstance(host, CryosparcJob) else lambda: bool(host.name)
    events = Events(say, should_stop, parameters.run.max_hours if job else 0.0)
    if display:
        events.show = display.show
    try:
        result = refine(consensus, parameters, folder, events, group)
    except StopRequested:
        group.leave()
        return _why_stopped(host, events.out_of_time)
    if job:
        for caption, figure in result_figures(result, folder):
            job.show(caption, figure)
        model = result.model
        records = with_latents(
            records, model.latents, model.latent_std, corrections=model.corrections, gains=result.gains
        )
        write_cs(folder / "particles.cs", records)
        save_outputs(job.job, folder, records, model, say)
        for line in (*result.summary, f"report: {folder / 'report.html'}"):
            say(line)
    group.leave()
    return ""


def run_rank(job_name: str, options: Mapping[str, str]) -> int:
    """One of several processes at a job that their starter has made and prepared; returns the exit code."""
    request, _ = read_request(options)
    place, folder = place_of(os.environ), Path(options["o"])
    assert place is not None
    limit_threads(request.parameters.run.threads)
    devices = devices_of(request.parameters.run.devices, [])
    group = Group.on(devices[place.local_rank % len(devices)])
    first = place.rank == 0
    with JobLog(folder, place.rank):
        try:
            host: CryosparcJob | StopSignals
            host = CryosparcJob(connect(request.url).find_job(request.project, request.job)) if first else StopSignals()
            with host:
                group = join(place, group.device)
                problem = work(host, group, request.parameters, Prepared.load(folder), folder)
        except RankLost as error:
            problem = group.told_failure() or str(error)
        except (Exception, KeyboardInterrupt) as error:
            log.error("%s failed", job_name, exc_info=True)
            problem = explain(error, folder / log_file(place.rank))
            if not first:
                group.tell_failure(problem)
    if first and problem:
        (folder / FOLDER / PROBLEM).write_text(without_secrets(problem))
    return int(bool(problem))


def told_problem(folder: Path) -> str:
    """What the first rank left as its problem."""
    path = folder / FOLDER / PROBLEM
    text = path.read_text() if path.is_file() else ""
    path.unlink(missing_ok=True)
    return text


def _with_given_latents(
    parameters: RefineParameters, fields: Sequence[str], say: Callable[[str], None]
) -> RefineParameters:
    """Latents of an upstream 3D Variability or flexible job start the training, unless the user said what does."""
    train = parameters.train
    modes = latent_fields(fields)
    if not modes or train.latent_columns or train.latent_start != "linear":
        return parameters
    if len(modes) < train.latent_dims:
        say(
            f"the particles bring {len(modes)} latents and latent_dims is {train.latent_dims}: the training starts "
            "from a linear subspace model instead; set latent_dims to use them"
        )
        return parameters
    chosen = modes[: train.latent_dims]
    say(f"starting latents: {', '.join(chosen)} of the connected particles")
    return replace(parameters, train=replace(train, latent_columns=",".join(chosen), latent_start="columns"))


def _consensus(
    parameters: RefineParameters, prepared: Prepared, folder: Path, warn: Callable[[str], None]
) -> Consensus:
    """Read and checked, with the room on the disk; raises InputProblems with all that is wrong."""
    consensus = read_consensus(
        prepared.particles,
        (),
        map_path=prepared.map,
        mask_path=prepared.mask,
        half_map_paths=prepared.half_maps,
        half_sets=parameters.prep.half_sets,
        seed=parameters.run.seed,
        latent_columns=names_in(parameters.train.latent_columns),
        project=prepared.root,
        warn=warn,
    )
    found = mesh_problems(parameters.mesh, consensus.map)
    found += resolution_problems(parameters.resolution, consensus.map)
    try:
        latents = given_embedding(parameters.train, consensus, warn)
    except InputProblems as error:
        found += error.messages
    space = space_problem(folder, parameters, len(consensus), consensus.map.box)
    if found or space:
        raise InputProblems([*found, *([space] if space else [])])
    return replace(consensus, latents=latents) if latents is not None else consensus


def _why_stopped(host: CryosparcJob | StopSignals, out_of_time: bool) -> str:
    if isinstance(host, StopSignals):
        return "stopped"
    again = f"start again with --job {host.job.uid} to go on from the last checkpoint"
    if host.signal_name:
        return f"stopped by {host.signal_name}; {again}"
    return f"max_hours is used up; {again}" if out_of_time else f"{host.killed} in cryoSPARC; {again}"
