"""What the simulator can move, by name: the packaged antibody and spliceosome, or domains of a given structure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import gemmi
import numpy as np
from numpy.typing import NDArray

from flex_job.simulation.atoms import atoms_at, load_antibody, load_structure
from flex_job.simulation.domains import complex_motion, parse_domains
from flex_job.simulation.maps import population
from flex_job.simulation.motion import MOTIONS, Conformations, antibody_motion
from flex_job.simulation.spliceosome import load_spliceosome, spliceosome_domains

__all__ = ["atoms_of", "conformations_of", "named_states"]

SPLICEOSOME = {"two_domains": 2, "three_domains": 3}
STATE = 0.8  # of a latent's range


def conformations_of(
    motion: str,
    sigma_A: float,
    amplitudes_deg: Sequence[float] = (20.0, 20.0),
    structure: str | Path = "",
    domains: str = "",
) -> Conformations:
    """Conformations by the name of their motion, or, where a structure is given, of its `domains`.

    `domains` alone moves other domains of the spliceosome. Raises ValueError for another name, for domains that
    `parse_domains` does not read or that the structure lacks, and for what is no structure.
    """
    if structure:
        return complex_motion(load_structure(structure, sigma_A), parse_domains(domains))
    if domains or motion in SPLICEOSOME:
        return complex_motion(
            load_spliceosome(sigma_A), parse_domains(domains or spliceosome_domains(SPLICEOSOME[motion]))
        )
    if motion not in MOTIONS:
        raise ValueError(f"motion {motion!r}; expected one of {', '.join((*MOTIONS, *SPLICEOSOME))}")
    return antibody_motion(load_antibody(sigma_A), motion, amplitudes_deg)


def atoms_of(
    motion: str, centre_A: NDArray[np.floating], structure: str | Path = "", domains: str = ""
) -> gemmi.Structure | None:
    """The atoms of these conformations at rest, their centre of mass at `centre_A` (3,); None of the spliceosome, of
    which there are beads alone."""
    if not structure and (domains or motion in SPLICEOSOME):
        return None
    return atoms_at(centre_A, structure)


def named_states(conformations: Conformations) -> NDArray[np.float64]:
    """Latents (m, k) of the states whose densities are written: rest, and both sides of each motion alone; or all
    states where there are but a few."""
    latent_dims = conformations.latent_dims
    if conformations.levels:
        return population(conformations)
    if latent_dims == 1:
        return np.array([[-STATE], [0.0], [STATE]])
    sides = [sign * STATE * row for row in np.eye(latent_dims) for sign in (-1, 1)]
    return np.array([np.zeros(latent_dims), *sides])
