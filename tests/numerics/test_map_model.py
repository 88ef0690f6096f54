"""The density of an atomic model against the closed form of its transform, in the map's frame."""

from __future__ import annotations

from pathlib import Path

import gemmi
import numpy as np
import pytest

from flex_job.fsc import fsc, shell_index
from flex_job.map_model import model_density, model_problem, read_model
from flex_job.volume import Volume, read_volume, write_volume

SIDE_A = 96.0
ATOMS = 40


@pytest.fixture(scope="module", params=["pdb", "cif"])
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Carbon atoms with B-factors from 20 to 90 A^2."""
    rng = np.random.default_rng(1)
    structure, chain = gemmi.Structure(), gemmi.Chain("A")
    for number in range(ATOMS):
        residue, atom = gemmi.Residue(), gemmi.Atom()
        residue.name, residue.seqid = "ALA", gemmi.SeqId(number + 1, " ")
        atom.name, atom.element = "CA", gemmi.Element("C")
        atom.pos = gemmi.Position(*np.round(rng.uniform(20, 70, 3), 3))
        atom.b_iso, atom.occ = round(float(rng.uniform(20, 90)), 2), 0.5
        residue.add_atom(atom)
        chain.add_residue(residue)
    model = gemmi.Model(1)
    model.add_chain(chain)
    structure.add_model(model)
    path = tmp_path_factory.mktemp("model") / f"model.{request.param}"
    if request.param == "pdb":
        structure.write_pdb(str(path))
    else:
        structure.setup_entities()
        structure.make_mmcif_document().write_file(str(path))
    return path


def empty(box: int, corner=(0.0, 0.0, 0.0)) -> Volume:
    return Volume(np.zeros((box,) * 3, np.float32), SIDE_A / box, corner)


def exact(model: gemmi.Model, box: int, corner) -> np.ndarray:
    """The sum over atoms of the form factors of electrons (five Gaussians each), B-factors, phases: an rfftn."""
    pixel = SIDE_A / box
    k = np.fft.fftfreq(box, pixel)
    kz, ky, kx = np.meshgrid(k, k, np.fft.rfftfreq(box, pixel), indexing="ij")
    square = kx**2 + ky**2 + kz**2
    total = np.zeros(kx.shape, complex)
    for chain in model:
        for residue in chain:
            for atom in residue:
                shape = atom.element.c4322
                factor = sum(a * np.exp(-b * square / 4) for a, b in zip(shape.a, shape.b, strict=True))
                x, y, z = np.array(atom.pos.tolist()) - corner
                phase = np.exp(-2j * np.pi * (kx * x + ky * y + kz * z))
                total += atom.occ * factor * np.exp(-atom.b_iso * square / 4) * phase
    return total / pixel**3


@pytest.mark.parametrize(("box", "corner"), [(32, (0.0, 0.0, 0.0)), (33, (5.0, -7.0, 3.0)), (48, (0.0, 0.0, 0.0))])
def test_density_is_that_of_the_gaussians_in_the_frame_of_the_map(path: Path, box: int, corner) -> None:
    model = read_model(path)
    density = model_density(model, empty(box, corner), box)
    expected, inside = exact(model, box, corner), shell_index(box) < box // 2
    found = np.fft.rfftn(density)
    assert np.linalg.norm((found - expected)[inside]) < 3e-3 * np.linalg.norm(expected[inside])


def test_another_box_holds_the_same_density(path: Path) -> None:
    model = read_model(path)
    large, small = (np.fft.rfftn(model_density(model, empty(48), box)) for box in (48, 24))
    assert np.allclose(small[:8, :8, :8] / 24**3, large[:8, :8, :8] / 48**3, atol=5e-3 * abs(large[0, 0, 0]) / 48**3)


def test_the_header_of_the_map_says_where_its_corner_is(path: Path, tmp_path: Path) -> None:
    import mrcfile

    corner = (10.0, -4.0, 6.0)
    model = read_model(path)
    there = model_density(model, empty(48, corner), 48)
    write_volume(tmp_path / "map.mrc", there, SIDE_A / 48)
    assert read_volume(tmp_path / "map.mrc").corner_A == (0, 0, 0)
    with mrcfile.open(tmp_path / "map.mrc", "r+") as mrc:
        mrc.header.origin = corner
    read = read_volume(tmp_path / "map.mrc")
    assert read.corner_A == corner
    assert fsc(model_density(model, read, 48), there)[1:24].min() > 0.999
    with mrcfile.open(tmp_path / "map.mrc", "r+") as mrc:  # the older way: the number of the first section
        mrc.header.origin = (0.0, 0.0, 0.0)
        mrc.header.nxstart, mrc.header.nystart, mrc.header.nzstart = 5, -2, 3
    assert read_volume(tmp_path / "map.mrc").corner_A == pytest.approx(corner)
    assert fsc(model_density(model, empty(48), 48), there)[4:].max() < 0.9  # negative control: header ignored


def test_the_model_itself_is_not_moved(path: Path) -> None:
    model = read_model(path)
    before = model[0][0][0].pos.tolist()
    model_density(model, empty(32, (5.0, 0.0, 0.0)), 32)
    assert model[0][0][0].pos.tolist() == before


def test_problems_are_told(path: Path, tmp_path: Path) -> None:
    assert model_problem(path, empty(32)) is None
    away = model_problem(path, empty(32, (500.0, 0.0, 0.0)))
    assert away is not None and "0 % of its atoms" in away and "x 500 to 596" in away and "fit the model" in away
    for name, content, text in (
        ("text.pdb", b"no atoms here\n", "holds no atoms"),
        ("broken.cif", b"data_x\nloop_\n_a\n_b\n1 2 3\n", "cannot be read|holds no atoms"),
        ("empty.pdb", b"", "holds no atoms|cannot be read"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=text) as caught:
            read_model(tmp_path / name)
        assert name in str(caught.value)
    with pytest.raises(ValueError, match="no such file; expected an atomic model"):
        read_model(tmp_path / "none.pdb")
    with pytest.raises(ValueError, match="a folder"):
        read_model(tmp_path)
