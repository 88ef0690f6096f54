"""What a user gives for the mesh, read and checked: before a long job starts, and again when the mesh is built."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flex_job.mesh.cryosparc import read_cryosparc_mesh
from flex_job.mesh.segments import parse_fuse, parse_rigid, segment_labels
from flex_job.mesh.tetmesh import TetMesh
from flex_job.volume import Volume, read_volume
from job_specs.parameters import MeshParameters

__all__ = ["Cuts", "mesh_problems", "read_cuts", "read_mesh"]


@dataclass(frozen=True)
class Cuts:
    """Where the mesh is cut: `labels` (z, y, x) of the segments, None for one mesh; pairs that stay joined, and
    segments that are rigid."""

    labels: NDArray[np.int32] | None
    fuse: frozenset[tuple[int, int]]
    rigid: frozenset[int]


def mesh_problems(parameters: MeshParameters, map: Volume | None) -> list[str]:
    """All that is wrong with the files and segments that `parameters` name; `map` is None where it cannot be had.

    Files that do not exist are not told: that is the host's affair.
    """
    problems: list[str] = []
    volumes = []
    for name in (parameters.zero_motion_mask, parameters.segmentation):
        volume = None
        try:
            volume = read_volume(name) if name and Path(name).is_file() else None
        except ValueError as error:
            problems.append(str(error))
        volumes.append(volume)
    zero_motion, segmentation = volumes
    if segmentation is not None or not parameters.segmentation:
        read_cuts(parameters, map, zero_motion, segmentation, problems)
    if parameters.mesh and Path(parameters.mesh).is_file():
        try:
            read_mesh(Path(parameters.mesh))
        except ValueError as error:
            problems.append(str(error))
    return problems


def read_cuts(
    parameters: MeshParameters,
    map: Volume | None,
    zero_motion: Volume | None,
    segmentation: Volume | None,
    problems: list[str],
) -> Cuts:
    """Segments, and how they hang together; what is wrong is added to `problems`."""
    for name, volume in (("zero-motion mask", zero_motion), ("segmentation", segmentation)):
        if volume is not None and map is not None and volume.box != map.box:
            problems.append(
                f"the {name}'s box is {volume.box} px but the map's is {map.box} px; resample it to the map"
            )
    fuse: frozenset[tuple[int, int]] = frozenset()
    rigid: frozenset[int] = frozenset()
    labels = None
    try:
        fuse = parse_fuse(parameters.fuse)
    except ValueError as error:
        problems.append(str(error))
    try:
        rigid = parse_rigid(parameters.rigid_segments)
    except ValueError as error:
        problems.append(str(error))
    if segmentation is not None:
        try:
            labels = segment_labels(segmentation)
            known = {int(name) for name in np.unique(labels) if name > 0}
            strange = sorted(({name for pair in fuse for name in pair} | rigid) - known)
            if strange:
                problems.append(f"segments {strange} are named but the segmentation has only {sorted(known)}")
        except ValueError as error:
            problems.append(str(error))
    elif fuse or rigid:
        problems.append("fuse and rigid_segments need a segmentation; none was given")
    return Cuts(labels, fuse, rigid)


def read_mesh(path: Path) -> TetMesh:
    """The mesh of a file, ours (.npz) or cryoSPARC's. Raises ValueError, with the path."""
    return TetMesh.load(path) if path.suffix == ".npz" else read_cryosparc_mesh(path)
