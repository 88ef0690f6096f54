"""Segments of a mesh: which cells belong to which, which of them hang together, which are rigid."""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from flex_job.mesh.sampling import cell_points, voxel_positions
from flex_job.mesh.topology import inner_faces, split_along
from flex_job.volume import Volume

__all__ = ["cell_segments", "parse_fuse", "parse_rigid", "part_segments", "segment_labels"]

LARGEST_LABEL = 1000


def parse_fuse(text: str) -> frozenset[tuple[int, int]]:
    """Pairs (low, high) from "1-2,2-3". Raises ValueError with what was given."""
    pairs = set()
    for item in _items(text):
        match = re.fullmatch(r"([0-9]{1,9})\s*-\s*([0-9]{1,9})", item)
        if not match or match[1] == match[2]:
            raise ValueError(f'fuse: "{item}" in "{text}" is not a pair of segments; expected for example "1-2,2-3"')
        low, high = sorted((int(match[1]), int(match[2])))
        pairs.add((low, high))
    return frozenset(pairs)


def parse_rigid(text: str) -> frozenset[int]:
    """Segment numbers from "1,3". Raises ValueError with what was given."""
    for item in _items(text):
        if not re.fullmatch("[0-9]{1,9}", item):
            raise ValueError(
                f'rigid_segments: "{item}" in "{text}" is not a segment number; expected for example "1,3"'
            )
    return frozenset(int(item) for item in _items(text))


def segment_labels(segmentation: Volume) -> NDArray[np.int32]:
    """The labels (z, y, x) of a segmentation volume: whole numbers, 0 where there is none. Raises ValueError."""
    rounded = np.rint(segmentation.data)
    off = float(np.abs(segmentation.data - rounded).max())
    labels = np.clip(rounded, -1, LARGEST_LABEL + 1).astype(np.int32)
    if off > 0.05 or labels.min() < 0 or labels.max() > LARGEST_LABEL:
        raise ValueError(
            f"the segmentation must hold whole numbers, 0 outside and 1 to at most {LARGEST_LABEL} for the segments; "
            f"this one has values from {segmentation.data.min():g} to {segmentation.data.max():g}, up to {off:.2g} off "
            "a whole number"
        )
    if labels.max() == 0:
        raise ValueError("the segmentation is empty: all its voxels are 0; expected segments 1, 2, ...")
    return labels


def cell_segments(
    vertices_A: NDArray[np.float64], cells: NDArray[np.int32], labels: NDArray[np.int32], pixel_size_A: float
) -> NDArray[np.int32]:
    """The segment (T,) that most of each cell belongs to; points outside all segments count for the nearest one."""
    points = cell_points(vertices_A, cells)
    index = np.rint(points[..., ::-1] / pixel_size_A).astype(int) + labels.shape[0] // 2
    inside = ((index >= 0) & (index < labels.shape[0])).all(axis=-1)
    index = np.clip(index, 0, labels.shape[0] - 1)
    found = np.where(inside, labels[index[..., 0], index[..., 1], index[..., 2]], 0)
    missing = found == 0
    if missing.any():
        where = labels > 0
        _, nearest = cKDTree(voxel_positions(where, pixel_size_A)).query(points[missing])
        found[missing] = labels[where][nearest]
    names = np.unique(found)
    votes = np.stack([(found == name).sum(axis=1) for name in names])
    return names[votes.argmax(axis=0)].astype(np.int32)


def part_segments(
    cells: NDArray[np.int32], segment: NDArray[np.int32], fuse: frozenset[tuple[int, int]]
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Cut the mesh between segments that are not fused; see `split_along` for what is returned.

    Fused segments, and cells of one segment, keep their common vertices. Two unfused segments may still be joined
    through a third that is fused with both.
    """
    faces = inner_faces(cells)
    sides = np.sort(segment[faces[:, :, 0] // 4], axis=1)
    fused = [(sides[:, 0] == low) & (sides[:, 1] == high) for low, high in fuse]
    cut = (sides[:, 0] != sides[:, 1]) & ~np.any(fused or [np.zeros(len(sides), dtype=bool)], axis=0)
    return split_along(cells, cut)


def _items(text: str) -> list[str]:
    return [item.strip() for item in text.split(",") if item.strip()]
