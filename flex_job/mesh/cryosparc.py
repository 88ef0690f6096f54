"""cryoSPARC's mesh file (`flex_mesh`): a pickle of plain arrays, read with nothing but arrays allowed, and written.

Keys: mask, mask_soft (N, N, N), N, psize_A, tm_points (V, 3), tm_cells (T, 4), tm_tetraidx_map (N, N, N; the cell of
each voxel, -1 in the solvent), tm_rweights (T,), version = 1. In what unit, from which corner and in which axis
order `tm_points` counts is nowhere public, so reading tries all and takes the one under which the voxels
lie in the cells that `tm_tetraidx_map` gives them; a file in which none fits is refused. Written are voxels from the
first one, xyz.
"""

from __future__ import annotations

import os
import pickle
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flex_job.mask import soft_mask
from flex_job.mesh.locate import locate
from flex_job.mesh.region import SUPPORT_LEVEL
from flex_job.mesh.sampling import voxel_positions
from flex_job.mesh.tetmesh import TetMesh, cell_volumes
from flex_job.volume import Volume

__all__ = ["load_plain_pickle", "read_cryosparc_mesh", "write_cryosparc_mesh"]

KEYS = ("N", "psize_A", "tm_points", "tm_cells", "tm_tetraidx_map", "tm_rweights")
# Of the voxels with a cell, the part that must be found in it for a convention to be believed.
BELIEVED = 0.9


def read_cryosparc_mesh(path: str | Path) -> TetMesh:
    """The mesh of a cryoSPARC `flex_mesh` file. Raises ValueError, with the path, for anything else."""
    path = Path(path)
    content = load_plain_pickle(path)
    missing = [key for key in KEYS if not isinstance(content, dict) or key not in content]
    if missing:
        raise ValueError(f"{path}: not a cryoSPARC mesh: {', '.join(missing)} missing")
    try:
        box, pixel_size = int(content["N"]), float(content["psize_A"])
        points = np.asarray(content["tm_points"], dtype=np.float64).reshape(-1, 3)
        cells = np.asarray(content["tm_cells"], dtype=np.int32).reshape(-1, 4)
        owner = np.asarray(content["tm_tetraidx_map"], dtype=np.int64).reshape(box, box, box)
        rigidity = np.asarray(content["tm_rweights"], dtype=np.float32).reshape(-1)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: a cryoSPARC mesh with unusable entries ({error})") from error
    if len(cells) == 0 or cells.min() < 0 or cells.max() >= len(points) or owner.max() >= len(cells):
        raise ValueError(f"{path}: a cryoSPARC mesh whose cells or voxels name vertices or cells that are not there")
    vertices = _in_our_frame(path, points, cells, owner, pixel_size)
    inverted = cell_volumes(vertices, cells) < 0
    cells[inverted] = cells[inverted][:, [0, 2, 1, 3]]
    motion = np.ones(len(vertices), dtype=np.float32)
    try:
        return TetMesh(vertices, cells, rigidity, motion, np.zeros(len(cells), dtype=np.int32))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def write_cryosparc_mesh(mesh: TetMesh, mask: Volume, path: str | Path) -> Path:
    """Write `mesh` as cryoSPARC's mesh pickle, aside first; `mask` (z, y, x) says which voxels are solvent."""
    path = Path(path)
    binary = mask.data > 0.5
    support = mask.data > SUPPORT_LEVEL
    owner = np.full(mask.data.shape, -1, dtype=np.int32)
    owner[support], _ = locate(mesh, voxel_positions(support, mask.pixel_size_A))
    content = {
        "mask": binary.astype(np.float32),
        "mask_soft": mask.data if mask.data.max() > 0 else soft_mask(binary, 3),
        "N": mask.box,
        "psize_A": mask.pixel_size_A,
        "tm_points": mesh.vertices_A / mask.pixel_size_A + mask.box // 2,
        "tm_cells": mesh.cells,
        "tm_tetraidx_map": owner,
        "tm_rweights": mesh.rigidity,
        "version": 1,
    }
    aside = path.with_name(f".{path.name}.part")
    with open(aside, "wb") as file:
        pickle.dump(content, file, protocol=4)
    os.replace(aside, path)
    return path


def load_plain_pickle(path: str | Path) -> Any:
    """Unpickle a file that holds only containers, numbers, text and numeric numpy arrays.

    Anything else, functions and classes above all, is refused with a ValueError before it is made.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            content = _PlainUnpickler(file).load()
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; expected a cryoSPARC mesh") from None
    except Exception as error:
        raise ValueError(f"{path}: not a pickle of plain arrays ({error})") from error
    return content


# The functions that numpy pickles its arrays and numbers with, taken from numpy itself, under their stored names.
MAKERS = {
    ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("numpy.core.multiarray", "scalar"): np.float64(0).__reduce__()[0],
    ("numpy.core.numeric", "_frombuffer"): np.empty(1).__reduce_ex__(5)[0],
}


class _PlainUnpickler(pickle.Unpickler):
    """Knows the few functions that numpy arrays and numbers are pickled with, under numpy 1's and 2's names."""

    def find_class(self, module: str, name: str) -> Any:
        home = module.replace("numpy._core", "numpy.core")
        if (home, name) == ("numpy", "ndarray"):
            return np.ndarray
        if (home, name) == ("numpy", "dtype"):
            return _numeric_dtype
        if (home, name) in MAKERS:
            return MAKERS[home, name]
        if (module, name) == ("_codecs", "encode"):
            return _latin1
        raise pickle.UnpicklingError(f"refused {module}.{name}: only plain numpy arrays are read")


def _numeric_dtype(description: Any, *flags: Any) -> np.dtype[Any]:
    dtype = np.dtype(description, *flags)
    if dtype.kind not in "biuf":
        raise pickle.UnpicklingError(f"refused an array of {dtype}: only numbers are read")
    return dtype


def _latin1(text: str, encoding: str = "latin1") -> bytes:
    """How older protocols store bytes."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"refused text in {encoding}")
    return text.encode("latin1")


def _in_our_frame(
    path: Path, points: NDArray[np.float64], cells: NDArray[np.int32], owner: NDArray[np.int64], pixel_size: float
) -> NDArray[np.float64]:
    """`points` as xyz in angstrom from the box centre, by the convention that `owner` (z, y, x or x, y, z) confirms."""
    box = owner.shape[0]
    voxels = np.argwhere(owner >= 0)
    if len(voxels) == 0:
        raise ValueError(f"{path}: a cryoSPARC mesh with no voxel in any cell")
    chosen = voxels[np.random.default_rng(0).permutation(len(voxels))[:4000]]
    expected = owner[tuple(chosen.T)]
    scores = []
    for unit, start, swap_points in product((1.0, pixel_size), (0.0, box / 2, box // 2, (box - 1) / 2), (False, True)):
        # From here on as (z, y, x) in voxels from the first one.
        index = (points if swap_points else points[:, ::-1]) / unit + start
        scores.append((_agreement(index, cells, chosen, expected), unit, start, swap_points))
    score, unit, start, swap_points = max(scores)
    if score < BELIEVED:
        raise ValueError(
            f"{path}: under no known convention for tm_points do the voxels lie in the cells of tm_tetraidx_map "
            f"({100 * score:.0f} % at best); export the mesh again, or build one"
        )
    index = (points if swap_points else points[:, ::-1]) / unit + start
    return np.ascontiguousarray((index[:, ::-1] - box // 2) * pixel_size)


def _agreement(
    index: NDArray[np.float64], cells: NDArray[np.int32], voxels: NDArray[np.int64], cell: NDArray[np.int64]
) -> float:
    """The part of `voxels` (n, 3) that lie, within a little, in their cell when vertices are at `index` (same axes)."""
    corners = index[cells[cell]]
    edges = np.swapaxes(corners[:, 1:] - corners[:, :1], 1, 2)
    sound = np.abs(np.linalg.det(edges)) > 1e-9
    weights = np.full((len(voxels), 3), -np.inf)
    weights[sound] = np.linalg.solve(edges[sound], (voxels - corners[:, 0])[sound][..., None])[..., 0]
    return float((np.minimum(weights.min(axis=1), 1.0 - weights.sum(axis=1)) >= -0.05).mean())
