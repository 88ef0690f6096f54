"""Whether a model that was moved is still a sound one: bond lengths and backbone torsions, before and after."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from flex_job.atomic_model import AtomicModel

__all__ = ["LONGEST_PEPTIDE_A", "Geometry", "ModelGeometry"]

LONGEST_PEPTIDE_A = 1.5  # C-N: 1.33 A, and what refinement would call far outside

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Geometry:
    """Changes from the model that was given: root mean squares over bonds (A) and over residues (degrees), and how many
    of the peptide bonds are longer than LONGEST_PEPTIDE_A. Not a number where there are none."""

    bonds_within_A: float
    bonds_between_A: float
    phi_deg: float
    psi_deg: float
    omega_deg: float
    peptide_bonds: int
    long_peptide_bonds: int

    def named(self) -> dict[str, float]:
        return asdict(self)


class ModelGeometry:
    """Compares positions of the atoms of one model with those in its file."""

    def __init__(self, model: AtomicModel) -> None:
        self.bonds = model.bonds
        self.across = model.residue[self.bonds[:, 0]] != model.residue[self.bonds[:, 1]]
        self.lengths = _lengths(model.positions_A, self.bonds)
        names = np.array([atom.name for _, _, atom in model.walk()])
        ends = np.sort(names[self.bonds], axis=1)
        self.peptide = self.across & (ends[:, 0] == "C") & (ends[:, 1] == "N")
        self.torsions = _backbone(model, names, self.bonds[self.peptide])
        self.angles = {name: _torsion(model.positions_A, atoms) for name, atoms in self.torsions.items()}

    def __call__(self, positions_A: Floats) -> Geometry:
        """Of the atoms at `positions_A` (n, 3)."""
        lengths = _lengths(positions_A, self.bonds)
        change = lengths - self.lengths
        turned = {name: _torsion(positions_A, atoms) - self.angles[name] for name, atoms in self.torsions.items()}
        return Geometry(
            bonds_within_A=_rms(change[~self.across]),
            bonds_between_A=_rms(change[self.across]),
            **{f"{name}_deg": _rms((values + 180) % 360 - 180) for name, values in turned.items()},
            peptide_bonds=int(self.peptide.sum()),
            long_peptide_bonds=int((lengths[self.peptide] > LONGEST_PEPTIDE_A).sum()),
        )


def _backbone(model: AtomicModel, names: NDArray[np.str_], peptides: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
    """(m, 4) the atoms of every phi, psi and omega."""
    place = {(int(r), str(name)): n for n, (r, name) in reversed([*enumerate(zip(model.residue, names, strict=True))])}
    after = {}
    for a, b in peptides.tolist():
        carbon, nitrogen = (a, b) if names[a] == "C" else (b, a)
        after[int(model.residue[carbon])] = int(model.residue[nitrogen])
    found: dict[str, list[list[int | None]]] = {"phi": [], "psi": [], "omega": []}
    for one, two in sorted(after.items()):
        n1, ca1, c1 = (place.get((one, name)) for name in ("N", "CA", "C"))
        n2, ca2, c2 = (place.get((two, name)) for name in ("N", "CA", "C"))
        found["phi"].append([c1, n2, ca2, c2])
        found["psi"].append([n1, ca1, c1, n2])
        found["omega"].append([ca1, c1, n2, ca2])
    whole = {name: [row for row in rows if None not in row] for name, rows in found.items()}
    return {name: np.array(rows, dtype=np.int64).reshape(-1, 4) for name, rows in whole.items()}


def _lengths(positions: Floats, bonds: NDArray[np.int64]) -> Floats:
    return np.linalg.norm(positions[bonds[:, 0]] - positions[bonds[:, 1]], axis=1)


def _torsion(positions: Floats, atoms: NDArray[np.int64]) -> Floats:
    """(m,) degrees."""
    a, b, c, d = (positions[atoms[:, k]] for k in range(4))
    axis = c - b
    one, two = np.cross(b - a, axis), np.cross(axis, d - c)
    sine = np.einsum("na,na->n", np.cross(one, two), axis / np.linalg.norm(axis, axis=1, keepdims=True))
    return np.degrees(np.arctan2(sine, np.einsum("na,na->n", one, two)))


def _rms(values: Floats) -> float:
    return float(np.sqrt(np.mean(values**2))) if len(values) else float("nan")
