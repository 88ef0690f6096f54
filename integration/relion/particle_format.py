"""RELION's STAR files as particle files of any job."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from integration.common.particle_formats import ParticleFormat
from integration.relion.read import read_consensus
from integration.relion.star import find_particles, read_star
from integration.relion.write import write_particles

__all__ = ["FORMAT"]


def latent_columns(particles: Path, dims: int) -> Sequence[str]:
    """The columns of latents and their deviations in a particle file of ours; none in any other."""
    try:
        table = find_particles(read_star(particles))
    except ValueError:
        return ()  # told when it is read in full
    names = [f"flex{kind}{k + 1}" for kind in ("Latent", "LatentStd") for k in range(dims)]
    return names if table is not None and all(name in table for name in names) else ()


FORMAT = ParticleFormat("particles.star", read_consensus, write_particles, latent_columns)
