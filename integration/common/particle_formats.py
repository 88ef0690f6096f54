"""Which host reads and writes a particle file, by its ending. Hosts are named here and loaded late, none by another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from flex_job.consensus import Consensus

__all__ = ["ParticleFormat", "particle_format"]

FORMATS = {".cs": "integration.cryosparc.particle_format"}
OTHERWISE = "integration.relion.particle_format"


@dataclass(frozen=True)
class ParticleFormat:
    """A kind of particle file.

    `output` is what a job calls its particles. `read_consensus` takes a path and the keywords map_path, mask_path,
    half_sets, seed and latent_columns. `write_particles` takes source, target, latents and their deviations (n, K), and
    the keywords corrections (of poses) and gains.
    `write_selection(source, target, kept)` copies the rows where `kept` (n,) is True.
    `latent_columns(path, K)` names the columns that a file of ours keeps both in, none for any other file.
    """

    output: str
    read_consensus: Callable[..., Consensus]
    write_particles: Callable[..., Path]
    write_selection: Callable[[Path, Path, NDArray[np.bool_]], Path]
    latent_columns: Callable[[Path, int], Sequence[str]]


def particle_format(path: Path) -> ParticleFormat:
    """The format of a particle file: cryoSPARC's for .cs, RELION's for all else."""
    found = import_module(FORMATS.get(path.suffix.lower(), OTHERWISE)).FORMAT
    assert isinstance(found, ParticleFormat)
    return found
