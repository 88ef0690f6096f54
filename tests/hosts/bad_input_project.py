"""A small finished refinement on disk, and ways to damage it."""

from __future__ import annotations

import io
import os
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import mrcfile
import numpy as np
import torch

from flex_job.flow import FlowGenerator
from flex_job.mesh import TetMesh, write_cryosparc_mesh
from flex_job.model import FlexModel
from flex_job.volume import Volume, write_volume

BOX, PIXEL_A, COUNT = 16, 2.0, 8
STAR, STACK, MAP, MASK = "run_data.star", "Extract/a.mrcs", "run_class001.mrc", "mask.mrc"
HALF = "run_half2_class001_unfil.mrc"
Table = dict[str, list[str]]
Options = dict[str, str]


def particles() -> Table:
    def numbers(first: float, step: float) -> list[str]:
        return [f"{first + step * row:g}" for row in range(COUNT)]

    return {
        "rlnImageName": [f"{row + 1:06d}@{STACK}" for row in range(COUNT)],
        "rlnAngleRot": numbers(10, 20),
        "rlnAngleTilt": numbers(5, 10),
        "rlnAnglePsi": numbers(-70, 15),
        "rlnOriginXAngst": numbers(-2, 0.5),
        "rlnOriginYAngst": numbers(1, -0.5),
        "rlnDefocusU": numbers(15000, 100),
        "rlnDefocusV": numbers(14000, 100),
        "rlnDefocusAngle": numbers(0, 20),
        "rlnOpticsGroup": ["1"] * COUNT,
        "rlnRandomSubset": ["1", "2"] * (COUNT // 2),
        "flexLatent1": numbers(-1, 0.25),
    }


def optics() -> Table:
    return {
        "rlnOpticsGroup": ["1"],
        "rlnOpticsGroupName": ["opticsGroup1"],
        "rlnVoltage": ["300"],
        "rlnSphericalAberration": ["2.7"],
        "rlnAmplitudeContrast": ["0.1"],
        "rlnImagePixelSize": [f"{PIXEL_A:g}"],
        "rlnImageSize": [str(BOX)],
        "rlnImageDimensionality": ["2"],
    }


@dataclass
class Project:
    """What is in `run_data.star`, to be changed before `write`; the other files are there."""

    particles: Table = field(default_factory=particles)
    optics: Table = field(default_factory=optics)

    def text(self) -> str:
        return "\n# version 30001\n" + "".join(
            f"\ndata_{name}\n\nloop_\n"
            + "".join(f"_{label} #{number}\n" for number, label in enumerate(table, 1))
            + "".join(" ".join(row) + "\n" for row in zip(*table.values(), strict=True))
            for name, table in (("optics", self.optics), ("particles", self.particles))
        )


def make_project(root: Path) -> Path:
    """Stack, map, halves, mask, meshes and a model in `root`, all of them sound."""
    rng = np.random.default_rng(0)
    (root / "Extract").mkdir(parents=True)
    with mrcfile.new(root / STACK, rng.normal(size=(COUNT, BOX, BOX)).astype(np.float32)) as mrc:
        mrc.set_image_stack()
    z, y, x = np.indices((BOX, BOX, BOX)) - BOX // 2
    ball = np.exp(-(x**2 + y**2 + z**2) / 18).astype(np.float32)
    for name in (MAP, HALF, HALF.replace("half2", "half1")):
        write_volume(root / name, ball, PIXEL_A)
    mask = Volume((ball > 0.3).astype(np.float32), PIXEL_A)
    write_volume(root / MASK, mask.data, PIXEL_A)
    mesh = box_mesh()
    mesh.save(root / "mesh.npz")
    write_cryosparc_mesh(mesh, mask, root / "mesh.pkl")
    (root / "Model").mkdir()
    model(mesh, Volume(ball, PIXEL_A), mask).save(root / "Model/flex_model.pt")
    (root / STAR).write_text(Project().text())
    return root


def cs_table() -> dict[str, np.ndarray]:
    """The same particles as cryoSPARC's table has them, by field."""
    one, rng = np.ones(COUNT, dtype="f4"), np.random.default_rng(1)
    return {
        "uid": np.arange(1, COUNT + 1, dtype="u8"),
        "blob/path": np.full(COUNT, STACK.encode()),
        "blob/idx": np.arange(COUNT, dtype="u4"),
        "blob/shape": np.full((COUNT, 2), BOX, dtype="u4"),
        "blob/psize_A": PIXEL_A * one,
        "blob/sign": -one,
        "ctf/accel_kv": 300 * one,
        "ctf/cs_mm": 2.7 * one,
        "ctf/amp_contrast": 0.1 * one,
        "ctf/df1_A": 15000 * one,
        "ctf/df2_A": 14000 * one,
        "ctf/df_angle_rad": one,
        "alignments3D/pose": rng.normal(size=(COUNT, 3)).astype("f4"),
        "alignments3D/shift": np.zeros((COUNT, 2), dtype="f4"),
        "alignments3D/psize_A": PIXEL_A * one,
        "alignments3D/split": np.arange(COUNT, dtype="u4") % 2,
    }


def cs_bytes(columns: dict[str, np.ndarray]) -> bytes:
    table = np.zeros(len(columns["uid"]), [(name, values.dtype, values.shape[1:]) for name, values in columns.items()])
    for name, values in columns.items():
        table[name] = values
    file = io.BytesIO()
    np.save(file, table)
    return file.getvalue()


def box_mesh() -> TetMesh:
    """Five tetrahedra that fill a cube as large as the box."""
    side = BOX * PIXEL_A
    vertices = (np.array([[i, j, k] for i in (0, 1) for j in (0, 1) for k in (0, 1)]) - 0.5) * side
    cells = np.array([[0, 1, 2, 4], [3, 1, 7, 2], [5, 1, 4, 7], [6, 2, 7, 4], [1, 2, 4, 7]], dtype=np.int32)
    edges = vertices[cells][:, 1:] - vertices[cells][:, :1]
    flat = np.linalg.det(edges) < 0
    cells[flat] = cells[flat][:, [0, 2, 1, 3]]
    return TetMesh.plain(vertices, cells)


def model(mesh: TetMesh, density: Volume, support: Volume) -> FlexModel:
    torch.manual_seed(0)
    return FlexModel(
        mesh=mesh,
        flow=FlowGenerator(1, 1, 4, torch.from_numpy(mesh.motion)),
        latents=np.linspace(-1, 1, COUNT, dtype=np.float32)[:, None],
        covariance=np.full((COUNT, 1, 1), 0.1, dtype=np.float32),
        map=density,
        support=support,
        history=np.zeros((1, 2)),
        history_names=("loss", "scale"),
    )


# Damage: each gives a function that is called in the project folder, and returns options that the job is given besides.
Feed = Callable[[Project], Options | None]


def particle(row: int, label: str, value: str) -> Feed:
    return lambda project: project.particles[label].__setitem__(row, value)


def group(label: str, value: str) -> Feed:
    return lambda project: project.optics.update({label: [value]})


def every(label: str, *values: str) -> Feed:
    return lambda project: project.particles.update({label: list(values) * (COUNT // len(values))})


def without(label: str) -> Feed:
    def feed(project: Project) -> None:
        project.particles.pop(label, None)
        project.optics.pop(label, None)

    return feed


def text(change: Callable[[str], str | bytes]) -> Feed:
    """The STAR file's text, changed; it is written here and not again."""

    def feed(project: Project) -> None:
        changed = change(project.text())
        Path(STAR).write_bytes(changed if isinstance(changed, bytes) else changed.encode("latin1"))
        project.particles = {}

    return feed


def holds(name: str, content: bytes | str, **options: str) -> Feed:
    """A file with this content, and options that name it."""

    def feed(project: Project) -> Options:
        Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return options

    return feed


def given(**options: str) -> Feed:
    return lambda project: options


def words(name: str, offset: int, form: str, *values: float, **options: str) -> Feed:
    """An MRC file with other numbers in its header, or anywhere."""

    def feed(project: Project) -> Options:
        with open(name, "r+b") as file:
            file.seek(offset)
            file.write(struct.pack(form, *values))
        return options

    return feed


def length(name: str, count: int, **options: str) -> Feed:
    """A file cut, or continued with a hole that takes no room on the disk."""

    def feed(project: Project) -> Options:
        os.truncate(name, count)
        return options

    return feed


def pipe(name: str, **options: str) -> Feed:
    def feed(project: Project) -> Options:
        Path(name).unlink(missing_ok=True)
        os.mkfifo(name)
        return options

    return feed


def link(name: str, target: str, **options: str) -> Feed:
    def feed(project: Project) -> Options:
        if Path(name).is_dir():
            shutil.rmtree(name)
        else:
            Path(name).unlink(missing_ok=True)
        Path(name).symlink_to(target)
        return options

    return feed


def both(*feeds: Feed) -> Feed:
    def feed(project: Project) -> Options:
        options: Options = {}
        for one in feeds:
            options |= one(project) or {}
        return options

    return feed
