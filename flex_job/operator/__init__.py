"""Convect and project as one linear operator in the map: `image = sum_y V(y) B(p - P (y + u(y)))`.

Projection is linear, so the 2-D position of a voxel is the barycentric mix of the projected vertices of its cell.
`VoxelDomain` holds the voxels ordered by cell. Three backends compute the same: `reference` in plain torch, `cpu` in
compiled Numba, `cuda` in Triton.
"""

from __future__ import annotations

from typing import Protocol

import torch

from flex_job.operator.domain import MASK_LEVEL, VoxelDomain, rigid_domain, voxel_domain

__all__ = ["MASK_LEVEL", "Operator", "VoxelDomain", "make_operator", "rigid_domain", "voxel_domain"]


class Operator(Protocol):
    """What every backend does, on tensors of its device, in the precision of `values` or `images`.

    `values` (n_voxels,) in the domain's order; `q` (b, n_vertices, 2) projected vertices in pixels (x, y) of the
    rendered image; images (b, box, box) with pixel (0, 0) at q = 0. A voxel whose 4 x 4 footprint leaves the image
    gives nothing.
    """

    domain: VoxelDomain
    device: torch.device

    def project(self, values: torch.Tensor, q: torch.Tensor, box: int) -> torch.Tensor:
        """Images of `values` with the mesh at `q`. Linear in `values`; each voxel's weights sum to one."""
        ...

    def adjoint(
        self, images: torch.Tensor, q: torch.Tensor, values: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Transpose of `project` at `images`: gradient to the values (n_voxels,), summed over the batch, and, where
        `values` is given, to the vertices (b, n_vertices, 2)."""
        ...

    def derivative(
        self, values: torch.Tensor, q: torch.Tensor, dq: torch.Tensor, box: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Images and their directional derivatives (b, k, box, box) along `dq` (b, k, n_vertices, 2)."""
        ...


def make_operator(domain: VoxelDomain, device: torch.device | str = "cpu", *, tf32: bool = False) -> Operator:
    """The backend of a device. `tf32` allows CUDA's kernels products of 10-bit mantissas (see docs/performance.md)."""
    # Each backend brings its own compiler: only the one that is used is imported.
    if torch.device(device).type == "cuda":
        from flex_job.operator.cuda import CudaOperator

        return CudaOperator(domain, device, precision="tf32" if tf32 else "float32")
    from flex_job.operator.cpu import CpuOperator

    return CpuOperator(domain, device)
