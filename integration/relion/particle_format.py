"""RELION's STAR files as particle files of any job."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from integration.common.particle_formats import ParticleFormat
from integration.relion.read import read_consensus
from integration.relion.rows import copy_rows
from integration.relion.star import find_particles, read_star
from integration.relion.write import write_particles

__all__ = ["FORMAT"]

NOTHING = re.compile(r"(?!)")


def latent_columns(particles: Path, dims: int) -> Sequence[str]:
    """The columns of latents and their deviations in a particle file of ours; none in any other."""
    try:
        table = find_particles(read_star(particles))
    except ValueError:
        return ()  # told when it is read in full
    names = [f"flex{kind}{k + 1}" for kind in ("Latent", "LatentStd") for k in range(dims)]
    return names if table is not None and all(name in table for name in names) else ()


def write_selection(source: Path, target: Path, kept: NDArray[np.bool_]) -> Path:
    """Copy the rows where `kept` (n,) is True, byte for byte, as all else."""
    return copy_rows(source, target, {}, NOTHING, kept)


FORMAT = ParticleFormat("particles.star", read_consensus, write_particles, write_selection, latent_columns)
