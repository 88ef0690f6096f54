"""Atomic models in the flow: there and back, rigid residues, bonds and torsions, files."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import gemmi
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from flex_job.atom_motion import RigidResidues, taken_back
from flex_job.atomic_model import AtomicModel, read_atomic_model, write_atomic_models
from flex_job.mesh import TetMesh
from flex_job.mesh.points import MeshPoints
from flex_job.model_geometry import LONGEST_PEPTIDE_A, ModelGeometry
from flex_job.simulation.atoms import ANTIBODY
from flex_job.volume import Volume

CORNER_A = (-70.0, 11.0, 5.0)


@pytest.fixture(scope="module")
def map_of_model() -> Volume:
    """Only its grid counts: 48 voxels of 4 A, the first of them not at zero."""
    return Volume(np.zeros((48, 48, 48), np.float32), 4.0, CORNER_A)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, map_of_model: Volume) -> Path:
    """Heavy chain B of 1IGY with its sugars, its middle at the map's middle voxel."""
    structure = gemmi.make_structure_from_block(
        gemmi.cif.read_string(gzip.decompress(ANTIBODY.read_bytes()).decode()).sole_block()
    )
    for name in ("A", "C", "D", "F"):
        structure[0].remove_chain(name)
    structure.remove_hydrogens()
    atoms = [atom for chain in structure[0] for residue in chain for atom in residue]
    middle = np.mean([atom.pos.tolist() for atom in atoms], axis=0)
    shift = gemmi.Position(*(np.array(CORNER_A) + 24 * 4.0 - middle))
    for atom in atoms:
        atom.pos += shift
    path = tmp_path_factory.mktemp("model") / "heavy.cif"
    structure.make_mmcif_document().write_file(str(path))
    return path


@pytest.fixture(scope="module")
def model(file: Path, map_of_model: Volume) -> AtomicModel:
    return read_atomic_model(file, map_of_model)


@pytest.fixture(scope="module")
def mesh(mesh_of: Callable[..., TetMesh], model: AtomicModel) -> TetMesh:
    """Over all of the model, with a little room."""
    return mesh_of((5, 5, 6), 2 * np.abs(model.positions_A).max(axis=0) + 4)


def bent(mesh: TetMesh, size_A: float = 6.0) -> NDArray[np.float64]:
    """Vertices after a smooth motion that folds no cell."""
    phase = mesh.vertices_A / 25
    return mesh.vertices_A + size_A * np.stack(
        [np.sin(phase[:, 1] + 0.3), np.cos(phase[:, 2]), np.sin(phase[:, 0] - 0.5)], axis=1
    )


def rms(vectors: NDArray[np.floating]) -> float:
    return float(np.sqrt((vectors**2).sum(axis=-1).mean()))


# -- the flow at the atoms -------------------------------------------------------------------------------------------


def test_affine_flows_move_atoms_exactly(mesh: TetMesh, model: AtomicModel) -> None:
    matrix = Rotation.from_rotvec([0.2, -0.3, 0.5]).as_matrix() @ np.diag([1.05, 1.0, 0.97])
    motion = MeshPoints.at(mesh, model.positions_A)
    assert motion.inside.all()
    moved = motion.moved(model.positions_A, mesh.vertices_A @ matrix.T + [3.0, -2.0, 1.0])
    assert np.abs(moved - (model.positions_A @ matrix.T + [3.0, -2.0, 1.0])).max() < 1e-9


def test_forth_and_back_is_where_it_was(mesh: TetMesh, model: AtomicModel) -> None:
    end = bent(mesh)
    there = MeshPoints.at(mesh, model.positions_A).moved(model.positions_A, end)
    assert rms(there - model.positions_A) > 4
    back, sure = taken_back(mesh, there, end)
    assert sure.all() and np.abs(back - model.positions_A).max() < 1e-3
    # negative control: looked for in the mesh at rest, atoms of the frame are in the wrong cells
    wrong = 2 * there - MeshPoints.at(mesh, there).moved(there, end)
    assert np.abs(wrong - model.positions_A).max() > 0.5


def test_where_parts_run_into_each_other_atoms_go_with_their_own(mesh_of: Callable[..., TetMesh]) -> None:
    """Two bodies with a chain each, and a frame in which they overlap by 3 A: there a point lies in cells of both."""
    one = mesh_of((3, 3, 3), 40.0)
    places = np.concatenate([one.vertices_A - [25.0, 0, 0], one.vertices_A + [25.0, 0, 0]])
    mesh = TetMesh.plain(places, np.concatenate([one.cells, one.cells + len(one.vertices_A)]))
    rng = np.random.default_rng(0)
    points = rng.uniform(-20, 20, (6000, 3)) + np.repeat([[-25.0, 0, 0], [25.0, 0, 0]], 3000, axis=0)
    thread = np.repeat([0.0, 1000.0], 3000)
    turn = Rotation.from_rotvec([0.3, 0, 0]).as_matrix()
    end = np.concatenate([places[: len(one.vertices_A)], places[len(one.vertices_A) :] @ turn.T - [13.0, 0, 0]])
    there = MeshPoints.at(mesh, points).moved(points, end)
    back, sure = taken_back(mesh, there, end, thread)
    assert 10 < (~sure).sum() < 700
    error = np.linalg.norm(back - points, axis=1)
    assert error.max() < 5 and (error < 1e-3).mean() > 0.95
    # negative control: without the chains, the bodies cannot be told apart where they overlap
    assert np.abs(taken_back(mesh, there, end)[0] - points).max() > 10


def test_atoms_outside_are_told_and_go_with_the_nearest_part(
    mesh_of: Callable[..., TetMesh], model: AtomicModel
) -> None:
    small = mesh_of((3, 3, 3), 50.0)
    motion = MeshPoints.at(small, model.positions_A)
    reach = np.abs(model.positions_A).max(axis=1)
    assert motion.inside[reach < 24.999].all() and not motion.inside[reach > 25.001].any()
    assert 0.2 < motion.inside.mean() < 0.9
    moved = motion.moved(model.positions_A, small.vertices_A + [7.0, 0, 0])
    assert np.abs(moved - model.positions_A - [7.0, 0, 0]).max() < 1e-4


# -- rigid residues --------------------------------------------------------------------------------------------------


def test_a_rigid_flow_is_followed_exactly(model: AtomicModel) -> None:
    turn = Rotation.from_rotvec([1.0, -0.4, 0.7]).as_matrix()
    target = model.positions_A @ turn.T + [4.0, 5.0, -6.0]
    assert np.abs(RigidResidues(model).fitted(target) - target).max() < 1e-6


def test_residues_keep_their_geometry_and_their_bonds(mesh: TetMesh, model: AtomicModel) -> None:
    target = MeshPoints.at(mesh, model.positions_A).moved(model.positions_A, bent(mesh))
    placed, geometry = RigidResidues(model).fitted(target), ModelGeometry(model)
    for number in (0, 17, model.residues - 1):
        own = model.residue == number
        before, after = model.positions_A[own], placed[own]
        assert np.abs(distances(before) - distances(after)).max() < 1e-9
    flow, rigid = geometry(target), geometry(placed)
    assert flow.bonds_within_A > 0.05 and rigid.bonds_within_A < 1e-9
    assert rigid.bonds_between_A < 0.03 and rigid.long_peptide_bonds == 0 < flow.long_peptide_bonds
    assert max(rigid.phi_deg, rigid.psi_deg, rigid.omega_deg) < 2
    assert rms(placed - target) < 0.1 * rms(target - model.positions_A)  # and it still goes where the flow goes


def test_without_agreement_bonds_between_residues_give(
    mesh: TetMesh, model: AtomicModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control of what bound residues are made to agree on."""
    target = MeshPoints.at(mesh, model.positions_A).moved(model.positions_A, bent(mesh))
    residues, geometry = RigidResidues(model), ModelGeometry(model)
    agreed = geometry(residues.fitted(target))
    monkeypatch.setattr("flex_job.atom_motion.STEPS", 0)
    alone = geometry(residues.fitted(target))
    assert alone.bonds_between_A > 10 * agreed.bonds_between_A
    assert alone.phi_deg > 3 * agreed.phi_deg and alone.psi_deg > 3 * agreed.psi_deg


def distances(points: NDArray[np.floating]) -> NDArray[np.floating]:
    return np.linalg.norm(points[:, None] - points[None], axis=2)


# -- geometry --------------------------------------------------------------------------------------------------------


def test_bonds_are_those_of_chemistry(model: AtomicModel) -> None:
    names = np.array([f"{residue.name}.{atom.name}" for _, residue, atom in model.walk()])
    bonds = {tuple(sorted(pair)) for pair in names[model.bonds]}
    assert ("ALA.C", "ALA.CA") in bonds and ("ALA.CA", "ALA.CB") in bonds and ("ALA.CA", "ALA.O") not in bonds
    across = model.bonds[model.residue[model.bonds[:, 0]] != model.residue[model.bonds[:, 1]]]
    between = {tuple(sorted(name.partition(".")[2] for name in pair)) for pair in names[across]}
    assert {("C", "N"), ("SG", "SG"), ("C1", "ND2")} <= between  # peptides, disulphides, the sugar at its asparagine
    geometry = ModelGeometry(model)(model.positions_A)
    assert geometry.peptide_bonds == 433 and geometry.long_peptide_bonds == 0 and geometry.bonds_between_A == 0


def test_a_clash_is_no_bond(file: Path, map_of_model: Volume) -> None:
    """Residues far apart in the chain that are pushed into each other do not hold each other."""
    model = read_atomic_model(file, map_of_model)
    before = len(model.bonds)
    placed = model.positions_A.copy()
    shift = placed[model.residue == 300].mean(axis=0) - placed[model.residue == 60].mean(axis=0)
    placed[model.residue == 60] += shift
    clashing = AtomicModel(model.structure, model.origin_A, placed, model.residue)
    apart = np.abs(np.diff(clashing.residue[clashing.bonds], axis=1))
    assert len(clashing.bonds) < before  # its peptide bonds are torn
    assert not ((clashing.residue[clashing.bonds] == 60).any(axis=1) & (apart[:, 0] > 1)).any()


def test_torsions_are_gemmis(model: AtomicModel) -> None:
    geometry = ModelGeometry(model)
    chain = model.structure[0]["B"]
    polymer = list(chain.get_polymer())
    expected = [gemmi.calculate_phi_psi(*three) for three in zip(polymer, polymer[1:], polymer[2:], strict=False)]
    phi, psi = np.degrees(expected).T
    assert np.abs(geometry.angles["phi"][:-1] - phi).max() < 1e-3
    assert np.abs(geometry.angles["psi"][1:] - psi).max() < 1e-3


def test_a_stretched_peptide_bond_is_counted(model: AtomicModel) -> None:
    placed = model.positions_A.copy()
    placed[model.residue >= 100] += [0, 0, 3.0]
    found = ModelGeometry(model)(placed)
    bond = model.bonds[(model.residue[model.bonds[:, 0]] < 100) & (model.residue[model.bonds[:, 1]] >= 100)]
    lengths = np.linalg.norm(placed[bond[:, 0]] - placed[bond[:, 1]], axis=1)
    assert found.long_peptide_bonds == 1 and (lengths > LONGEST_PEPTIDE_A).any()
    assert found.bonds_within_A == 0 and found.bonds_between_A > 0


# -- files -----------------------------------------------------------------------------------------------------------


def test_positions_are_about_the_maps_middle_voxel(model: AtomicModel) -> None:
    assert np.abs(model.positions_A.mean(axis=0)).max() < 1e-3
    assert model.origin_A.tolist() == [26.0, 107.0, 101.0]


def test_the_trajectory_is_one_file_that_gemmi_reads(file: Path, map_of_model: Volume, tmp_path: Path) -> None:
    model = read_atomic_model(file, map_of_model)
    frames = [model.positions_A + [shift, 0, 0] for shift in (0.0, 1.5, -2.0)]
    path = write_atomic_models(tmp_path / "frames.cif", model, frames)
    read, given = gemmi.read_structure(str(path)), gemmi.read_structure(str(file))
    assert len(read) == 3 and [each.num for each in read] == [1, 2, 3]
    first = np.array([atom.pos.tolist() for chain in given[0] for residue in chain for atom in residue])
    for each, shift in zip(read, (0.0, 1.5, -2.0), strict=True):
        atoms = [(chain.name, str(residue), atom) for chain in each for residue in chain for atom in residue]
        assert len(atoms) == len(first)
        places = np.array([atom.pos.tolist() for _, _, atom in atoms])
        assert np.abs(places - first - [shift, 0, 0]).max() < 2e-3
    told = [
        (chain.name, str(residue), atom.name, atom.b_iso) for chain in given[0] for residue in chain for atom in residue
    ]
    kept = [
        (chain.name, str(residue), atom.name, atom.b_iso) for chain in read[2] for residue in chain for atom in residue
    ]
    assert kept == told
    ids = list(gemmi.cif.read(str(path)).sole_block().find_values("_atom_site.id"))
    assert len(set(ids)) == len(ids) == 3 * len(first)
    assert len(read.entities) == len(given.entities)


def test_a_pdb_file_will_do_and_further_models_are_left_out(file: Path, map_of_model: Volume, tmp_path: Path) -> None:
    structure = gemmi.read_structure(str(file))
    structure.add_model(structure[0])
    structure.renumber_models()
    structure.write_pdb(str(tmp_path / "two.pdb"))
    model = read_atomic_model(tmp_path / "two.pdb", map_of_model)
    assert len(model.structure) == 1
    assert len(model) == len(read_atomic_model(file, map_of_model))
