"""Convect and project as one linear operator in the map: `image = sum_y V(y) B(p - P (y + u(y)))`.

Projection is linear, so the 2-D position of a voxel is the barycentric mix of the projected vertices of its cell.
`VoxelDomain` holds the voxels ordered by cell, `cpu` the compiled kernels, `reference` the same in plain torch.
"""

from flex_job.operator.cpu import adjoint, derivative, project
from flex_job.operator.domain import MASK_LEVEL, VoxelDomain, rigid_domain, voxel_domain

__all__ = ["MASK_LEVEL", "VoxelDomain", "adjoint", "derivative", "project", "rigid_domain", "voxel_domain"]
