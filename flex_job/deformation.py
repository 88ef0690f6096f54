"""The motion itself as files: the mesh with its displacements (VTU, for ParaView), and a vector field on the voxels.

Both are the displacements u(x) of the canonical frame: what is at x in the map that was moved is at x + u(x) in the
frame. Places are those of the maps and of an atomic model in them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import quoteattr

import meshio
import numpy as np
from numpy.typing import NDArray

from flex_job.files import path_aside, written_aside
from flex_job.mesh.tetmesh import TetMesh
from flex_job.operator import VoxelDomain

__all__ = ["displacement_field", "write_deformation", "write_series_index"]

Floats = NDArray[np.floating]


def write_deformation(path: Path, mesh: TetMesh, displacement_A: Floats, origin_A: Floats) -> Path:
    """VTU of the mesh in the canonical frame: points in angstroms, with the engine's origin at `origin_A` (3,);
    point data `displacement_A` (V, 3), cell data `rigidity` and `segment`."""
    grid = meshio.Mesh(
        np.ascontiguousarray(mesh.vertices_A + origin_A),
        [("tetra", mesh.cells)],
        point_data={"displacement_A": np.ascontiguousarray(displacement_A, dtype=np.float32)},
        cell_data={"rigidity": [mesh.rigidity], "segment": [mesh.segment]},
    )
    with path_aside(path) as aside:
        meshio.write(aside, grid, file_format="vtu")
    return path


def write_series_index(path: Path, names: Sequence[str]) -> Path:
    """PVD: the VTU files `names` beside it as one series, time steps from 0."""
    rows = [f'    <DataSet timestep="{step}" part="0" file={quoteattr(name)}/>' for step, name in enumerate(names)]
    head = ['<?xml version="1.0"?>', '<VTKFile type="Collection" version="0.1" byte_order="LittleEndian">']
    text = [*head, "  <Collection>", *rows, "  </Collection>", "</VTKFile>", ""]
    with written_aside(path) as file:
        file.write("\n".join(text).encode())
    return path


def displacement_field(domain: VoxelDomain, displacement_A: Floats) -> NDArray[np.float32]:
    """(3, z, y, x) displacement in angstroms along x, y and z of each voxel of the domain, zero elsewhere."""
    vertices, weights = domain.weights()
    at = np.einsum("nk,nka->na", weights, displacement_A[vertices])
    return np.stack([domain.scatter(component) for component in at.T])
