"""Read a job's consensus input with every check there is, so that all problems come in one message."""

from __future__ import annotations

import os
from collections.abc import Sequence

from flex_job.consensus import Consensus
from flex_job.mesh.inputs import mesh_problems
from flex_job.problems import InputProblems
from integration.common.parameters import space_problem
from integration.common.particle_formats import particle_format
from integration.relion.request import Request

__all__ = ["checked_consensus"]


def checked_consensus(request: Request, problems: Sequence[str], latent_columns: Sequence[str]) -> Consensus:
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
    if consensus is not None:
        space = space_problem(request.folder, parameters, len(consensus), consensus.map.box)
        found += [space] if space else []
    if found or consensus is None:
        raise InputProblems(
            found or ["--in_parts was not given, and the model's job does not say what it was trained on"]
        )
    return consensus
