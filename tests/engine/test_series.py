"""A series of frames as files: maps and models in register, the motion, the script, the movie, the archive."""

from __future__ import annotations

import shlex
import subprocess
import xml.etree.ElementTree as ElementTree
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import gemmi
import meshio
import mrcfile
import numpy as np
import pandas as pd
import pytest
import scipy.io
import torch
from numerics.conftest import box_mesh
from numpy.typing import NDArray
from PIL import Image

from flex_job.atomic_model import read_atomic_model, write_atomic_models
from flex_job.chimerax import write_attribute
from flex_job.events import Events
from flex_job.flow import FlowGenerator
from flex_job.latent_paths import LatentSeries, listed
from flex_job.model import FlexModel
from flex_job.model_series import ModelSeries
from flex_job.report.movie import ffmpeg
from flex_job.series import FramesWriter
from flex_job.volume import Volume
from job_specs.jobs import JOBS
from job_specs.parameters import GenerateParameters

BOX, PIXEL_A, CORNER_A = 32, 3.0, (10.0, -20.0, 40.0)
MIDDLE_A = np.array(CORNER_A) + BOX // 2 * PIXEL_A
MOVE_A = np.array([6.0, 3.0, -3.0])  # per unit of the latent
PLACES_A = np.array([[-12.0, 0, 3], [-3, 6, -6], [6, -3, 0], [12, 3, 6]])
POINTS = np.array([[-1.0], [0.0], [1.0], [2.0]])


@dataclass
class Job:
    folder: Path
    lines: list[str]
    names: list[str]
    model: FlexModel


@pytest.fixture(scope="module")
def model() -> FlexModel:
    """Blobs at PLACES_A; its flow moves everything by z * MOVE_A."""
    z, y, x = (np.indices((BOX,) * 3) - BOX // 2) * PIXEL_A
    away = [(x - a) ** 2 + (y - b) ** 2 + (z - c) ** 2 for a, b, c in PLACES_A]
    data = sum(np.exp(-square / (2 * 4.0**2)) for square in away).astype(np.float32)
    mesh = box_mesh((3, 3, 3), 54.0)
    torch.manual_seed(0)
    flow = FlowGenerator(1, 1, 2, torch.from_numpy(mesh.motion))
    flow.start_straight(torch.from_numpy(np.tile(MOVE_A.astype(np.float32), (1, len(mesh.vertices_A), 1))))
    support = Volume((data > 0.02).astype(np.float32), PIXEL_A)
    latents = np.random.default_rng(0).uniform(-1.2, 1.2, (60, 1)).astype(np.float32)
    covariance = np.full((60, 1, 1), 0.01, np.float32)
    return FlexModel(mesh, flow, latents, covariance, Volume(data, PIXEL_A), support, np.zeros((0, 1)), ("loss",))


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An atom in each blob, in the frame of the map's header."""
    structure, chain = gemmi.Structure(), gemmi.Chain("A")
    for number, place in enumerate(PLACES_A + MIDDLE_A, start=1):
        residue, atom = gemmi.Residue(), gemmi.Atom()
        residue.name, residue.seqid = "GLY", gemmi.SeqId(number, " ")
        atom.name, atom.element, atom.pos = "CA", gemmi.Element("C"), gemmi.Position(*place)
        residue.add_atom(atom)
        chain.add_residue(residue)
    structure.add_model(gemmi.Model(1))
    structure[0].add_chain(chain)
    path = tmp_path_factory.mktemp("atoms") / "model.pdb"
    structure.write_pdb(str(path))
    return path


@pytest.fixture(scope="module")
def job_of(model: FlexModel, model_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Job]:
    def write(
        folder: Path | None = None, atoms: bool = True, series: LatentSeries | None = None, **wanted: object
    ) -> Job:
        folder = folder or tmp_path_factory.mktemp("job")
        density, lines = Volume(model.map.data, PIXEL_A, CORNER_A), list[str]()
        placed = ModelSeries(model, read_atomic_model(model_file, density), None, True) if atoms else None
        parameters = GenerateParameters(**({"movie": False} | wanted))  # type: ignore[arg-type]
        events = Events(lines.append)
        names = FramesWriter(folder, model, density, series or listed(POINTS), parameters, events, placed).write()
        return Job(folder, lines, names, model)

    return write


@pytest.fixture(scope="module")
def whole(job_of: Callable[..., Job]) -> Job:
    """Everything, cropped."""
    return job_of(crop=True, deformation=True, movie=True, zip=True, model_files=True)


def centre_of_mass_A(path: Path, use_origin: bool = True) -> NDArray[np.float64]:
    """Of a map, where an atomic model has it."""
    with mrcfile.open(path) as mrc:
        data, voxel_A = np.clip(mrc.data, 0.02, None) - 0.02, float(mrc.voxel_size.x)
        origin = np.array([mrc.header.origin[axis] for axis in "xyz"]) * use_origin
    index = [
        np.arange(side) @ data.sum(axis=others) / data.sum()
        for side, others in zip(data.shape, ((1, 2), (0, 2), (0, 1)), strict=True)
    ]
    return np.array(index[::-1]) * voxel_A + origin


def atoms_A(model: gemmi.Model) -> NDArray[np.float64]:
    return np.array([atom.pos.tolist() for chain in model for residue in chain for atom in residue])


def test_every_file_is_declared(whole: Job) -> None:
    declared = [output.file for output in JOBS["generate"].outputs]
    assert all(any(Path(name).match(pattern) for pattern in declared) for name in whole.names)
    optional = {output.file for output in JOBS["generate"].outputs if output.optional}
    made = {pattern for pattern in declared if any(whole.folder.glob(pattern))}
    assert optional - made == {"canonical.cif"} | ({"series.mp4"} if ffmpeg() is None else set())
    assert {path.name for path in whole.folder.iterdir()} == set(whole.names)


@pytest.mark.parametrize(
    "wanted", [{}, {"crop": True}, {"frame_box": 24}, {"frame_box": 24, "crop": True}, {"frame_box": 25}]
)
def test_maps_and_models_are_in_register(job_of: Callable[..., Job], wanted: dict[str, object]) -> None:
    job = job_of(**wanted)
    trajectory = gemmi.read_structure(str(job.folder / "frames.cif"))
    for row, z in enumerate(POINTS[:, 0]):
        expected = MIDDLE_A + PLACES_A + z * MOVE_A
        assert np.abs(atoms_A(trajectory[row]) - expected).max() < 2e-3
        found = centre_of_mass_A(job.folder / f"frame_{row:03d}.mrc")
        assert np.abs(found - expected.mean(axis=0)).max() < 0.3
        assert np.abs(centre_of_mass_A(job.folder / f"frame_{row:03d}.mrc", False) - found).max() > 9  # control


def test_cropped_maps_are_smaller_and_lose_nothing(job_of: Callable[..., Job], whole: Job) -> None:
    uncut = job_of(atoms=False)
    for row in range(len(POINTS)):
        name = f"frame_{row:03d}.mrc"
        cut, all_of_it = mrcfile.read(whole.folder / name), mrcfile.read(uncut.folder / name)
        assert cut.shape[0] % 2 == 0 and cut.shape[0] == cut.shape[1] == cut.shape[2] < BOX
        assert (cut**2).sum() == pytest.approx((all_of_it**2).sum(), rel=1e-4)
    assert any(f"cropped from {BOX} to {cut.shape[0]} px" in line for line in whole.lines)


def test_a_smaller_box_keeps_the_extent(job_of: Callable[..., Job]) -> None:
    with mrcfile.open(job_of(atoms=False, frame_box=24).folder / "frame_001.mrc") as mrc:
        assert mrc.data.shape == (24,) * 3 and mrc.voxel_size.x == pytest.approx(PIXEL_A * BOX / 24)


def test_the_mesh_and_its_motion_are_read_by_others(whole: Job) -> None:
    index = ElementTree.parse(whole.folder / "deformation.pvd").getroot()
    files = [entry.attrib["file"] for entry in index.iter("DataSet")]
    assert files == [f"deformation_{row:03d}.vtu" for row in range(len(POINTS))]
    root = ElementTree.parse(whole.folder / files[0]).getroot()
    piece = root.find("UnstructuredGrid/Piece")
    mesh = whole.model.mesh
    assert root.attrib["type"] == "UnstructuredGrid" and piece is not None
    assert (int(piece.attrib["NumberOfPoints"]), int(piece.attrib["NumberOfCells"])) == (
        len(mesh.vertices_A),
        len(mesh.cells),
    )
    for name, z in zip(files, POINTS[:, 0], strict=True):
        grid = meshio.read(whole.folder / name)
        assert np.abs(grid.points - MIDDLE_A - mesh.vertices_A).max() < 1e-9
        assert grid.cells[0].type == "tetra" and np.array_equal(grid.cells[0].data, mesh.cells)
        assert np.abs(grid.point_data["displacement_A"] - z * MOVE_A).max() < 1e-4
        assert set(grid.cell_data) == {"rigidity", "segment"}


def test_the_voxels_displacements_are_those_of_the_map(whole: Job) -> None:
    for axis, along in zip("xyz", MOVE_A, strict=True):
        field = mrcfile.read(whole.folder / f"displacement_003_{axis}.mrc")
        assert field.shape == mrcfile.read(whole.folder / "frame_003.mrc").shape
        assert np.abs(field[field != 0] - 2 * along).max() < 1e-3
        assert (field != 0).sum() == (whole.model.support.data > 0).sum()  # nothing of the rest is cropped away


def test_the_geometry_is_told(whole: Job) -> None:
    table = pd.read_csv(whole.folder / "geometry.csv")
    assert table["frame"].tolist() == [f"frame_{row:03d}.mrc" for row in range(len(POINTS))]
    assert (table["peptide_bonds"] == 0).all()
    assert any(line.startswith("models: ") for line in whole.lines)
    assert not any("outside the mesh" in line for line in whole.lines)


# -- ChimeraX --------------------------------------------------------------------------------------------------------

# words of the user guide: command -> its keywords, each with a value
CHIMERAX = {
    "set": {"bgColor"},
    "graphics": {"silhouettes"},
    "lighting": set(),
    "close": set(),
    "open": {"vseries", "maxModels", "structureModel", "id"},
    "altlocs clean": set(),
    "surface dust": {"size"},
    "view matrix": {"camera"},
    "volume": {"style", "level", "color", "step"},
    "transparency": {"target"},
    "hide": set(),
    "show": set(),
    "color byattribute": {"palette", "range", "target"},
    "view": set(),
    "vseries play": {"direction", "startTime", "loop", "normalize", "pauseFrames", "cacheFrames"},
    "coordset": {"pauseFrames", "loop"},
}
POSITIONAL = {
    "lighting": 1, "open": 1, "volume": 1, "transparency": 2, "hide": 2, "show": 2, "color byattribute": 2, "view": 0,
    "vseries play": 1, "coordset": 2, "set": 0, "graphics": 0, "close": 1,
    "altlocs clean": 1, "surface dust": 1, "view matrix": 0,
}  # fmt: skip


def commands(path: Path) -> list[tuple[str, list[str], dict[str, str]]]:
    """(command, plain arguments, values by keyword) of a script."""
    found = []
    for line in path.read_text().splitlines():
        if line.startswith("#"):
            continue
        words = shlex.split(line.replace(" & ", "&"))  # one specification
        name = next(name for name in sorted(CHIMERAX, key=len, reverse=True) if line.startswith(name))
        rest = words[len(name.split()) :]
        plain, keyed = rest[: POSITIONAL[name]], rest[POSITIONAL[name] :]
        assert len(keyed) % 2 == 0, line
        found.append((name, plain, dict(zip(keyed[::2], keyed[1::2], strict=True))))
    return found


def test_the_script_is_chimeraxs_language(whole: Job, job_of: Callable[..., Job]) -> None:
    script = commands(whole.folder / "series.cxc")
    for name, _, keyed in script:
        assert set(keyed) <= CHIMERAX[name], name
    opened = [plain[0] for name, plain, _ in script if name == "open"]
    assert opened == ["frame_*.mrc", "frames.cif", "series.dcd", "motion.defattr"]
    assert all(any(whole.folder.glob(name)) for name in opened)
    played = {name: (plain, keyed) for name, plain, keyed in script if name in ("vseries play", "coordset")}
    assert played["coordset"][0] == ["#102", f"1,{2 * len(POINTS) - 2}"]
    assert played["vseries play"][1]["direction"] == "oscillate" and played["vseries play"][1]["startTime"] == "0"
    assert played["coordset"][1]["pauseFrames"] == played["vseries play"][1]["pauseFrames"]
    level = float(next(keyed["level"] for name, _, keyed in script if name == "volume"))
    assert 0.1 < level < 0.9  # the blobs are of height one
    (camera,) = (keyed["camera"] for name, _, keyed in script if name == "view matrix")
    right, up, towards = np.array(camera.split(","), dtype=float).reshape(3, 4).T[:3]
    along = PLACES_A[-1] - PLACES_A[0]
    assert abs(right @ along) > 0.9 * np.linalg.norm(along) and np.allclose(np.cross(right, up), towards, atol=1e-4)
    without = commands(job_of(atoms=False).folder / "series.cxc")
    assert "coordset" not in [name for name, _, _ in without]


def test_attributes_are_one_per_residue(whole: Job) -> None:
    lines = (whole.folder / "motion.defattr").read_text().splitlines()
    assert lines[:2] == ["attribute: motion_rms_A", "recipient: residues"]
    ((blank, places, value),) = [line.split("\t") for line in lines[2:]]
    assert (blank, places) == ("", "#102/A:1,2,3,4")
    assert float(value) == pytest.approx(POINTS.std() * np.linalg.norm(MOVE_A), abs=2e-3)


def test_attributes_name_any_chain_and_are_few_lines(model_file: Path, tmp_path: Path) -> None:
    """Chains that the command line would take for a range; insertion codes; equal values together."""
    structure = gemmi.read_structure(str(model_file))
    structure[0][0].name = "A-2"
    structure[0][0][1].seqid = gemmi.SeqId(1, "A")
    second = structure[0].add_chain(structure[0][0].clone())
    second.name = "b"
    structure.make_mmcif_document().write_file(str(tmp_path / "two.cif"))
    model = read_atomic_model(tmp_path / "two.cif", Volume(np.zeros((BOX,) * 3, np.float32), PIXEL_A, CORNER_A))
    path = write_attribute(tmp_path / "motion.defattr", model, np.array([1.0, 2, 3, 10, 1, 2.01, 3, 4]))
    assert path.read_text().splitlines()[2:] == [
        "\t#102/A?2:1/b:1\t1.000", "\t#102/A?2:1A/b:1A\t2.000", "\t#102/A?2:3/b:3\t3.000", "\t#102/b:4\t4.000",
        "\t#102/A?2:4\t10.000",
    ]  # fmt: skip


def test_the_trajectory_goes_there_and_back(whole: Job) -> None:
    """Read record by record by SciPy: header, and the atoms of frames.cif, each end once."""
    with scipy.io.FortranFile(whole.folder / "series.dcd", "r", "<u4") as file:
        head, title, count = (file.read_record("u1").tobytes() for _ in range(3))
        order = [*range(len(POINTS)), *range(len(POINTS) - 2, 0, -1)]
        frames = [np.stack([file.read_record("<f4") for _ in range(3)], axis=1) for _ in order]
        with pytest.raises(scipy.io.FortranEOFError):
            file.read_record("u1")
    numbers = np.frombuffer(head[4:], "<i4")
    assert head[:4] == b"CORD" and len(numbers) == 20 and numbers[0] == len(order) and numbers[19] == 24
    assert len(title) == 84 and np.frombuffer(count, "<i4") == [len(PLACES_A)]
    trajectory = gemmi.read_structure(str(whole.folder / "frames.cif"))
    for row, frame in zip(order, frames, strict=True):
        assert np.abs(frame - atoms_A(trajectory[row])).max() < 2e-3


def test_second_conformations_are_not_in_the_trajectory(model_file: Path, tmp_path: Path) -> None:
    structure = gemmi.read_structure(str(model_file))
    residue = structure[0][0][1]
    residue.add_atom(residue[0]).altloc = "B"
    residue[0].altloc = "A"
    structure.write_pdb(str(tmp_path / "two.pdb"))
    model = read_atomic_model(tmp_path / "two.pdb", Volume(np.zeros((BOX,) * 3, np.float32), PIXEL_A, CORNER_A))
    assert len(model) == 5 and model.first_conformation.tolist() == [0, 1, 3, 4]


def test_nameless_chains_get_names_and_residues_their_numbers(model_file: Path, tmp_path: Path) -> None:
    """What mmCIF and viewers need, and PDB files do not say."""
    structure = gemmi.read_structure(str(model_file))
    structure[0][0][1].seqid = gemmi.SeqId(1, "A")
    structure[0][0].name = ""
    structure[0].add_chain(structure[0][0].clone()).name = "A"
    structure.write_pdb(str(tmp_path / "two.pdb"))
    model = read_atomic_model(tmp_path / "two.pdb", Volume(np.zeros((BOX,) * 3, np.float32), PIXEL_A, CORNER_A))
    written = write_atomic_models(tmp_path / "two.cif", model, [model.positions_A])
    block = gemmi.cif.read_file(str(written)).sole_block()
    chains, numbers = (list(block.find_loop(f"_atom_site.{name}")) for name in ("auth_asym_id", "label_seq_id"))
    assert chains == ["B"] * 4 + ["A"] * 4
    assert all(number.isdigit() for number in numbers) and len(set(zip(chains, numbers, strict=True))) == 8


# -- movie, archive --------------------------------------------------------------------------------------------------


def test_the_movie_goes_forth_and_back(whole: Job) -> None:
    with Image.open(whole.folder / "series.gif") as movie:
        assert movie.format == "GIF" and movie.n_frames == 2 * len(POINTS) - 2 and movie.info["loop"] == 0
        pictures = []
        for frame in range(movie.n_frames):
            movie.seek(frame)
            pictures.append(np.asarray(movie.convert("RGB"), dtype=float))
    drawn = [(picture[40:-40] < 250).any(axis=2) for picture in pictures]
    assert min(mask.sum() for mask in drawn) > 1000
    # the same scene from the same view: what moves away comes back, and nothing leaves the picture
    difference = [np.abs(picture[40:-40] - pictures[0][40:-40]).mean() for picture in pictures]
    assert np.argmax(difference) == len(POINTS) - 1 and difference[-1] < difference[len(POINTS) - 2]
    assert not any(mask[:, [0, -1]].any() for mask in drawn)


def test_the_video_is_one(whole: Job) -> None:
    program = ffmpeg()
    if program is None:
        pytest.fail("no ffmpeg: the package imageio-ffmpeg, of the extra `test`, brings one")
    command = [program, "-i", str(whole.folder / "series.mp4"), "-f", "rawvideo", "-pix_fmt", "gray", "-"]
    done = subprocess.run(command, capture_output=True, check=True)
    pictures = np.frombuffer(done.stdout, np.uint8).reshape(-1, 360, 480)
    assert len(pictures) == 2 * (2 * len(POINTS) - 2)
    assert pictures.std() > 5 and "480x360" in done.stderr.decode()


def test_the_archive_holds_it_all(whole: Job) -> None:
    with zipfile.ZipFile(whole.folder / "frames.zip") as archive:
        assert archive.testzip() is None
        names = set(archive.namelist())
        assert {"frame_000.mrc", "frames.cif", "latents.csv", "series.cxc", "deformation_000.vtu"} <= names
        assert not {"frames.zip", "series.gif", "series.mp4"} & names
        assert archive.read("latents.csv") == (whole.folder / "latents.csv").read_bytes()


def test_what_an_earlier_run_left_is_gone(job_of: Callable[..., Job], tmp_path: Path) -> None:
    job_of(tmp_path, movie=True, deformation=True, zip=True, model_files=True)
    (tmp_path / "frame_001_edited.cif").write_text("mine")
    job_of(tmp_path, atoms=False, series=listed(POINTS[:2]))
    assert {path.name for path in tmp_path.iterdir()} == {
        "frame_000.mrc", "frame_001.mrc", "latents.csv", "series.cxc", "frame_001_edited.cif",
    }  # fmt: skip
