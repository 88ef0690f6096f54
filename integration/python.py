"""The jobs from Python, for notebooks: seven functions, the same engine, files and parameters as the command line.

    from integration.python import build_mesh, generate, prepare, read_consensus, reconstruct, train, validate

    consensus = read_consensus("Refine3D/job021/run_data.star", mask="MaskCreate/job022/mask.mrc")
    run = prepare(consensus, "notebook/run1", latent_dims=2, rigidity=4, threads=8)
    mesh = build_mesh(run)
    model = train(run)
    print(validate(run))
    rigid, flex = reconstruct(run)
    maps = generate(run, frames=11)

What is done is kept in the run's folder: the same lines again take it from there, after a crash too.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flex_job.consensus import Consensus
from flex_job.events import Events
from flex_job.fsc import FscCurves
from flex_job.generate import frames as generated
from flex_job.generate import latent_path
from flex_job.half_maps import map_files, read_halves
from flex_job.mesh import TetMesh
from flex_job.model import FlexModel
from flex_job.problems import InputProblems
from flex_job.refine import Refinement
from flex_job.validation import Verdict
from flex_job.volume import Volume, read_volume
from integration.common.particle_formats import particle_format
from integration.common.process import limit_threads
from job_specs.jobs import JOBS, build

__all__ = [
    "Reconstruction",
    "build_mesh",
    "generate",
    "prepare",
    "read_consensus",
    "reconstruct",
    "train",
    "validate",
]

log = logging.getLogger("flex_job")


@dataclass(frozen=True)
class Reconstruction:
    """Two half-maps, the `combined` map (FSC-weighted and sharpened), and the curves that compare the halves."""

    halves: tuple[Volume, Volume]
    combined: Volume
    fsc: FscCurves


def read_consensus(
    particles: str | Path, *, map: str | Path | None = None, mask: str | Path | None = None, seed: int = 0
) -> Consensus:
    """The refinement that everything starts from: run_data.star of RELION, or a table .cs of cryoSPARC.

    Without `map`, that beside the particles is taken; without `mask`, one is made from the map. `seed` is for half-sets
    that have to be drawn. Raises InputProblems with everything that is wrong with the files.
    """
    path = Path(particles)
    return particle_format(path).read_consensus(
        path, map_path=map and Path(map), mask_path=mask and Path(mask), half_sets="consensus", seed=seed
    )


def prepare(consensus: Consensus, folder: str | Path, **parameters: object) -> Refinement:
    """A run in `folder`, which is made where it is not there, with its whitened particles.

    `parameters` are those of the job `refine`, by their names on the command line (`latent_dims=2, rigidity=4,
    threads=8`). Progress goes to the logger "flex_job". Raises InputProblems for names and values that are none, and
    where the folder holds work with other parameters.
    """
    chosen, problems = build(JOBS["refine"], {}, parameters)
    if problems:
        raise InputProblems(problems)
    limit_threads(chosen.run.threads)
    where = Path(folder)
    where.mkdir(parents=True, exist_ok=True)
    run = Refinement(consensus, chosen, where, Events(message=log.info))
    run.training_particles  # noqa: B018  made here
    return run


def build_mesh(run: Refinement) -> TetMesh:
    """Mask and mesh of the run."""
    return run.mesh


def train(run: Refinement) -> FlexModel:
    """The motion model with the latents of every particle; settings that were left open are chosen by the data."""
    return run.model


def validate(run: Refinement, nulls: int = 0) -> Verdict:
    """Whether the images support the motion; with `nulls`, beside so many simulations without any.

    Raises ValueError where no particles were kept aside (`held_out=0`).
    """
    verdict = run.validation(nulls)
    if verdict is None:
        raise ValueError("held_out: 0 was given; expected more: a motion is tested on particles that are kept aside")
    return verdict


def reconstruct(run: Refinement) -> tuple[Reconstruction, Reconstruction]:
    """Half-maps without motion, and through it, by the same solver."""
    curves = {"rigid": run.half_maps("rigid", None), "flex": run.half_maps("flex", run.models)}
    rigid, flex = (
        Reconstruction(read_halves(run.folder, kind), read_volume(run.folder / map_files(kind)[-1]), curves[kind])
        for kind in ("rigid", "flex")
    )
    return rigid, flex


def generate(
    run: Refinement, points: NDArray[np.floating] | None = None, *, frames: int = 11, latent: int = 1
) -> list[Volume]:
    """Maps at latents `points` (m, K); without them, `frames` of them along one `latent` (1 is the first), from its 5th
    to its 95th percentile. The reconstruction through the motion is moved where there is one, else the model's map."""
    model, path = run.model, run.folder / map_files("flex")[-1]
    density = read_volume(path) if path.is_file() else model.map
    at = latent_path(model.latents, latent - 1, frames) if points is None else np.atleast_2d(points)
    return list(generated(model, density, at))
