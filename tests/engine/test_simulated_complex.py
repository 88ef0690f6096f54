"""The spliceosome and given structures: domains that turn about their contact, each on its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gemmi
import numpy as np
import pytest
import starfile
from click.testing import CliRunner
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from flex_job.simulation.atoms import Beads, load_antibody, load_structure
from flex_job.simulation.cases import atoms_of, conformations_of, named_states
from flex_job.simulation.domains import complex_motion, domain_hinge, parse_domains
from flex_job.simulation.motion import Conformations
from flex_job.simulation.spliceosome import load_spliceosome
from integration.local.cli import _commands

SIGMA_A = 3.0


@pytest.fixture(scope="module")
def spliceosome() -> Beads:
    return load_spliceosome(SIGMA_A)


@pytest.fixture(scope="module")
def three() -> Conformations:
    return conformations_of("three_domains", SIGMA_A)


def dumbbell(path: Path) -> Path:
    """Two chains of 20 alanines side by side along x, in a file that has no sequence: residues 101 to 120."""
    structure = gemmi.Structure()
    structure.add_model(gemmi.Model(1))
    for name, x in (("A", 0.0), ("B", 80.0)):
        chain = gemmi.Chain(name)
        for number in range(20):
            residue = gemmi.Residue()
            residue.name, residue.seqid = "ALA", gemmi.SeqId(101 + number, " ")
            for atom_name, element, y in (("CA", "C", 0.0), ("CB", "C", 1.5), ("HA", "H", -1.0)):
                atom = gemmi.Atom()
                atom.name, atom.element, atom.pos = atom_name, gemmi.Element(element), gemmi.Position(x, y, 0.0)
                residue.add_atom(atom)
            x += 4.0
            chain.add_residue(residue)
        structure[0].add_chain(chain)
    structure.write_pdb(str(path))
    return path


def test_the_spliceosome_is_centred_and_has_its_mass(spliceosome: Beads) -> None:
    assert np.abs(spliceosome.amplitude @ spliceosome.positions_A / spliceosome.amplitude.sum()).max() < 1e-9
    assert 1.1e6 < spliceosome.amplitude.sum() < 1.2e6
    assert np.linalg.norm(spliceosome.positions_A, axis=1).max() < 165
    with pytest.raises(ValueError, match="sigma_A"):
        load_spliceosome(-1.0)


def test_domains_turn_as_rigid_bodies_and_the_rest_stays(spliceosome: Beads, three: Conformations) -> None:
    latent = np.array([[0.7, -0.9, 0.5]])
    moved = three.positions(latent)[0]
    for number, hinge in enumerate(three.hinges):
        inner = hinge.weight == 1.0
        assert inner.sum() > 300
        before, after = (xyz[inner] - xyz[inner].mean(axis=0) for xyz in (spliceosome.positions_A, moved))
        turn, residual = Rotation.align_vectors(after, before)
        assert residual < 1e-4
        assert turn.magnitude() == pytest.approx(abs(three.angles_rad(latent)[0, number]), abs=1e-6)
    weights = np.array([hinge.weight for hinge in three.hinges])
    still = (weights == 0).all(axis=0)
    np.testing.assert_array_equal(moved[still], spliceosome.positions_A[still])
    assert ((weights > 0).sum(axis=0) <= 1).all()  # so that the three are independent


def test_the_ends_move_as_far_as_stated(three: Conformations) -> None:
    ends = []
    for side in np.eye(3):
        low, high = three.positions(np.array([-side, side]))
        ends.append(np.linalg.norm(high - low, axis=1).max())
    np.testing.assert_allclose(ends, [46, 35, 22], atol=1)


def test_a_contact_bends_and_is_not_torn(three: Conformations) -> None:
    """Residues of two bodies that touch stay so, for the domain takes up its angle away from the contact."""
    xyz, ring = three.beads.positions_A, three.hinges[2]
    inside, outside = np.flatnonzero(ring.weight > 0), np.flatnonzero(ring.weight == 0)
    pairs = cKDTree(xyz[inside]).sparse_distance_matrix(cKDTree(xyz[outside]), 7.0).tocoo()
    assert pairs.nnz > 100
    stiff = replace(ring, weight=(ring.weight > 0).astype(float))
    change = []
    for hinge in (ring, stiff):
        moved = xyz + hinge.displacement(xyz, np.ones(1))[0]
        after = np.linalg.norm(moved[inside[pairs.row]] - moved[outside[pairs.col]], axis=1)
        change.append(np.median(np.abs(after - pairs.data)))
    assert change[0] < 1.0 and change[1] > 2 * change[0], change


def test_domains_are_read_as_written() -> None:
    first, second = parse_domains(" A+B:15; C(20-110):7.5 ")
    assert first.parts == (("A", None), ("B", None)) and first.amplitude_deg == 15
    assert second.parts == (("C", (20, 110)),) and second.amplitude_deg == 7.5
    assert parse_domains("") == ()


@pytest.mark.parametrize("text", ["A", "A:", "A:x", "A:0", "A:-3", "A:91", ":5", "A+:5", "A(3):5", "A B:5"])
def test_domains_that_cannot_be_read_are_errors(text: str) -> None:
    with pytest.raises(ValueError, match="expected chains and the angle") as error:
        parse_domains(text)
    assert repr(text.strip()) in str(error.value)


def test_domains_must_be_in_the_structure_and_apart(spliceosome: Beads) -> None:
    with pytest.raises(ValueError, match="no residue of chain Q9"):
        complex_motion(spliceosome, parse_domains("Q9:5"))
    with pytest.raises(ValueError, match="chain X, residues 5000 to 6000"):
        complex_motion(spliceosome, parse_domains("X(5000-6000):5"))
    with pytest.raises(ValueError, match=r"share \d+ residues of chain X"):
        complex_motion(spliceosome, parse_domains("X:5; X+A:6"))
    with pytest.raises(ValueError, match="others that stay"):
        domain_hinge(spliceosome, np.ones(len(spliceosome), dtype=bool), 5.0)


def test_a_structure_file_with_domains(tmp_path: Path) -> None:
    path = dumbbell(tmp_path / "two.pdb")
    beads = load_structure(path, SIGMA_A)
    assert len(beads) == 80  # a backbone and a side chain for each of 40 residues; no hydrogens
    assert beads.amplitude.sum() == pytest.approx(80 * 12.011, rel=1e-3)
    assert set(beads.residue) == set(range(101, 121))
    moving = conformations_of("one_hinge", SIGMA_A, structure=path, domains="B:30")
    moved = moving.positions(np.array([[1.0]]))[0]
    stays = beads.chain == "A"
    np.testing.assert_array_equal(moved[stays], beads.positions_A[stays])
    # In line with the rest, so that any axis across will do; the two nearest residues make the pivot.
    end = np.flatnonzero(beads.chain == "B")[-1]
    assert np.linalg.norm(moved[end] - beads.positions_A[end]) == pytest.approx(2 * 74 * np.sin(np.pi / 12), rel=0.01)
    assert conformations_of("one_hinge", SIGMA_A, structure=path).latent_dims == 0
    with pytest.raises(ValueError, match="none.cif"):
        load_structure(tmp_path / "none.cif")
    (tmp_path / "text.pdb").write_text("nothing\n")
    with pytest.raises(ValueError, match="without atoms"):
        load_structure(tmp_path / "text.pdb")


def test_cases_by_name() -> None:
    assert [conformations_of(name, SIGMA_A).latent_dims for name in ("none", "one_hinge", "two_domains")] == [0, 1, 2]
    assert conformations_of("none", SIGMA_A, domains="X:10").latent_dims == 1  # of the spliceosome
    with pytest.raises(ValueError, match="two_domains, three_domains"):
        conformations_of("wobble", SIGMA_A)
    rest_and_sides = [[0, 0], [-0.8, 0], [0.8, 0], [0, -0.8], [0, 0.8]]
    np.testing.assert_array_equal(named_states(conformations_of("two_domains", SIGMA_A)), rest_and_sides)
    assert named_states(conformations_of("none", SIGMA_A)).shape == (1, 0)


def test_the_atoms_are_where_the_beads_are(tmp_path: Path) -> None:
    """At rest: each residue's beads are the centres of mass of its atoms. Of the spliceosome there are no atoms."""
    path, centre = dumbbell(tmp_path / "two.pdb"), np.array([10.0, 20, 30])
    for structure, motion in ((path, "none"), ("", "one_hinge")):
        model = atoms_of(motion, centre, structure)
        beads = load_structure(path) if structure else load_antibody()
        atoms = [atom for chain in model[0] for residue in chain for atom in residue]
        mass = np.array([atom.element.weight for atom in atoms])
        places = np.array([atom.pos.tolist() for atom in atoms]) - centre
        assert mass.sum() == pytest.approx(beads.amplitude.sum())
        for power in (1, 2):  # the second moment of the beads lacks that of the atoms about them
            ours, theirs = mass @ places**power, beads.amplitude @ beads.positions_A**power
            assert np.abs(ours - theirs).max() < (1e-3 if power == 1 else 4.0) * mass.sum()
    assert atoms_of("two_domains", centre) is None and atoms_of("none", centre, domains="X:10") is None


def test_the_command_line_simulates_a_given_structure(tmp_path: Path) -> None:
    path = dumbbell(tmp_path / "two.pdb")
    flags = ["simulate", "--o", str(tmp_path / "project"), "--structure", str(path), "--domains", "B:30"]
    small = ["--particles", "12", "--box", "48", "--pixel_size", "6"]
    result = CliRunner().invoke(_commands(), [*flags, *small])
    assert result.exit_code == 0, result.output
    truth = np.load(tmp_path / "project/truth/truth.npz")
    assert truth["latents"].shape == (12, 1) and str(truth["domains"]) == "B:30"
    assert len(starfile.read(tmp_path / "project/Refine3D/job001/run_data.star")["particles"]) == 12
    wrong = CliRunner().invoke(_commands(), [*flags[:-1], "Z:30", *small])
    assert wrong.exit_code != 0 and "chain Z" in wrong.output
