"""Read a job's consensus input with every check there is, so that all problems come in one message."""

from __future__ import annotations

from collections.abc import Sequence

from flex_job.consensus import Consensus
from flex_job.problems import InputProblems
from integration.common.parameters import space_problem
from integration.relion.read import read_consensus
from integration.relion.request import Request

__all__ = ["checked_consensus"]


def checked_consensus(request: Request, problems: Sequence[str], latent_columns: Sequence[str]) -> Consensus:
    """The consensus of `request`. `problems` are those found already; raises InputProblems with them and all others."""
    inputs, parameters = request.inputs, request.parameters
    found = list(problems)
    consensus = None
    if "particles" in inputs and inputs["particles"].is_file():
        volumes = {kind: inputs[kind] for kind in ("map", "mask") if kind in inputs and inputs[kind].is_file()}
        try:
            consensus = read_consensus(
                inputs["particles"],
                map_path=volumes.get("map"),
                mask_path=volumes.get("mask"),
                half_sets=parameters.prep.half_sets,
                seed=parameters.run.seed,
                latent_columns=latent_columns,
            )
        except InputProblems as error:
            found += error.messages
    if consensus is not None:
        space = space_problem(request.folder, parameters, len(consensus), consensus.map.box)
        found += [space] if space else []
    if found or consensus is None:
        raise InputProblems(
            found or ["--in_parts was not given, and the model's job does not say what it was trained on"]
        )
    return consensus
