"""A structure as Gaussian beads, of each residue's backbone and side chain: a file's, or the packaged antibody 1IGY."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import gemmi
import numpy as np
from numpy.typing import NDArray

__all__ = ["Beads", "atoms_at", "default_sigma_A", "load_antibody", "load_structure"]

BACKBONE = {"N", "CA", "C", "O", "OXT"}
ANTIBODY = Path(__file__).parent / "data" / "1igy.cif.gz"


@dataclass(frozen=True)
class Beads:
    """Isotropic Gaussians. `positions_A` (n, 3) xyz about the box centre; `amplitude` (n,) each one's integral, in
    daltons when read from a structure; `sigma_A` common to all; `chain` (n,) the chain's letter; `residue` (n,) the
    1-based residue number in its chain, without gaps or insertion codes (mmCIF label_seq_id; 0 for sugars);
    `alpha_carbon` (n,) is true for beads that hold a backbone.
    """

    positions_A: NDArray[np.float64]
    amplitude: NDArray[np.float64]
    sigma_A: float
    chain: NDArray[np.str_]
    residue: NDArray[np.int32]
    alpha_carbon: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.amplitude)

    def scaled(self, factor: float) -> Beads:
        """The same beads with every amplitude multiplied by `factor`."""
        return replace(self, amplitude=self.amplitude * factor)


def default_sigma_A(pixel_size_A: float) -> float:
    """Bead width: 2 A is what a residue spans; 0.7 px and more leaves little beyond Nyquist."""
    return max(2.0, 0.7 * pixel_size_A)


def load_antibody(sigma_A: float = 2.0) -> Beads:
    """PDB entry 1IGY (mouse IgG1, packaged), its centre of mass at the origin. Raises ValueError if sigma_A <= 0."""
    return _beads(_structure(""), sigma_A, lambda residue: residue.label_seq or 0)


def load_structure(path: str | Path, sigma_A: float = 2.0) -> Beads:
    """The first model of a PDB or mmCIF file (or .gz), its centre of mass at the origin; residues have the file's own
    numbers, and a nucleotide is one bead. Raises ValueError, with the path, for what is no structure."""
    return _beads(_structure(path), sigma_A, lambda residue: residue.seqid.num or 0)


def atoms_at(centre_A: NDArray[np.floating], path: str | Path = "") -> gemmi.Structure:
    """The atoms that the beads of `load_structure`, or without a path of `load_antibody`, stand for, their centre of
    mass at `centre_A` (3,)."""
    structure = _structure(path)
    atoms = [atom for chain in structure[0] for residue in chain for atom in residue]
    mass = np.array([atom.element.weight for atom in atoms])
    shift = gemmi.Position(
        *(np.asarray(centre_A) - mass @ np.array([atom.pos.tolist() for atom in atoms]) / mass.sum())
    )
    for atom in atoms:
        atom.pos += shift
    return structure


def _structure(path: str | Path) -> gemmi.Structure:
    """The antibody, or the first model of a file: without hydrogens and water."""
    if not path:
        with gzip.open(ANTIBODY, "rt") as stream:
            structure = gemmi.make_structure_from_block(gemmi.cif.read_string(stream.read()).sole_block())
    else:
        try:
            structure = gemmi.read_structure(str(path))
        except (OSError, RuntimeError, ValueError) as error:
            raise ValueError(f"{path}: not a structure that gemmi reads ({error}); expected PDB or mmCIF") from error
        if not len(structure) or not structure[0].count_atom_sites():
            raise ValueError(f"{path}: a structure without atoms; expected PDB or mmCIF coordinates")
    while len(structure) > 1:
        del structure[1]
    structure.remove_hydrogens()
    structure.remove_waters()
    return structure


def _beads(structure: gemmi.Structure, sigma_A: float, number_of: Callable[[gemmi.Residue], int]) -> Beads:
    """Beads of a structure's first model. Raises ValueError if sigma_A <= 0."""
    if sigma_A <= 0:
        raise ValueError(f"bead width sigma_A = {sigma_A}; expected more than 0 A")
    positions: list[NDArray[np.float64]] = []
    rows: list[tuple[float, str, int, bool]] = []
    for chain in structure[0]:
        for residue in chain:
            number = number_of(residue)
            backbone = [atom for atom in residue if number and atom.name in BACKBONE]
            others = [atom for atom in residue if not (number and atom.name in BACKBONE)]
            for group in (backbone, others):
                if not group:
                    continue
                mass = np.array([atom.element.weight for atom in group])
                xyz = np.array([atom.pos.tolist() for atom in group])
                positions.append(mass @ xyz / mass.sum())
                rows.append((float(mass.sum()), chain.name, number, group is backbone))
    amplitude = np.array([row[0] for row in rows])
    xyz = np.array(positions)
    return Beads(
        positions_A=xyz - amplitude @ xyz / amplitude.sum(),
        amplitude=amplitude,
        sigma_A=float(sigma_A),
        chain=np.array([row[1] for row in rows]),
        residue=np.array([row[2] for row in rows], dtype=np.int32),
        alpha_carbon=np.array([row[3] for row in rows]),
    )
