"""The operator in plain torch, one line per equation: slow, differentiable, for tests and as the yardstick."""

from __future__ import annotations

import torch

from flex_job.operator.domain import VoxelDomain

__all__ = ["project"]


def _spline(t: torch.Tensor) -> torch.Tensor:
    """Cubic B-spline weights (..., 4) of the pixels floor(p) - 1 ... floor(p) + 2, t = p - floor(p)."""
    s = 1 - t
    return torch.stack([s**3, 4 - 6 * t**2 + 3 * t**3, 4 - 6 * s**2 + 3 * s**3, t**3], dim=-1) / 6


def project(domain: VoxelDomain, values: torch.Tensor, q: torch.Tensor, box: int) -> torch.Tensor:
    """Images (b, box, box) of `values` (n_voxels,) with projected vertices `q` (b, n_vertices, 2) in pixels."""
    vertices, weights = domain.weights()
    corner = q[:, torch.from_numpy(vertices).long()]  # (b, n, 4, 2)
    p = (corner * torch.from_numpy(weights).to(q)[None, :, :, None]).sum(dim=2)  # (b, n, 2)
    inside = ((p >= 1) & (p < box - 2)).all(dim=-1)
    whole = p.detach().floor().clamp(1, box - 3)
    wx, wy = _spline(p[..., 0] - whole[..., 0]), _spline(p[..., 1] - whole[..., 1])
    kernel = wy[..., :, None] * wx[..., None, :] * (values * inside)[..., None, None]
    step = torch.arange(-1, 3)
    column = whole[..., 0].long()[..., None, None] + step
    row = whole[..., 1].long()[..., None, None] + step[:, None]
    image = torch.arange(len(q))[:, None, None, None] * box * box
    flat = torch.zeros(len(q) * box * box, dtype=values.dtype)
    flat = flat.index_add(0, (image + row * box + column).reshape(-1), kernel.reshape(-1))
    return flat.reshape(len(q), box, box)
