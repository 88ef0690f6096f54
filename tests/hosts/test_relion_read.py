"""Reading RELION refinements: every version's layout, and every problem found in one go."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pytest
import starfile
from numpy.typing import NDArray

from flex_job.consensus import Consensus
from flex_job.images import ImageReader
from flex_job.problems import InputProblems
from flex_job.volume import write_volume
from integration.relion.read import read_consensus

COUNT, BOX, PIXEL = 12, 16, 2.0
Table = dict[str, Any]


@dataclass
class Project:
    """A small finished refinement on disk; change the tables, `write()`, `read()`."""

    root: Path
    write_star: Callable[..., Path]
    particles: Table
    optics: Table | None
    images: NDArray[np.float32]
    star: Path

    def write(self) -> None:
        self.write_star(self.star, self.particles, self.optics)

    def read(self, **options: Any) -> Consensus:
        self.write()
        return read_consensus(self.star, **options)

    def problems(self, **options: Any) -> list[str]:
        with pytest.raises(InputProblems) as raised:
            self.read(**options)
        return raised.value.messages

    def beside(self, name: str) -> Path:
        return self.star.with_name(name)


@pytest.fixture
def project(tmp_path: Path, write_star: Any) -> Project:
    rng = np.random.default_rng(0)
    root = tmp_path / "project"
    job = root / "Refine3D/job007"
    for folder in (job, root / "Extract/job003", root / "MaskCreate/job005"):
        folder.mkdir(parents=True)
    images = rng.normal(size=(COUNT, BOX, BOX)).astype(np.float32)
    for name, data in (("a", images[:8]), ("b", images[8:])):
        with mrcfile.new(root / f"Extract/job003/{name}.mrcs", data) as mrc:
            mrc.set_image_stack()
    volume = rng.normal(size=(BOX, BOX, BOX)).astype(np.float32)
    for name in ("run_class001", "run_half1_class001_unfil", "run_half2_class001_unfil"):
        write_volume(job / f"{name}.mrc", volume, PIXEL)
    mask = np.zeros((BOX, BOX, BOX), dtype=np.float32)
    mask[4:12, 4:12, 4:12] = 1.0
    write_volume(root / "MaskCreate/job005/mask.mrc", mask, PIXEL)
    general = {"rlnSolventMaskName": "MaskCreate/job005/mask.mrc", "rlnCtfDataArePhaseFlipped": 0}
    starfile.write({"optimiser_general": general}, job / "run_optimiser.star")
    particles = {
        "rlnImageName": [
            f"{number % 8 + 1:06d}@Extract/job003/{'a' if number < 8 else 'b'}.mrcs" for number in range(COUNT)
        ],
        "rlnAngleRot": rng.uniform(-180, 180, COUNT),
        "rlnAngleTilt": rng.uniform(0, 180, COUNT),
        "rlnAnglePsi": rng.uniform(-180, 180, COUNT),
        "rlnOriginXAngst": rng.uniform(-5, 5, COUNT),
        "rlnOriginYAngst": rng.uniform(-5, 5, COUNT),
        "rlnDefocusU": rng.uniform(10000, 20000, COUNT),
        "rlnDefocusV": rng.uniform(10000, 20000, COUNT),
        "rlnDefocusAngle": rng.uniform(0, 180, COUNT),
        "rlnOpticsGroup": [1] * COUNT,
        "rlnRandomSubset": [1, 2, 2] * (COUNT // 3),
        "flexLatent1": rng.normal(size=COUNT),
    }
    optics = {
        "rlnOpticsGroup": [1],
        "rlnOpticsGroupName": ["opticsGroup1"],
        "rlnVoltage": [300.0],
        "rlnSphericalAberration": [2.7],
        "rlnAmplitudeContrast": [0.1],
        "rlnImagePixelSize": [PIXEL],
        "rlnImageSize": [BOX],
        "rlnImageDimensionality": [2],
    }
    return Project(root, write_star, particles, optics, images, job / "run_data.star")


def test_a_refinement_is_read_whole(project: Project) -> None:
    consensus = project.read(latent_columns=["_flexLatent1"])
    table = project.particles
    assert len(consensus) == COUNT
    assert np.allclose(consensus.origins_A.T, [table["rlnOriginXAngst"], table["rlnOriginYAngst"]])
    assert np.array_equal(consensus.halves, table["rlnRandomSubset"])
    assert np.allclose(consensus.defocus_u_A, table["rlnDefocusU"])
    assert np.allclose(consensus.defocus_v_A, table["rlnDefocusV"])
    assert np.allclose(consensus.defocus_angle_rad, np.deg2rad(table["rlnDefocusAngle"]))
    assert not consensus.phase_shift_rad.any() and not consensus.ctf_bfactor_A2.any()
    assert (consensus.ctf_scale == 1).all()
    assert consensus.latents is not None and np.allclose(consensus.latents[:, 0], table["flexLatent1"])
    assert np.allclose(np.linalg.det(consensus.rotations), 1.0)
    (group,) = consensus.optics
    assert (group.name, group.box, group.pixel_size_A, group.voltage_kV) == ("opticsGroup1", BOX, PIXEL, 300.0)
    assert consensus.map.box == BOX and consensus.half_maps is not None and consensus.mask is not None
    names = {path.name for path in consensus.source_files}
    assert {"run_data.star", "run_optimiser.star", "run_class001.mrc", "mask.mrc"} <= names
    assert np.array_equal(ImageReader(consensus).read(np.arange(COUNT)), project.images)


def test_rotation_about_the_beam_turns_x_into_minus_y(project: Project) -> None:
    """psi alone: RELION turns the coordinate system, so a density on +x is seen on -y at psi = 90 degrees."""
    project.particles |= {"rlnAngleRot": 0.0, "rlnAngleTilt": 0.0, "rlnAnglePsi": 90.0}
    assert np.allclose(project.read().rotations[0] @ [1.0, 0.0, 0.0], [0.0, -1.0, 0.0])


def test_ctf_values_come_from_the_particle_else_its_optics_group_else_a_default(project: Project) -> None:
    assert project.optics is not None
    del project.particles["rlnDefocusV"]
    project.optics |= {"rlnPhaseShift": [90.0], "rlnCtfBfactor": [30.0]}
    project.particles |= {"rlnCtfBfactor": [10.0] * COUNT, "rlnCtfScalefactor": [0.5] * COUNT}
    project.particles["rlnVoltage"] = [200.0] * 4 + [300.0] * (COUNT - 4)
    consensus = project.read()
    assert np.array_equal(consensus.defocus_v_A, consensus.defocus_u_A)
    assert np.allclose(consensus.phase_shift_rad, np.pi / 2)
    assert (consensus.ctf_bfactor_A2 == 10).all() and (consensus.ctf_scale == 0.5).all()
    voltages = np.array([group.voltage_kV for group in consensus.optics])
    assert np.array_equal(voltages[consensus.optics_index], project.particles["rlnVoltage"])


def test_optics_groups_by_number_not_by_row(project: Project) -> None:
    """Groups of different box and pixel, numbered with gaps and out of order; aberrations of each its own."""
    with mrcfile.new(project.root / "Extract/job003/small.mrcs", np.ones((4, 8, 8), dtype=np.float32)) as mrc:
        mrc.set_image_stack()
    project.particles["rlnOpticsGroup"] = [3] * 8 + [2] * 4
    project.particles["rlnImageName"][8:] = [f"{number + 1:06d}@Extract/job003/small.mrcs" for number in range(4)]
    assert project.optics is not None
    project.optics = {label: value * 3 for label, value in project.optics.items()} | {
        "rlnOpticsGroup": [3, 9, 2],
        "rlnOpticsGroupName": ["three", "unused", "two"],
        "rlnImageSize": [BOX, 0, 8],
        "rlnImagePixelSize": [PIXEL, 0.0, 4.0],
        "rlnBeamTiltX": [0.1, 0.0, 0.2],
        "rlnBeamTiltY": [-0.1, 0.0, -0.2],
        "rlnOddZernike": ["[1,2]", "[]", "[3.5,-4e-1,0]"],
        "rlnEvenZernike": ["[]", "[]", "[5]"],
        "rlnMagMat00": [1.0, 1.0, 1.01],
        "rlnMagMat01": [0.0, 0.0, 0.02],
        "rlnMagMat10": [0.0, 0.0, 0.03],
        "rlnMagMat11": [1.0, 1.0, 0.99],
        "rlnCtfDataAreCtfPremultiplied": [0, 0, 1],
    }
    consensus = project.read()
    by_name = {group.name: group for group in consensus.optics}
    assert set(by_name) == {"three", "two"}
    assert [consensus.optics[i].name for i in consensus.optics_index] == ["three"] * 8 + ["two"] * 4
    two = by_name["two"]
    assert (two.box, two.pixel_size_A, two.beam_tilt_mrad, two.premultiplied) == (8, 4.0, (0.2, -0.2), True)
    assert (two.odd_zernike, two.even_zernike) == ((3.5, -0.4, 0.0), (5.0,))
    assert two.magnification == ((1.01, 0.02), (0.03, 0.99))
    assert by_name["three"].odd_zernike == (1.0, 2.0) and not by_name["three"].premultiplied


def test_relion_3_0_one_table_with_pixels_and_magnification(project: Project) -> None:
    angstroms = project.read()
    table = project.particles
    for axis in "XY":
        table[f"rlnOrigin{axis}"] = table.pop(f"rlnOrigin{axis}Angst") / PIXEL
    del table["rlnOpticsGroup"]
    table |= {"rlnVoltage": [300.0] * COUNT, "rlnSphericalAberration": 2.7, "rlnAmplitudeContrast": 0.1}
    table |= {"rlnDetectorPixelSize": 10.0, "rlnMagnification": 10.0 * 1e4 / PIXEL}
    table |= {"rlnBeamTiltX": [0.0] * 6 + [0.3] * 6, "rlnBeamTiltY": 0.0}
    project.optics = None
    consensus = project.read()
    assert project.star.read_text().count("data_") == 1
    assert np.allclose(consensus.origins_A, angstroms.origins_A)
    assert [group.beam_tilt_mrad[0] for group in consensus.optics] == [0.0, 0.3]
    assert {(group.box, group.pixel_size_A) for group in consensus.optics} == {(BOX, PIXEL)}
    assert np.array_equal(consensus.optics_index, [0] * 6 + [1] * 6)


def test_box_from_the_stack_when_the_optics_table_has_none(project: Project) -> None:
    assert project.optics is not None
    del project.optics["rlnImageSize"]
    assert project.read().optics[0].box == BOX


def test_optimiser_without_a_table_and_a_file_of_one_image(project: Project) -> None:
    project.beside("run_optimiser.star").write_text("data_other\n\n_x 1\n")
    with mrcfile.new(project.root / "Extract/job003/one.mrc", np.full((1, BOX, BOX), 7.0, dtype=np.float32)):
        pass
    project.particles["rlnImageName"][0] = "Extract/job003/one.mrc"
    consensus = project.read()
    assert consensus.mask is None and not consensus.optics[0].phase_flipped
    assert (ImageReader(consensus).read([0]) == 7.0).all()


@pytest.mark.parametrize("version", ["30001", "50001"])
def test_version_comments_quotes_and_other_tables_do_not_matter(project: Project, version: str) -> None:
    project.write()
    text = project.star.read_text().replace("opticsGroup1", '"my group"')
    project.star.write_text(f"\n# version {version}\n\ndata_general\n\n_rlnTomoSubTomosAre2DStacks 0\n\n{text}")
    assert read_consensus(project.star).optics[0].name == "my group"


def test_phase_flipped_data_are_known_from_the_optimiser(project: Project) -> None:
    assert not project.read().optics[0].phase_flipped
    starfile.write(
        {"optimiser_general": {"rlnCtfDataArePhaseFlipped": 1, "rlnSolventMaskName": "None"}},
        project.beside("run_optimiser.star"),
        overwrite=True,
    )
    consensus = project.read()
    assert consensus.optics[0].phase_flipped and consensus.mask is None


def test_map_and_mask_can_be_given(project: Project, tmp_path: Path) -> None:
    os.rename(project.beside("run_class001.mrc"), tmp_path / "other_class001.mrc")
    write_volume(tmp_path / "mask.mrc", np.eye(BOX)[:, :, None] * np.ones(BOX), PIXEL)
    consensus = project.read(map_path=tmp_path / "other_class001.mrc", mask_path=tmp_path / "mask.mrc")
    assert consensus.mask is not None and consensus.mask.data.sum() == BOX * BOX
    assert consensus.half_maps is not None


def test_project_root_from_anywhere(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_star: Any
) -> None:
    """Walking up from the STAR file, from a link to it, from the current folder, or given."""
    monkeypatch.chdir(tmp_path)
    assert project.read().stack_paths[0].is_file()
    link = tmp_path / "elsewhere" / "run_data.star"
    link.parent.mkdir()
    link.symlink_to(project.star)
    given: dict[str, Any] = {"map_path": project.beside("run_class001.mrc")}
    assert read_consensus(link, **given).stack_paths[0].is_file()
    copy = write_star(tmp_path / "copy" / "particles.star", project.particles, project.optics)
    with pytest.raises(InputProblems, match="none of the 2 image stacks"):
        read_consensus(copy, **given)
    assert len(read_consensus(copy, project=project.root, **given)) == COUNT
    monkeypatch.chdir(project.root)
    assert len(read_consensus(copy, **given)) == COUNT


def test_random_half_sets_are_seeded_and_balanced(project: Project) -> None:
    for subset in ([0] * COUNT, None):
        if subset is None:
            del project.particles["rlnRandomSubset"]
        else:
            project.particles["rlnRandomSubset"] = subset
        (problem,) = project.problems()
        assert "no half-sets" in problem and "random" in problem
        first, again, other = (project.read(half_sets="random", seed=seed).halves for seed in (1, 1, 2))
        assert np.array_equal(first, again) and not np.array_equal(first, other)
        assert (first == 1).sum() == (first == 2).sum() == COUNT // 2
    with pytest.raises(ValueError, match="expected 'consensus' or 'random'"):
        project.read(half_sets="gold")


def change_particles(**columns: Any) -> Callable[[Project], None]:
    return lambda project: project.particles.update(columns)


def change_optics(**columns: Any) -> Callable[[Project], None]:
    return lambda project: (project.optics or {}).update(columns)


def drop(*labels: str) -> Callable[[Project], None]:
    def act(project: Project) -> None:
        for table in (project.particles, project.optics or {}):
            for label in labels:
                table.pop(label, None)

    return act


def volume_of(name: str, data: NDArray[np.floating], pixel: float = PIXEL) -> Callable[[Project], None]:
    return lambda project: (write_volume(project.root / name, data, pixel), None)[1]


def nan_in(name: str) -> Callable[[Project], None]:
    def act(project: Project) -> None:
        with mrcfile.mmap(project.root / name, mode="r+") as mrc:
            mrc.data[1] = np.nan

    return act


def remove(name: str) -> Callable[[Project], None]:
    return lambda project: (project.root / name).unlink()


def truncate(name: str) -> Callable[[Project], None]:
    return lambda project: os.truncate(project.root / name, 3000)


MAP = "Refine3D/job007/run_class001.mrc"
HALF = "Refine3D/job007/run_half2_class001_unfil.mrc"
MASK = "MaskCreate/job005/mask.mrc"
STACK = "Extract/job003/b.mrcs"
BROKEN: dict[str, tuple[Callable[[Project], None], str]] = {
    "stack missing": (remove(STACK), "b.mrcs: no such image stack"),
    "stack truncated": (truncate(STACK), "b.mrcs: truncated, 1 of the 4"),
    "wrong box": (change_optics(rlnImageSize=[BOX + 2]), "16 x 16 pixels; expected 18 x 18"),
    "zero pixel size": (change_optics(rlnImagePixelSize=[0.0]), "pixel size 0 A; expected a positive"),
    "no pixel size": (drop("rlnImagePixelSize"), "no column rlnImagePixelSize"),
    "NaN image": (nan_in(STACK), "not finite (NaN or infinite), such as 2@"),
    "NaN map": (nan_in(MAP), "run_class001.mrc: holds values that are not finite"),
    "map of zeros": (volume_of(MAP, np.zeros((BOX, BOX, BOX))), "run_class001.mrc: the map is zero everywhere"),
    "map without pixel size": (volume_of(MAP, np.ones((BOX, BOX, BOX)), 0.0), "pixel size 0 A in the MRC header"),
    "half-map of another size": (volume_of(HALF, np.ones((8, 8, 8))), "half-map of 8 px of 2 A; expected 16 px"),
    "optimiser not a STAR file": (
        lambda project: (project.beside("run_optimiser.star").write_text("x"), None)[1],
        "run_optimiser.star: not a readable STAR file",
    ),
    "no map": (remove(MAP), "no consensus map beside"),
    "one half-map": (remove(HALF), "only one of the two half-maps"),
    "mask of another size": (
        volume_of(MASK, np.eye(8)[:, :, None] * np.ones(8)),
        "the mask's box is 8 px but the map's is 16 px",
    ),
    "mask empty": (volume_of(MASK, np.zeros((BOX, BOX, BOX))), "the mask is empty"),
    "mask missing": (remove(MASK), "the mask MaskCreate/job005/mask.mrc that"),
    "one half-set": (change_particles(rlnRandomSubset=[1] * COUNT), "rlnRandomSubset holds 1; expected both"),
    "index beyond the stack": (
        lambda project: project.particles["rlnImageName"].__setitem__(0, "000009@Extract/job003/a.mrcs"),
        "number 9 is asked for, the stack holds 8",
    ),
    "not an image name": (
        lambda project: project.particles["rlnImageName"].__setitem__(0, "x@Extract/job003/a.mrcs"),
        "1 values are not number@stack, the first is 'x@Extract/job003/a.mrcs' in row 1",
    ),
    "no poses": (drop("rlnAngleTilt"), "poses missing: no column rlnAngleTilt"),
    "no origins": (drop("rlnOriginXAngst"), "poses missing: no column rlnOriginXAngst"),
    "unknown optics group": (
        change_particles(rlnOpticsGroup=[1, 4] * 6),
        "6 particles have an unknown optics group (4)",
    ),
    "no optics group": (drop("rlnOpticsGroup"), "rlnOpticsGroup"),
    "no voltage": (drop("rlnVoltage"), "no column rlnVoltage"),
    "voltage in volts": (change_optics(rlnVoltage=[300000.0]), "voltage (kV) is 300000"),
    "no defocus": (drop("rlnDefocusU"), "no column rlnDefocusU"),
    "NaN angle": (change_particles(rlnAngleRot=[0.0, np.nan] * 6), "rlnAngleRot of table particles has 6 values"),
    "text for a number": (change_particles(rlnDefocusU=["8000", "abc"] * 6), "the first is 'abc' in row 2"),
    "mirroring magnification": (change_optics(rlnMagMat00=[-1.0]), "mirrors or flattens"),
    "Zernikes not numbers": (change_optics(rlnEvenZernike=["[1,x]"]), "rlnEvenZernike is '[1,x]'"),
    "subtomograms": (change_optics(rlnImageDimensionality=[3]), "subtomograms"),
}


# These break more than one thing.
CASCADES = {"wrong box", "unknown optics group", "no optics group"}


@pytest.mark.parametrize("name", BROKEN)
def test_each_problem_is_found(project: Project, name: str) -> None:
    act, text = BROKEN[name]
    act(project)
    problems = project.problems()
    assert any(text in problem for problem in problems), problems
    if name not in CASCADES:
        assert len(problems) == 1, problems


def test_all_problems_come_in_one_message(project: Project) -> None:
    names = ["stack missing", "zero pixel size", "NaN map", "one half-set", "no poses", "NaN angle", "no voltage"]
    for name in names:
        BROKEN[name][0](project)
    problems = project.problems(latent_columns=["flexLatent7"])
    for text in [*(BROKEN[name][1] for name in names), "latent columns flexLatent7 are not in the particle table"]:
        assert sum(text in problem for problem in problems) == 1, (text, problems)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"hello, this is no STAR file\n", "not a readable STAR file"),
        (b"\x93NUMPY\x01\x00\xff\xfe", "not a readable STAR file"),
        (b"data_particles\nloop_\n_rlnImageName #1\n_rlnAngleRot #2\n000001@a.mrcs\n", "not a readable STAR file"),
        (b"", "no particles"),
        (b"data_micrographs\nloop_\n_rlnMicrographName #1\na.mrc\n", "no particles"),
        (b"data_particles\nloop_\n_rlnImageName #1\n\n", "no particles"),
    ],
)
def test_what_is_not_a_particle_file(tmp_path: Path, content: bytes, text: str) -> None:
    path = tmp_path / "run_data.star"
    path.write_bytes(content)
    with pytest.raises(InputProblems, match=text):
        read_consensus(path)


def test_no_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InputProblems, match="no such STAR file"):
        read_consensus(tmp_path / "none.star")
    with pytest.raises(InputProblems, match="a folder"):
        read_consensus(tmp_path)
