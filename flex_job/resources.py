"""The memory plan of a job: its sizes, from what is known before the first particle is read."""

from __future__ import annotations

import socket
from pathlib import Path

from flex_job.choose import at_most
from flex_job.consensus import Consensus
from flex_job.distributed import Group
from flex_job.levels import march_box
from flex_job.memory import Grid, MemoryPlan, Sizes, disk_problems, free_memory, plan_memory
from flex_job.mesh import TetMesh
from flex_job.operator import MASK_LEVEL
from flex_job.problems import InputProblems
from flex_job.volume import Volume
from job_specs.parameters import RefineParameters

__all__ = ["job_sizes", "plan_job"]


def job_sizes(
    consensus: Consensus,
    mask: Volume,
    mesh: TetMesh | None,
    parameters: RefineParameters,
    *,
    training_box: int,
    full_box: int,
    device: str,
) -> Sizes:
    """Sizes of a job with that mesh; without one, of the rigid half-maps alone."""
    train = at_most(parameters.train)
    part = float((mask.data > MASK_LEVEL).mean())

    def grid(box: int, fraction: float, of: int, oversampling: int = 1) -> Grid:
        return Grid(box, fraction * of / 2, int(part * box**3), oversampling)

    start = None
    if train.latent_start == "linear" and consensus.latents is None:
        start = grid(march_box(training_box, train.band_start), train.band_start, training_box)
    return Sizes(
        particles=len(consensus),
        batch=train.batch,
        latent_dims=train.latent_dims,
        flow_layers=train.flow_layers,
        flow_units=train.flow_units,
        vertices=len(mesh.vertices_A) if mesh else 4,
        cells=len(mesh.cells) if mesh else 1,
        training_box=training_box,
        start=start,
        training=grid(march_box(training_box, train.band_end), train.band_end, training_box),
        full=grid(full_box, 1.0, full_box, parameters.reconstruct.oversampling),
        device=device,
        threads=parameters.run.threads,
    )


def plan_job(sizes: Sizes, cache_folder: Path, group: Group) -> MemoryPlan:
    """What fits where, on this rank's device. Raises InputProblems on all ranks when something does not. Together."""
    places = group.gathered((socket.gethostname(), str(group.device)))
    plan = plan_memory(sizes, free_memory(group.device), sharing=places.count(places[group.rank]))
    room = [] if cache_folder.exists() else group.first_does(lambda: disk_problems(cache_folder, plan.disk))
    problems = [*plan.problems, *room]
    if group.any(bool(problems)):
        raise InputProblems(problems or ["another process of this job has not enough memory"])
    return plan
