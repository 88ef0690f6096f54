"""A RELION project as cryoSPARC would hold it, converted by formulas of its own, for tests of the cryoSPARC host."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import starfile
from numpy.typing import NDArray

Columns = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class CsProject:
    """`main` and `passthrough` are the tables of J2, the second in another order; change them and `write()`."""

    root: Path
    main: Columns
    passthrough: Columns

    @property
    def job(self) -> Path:
        return self.root / "J2"

    @property
    def particles(self) -> Path:
        return self.job / "J2_003_particles.cs"

    def write(self) -> CsProject:
        save(self.particles, self.main)
        save(self.job / "J2_passthrough_particles.cs", self.passthrough)
        return self

    def changed(self, **fields: Any) -> CsProject:
        """A copy of the tables with fields (n, ...) in the particles' order set; __ stands for / in their names."""
        order = np.argsort(self.main["uid"])
        rows = order[np.searchsorted(self.main["uid"], self.passthrough["uid"], sorter=order)]
        main, other = dict(self.main), dict(self.passthrough)
        for name, values in fields.items():
            name, values = name.replace("__", "/"), np.asarray(values)
            if name in main:
                main[name] = values.astype(main[name].dtype)
            else:
                other[name] = values[rows].astype(other[name].dtype if name in other else values.dtype)
        return CsProject(self.root, main, other).write()


def save(path: Path, columns: Mapping[str, NDArray[Any]]) -> Path:
    """A .cs file: a structured array in numpy's format."""
    table = np.zeros(len(columns["uid"]), [(name, values.dtype, values.shape[1:]) for name, values in columns.items()])
    for name, values in columns.items():
        table[name] = values
    with path.open("wb") as file:
        np.save(file, table)
    return path


def poses(rot: NDArray[Any], tilt: NDArray[Any], psi: NDArray[Any]) -> NDArray[np.float64]:
    """Axis-angle vectors (n, 3) of Rz(rot) Ry(tilt) Rz(psi), degrees, by the product of the three quaternions."""
    a, b, c = (np.deg2rad(angle) / 2 for angle in (rot, tilt, psi))
    w, z = np.cos(b) * np.cos(a + c), np.cos(b) * np.sin(a + c)
    x, y = -np.sin(b) * np.sin(a - c), np.sin(b) * np.cos(a - c)
    axis = np.stack([x, y, z], axis=1)
    length = np.linalg.norm(axis, axis=1)
    return axis / length[:, None] * (2 * np.arctan2(length, w))[:, None]


def convert(relion: Path, root: Path, seed: int = 0) -> CsProject:
    """The RELION project `relion` as cryoSPARC project `root`: J1/extract has the stacks, J2 the refinement."""
    tables = starfile.read(relion / "Refine3D/job001/run_data.star", always_dict=True)
    optics = tables["optics"].set_index("rlnOpticsGroup").loc[tables["particles"]["rlnOpticsGroup"]]
    star = {name: column.to_numpy() for name, column in tables["particles"].items()}
    group = {name: column.to_numpy() for name, column in optics.items()}
    count = len(star["rlnImageName"])
    rng = np.random.default_rng(seed)
    for job in ("J1/extract", "J2"):
        (root / job).mkdir(parents=True)
    for stack in (relion / "Particles").iterdir():
        (root / "J1/extract" / stack.name).symlink_to(stack)
    for source, target in (
        ("Refine3D/job001/run_class001.mrc", "J2_003_volume_map.mrc"),
        ("Refine3D/job001/run_half1_class001_unfil.mrc", "J2_003_volume_map_half_A.mrc"),
        ("Refine3D/job001/run_half2_class001_unfil.mrc", "J2_003_volume_map_half_B.mrc"),
        ("MaskCreate/job002/mask.mrc", "J2_003_volume_mask_refine.mrc"),
    ):
        shutil.copy(relion / source, root / "J2" / target)

    def floats(values: Any) -> NDArray[np.float32]:
        return np.asarray(values, dtype=np.float32)

    uid = rng.integers(1, 2**63, count, dtype=np.uint64)
    pixel = group["rlnImagePixelSize"].astype(float)
    shift = np.stack([star["rlnOriginXAngst"], star["rlnOriginYAngst"]], axis=1) / pixel[:, None]
    main = {
        "uid": uid,
        "alignments3D/split": (star["rlnRandomSubset"] - 1).astype(np.uint32),
        "alignments3D/shift": floats(shift),
        "alignments3D/pose": floats(poses(star["rlnAngleRot"], star["rlnAngleTilt"], star["rlnAnglePsi"])),
        "alignments3D/psize_A": floats(pixel),
        "alignments3D/alpha": floats(np.ones(count)),
        "alignments3D/class": np.zeros(count, dtype=np.uint32),
    }
    number, name = zip(*(text.split("@") for text in star["rlnImageName"]), strict=True)
    box = group["rlnImageSize"].astype(np.uint32)
    passthrough = {
        "uid": uid,
        "blob/path": np.array([">" * (i % 2) + f"J1/extract/{Path(path).name}" for i, path in enumerate(name)], "S"),
        "blob/idx": np.array(number, dtype=int).astype(np.uint32) - 1,
        "blob/shape": np.stack([box, box], axis=1),
        "blob/psize_A": floats(pixel),
        "blob/sign": floats(np.ones(count)),
        "ctf/type": np.full(count, b"i"),
        "ctf/exp_group_id": star["rlnOpticsGroup"].astype(np.uint32) + 4,
        "ctf/accel_kv": floats(group["rlnVoltage"]),
        "ctf/cs_mm": floats(group["rlnSphericalAberration"]),
        "ctf/amp_contrast": floats(group["rlnAmplitudeContrast"]),
        "ctf/df1_A": floats(star["rlnDefocusU"]),
        "ctf/df2_A": floats(star["rlnDefocusV"]),
        "ctf/df_angle_rad": floats(np.deg2rad(star["rlnDefocusAngle"])),
        "ctf/phase_shift_rad": floats(np.deg2rad(star["rlnPhaseShift"])),
        "ctf/scale": floats(np.ones(count)),
        "ctf/scale_const": floats(np.zeros(count)),
        "ctf/shift_A": floats(np.zeros((count, 2))),
        "ctf/tilt_A": floats(np.zeros((count, 2))),
        "ctf/trefoil_A": floats(np.zeros((count, 2))),
        "ctf/tetra_A": floats(np.zeros((count, 4))),
        "ctf/anisomag": floats(np.zeros((count, 4))),
        "ctf/bfactor": floats(star["rlnCtfBfactor"]),
    }
    shuffled = rng.permutation(count)
    passthrough = {field: values[shuffled] for field, values in passthrough.items()}
    return CsProject(root, main, passthrough).write()
