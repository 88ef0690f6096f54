"""The tetrahedral mesh: built from a mask, read and written, points located in it, drawn."""

from flex_job.mesh.build import build_mesh
from flex_job.mesh.cryosparc import read_cryosparc_mesh, write_cryosparc_mesh
from flex_job.mesh.locate import locate
from flex_job.mesh.picture import draw_mesh
from flex_job.mesh.tetmesh import TetMesh, cell_gradients, cell_quality, cell_volumes

__all__ = [
    "TetMesh",
    "build_mesh",
    "cell_gradients",
    "cell_quality",
    "cell_volumes",
    "draw_mesh",
    "locate",
    "read_cryosparc_mesh",
    "write_cryosparc_mesh",
]
