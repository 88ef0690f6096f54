"""Read a job's consensus input with every check there is, so that all problems come in one message."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

from flex_job.consensus import Consensus
from flex_job.embeddings import given_embedding
from flex_job.events import Events
from flex_job.mesh.inputs import mesh_problems
from flex_job.problems import InputProblems
from flex_job.resolution import resolution_problems
from integration.common.parameters import space_problem
from integration.common.particle_formats import particle_format
from integration.relion.request import Request

__all__ = ["checked_consensus"]


def checked_consensus(
    request: Request, problems: Sequence[str], latent_columns: Sequence[str], events: Events
) -> Consensus:
    """The consensus of `request`. `problems` are those found already; raises InputProblems with them and all others."""
    inputs, parameters = request.inputs, request.parameters
    found = list(problems)
    consensus = None
    if "particles" in inputs and os.path.isfile(inputs["particles"]):
        volumes = {kind: inputs[kind] for kind in ("map", "mask") if kind in inputs and os.path.isfile(inputs[kind])}
        try:
            consensus = particle_format(inputs["particles"]).read_consensus(
                inputs["particles"],
                map_path=volumes.get("map"),
                mask_path=volumes.get("mask"),
                half_sets=parameters.prep.half_sets,
                seed=parameters.run.seed,
                latent_columns=latent_columns,
            )
        except InputProblems as error:
            found += error.messages
    if request.job.name not in ("reconstruct", "generate"):
        found += mesh_problems(parameters.mesh, consensus.map if consensus is not None else None)
    if "resolution" in request.job.groups:
        found += resolution_problems(parameters.resolution, consensus.map if consensus is not None else None)
    try:
        latents = given_embedding(parameters.train, consensus, events.message)
    except InputProblems as error:
        found += error.messages
    if consensus is not None:
        space = space_problem(request.folder, parameters, len(consensus), consensus.map.box)
        found += [space] if space else []
    if found or consensus is None:
        raise InputProblems(
            found or ["--in_parts was not given, and the model's job does not say what it was trained on"]
        )
    return replace(consensus, latents=latents) if latents is not None else consensus
