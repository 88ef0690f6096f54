"""The work of each job, between RELION's files and the engine. Heavy imports are fine here, `job.py` loads it late."""

from __future__ import annotations

import numpy as np

from flex_job.consensus import Consensus
from flex_job.distributed import Group
from flex_job.events import Events
from flex_job.manifest import Manifest
from flex_job.problems import InputProblems
from flex_job.refine import Refinement, refine
from integration.common.particle_formats import particle_format
from integration.relion.consensus import checked_consensus
from integration.relion.from_model import reconstruct
from integration.relion.generate import generate
from integration.relion.request import Request
from integration.relion.select import select
from integration.relion.write import write_fsc_star
from job_specs.parameters import names_in

__all__ = ["work"]


def work(request: Request, problems: list[str], events: Events, group: Group) -> None:
    """Do what `request` asks. `problems` already found are told together with those of the input files.

    All ranks of `group` work, its first writes the files.

    Raises InputProblems before any work when there is one, StopRequested when the host asked for a stop.
    """
    if request.job.name == "generate":
        group.first_does(lambda: generate(request, problems, events))
        return
    if request.job.name == "select":
        group.first_does(lambda: select(request, problems, events))
    elif request.job.name == "reconstruct":
        reconstruct(request, problems, events, group)
    else:
        _from_consensus(request, problems, events, group)
    if group.is_first:  # a later job finds its input files here
        Manifest(request.folder).describe(read={kind: str(path) for kind, path in request.inputs.items()})


def _from_consensus(request: Request, problems: list[str], events: Events, group: Group) -> None:
    """refine, or the part of its chain that prep, mesh or train stand for."""
    columns = names_in(request.parameters.train.latent_columns)
    consensus = checked_consensus(request, problems, columns, events)
    if request.job.name == "refine":
        result = refine(consensus, request.parameters, request.folder, events, group)
        if group.is_first:
            write_fsc_star(request.folder / "fsc.star", result.rigid, result.flex, result.resolution)
        model, summary, gains = result.model, result.summary, result.gains
    else:
        if request.job.name == "validate":
            _validate(consensus, request, events, group)
            return
        run = Refinement(consensus, request.parameters, request.folder, events, group)
        if request.job.name == "prep":
            stack, _ = run.training_particles
            events.message(f"{len(stack)} particles of {stack.box} px and {stack.pixel_size_A:.3f} A in {stack.path}")
            return
        if request.job.name == "mesh":
            events.message(f"{len(run.mesh.vertices_A)} vertices and {len(run.mesh.cells)} cells in mesh.npz")
            return
        events.plan(run.planned("train"))
        model, summary, gains = run.model, (), None
        run.clean()
    if group.is_first:
        source = request.inputs["particles"]
        form = particle_format(source)
        form.write_particles(
            source,
            request.folder / form.output,
            model.latents,
            model.latent_std,
            corrections=model.corrections,
            gains=gains,
        )
    for line in summary:
        events.message(line)
    if request.job.name == "refine":
        events.message(f"report: {request.folder / 'report.html'}")


def _validate(consensus: Consensus, request: Request, events: Events, group: Group) -> None:
    """The training on a sample of the particles, put to the test."""
    parameters = request.parameters
    if not parameters.train.held_out:
        raise InputProblems(["--held_out: 0; expected more: a motion is tested on particles that are kept aside"])
    if 0 < parameters.validate.sample < len(consensus):
        order = np.random.default_rng((parameters.run.seed, 4)).permutation(len(consensus))
        consensus = consensus.select(np.sort(order[: parameters.validate.sample]))
    run = Refinement(consensus, parameters, request.folder, events, group)
    events.plan(run.planned("validate"))
    events.message(str(run.validation(parameters.validate.nulls)))
    run.clean()
