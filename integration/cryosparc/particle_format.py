"""cryoSPARC's `.cs` tables as particle files of any job."""

from __future__ import annotations

from integration.common.particle_formats import ParticleFormat
from integration.cryosparc.read import read_consensus
from integration.cryosparc.write import latent_columns, write_particles, write_selection

__all__ = ["FORMAT"]

FORMAT = ParticleFormat("particles.cs", read_consensus, write_particles, write_selection, latent_columns)
