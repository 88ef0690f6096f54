"""The tetrahedral mesh that carries the motion: data, files, geometry of its cells."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from flex_job.files import written_aside
from flex_job.input_files import opened_input
from flex_job.problems import one_line

__all__ = ["TetMesh", "cell_gradients", "cell_quality", "cell_volumes", "vertex_weights"]

SCHEMA = 1
ENTRIES = {
    "vertices_A": np.float64,
    "cells": np.int32,
    "rigidity": np.float32,
    "motion": np.float32,
    "segment": np.int32,
}
MOST_BYTES = 1 << 30  # of a file, unpacked: some ten million cells
LARGEST_A = 1e6  # no vertex is farther from the centre
MOST_BINS = 30_000_000  # of half a cell, over the whole mesh: points are looked up in a table of them
MOST_MEMBERS = 1000  # bins that a cell may lie in, on average


@dataclass(frozen=True)
class TetMesh:
    """Linear tetrahedra in the canonical frame.

    - `vertices_A` (V, 3) float64: xyz, angstrom, relative to the box centre (voxel box // 2).
    - `cells` (T, 4) int32: vertex numbers, positively oriented: det(x1 - x0, x2 - x0, x3 - x0) > 0.
    - `rigidity` (T,) float32: weights w_j of the local rigidity (3DFlex eq. 5); 1 in the densest cells. Cells of a
      rigid segment have more than 1 (`flex_job.mesh.weights.RIGID_WEIGHT`).
    - `motion` (V,) float32: factor on each vertex's displacement, 0 in the zero-motion mask, else 1.
    - `segment` (T,) int32: segment of each cell, 0 when there is no segmentation. Segments that are not fused share
      no vertices, though they may touch.

    Raises ValueError, naming every problem, when shapes, numbers or orientation are not those.
    """

    vertices_A: NDArray[np.float64]
    cells: NDArray[np.int32]
    rigidity: NDArray[np.float32]
    motion: NDArray[np.float32]
    segment: NDArray[np.int32]

    def __post_init__(self) -> None:
        problems = _problems(self)
        if problems:
            raise ValueError("not a usable tetrahedral mesh: " + "; ".join(problems))

    @classmethod
    def plain(cls, vertices_A: NDArray[np.float64], cells: NDArray[np.int32]) -> TetMesh:
        """A mesh of one segment, all its cells of weight 1 and all its vertices free to move."""
        count = len(cells)
        free = np.ones(len(vertices_A), dtype=np.float32)
        return cls(vertices_A, cells, np.ones(count, dtype=np.float32), free, np.zeros(count, dtype=np.int32))

    def save(self, path: str | Path) -> Path:
        """Write .npz: aside first, then renamed over `path`."""
        path = Path(path)
        with written_aside(path) as file:
            np.savez_compressed(
                file,
                schema=np.int32(SCHEMA),
                vertices_A=self.vertices_A,
                cells=self.cells,
                rigidity=self.rigidity,
                motion=self.motion,
                segment=self.segment,
            )
        return path

    @classmethod
    def load(cls, path: str | Path) -> TetMesh:
        """Read what `save` wrote. Raises ValueError, with the path, for anything else."""
        path = Path(path)
        try:
            with opened_input(path, "file", "a mesh (.npz)", MOST_BYTES) as file:
                arrays = _arrays(file)
            return cls(**{name: arrays[name].astype(dtype, casting="same_kind") for name, dtype in ENTRIES.items()})
        except Exception as error:  # zipfile and numpy raise anything
            if str(error).startswith(f"{path}: "):
                raise
            raise ValueError(one_line(f"{path}: not a mesh written by flex-job ({error}); build it again")) from error


def _arrays(file: BinaryIO) -> dict[str, NDArray[Any]]:
    """The arrays of a mesh file. Raises ValueError for another schema, and where they are larger than any mesh is."""
    with zipfile.ZipFile(file) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
    if size > MOST_BYTES:
        raise ValueError(f"{size} bytes unpacked; expected at most {MOST_BYTES}")
    with np.load(file, allow_pickle=False) as archive:
        if (schema := int(archive["schema"])) != SCHEMA:
            raise ValueError(f"schema {schema}; this version reads schema {SCHEMA}")
        return {name: archive[name] for name in ENTRIES}


def cell_volumes(vertices_A: NDArray[np.floating], cells: NDArray[np.integer]) -> NDArray[np.float64]:
    """Signed volumes (T,) in cubic angstrom; positive for a positively oriented cell."""
    edges = _edges(vertices_A, cells)
    return np.einsum("ij,ij->i", edges[:, 0], np.cross(edges[:, 1], edges[:, 2])) / 6


def vertex_weights(mesh: TetMesh) -> NDArray[np.float64]:
    """(V,) the part of the molecule's density around each vertex, as the cells' rigidity tells it; their sum is one.

    Rigid segments have a rigidity far above one, which says nothing of their density: it counts as one.
    """
    weight = np.zeros(len(mesh.vertices_A))
    density = cell_volumes(mesh.vertices_A, mesh.cells) * np.minimum(mesh.rigidity, 1.0)
    np.add.at(weight, mesh.cells, density[:, None])
    return weight / weight.sum()


def cell_quality(vertices_A: NDArray[np.floating], cells: NDArray[np.integer]) -> NDArray[np.float64]:
    """Mean-ratio quality (T,): 1 for the regular tetrahedron, 0 for a flat one, negative for an inverted one.

    12 (3 V)^(2/3) / sum of squared edge lengths (Liu and Joe 1994).
    """
    corners = np.asarray(vertices_A, dtype=np.float64)[cells]
    pairs = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    squares = sum(((corners[:, a] - corners[:, b]) ** 2).sum(axis=1) for a, b in pairs)
    volumes = cell_volumes(vertices_A, cells)
    return np.sign(volumes) * 12 * (3 * np.abs(volumes)) ** (2 / 3) / squares


def cell_gradients(mesh: TetMesh) -> NDArray[np.float64]:
    """Gradients (T, 4, 3) of the four shape functions of each cell, 1/A.

    For vertex displacements u_k (3,) the displacement gradient is du_a/dx_b = sum_k u_k[a] g_k[b], constant in the
    cell, and A_j = I + grad u (3DFlex eq. 5). The four gradients of a cell sum to zero.
    """
    # Rows of the inverse transposed edge matrix are the gradients of shape functions 1 to 3.
    inverse = np.linalg.inv(_edges(mesh.vertices_A, mesh.cells))
    last_three = np.swapaxes(inverse, 1, 2)
    return np.concatenate([-last_three.sum(axis=1, keepdims=True), last_three], axis=1)


def _edges(vertices_A: NDArray[np.floating], cells: NDArray[np.integer]) -> NDArray[np.float64]:
    """Edge vectors (T, 3, 3) from vertex 0 to vertices 1, 2, 3, as rows."""
    corners = np.asarray(vertices_A, dtype=np.float64)[cells]
    return corners[:, 1:] - corners[:, :1]


def _problems(mesh: TetMesh) -> list[str]:
    vertices, cells = mesh.vertices_A, mesh.cells
    if vertices.ndim != 2 or vertices.shape[1] != 3 or cells.ndim != 2 or cells.shape[1] != 4 or len(cells) == 0:
        return [f"vertices {vertices.shape} and cells {cells.shape}; expected (V, 3) and (T, 4) with T > 0"]
    problems = []
    for name, expected in (("rigidity", len(cells)), ("segment", len(cells)), ("motion", len(vertices))):
        if getattr(mesh, name).shape != (expected,):
            problems.append(f"{name} has shape {getattr(mesh, name).shape}; expected ({expected},)")
    if not (np.abs(vertices) <= LARGEST_A).all():  # NaN is not <= anything
        problems.append(f"some vertices are not numbers of at most {LARGEST_A:g} A")
    for name, most in (("rigidity", LARGEST_A), ("motion", 1.0)):
        if not ((getattr(mesh, name) >= 0) & (getattr(mesh, name) <= most)).all():
            problems.append(f"{name} has values that are not numbers from 0 to {most:g}")
    if cells.min() < 0 or cells.max() >= len(vertices):
        problems.append(f"cells name vertices {cells.min()} to {cells.max()}; there are {len(vertices)}")
    if problems:
        return problems
    wrong = int((cell_volumes(vertices, cells) <= 0).sum())
    if wrong:
        return [f"{wrong} of {len(cells)} cells are flat or inverted (volume not above 0)"]
    corners = vertices[cells]
    size = corners.max(axis=1) - corners.min(axis=1)
    bin_A = 0.5 * float(np.median(size.max(axis=1)))
    with np.errstate(over="ignore"):
        bins = np.prod((corners.max(axis=(0, 1)) - corners.min(axis=(0, 1))) / bin_A + 3)
        members = np.prod(size / bin_A + 2, axis=1).mean()
    if bins > MOST_BINS or members > MOST_MEMBERS:
        return [f"cells of very different sizes (half of them below {2 * bin_A:g} A); expected cells of about one size"]
    return []
