"""Simulated particles of one moving arm, prepared for training: what several files train on."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from flex_job.events import Events
from flex_job.mesh import TetMesh, build_mesh
from flex_job.particles import ParticleStack
from flex_job.prep import prepare, restore
from flex_job.train import Trainer
from flex_job.volume import Volume
from integration.relion.read import read_consensus
from integration.relion.simulate import simulate_project
from job_specs.parameters import MeshParameters, PrepParameters, TrainParameters

__all__ = ["Prepared", "one_moving_arm"]


class Prepared(NamedTuple):
    """`map` in the stack's units of density; `truth` (n,) are the latents that the particles were made with."""

    stack: ParticleStack
    mesh: TetMesh
    map: Volume
    mask: Volume
    truth: NDArray[np.float64]
    folder: Path

    def trainer(self, parameters: TrainParameters, stack: ParticleStack | None = None, **more: object) -> Trainer:
        return Trainer(stack or self.stack, self.mesh, self.map, self.mask, parameters, Events(), **more)  # type: ignore[arg-type]


def one_moving_arm(folder: Path, particles: int, snr: float) -> Prepared:
    """So many particles of 32 px in a project in `folder`."""
    simulate_project(folder, motion="one_hinge", particles=particles, box=32, pixel_size_A=8.0, snr=snr, seed=3)
    consensus = read_consensus(
        folder / "Refine3D/job001/run_data.star", mask_path=folder / "MaskCreate/job002/mask.mrc"
    )
    assert consensus.mask is not None
    cache, record = folder / "prep.f16", folder / "prep.npz"
    prepare(consensus, consensus.mask, 32, PrepParameters(), cache, record, Events())
    stack, calibration = restore(consensus, 32, cache, record)
    mesh = build_mesh(consensus.map, consensus.mask, MeshParameters(tetra_cells=12))
    density = Volume(consensus.map.data * np.float32(calibration.gain), consensus.map.pixel_size_A)
    truth = np.load(folder / "truth/truth.npz")["latents"][:, 0]
    return Prepared(stack, mesh, density, consensus.mask, truth, folder)
