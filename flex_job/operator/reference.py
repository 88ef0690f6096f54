"""The operator in plain torch, one line per equation: slow, differentiable, for tests and as the yardstick."""

from __future__ import annotations

import torch

from flex_job.operator.domain import VoxelDomain

__all__ = ["ReferenceOperator"]


def _spline(t: torch.Tensor) -> torch.Tensor:
    """Cubic B-spline weights (..., 4) of the pixels floor(p) - 1 ... floor(p) + 2, t = p - floor(p)."""
    s = 1 - t
    return torch.stack([s**3, 4 - 6 * t**2 + 3 * t**3, 4 - 6 * s**2 + 3 * s**3, t**3], dim=-1) / 6


class ReferenceOperator:
    """`project` is written out; adjoint and derivative are torch's own derivatives of it."""

    def __init__(self, domain: VoxelDomain, device: torch.device | str = "cpu") -> None:
        self.domain, self.device = domain, torch.device(device)
        vertices, weights = domain.weights()
        self.vertices = torch.from_numpy(vertices).long().to(self.device)
        self.weights = torch.from_numpy(weights).to(self.device)

    def project(self, values: torch.Tensor, q: torch.Tensor, box: int) -> torch.Tensor:
        """Images (b, box, box) of `values` (n_voxels,) with projected vertices `q` (b, n_vertices, 2) in pixels."""
        corner = q[:, self.vertices]  # (b, n, 4, 2)
        p = (corner * self.weights.to(q)[None, :, :, None]).sum(dim=2)  # (b, n, 2)
        inside = ((p >= 1) & (p < box - 2)).all(dim=-1)
        p = torch.where(inside[..., None], p, 1.0)  # anywhere: such a voxel's weight is zero
        whole = p.detach().floor()
        wx, wy = _spline(p[..., 0] - whole[..., 0]), _spline(p[..., 1] - whole[..., 1])
        kernel = wy[..., :, None] * wx[..., None, :] * (values * inside)[..., None, None]
        step = torch.arange(-1, 3, device=self.device)
        column = whole[..., 0].long()[..., None, None] + step
        row = whole[..., 1].long()[..., None, None] + step[:, None]
        image = torch.arange(len(q), device=self.device)[:, None, None, None] * box * box
        flat = torch.zeros(len(q) * box * box, dtype=values.dtype, device=self.device)
        flat = flat.index_add(0, (image + row * box + column).reshape(-1), kernel.reshape(-1))
        return flat.reshape(len(q), box, box)

    def adjoint(
        self, images: torch.Tensor, q: torch.Tensor, values: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The gradient of <project(values, q), images> to values and, where they are given, to q."""
        at = torch.zeros(len(self.domain), dtype=images.dtype, device=self.device) if values is None else values
        with torch.enable_grad():
            at, corners = at.detach().requires_grad_(), q.detach().to(images.dtype).requires_grad_()
            total = (self.project(at, corners, images.shape[-1]) * images).sum()
            to_values, to_q = torch.autograd.grad(total, (at, corners))
        return to_values, None if values is None else to_q

    def derivative(
        self, values: torch.Tensor, q: torch.Tensor, dq: torch.Tensor, box: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Images and slopes by forward-mode differentiation, one direction after the other."""
        slopes = [
            torch.func.jvp(lambda at: self.project(values, at, box), (q,), (dq[:, k].contiguous(),))[1]
            for k in range(dq.shape[1])
        ]
        return self.project(values, q, box), torch.stack(slopes, dim=1)
