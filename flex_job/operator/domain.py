"""The voxels that carry density, ordered by mesh cell so that a cell's affine map is computed once per image.

Cells, and the voxels inside a cell, follow a Hilbert curve: voxels that are near in the list are near in space, hence
in every image, whatever the pose, and a run of voxels writes to a small patch that stays in the cache.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from flex_job.mesh import TetMesh, cell_gradients, locate
from flex_job.volume import Volume

__all__ = ["MASK_LEVEL", "VoxelDomain", "hilbert_index", "rigid_domain", "voxel_domain"]

MASK_LEVEL = 0.05
"""A soft mask's voxels above this carry density; resampling a mask to another box ripples by less."""


@dataclass(frozen=True)
class VoxelDomain:
    """Voxels of a cubic grid inside a support, with their place in the mesh.

    `flat_index` (n,) points into the raveled (z, y, x) volume. `local` (3, n) float32 is the voxel's position (xyz,
    angstroms) relative to `centre` of its cell. Voxels are ordered by cell: those of the c-th occupied cell are
    `start[c]:start[c + 1]`; cells, and the voxels in each, follow a Hilbert curve. `vertices` (c, 4) are a cell's
    vertex numbers, `gradients` (c, 4, 3) the gradients of its four linear shape functions (1/A) and `offsets` (c, 4)
    their values at `centre`; so the barycentric weights of a voxel are `offsets + gradients @ local` and sum to one.
    """

    box: int
    pixel_size_A: float
    n_vertices: int
    flat_index: NDArray[np.int64]
    local: NDArray[np.float32]
    start: NDArray[np.int64]
    vertices: NDArray[np.int32]
    gradients: NDArray[np.float32]
    offsets: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.flat_index)

    def weights(self) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
        """Vertex numbers (n, 4) and barycentric weights (n, 4) of every voxel. The fourth weight is what is left to
        one: in slivers weights are large, and the rounding of `gradients` would show as a shift."""
        cell = np.repeat(np.arange(len(self.vertices)), np.diff(self.start))
        weights = np.einsum("nkj,jn->nk", self.gradients[cell].astype(np.float64), self.local.astype(np.float64))
        weights += self.offsets[cell]
        weights[:, 3] = 1 - weights[:, :3].sum(axis=1)
        return self.vertices[cell], weights

    def subset(self, keep: NDArray[np.bool_]) -> VoxelDomain:
        """The voxels where `keep` (n,) holds, and their cells."""
        cell = np.repeat(np.arange(len(self.vertices)), np.diff(self.start))[keep]
        occupied, counts = np.unique(cell, return_counts=True)
        return replace(
            self,
            flat_index=self.flat_index[keep],
            local=np.ascontiguousarray(self.local[:, keep]),
            start=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            vertices=self.vertices[occupied],
            gradients=self.gradients[occupied],
            offsets=self.offsets[occupied],
        )

    def gather(self, volume: NDArray[np.floating]) -> NDArray[np.float32]:
        """The support's voxels (n,) of a volume (z, y, x)."""
        return np.ascontiguousarray(volume.reshape(-1)[self.flat_index], dtype=np.float32)

    def scatter(self, values: NDArray[np.floating]) -> NDArray[np.float32]:
        """A volume (z, y, x) with `values` (n,) in the support and zero elsewhere."""
        volume = np.zeros(self.box**3, dtype=np.float32)
        volume[self.flat_index] = values
        return volume.reshape((self.box,) * 3)


def hilbert_index(index: NDArray[np.integer], bits: int) -> NDArray[np.int64]:
    """Place (n,) along a Hilbert curve through a cube of 2^bits per axis of integer points (n, 3), 0 <= index < 2^bits.

    Skilling, AIP Conf. Proc. 707, 381 (2004): undo the rotations of the curve bit by bit, then read the Gray code.
    """
    axes = [np.array(index[:, axis], dtype=np.int64) for axis in range(3)]
    for bit in range(bits - 1, 0, -1):
        low = (1 << bit) - 1  # the bits below this one are reflected, or exchanged with those of the first axis
        for axis in range(3):
            reflect = (axes[axis] >> bit & 1).astype(bool)
            exchange = np.where(reflect, 0, (axes[0] ^ axes[axis]) & low)
            axes[0] ^= np.where(reflect, low, exchange)
            axes[axis] ^= exchange
    axes[1] ^= axes[0]
    axes[2] ^= axes[1]
    parity = np.zeros_like(axes[0])
    for bit in range(bits - 1, 0, -1):
        parity ^= np.where(axes[2] >> bit & 1, (1 << bit) - 1, 0)
    place = np.zeros_like(parity)
    for bit in range(bits - 1, -1, -1):
        for axis in range(3):
            place = place << 1 | (axes[axis] ^ parity) >> bit & 1
    return place


def voxel_domain(mesh: TetMesh, support: Volume, above: float = 0.0) -> VoxelDomain:
    """The voxels where `support` exceeds `above`, by the cell of `mesh` that holds them (or is nearest)."""
    z, y, x = np.nonzero(support.data > above)
    if len(z) == 0:
        raise ValueError("the support of the map is empty: expected a mask with voxels above zero")
    index = np.stack([x, y, z], axis=1)
    points = (index - support.box // 2) * support.pixel_size_A
    cell, _ = locate(mesh, points)
    bits = max(1, int(support.box - 1).bit_length())
    numbers, number, counts = np.unique(cell, return_inverse=True, return_counts=True)
    # A cell stands on the curve where the mean of its voxels does: a tetrahedron's own centre may lie outside the box.
    mean = np.stack([np.bincount(number, weights=axis) for axis in index.T], axis=1) / counts[:, None]
    along = np.argsort(hilbert_index(np.rint(mean).astype(np.int64), bits), kind="stable")
    rank = np.empty_like(along)
    rank[along] = np.arange(len(along))
    order = np.lexsort((hilbert_index(index, bits), rank[number]))
    occupied, counts = numbers[along], counts[along]
    vertices = mesh.cells[occupied]
    centre = mesh.vertices_A[vertices].mean(axis=1)
    local = points[order] - np.repeat(centre, counts, axis=0)
    flat = (index[:, 2] * support.box + index[:, 1]) * support.box + index[:, 0]
    return VoxelDomain(
        box=support.box,
        pixel_size_A=support.pixel_size_A,
        n_vertices=len(mesh.vertices_A),
        flat_index=flat[order].astype(np.int64),
        local=np.ascontiguousarray(local.T, dtype=np.float32),
        start=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        vertices=vertices.astype(np.int32),
        gradients=cell_gradients(mesh)[occupied].astype(np.float32),
        offsets=np.full((len(occupied), 4), 0.25, dtype=np.float32),
    )


def rigid_domain(support: Volume, above: float = 0.0) -> tuple[VoxelDomain, NDArray[np.float32]]:
    """The voxels of `support` in one tetrahedron around the whole box, and its vertices (4, 3): no motion."""
    size = 2.0 * support.box * support.pixel_size_A
    vertices = size * np.array([[1.0, 1, 1], [-1, -1, 1], [-1, 1, -1], [1, -1, -1]])
    mesh = TetMesh(
        vertices_A=vertices,
        cells=np.array([[0, 1, 2, 3]], dtype=np.int32),
        rigidity=np.ones(1, np.float32),
        motion=np.zeros(4, np.float32),
        segment=np.zeros(1, np.int32),
    )
    return voxel_domain(mesh, support, above), vertices.astype(np.float32)
