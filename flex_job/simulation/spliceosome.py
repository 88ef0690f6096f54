"""The spliceosome 3JB9 (1.15 MDa) as Gaussian beads, and the domains of it that the simulator moves.

PDB entry 3JB9, Schizosaccharomyces pombe (Yan et al. 2015, Science 349:1182; PDB entries are CC0), reduced to one
bead per residue at its centre of mass.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from flex_job.simulation.atoms import Beads

__all__ = ["CWF11", "U2_CORE", "U5_RING", "load_spliceosome", "spliceosome_domains"]

STRUCTURE = Path(__file__).parent / "data" / "3jb9.npz"
# Degrees either way; with them the ends of the three move by 46, 35 and 22 A from one extreme to the other.
U2_CORE = "j+k+Z+b+f+l+m+n+o+P(90-200):21"  # U2 snRNP with its part of the RNA, 100 kDa, on a thread of RNA
CWF11 = "X:13.5"  # the helicase Cwf11, 129 kDa, at the rim
U5_RING = "D+E+F+G+H+I+J:12"  # the Sm ring of U5, 61 kDa, broadly attached
ORDER = (U2_CORE, CWF11, U5_RING)


def load_spliceosome(sigma_A: float = 3.0) -> Beads:
    """3JB9, its centre of mass at the origin. Raises ValueError if sigma_A <= 0."""
    if sigma_A <= 0:
        raise ValueError(f"bead width sigma_A = {sigma_A}; expected more than 0 A")
    with np.load(STRUCTURE, allow_pickle=False) as stored:
        xyz = stored["position_tenth_A"] / 10.0
        mass = stored["mass_Da"].astype(np.float64)
        chain = np.array([chr(code) for code in stored["chain"]])
        residue = stored["residue"].astype(np.int32)
    return Beads(
        positions_A=xyz - mass @ xyz / mass.sum(),
        amplitude=mass,
        sigma_A=float(sigma_A),
        chain=chain,
        residue=residue,
        alpha_carbon=np.ones(len(mass), dtype=bool),
    )


def spliceosome_domains(count: int) -> str:
    """The first `count` of the moving domains, as `parse_domains` reads them: U2 core, Cwf11, U5 ring."""
    return "; ".join(ORDER[:count])
