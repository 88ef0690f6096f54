"""cryoSPARC's mesh file (`flex_mesh`): a pickle of plain arrays, read with nothing but arrays allowed, and written.

Keys: mask, mask_soft (N, N, N), N, psize_A, tm_points (V, 3), tm_cells (T, 4), tm_tetraidx_map (N, N, N; the cell of
each voxel, -1 in the solvent), tm_rweights (T,), version = 1. In what unit, from which corner and in which axis
order `tm_points` counts is nowhere public, so reading tries all and takes the one under which the voxels
lie in the cells that `tm_tetraidx_map` gives them; a file in which none fits is refused. Written are voxels from the
first one, xyz.
"""

from __future__ import annotations

import math
import pickle
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from flex_job.consensus import PIXEL_SIZES_A
from flex_job.files import written_aside
from flex_job.mask import soft_mask
from flex_job.mesh.locate import locate
from flex_job.mesh.region import SUPPORT_LEVEL
from flex_job.mesh.sampling import voxel_positions
from flex_job.mesh.tetmesh import LARGEST_A, TetMesh, cell_volumes
from flex_job.plain_pickle import load_plain_pickle
from flex_job.problems import one_line
from flex_job.stack_header import LARGEST_BOX
from flex_job.volume import Volume

__all__ = ["read_cryosparc_mesh", "write_cryosparc_mesh"]

KEYS = ("N", "psize_A", "tm_points", "tm_cells", "tm_tetraidx_map", "tm_rweights")
# Of the voxels with a cell, the part that must be found in it for a convention to be believed.
BELIEVED = 0.9


def read_cryosparc_mesh(path: str | Path) -> TetMesh:
    """The mesh of a cryoSPARC `flex_mesh` file. Raises ValueError, with the path, for anything else."""
    path = Path(path)
    content = load_plain_pickle(path, "a cryoSPARC mesh")
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds an array; expected a cryoSPARC mesh, a dict; export it again")
    missing = [key for key in KEYS if key not in content]
    if missing:
        raise ValueError(one_line(f"{path}: not a cryoSPARC mesh: {', '.join(missing)} missing; export it again"))
    try:
        mesh = _mesh(content)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(one_line(f"{path}: a cryoSPARC mesh with unusable entries: {error}")) from error
    return mesh


def _mesh(content: dict[str | int, Any]) -> TetMesh:
    """The mesh in a file's entries. Raises ValueError, TypeError or OverflowError."""
    box, pixel_size = content["N"], float(content["psize_A"])
    if type(box) is not int or not 1 <= box <= LARGEST_BOX:
        raise ValueError(f"N is {box}; expected a whole number from 1 to {LARGEST_BOX}")
    low, high = PIXEL_SIZES_A
    if not low <= pixel_size <= high:
        raise ValueError(f"psize_A is {pixel_size:g}; expected {low:g} to {high:g}")
    points = _entry(content, "tm_points", "iuf", (-1, 3), np.float64)
    cells = _entry(content, "tm_cells", "iu", (-1, 4), np.int64)
    owner = _entry(content, "tm_tetraidx_map", "iu", (box, box, box), np.int64)
    rigidity = _entry(content, "tm_rweights", "iuf", (-1,), np.float32)
    if len(cells) == 0 or cells.min() < 0 or cells.max() >= len(points) or owner.max() >= len(cells):
        raise ValueError("cells or voxels name vertices or cells that are not there")
    if not (np.abs(points) <= LARGEST_A).all():
        raise ValueError(f"tm_points has values that are not numbers of at most {LARGEST_A:g} in size")
    vertices = _in_our_frame(points, cells, owner, pixel_size)
    inverted = cell_volumes(vertices, cells) < 0
    cells[inverted] = cells[inverted][:, [0, 2, 1, 3]]
    motion = np.ones(len(vertices), dtype=np.float32)
    return TetMesh(vertices, cells.astype(np.int32), rigidity, motion, np.zeros(len(cells), dtype=np.int32))


def _entry(
    content: dict[str | int, Any], name: str, kinds: str, shape: tuple[int, ...], dtype: DTypeLike
) -> NDArray[Any]:
    """An array of the file, as `dtype`. Raises ValueError, with its name, when it is no array of these `kinds`."""
    value = content[name]
    if not isinstance(value, np.ndarray) or value.dtype.kind not in kinds:
        raise ValueError(f"{name} is not an array of {'whole ' if 'f' not in kinds else ''}numbers")
    if math.prod(value.shape) % math.prod(side for side in shape if side > 0) or (
        -1 not in shape and value.size != math.prod(shape)
    ):
        expected = ", ".join("n" if side < 0 else str(side) for side in shape)
        raise ValueError(f"{name} has shape {value.shape}; expected ({expected})")
    with np.errstate(over="ignore", invalid="ignore"):  # infinite and NaN are told later
        return value.reshape(shape).astype(dtype)


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
    with written_aside(path) as file:
        pickle.dump(content, file, protocol=4)
    return path


def _in_our_frame(
    points: NDArray[np.float64], cells: NDArray[np.int64], owner: NDArray[np.int64], pixel_size: float
) -> NDArray[np.float64]:
    """`points` as xyz in angstrom from the box centre, by the convention that `owner` (z, y, x or x, y, z) confirms."""
    box = owner.shape[0]
    voxels = np.argwhere(owner >= 0)
    if len(voxels) == 0:
        raise ValueError("no voxel in any cell")
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
            "under no known convention for tm_points do the voxels lie in the cells of tm_tetraidx_map "
            f"({100 * score:.0f} % at best); export the mesh again, or build one"
        )
    index = (points if swap_points else points[:, ::-1]) / unit + start
    return np.ascontiguousarray((index[:, ::-1] - box // 2) * pixel_size)


def _agreement(
    index: NDArray[np.float64], cells: NDArray[np.int64], voxels: NDArray[np.int64], cell: NDArray[np.int64]
) -> float:
    """The part of `voxels` (n, 3) that lie, within a little, in their cell when vertices are at `index` (same axes)."""
    corners = index[cells[cell]]
    edges = np.swapaxes(corners[:, 1:] - corners[:, :1], 1, 2)
    sound = np.abs(np.linalg.det(edges)) > 1e-9
    weights = np.full((len(voxels), 3), -np.inf)
    weights[sound] = np.linalg.solve(edges[sound], (voxels - corners[:, 0])[sound][..., None])[..., 0]
    return float((np.minimum(weights.min(axis=1), 1.0 - weights.sum(axis=1)) >= -0.05).mean())
