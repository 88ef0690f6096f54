"""The surface that a page bends: it goes where the model says, and the page holds what the surface needs."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path

import gemmi
import numpy as np
import pytest
from engine.report_data import full_data, moving_model, two_chains

from flex_job.atomic_model import drawn_atoms
from flex_job.mesh.locate import locate
from flex_job.report import cartoon
from flex_job.report.cartoon import cartoon_content
from flex_job.report.interactive import moving_section, scripts
from flex_job.report.moving import MOST_POINTS, STEPS, moving_surface
from flex_job.report.scene import build_scene
from flex_job.volume import Volume


@pytest.fixture(params=[1, 2, 3])
def case(request):
    data = full_data(request.param)
    model = moving_model(data)
    return data, model, moving_surface(model, data.flex_map, data.mask)


def test_modes_say_what_the_model_says(case):
    """At every point of the grids, by way of the mesh's own weights; other amounts would not do."""
    _, model, moving = case
    cell, weights = locate(model.mesh, moving.surface.points_A)
    rng = np.random.default_rng(1)
    for plane in moving.planes:
        index = tuple(rng.integers(STEPS, size=(len(plane.latents), 20)))
        z = np.repeat(np.median(model.latents, axis=0)[None], 20, axis=0)
        for k, values, at in zip(plane.latents, plane.values, index, strict=True):
            z[:, k] = values[at]
        exact = np.einsum("npva,pv->npa", model.displacement(z)[:, model.mesh.cells[cell]], weights)
        found = np.einsum("nm,mpa->npa", plane.amounts[index], moving.modes)
        assert np.linalg.norm(found - exact) < 0.03 * np.linalg.norm(exact)
        assert np.linalg.norm(found[::-1] - exact) > 0.3 * np.linalg.norm(exact)


def test_the_thread_of_an_atomic_model_moves_with_the_map(case, tmp_path):
    """One point a residue, a gap between the chains, each moved as the mesh moves it there."""
    data, model, _ = case
    moving = moving_surface(model, data.flex_map, data.mask, two_chains(data, tmp_path / "two.pdb"))
    points, modes = moving.atoms.thread()
    assert np.isnan(points[5]).all() and np.isnan(modes[:, 5]).all() and len(points) == 11
    there = np.isfinite(points[:, 0])
    assert np.allclose(points[there][:, 0], [-8, -4, 0, 4, 8] * 2) and np.allclose(
        points[there][:, 1], [-4] * 5 + [6] * 5
    )
    plane, at = moving.planes[0], (STEPS - 1,) * len(moving.planes[0].latents)
    z = np.median(model.latents, axis=0)
    for k, values in zip(plane.latents, plane.values, strict=True):
        z[k] = values[-1]
    cell, weights = locate(model.mesh, points[there])
    exact = np.einsum("pva,pv->pa", model.displacement(z[None])[0][model.mesh.cells[cell]], weights)
    found = np.einsum("m,mpa->pa", plane.amounts[at], modes[:, there])
    assert np.linalg.norm(found - exact) < 0.03 * np.linalg.norm(exact)
    section = moving_section(replace(data, moving=moving), build_scene(data))
    assert 'id="moving-shown"' in section and "thread of the atomic model" in section


def test_the_cartoon_stands_in_the_frame_of_the_models_file(case, tmp_path):
    """Atoms where the file has them, in the order of the numbers beside them, the motion as B-factors, residues' types
    not said (a list without them would hide the polymers from Mol*)."""
    data, model, _ = case
    atoms = two_chains(data, tmp_path / "two.pdb")
    moving = moving_surface(model, data.flex_map, data.mask, atoms)
    motion = np.linspace(1, 5, len(atoms))
    content = cartoon_content(moving.atoms, motion, np.eye(3))
    block = gemmi.cif.read_string(gzip.decompress(base64.b64decode(content["cif"])).decode()).sole_block()
    structure = gemmi.make_structure_from_block(block)
    file = gemmi.read_structure(str(tmp_path / "two.pdb"))
    for found in (structure, file):
        assert found[0].count_atom_sites() == len(atoms) == 20
    at = [[*site.atom.pos.tolist(), site.atom.b_iso] for site in structure[0].all()]
    points = np.frombuffer(base64.b64decode(content["points"]), "<f4").reshape(-1, 3)
    assert np.allclose(points, [site.atom.pos.tolist() for site in file[0].all()], atol=1e-3)
    assert np.allclose(at, np.column_stack([points, motion]), atol=2e-3)
    assert not block.find_loop("_chem_comp.id") and block.find_loop("_entity_poly.entity_id")


def test_a_large_model_is_drawn_by_its_chains_alone(case, tmp_path):
    """And never by hydrogens, water, second conformations."""
    data = case[0]
    atoms = two_chains(data, tmp_path / "two.pdb")
    chain = atoms.structure[0]["A"]
    chain[0].add_atom(chain[0][0], 1).altloc = "B"
    chain[0][0].altloc = "A"
    for number, name, element, residue in ((90, "H", "H", "ALA"), (91, "O", "O", "HOH"), (92, "CA", "Ca", "CA")):
        atom, group = gemmi.Atom(), gemmi.Residue()
        atom.name, atom.element = name, gemmi.Element(element)
        group.name, group.seqid = residue, gemmi.SeqId(number, " ")
        group.add_atom(atom)
        chain.add_residue(group)
    names = [atom.name for _, _, atom in drawn_atoms(atoms, 21).walk()]
    assert names == ["N", "CA"] * 5 + ["CA"] + ["N", "CA"] * 5
    few = drawn_atoms(atoms, 20)
    assert [atom.element.name for _, _, atom in few.walk()] == ["C"] * 10 and len(few.positions_A) == 10


def test_planes_are_the_pairs_and_hold_the_particles(case):
    data, _, moving = case
    dims = data.latents.shape[1]
    assert [plane.latents for plane in moving.planes] == {1: [(0,)], 2: [(0, 1)], 3: [(0, 1), (0, 2), (1, 2)]}[dims]
    for plane in moving.planes:
        assert plane.near.shape == (STEPS,) * len(plane.latents)
        assert plane.near.max() > 3 * plane.near[(0,) * len(plane.latents)]  # more in the middle than in a corner


def test_the_surface_is_small_and_lies_at_the_level_of_the_pictures(case):
    data, _, moving = case
    assert 0.3 * MOST_POINTS < len(moving.surface.points_A) < 1.3 * MOST_POINTS
    scene = build_scene(data)
    low, high = moving.surface.points_A.min(axis=0), moving.surface.points_A.max(axis=0)
    assert np.abs(low - scene.reference.points_A.min(axis=0)).max() < 4
    assert np.abs(high - scene.reference.points_A.max(axis=0)).max() < 4


def test_nothing_to_show_is_no_section():
    data = full_data(1)
    model = moving_model(data)
    assert moving_surface(model, Volume(0 * data.flex_map.data, 4.0), None) is None
    assert moving_section(data, build_scene(data)) == ""


def test_the_page_holds_the_numbers_and_nothing_from_elsewhere(case):
    data, _, moving = case
    gains = np.linspace(-1, 3, len(data.latents))
    data = replace(data, moving=moving, gains=gains, cluster_centres=data.latents[:5])
    section = moving_section(data, build_scene(data))
    content = json.loads(re.search(r'id="moving-data">(.*?)</script>', section)[1])
    assert content["count"] == len(moving.modes) and len(content["planes"]) == len(moving.planes)
    assert set(content["planes"][0]["maps"]) == {"", "uncertainty", "likelihood gain"}
    assert ('id="moving-plane"' in section) == (len(moving.planes) > 1)
    assert "</script" not in json.dumps(content)
    text = scripts(data)
    assert "src=" not in text[:200] and text.count("<script") >= 2 and "molstar-js" not in text  # there is no model


def test_mol_star_is_what_its_makers_built():
    folder = Path(cartoon.__file__).parent / "assets/molstar"
    told = re.findall(r"([0-9a-f]{64})  (\S+)", (folder / "README.md").read_text())
    assert [name for _, name in told] == list(cartoon.PARTS)
    for digest, name in told:
        assert hashlib.sha256(gzip.decompress((folder / f"{name}.gz").read_bytes())).hexdigest() == digest
