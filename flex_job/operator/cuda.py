"""The operator on a GPU, in Triton; on CPU tensors in Triton's interpreter (TRITON_INTERPRET=1), slow, for tests.

The cubic B-spline is separable, so what a block of voxels adds to P x P pixels of an image is a small matrix product,
`patch[y, x] = sum_v Wy[v, y] (V[v] Wx[v, x])`, with zeros in W beyond the four pixels of a voxel. Tensor cores do it,
nothing is scattered inside the block, and a voxel costs a few coalesced atomics in place of sixteen scattered ones.
Backwards the same weights gather: `grad V[v] = sum_x Wx[v, x] (Wy @ patch)[v, x]`, and with the spline's slopes for one
factor the gradient to positions, and the derivative images.

- **Blocks are compact.** Inside this class voxels follow a Hilbert curve, without regard to cells: a block of 32 needs
  1.00 to 1.08 patches of 16 x 16 on average, for voxels of one or two pixels. Where one is not enough, the rectangle
  that the block touches is covered by several, so that any mesh and any motion comes out right.
- **A warp works alone.** 16 x 16 results are two tensor-core tiles: work for one warp, which then waits for no other.
  The voxels stay in its registers for all of its images, and so does the gradient to the values: no atomics there,
  equal from run to run. Gradients to vertices are summed per cell inside the block (a product with the matrix of which
  voxel is in which cell), then added atomically per cell and image.
- **The arithmetic of the weights is what is left**: forward some 550 instructions for 32 voxels and an image, three in
  five for weights. Patches of 32 would double them; blocks of 64 halve the atomics, which are not the bottleneck by
  estimate, at twice the registers. (Figures from the compiled code: no GPU was at hand when this was written.
  `tests/benchmarks/gpu_check.py` measures.)
- **Precision.** Products in "float32" are three tf32 products (the error of float32); in "tf32" one, with errors of
  1e-3 of a weight. Positions are float32 in both. float64 values are computed in float64.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from flex_job.operator.domain import VoxelDomain, hilbert_index

__all__ = ["CudaOperator"]

PRECISIONS = "float32", "tf32"
PROGRAMS_PER_PROCESSOR = 64
"""Of one warp each; some 16 are resident at a time."""
ONE_WARP = {"num_warps": 1, "num_stages": 1, "enable_fp_fusion": True}
TABLES = {"BLOCK": 64, "num_warps": 2}
"""Settings of the two small kernels between vertices and corners of cells."""


class CudaOperator:
    """Convect and project on one GPU. Arguments are tensors on `device`; results have the type of the first of them."""

    def __init__(
        self,
        domain: VoxelDomain,
        device: torch.device | str = "cuda",
        *,
        precision: str = "float32",
        block: int = 32,
        patch: int = 16,
    ) -> None:
        """`block` voxels and `patch` pixels per side of a matrix product: powers of two, for tuning.

        Raises ValueError for an unknown precision, RuntimeError where Triton or the device is missing.
        """
        if precision not in PRECISIONS:
            raise ValueError(f"precision {precision!r}: expected one of {', '.join(PRECISIONS)}")
        self.domain, self.device, self.precision = domain, torch.device(device), precision
        self._kernels = _load_kernels(self.device)
        self.block, self.patch = block, patch
        z, y, x = np.unravel_index(domain.flat_index, (domain.box,) * 3)
        along = hilbert_index(np.stack([x, y, z], axis=1), max(1, (domain.box - 1).bit_length()))
        order = np.argsort(along)
        self._order = torch.from_numpy(order).to(self.device)
        cell = np.repeat(np.arange(len(domain.vertices)), np.diff(domain.start))[order]
        self._cell = self._put(cell, np.int32)
        self._shares: dict[torch.dtype, torch.Tensor] = {}
        self._vertices = self._put(domain.vertices, np.int32)
        # The corners (4 c + k) that meet in a vertex, and the cells that occur in a block: lists and their starts.
        vertices = domain.vertices.ravel()
        self._meeting = self._put(np.argsort(vertices, kind="stable"), np.int32)
        self._first_meeting = self._put(np.cumsum(np.bincount(vertices + 1, minlength=domain.n_vertices + 1)), np.int32)
        n_cells, of_block = len(domain.vertices), np.arange(len(domain)) // block
        pairs, place = np.unique(of_block * n_cells + cell, return_inverse=True)
        first = np.searchsorted(pairs, np.arange(of_block[-1] + 2) * n_cells)
        self._block_cells = self._put(pairs % n_cells, np.int32)
        self._first_cell = self._put(first, np.int32)
        self._rank = self._put(place - first[of_block], np.int32)

    def project(self, values: torch.Tensor, q: torch.Tensor, box: int) -> torch.Tensor:
        """Images (b, box, box) of `values` (n,) with the mesh at `q` (b, n_vertices, 2), pixels (x, y)."""
        images = values.new_zeros(len(q), box, box)
        voxels = (self._ordered(values), self._shares_as(values.dtype), self._cell)
        sizes = (len(self.domain), len(self.domain.vertices), len(q), box)
        corners = self._corners(q, values.dtype)
        self._run_blocks("project_kernel", len(q), values.dtype, *voxels, corners, images, *sizes)
        return images

    def adjoint(
        self, images: torch.Tensor, q: torch.Tensor, values: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Transpose of `project` at `images` (b, box, box): gradient to the values (n,), summed over the batch, and,
        where `values` is given, to the vertices (b, n_vertices, 2)."""
        if len(images) != len(q):
            raise ValueError(f"{len(images)} images and vertices of {len(q)}: expected as many")
        with_q = values is not None
        corners = self._corners(q, images.dtype)
        partial = images.new_empty(self._groups(len(q)), len(self.domain))
        # Without values no gradient to q is asked for: the kernel then leaves these two alone.
        ordered = partial if values is None else self._ordered(values.to(images.dtype))
        grad_corners = torch.zeros_like(corners) if with_q else corners
        cells = (self._cell, self._rank, self._first_cell, self._block_cells)
        voxels = (images.contiguous(), ordered, self._shares_as(images.dtype), *cells)
        sizes = (len(self.domain), len(self.domain.vertices), len(q), images.shape[-1])
        arguments = (*voxels, corners, partial, grad_corners, *sizes)
        self._run_blocks("adjoint_kernel", len(q), images.dtype, *arguments, WITH_Q=with_q)
        grad_values = torch.empty_like(partial[0])
        grad_values[self._order] = partial.sum(dim=0)
        return grad_values, self._to_vertices(grad_corners) if with_q else None

    def derivative(
        self, values: torch.Tensor, q: torch.Tensor, dq: torch.Tensor, box: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Images (b, box, box) and their derivatives (b, k, box, box) along `dq` (b, k, n_vertices, 2)."""
        batch, directions = dq.shape[:2]
        images = values.new_zeros(batch, box, box)
        slopes = values.new_zeros(batch, directions, box, box)
        voxels = (self._ordered(values), self._shares_as(values.dtype), self._cell)
        corners = (self._corners(q, values.dtype), self._corners(dq.flatten(0, 1), values.dtype))
        sizes = (len(self.domain), len(self.domain.vertices), batch, directions, box)
        self._run_blocks("derivative_kernel", batch, values.dtype, *voxels, *corners, images, slopes, *sizes)
        return images, slopes

    def workspace_bytes(self, batch: int, directions: int = 0, *, gradient: bool = False, item: int = 4) -> int:
        """Device memory beside arguments and results for a batch: the corners of the cells (32 bytes of float32 per
        image and cell, again for each of `directions`, again where the `gradient` to the vertices is asked for), the
        values in the order of the curve, and the adjoint's partial sums. `item` is the size of a number."""
        corners = batch * (1 + directions + gradient) * len(self.domain.vertices) * 8
        return item * (corners + len(self.domain) * (2 + self._groups(batch)))

    def _corners(self, q: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """The cells' edges and fourth vertex in each image (b, c, 8): four x, then four y."""
        n_cells = len(self.domain.vertices)
        if q.shape[1:] != (self.domain.n_vertices, 2):
            raise ValueError(f"vertices of shape {tuple(q.shape)}: expected (b, {self.domain.n_vertices}, 2)")
        corners = torch.empty(len(q), n_cells, 8, dtype=dtype, device=self.device)
        arguments = (q.detach().to(dtype).contiguous(), self._vertices, corners, self.domain.n_vertices, n_cells)
        self._run("corners_kernel", (len(q), -(-n_cells // TABLES["BLOCK"])), *arguments, **TABLES)
        return corners

    def _to_vertices(self, grad_corners: torch.Tensor) -> torch.Tensor:
        """Transpose of `_corners`: gradient (b, n_vertices, 2)."""
        (batch, n_cells, _), n_vertices = grad_corners.shape, self.domain.n_vertices
        grad_q = grad_corners.new_empty(batch, n_vertices, 2)
        arguments = (grad_corners, self._meeting, self._first_meeting, grad_q, n_vertices, n_cells)
        self._run("vertices_kernel", (batch, -(-n_vertices // TABLES["BLOCK"])), *arguments, **TABLES)
        return grad_q

    def _shares_as(self, dtype: torch.dtype) -> torch.Tensor:
        """What each voxel takes of its cell's three edges and of the vertex where they start (n, 4)."""
        if dtype not in self._shares:
            weights = self.domain.weights()[1]
            weights[:, 3] = 1
            self._shares[dtype] = torch.from_numpy(weights).to(dtype).to(self.device)[self._order]
        return self._shares[dtype]

    def _ordered(self, values: torch.Tensor) -> torch.Tensor:
        if values.shape != (len(self.domain),):
            raise ValueError(f"values of shape {tuple(values.shape)}: expected ({len(self.domain)},)")
        return values.detach()[self._order]

    def _groups(self, batch: int) -> int:
        """Programs per block of voxels: as few as keep the device busy, since each sums its images in registers."""
        processors = 1
        if self.device.type == "cuda":
            processors = torch.cuda.get_device_properties(self.device).multi_processor_count
        blocks = -(-len(self.domain) // self.block)
        return max(1, min(batch, -(-processors * PROGRAMS_PER_PROCESSOR // blocks)))

    def _run_blocks(self, name: str, batch: int, dtype: torch.dtype, *arguments: Any, **settings: Any) -> None:
        """Launch a kernel with one warp for every block of voxels and group of images."""
        groups = self._groups(batch)
        grid = (-(-len(self.domain) // self.block), groups)
        precision = "float64" if dtype == torch.float64 else self.precision
        self._run(
            name, grid, *arguments, groups, BLOCK=self.block, P=self.patch, PRECISION=precision, **ONE_WARP, **settings
        )

    def _run(self, name: str, grid: tuple[int, int], *arguments: Any, **settings: Any) -> None:
        """Launch a kernel on the operator's device, which need not be torch's current one."""
        with torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext():
            getattr(self._kernels, name)[grid](*arguments, **settings)

    def _put(self, table: NDArray, dtype: type) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(table, dtype=dtype)).to(self.device)


def _load_kernels(device: torch.device) -> Any:
    """The compiled kernels. Triton is imported here, so that the package works without it."""
    try:
        from flex_job.operator import cuda_kernels
    except ImportError as error:
        raise RuntimeError(
            f"the operator on {device} needs Triton, which could not be imported ({error}); "
            "install torch with GPU support, or run on the device cpu"
        ) from error
    interpreted = type(cuda_kernels.project_kernel).__name__ == "InterpretedFunction"
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RuntimeError(f"device {device}: torch finds no GPU here; run on the device cpu")
    if device.type != "cuda" and not interpreted:
        raise RuntimeError(
            f"device {device}: Triton's kernels run on CPU tensors only in its interpreter; expected a CUDA device "
            "(or, for tests, TRITON_INTERPRET=1 set before the start)"
        )
    return cuda_kernels
