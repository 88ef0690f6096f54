"""Atomic models as arrays, and their files: read with gemmi, placed in the engine's frame, written as a trajectory.

A model's file has the frame of the map that it was built into (`flex_job.map_model`). The engine's origin is that map's
voxel box // 2.
"""

from __future__ import annotations

import string
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import gemmi
import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from flex_job.files import written_aside
from flex_job.map_model import read_structure
from flex_job.volume import Volume

__all__ = ["BACKBONE", "AtomicModel", "drawn_atoms", "mmcif_groups", "read_atomic_model", "write_atomic_models"]

BACKBONE = ("CA", "P")
"""Atoms that stand for a residue."""

BOND_SLACK_A = 0.3  # beyond the sum of two covalent radii
LONGEST_BOND_A = 2.8

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class AtomicModel:
    """n atoms. `structure` holds the first model of the file alone, `origin_A` (3,) is where the file has the engine's
    origin. `positions_A` (n, 3) xyz about that origin, `residue` (n,) the number of each atom's residue, from 0."""

    structure: gemmi.Structure
    origin_A: Floats
    positions_A: Floats
    residue: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.residue)

    @property
    def residues(self) -> int:
        return int(self.residue[-1]) + 1

    @cached_property
    def thread(self) -> Floats:
        """(n,) a length along the chain of each atom, an angstrom per residue; chains are far apart in it."""
        chains = [number for number, chain in enumerate(self.structure[0]) for residue in chain for _ in residue]
        return self.residue + 1000.0 * np.array(chains)

    @cached_property
    def bonds(self) -> NDArray[np.int64]:
        """(b, 2) atoms that are as near to each other as covalently bound ones.

        Between residues only where chemistry binds them: in line in a chain, by two sulphurs, or where one is neither
        amino acid nor nucleotide (a sugar, a ligand); what is near otherwise is a clash. Atoms of two alternative
        conformations are not bound, nor hydrogens to each other or across residues, nor metals and water to anything.
        """
        atoms = [atom for _, _, atom in self.walk()]
        radius = np.array([atom.element.covalent_r for atom in atoms])
        hydrogen = np.array([atom.is_hydrogen() for atom in atoms])
        metal = np.array([atom.element.is_metal for atom in atoms])
        water = np.array([residue.is_water() for _, residue, _ in self.walk()])
        kinds = [gemmi.find_tabulated_residue(residue.name) for _, residue, _ in self.walk()]
        other_kind = np.array([not (kind.is_amino_acid() or kind.is_nucleic_acid()) for kind in kinds])
        sulphur = np.array([atom.element == gemmi.Element("S") for atom in atoms])
        version = np.array([ord(atom.altloc) for atom in atoms])
        first, second = cKDTree(self.positions_A).query_pairs(LONGEST_BOND_A, output_type="ndarray").reshape(-1, 2).T
        apart = np.linalg.norm(self.positions_A[first] - self.positions_A[second], axis=1)
        across = self.residue[first] != self.residue[second]
        bound = apart < radius[first] + radius[second] + BOND_SLACK_A
        bound &= ~(hydrogen[first] & hydrogen[second]) & ~((hydrogen[first] | hydrogen[second]) & across)
        bound &= ~((metal[first] | metal[second] | water[first] | water[second]) & across)
        bound &= (version[first] == version[second]) | (version[first] == 0) | (version[second] == 0)
        in_line = np.abs(self.thread[first] - self.thread[second]) < 1.5
        bound &= ~across | in_line | (sulphur[first] & sulphur[second]) | other_kind[first] | other_kind[second]
        return np.sort(np.stack([first[bound], second[bound]], axis=1), axis=1)

    @cached_property
    def first_conformation(self) -> NDArray[np.int64]:
        """Numbers of the atoms but those that are further conformations of one before."""
        first: dict[tuple[int, str], int] = {}
        for place, (number, (_, _, atom)) in enumerate(zip(self.residue.tolist(), self.walk(), strict=True)):
            first.setdefault((number, atom.name), place)
        return np.array(sorted(first.values()), dtype=np.int64)

    def walk(self) -> Iterable[tuple[gemmi.Chain, gemmi.Residue, gemmi.Atom]]:
        """Chain, residue and atom, in the order of the arrays."""
        for chain in self.structure[0]:
            for residue in chain:
                for atom in residue:
                    yield chain, residue, atom

    def placed(self, positions_A: Floats, number: int = 1) -> gemmi.Structure:
        """The structure with its atoms at `positions_A` (n, 3), as the model `number`. It is this one, changed: gemmi's
        copies of large models are slow."""
        self.structure[0].num = number
        for (_, _, atom), place in zip(self.walk(), (positions_A + self.origin_A).tolist(), strict=True):
            atom.pos = gemmi.Position(*place)
        return self.structure


def read_atomic_model(path: str | Path, map: Volume) -> AtomicModel:
    """The first model of a PDB or mmCIF file, built into `map`. Raises ValueError, with the path.

    Anisotropic displacement parameters are left out: they would have to turn with their atoms.
    """
    structure = read_structure(path)
    while len(structure) > 1:
        del structure[1]
    _name_chains(structure[0])
    structure.setup_entities()
    if any(residue.label_seq is None for chain in structure[0] for residue in chain.get_polymer()):
        structure.assign_label_seq_id(True)  # else ChimeraX takes residues that differ by insertion code alone for one
    return _as_arrays(structure, np.array(map.corner_A) + (map.box // 2) * map.pixel_size_A)


def _name_chains(model: gemmi.Model) -> None:
    """Chains of PDB files may be nameless, which mmCIF and viewers do not know."""
    names = {chain.name for chain in model}
    free = (letter for letter in string.ascii_uppercase if letter not in names)
    for chain in model:
        if not chain.name.strip():
            chain.name = next(free, "A")


def drawn_atoms(model: AtomicModel, most: int) -> AtomicModel:
    """A copy with what a viewer draws: without hydrogens, water and second conformations; where that leaves more than
    `most` atoms, CA and P alone."""
    structure = model.structure.clone()
    structure.remove_hydrogens()
    structure.remove_waters()
    structure.remove_alternative_conformations()
    if structure[0].count_atom_sites() > most:
        gemmi.Selection(f"//*//{','.join(BACKBONE)}[C,P]").remove_not_selected(structure)
    return _as_arrays(structure, model.origin_A)


def _as_arrays(structure: gemmi.Structure, origin_A: Floats) -> AtomicModel:
    positions, residue, number = [], [], -1
    for chain in structure[0]:
        for group in chain:
            number += 1 if len(group) else 0
            for atom in group:
                atom.aniso = gemmi.SMat33f(0, 0, 0, 0, 0, 0)
                positions.append(atom.pos.tolist())
                residue.append(number)
    places = np.array(positions, dtype=np.float64).reshape(-1, 3)
    return AtomicModel(structure, origin_A, places - origin_A, np.array(residue, dtype=np.int64))


def mmcif_groups() -> gemmi.MmcifOutputGroups:
    """All that a structure says of itself, but for the list of its residues: gemmi knows no types of residues, and a
    list without them hides the polymers from viewers."""
    groups = gemmi.MmcifOutputGroups(True)
    groups.chem_comp = False
    return groups


def write_atomic_models(path: Path, model: AtomicModel, frames: Iterable[Floats]) -> Path:
    """mmCIF with one model per item of `frames` (n, 3), numbered from 1; one frame at a time is in memory."""
    rows = gemmi.MmcifOutputGroups(False)
    rows.atoms = rows.group_pdb = True
    rest = mmcif_groups()
    rest.atoms = False
    with written_aside(path) as file:
        for number, positions in enumerate(frames, start=1):
            placed = model.placed(positions, number)
            if number == 1:
                file.write(placed.make_mmcif_block(rest).as_string().encode())
            block = placed.make_mmcif_block(rows)
            column = block.find_loop("_atom_site.id")
            for row in range(len(column)):  # unique in the whole file
                column[row] = str((number - 1) * len(model) + row + 1)
            text = block.as_string()
            loop = text.index("loop_")
            tags = block.find_loop("_atom_site.id").get_loop().tags
            start = text.index("\n", text.index(tags[-1])) + 1
            file.write(text[loop if number == 1 else start :].rstrip("\n").encode() + b"\n")
    return path
