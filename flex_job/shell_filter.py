"""Filters by resolution of maps in the voxels of a domain: what a linear solve takes for prior and preconditioner."""

from __future__ import annotations

import numpy as np
import torch

from flex_job.operator import VoxelDomain

__all__ = ["ShellFilter"]


class ShellFilter:
    """Multiplies the transforms of vectors (sets, n_voxels), zero outside the domain, by curves over the shells.

    A curve (shells,) is linear between two shells and constant from the last one on, corners included.
    """

    def __init__(self, domain: VoxelDomain, device: torch.device | str) -> None:
        self.box = domain.box
        self.voxels = torch.from_numpy(domain.flat_index).to(device)
        k = np.fft.fftfreq(self.box, 1 / self.box).astype(np.float32)
        radius = np.sqrt(k[:, None, None] ** 2 + k[None, :, None] ** 2 + k[: self.box // 2 + 1] ** 2)
        self.radius = torch.from_numpy(radius).to(device)
        self.corner = int(np.rint(radius.max())) + 1
        """Shells to the corners."""

    def grid(self, curve: torch.Tensor) -> torch.Tensor:
        """A curve (shells,) at every coefficient of a half transform, float32."""
        table = torch.cat([curve, curve[-1:]]).float().to(self.radius.device)
        below = self.radius.to(torch.int32).clamp_(max=len(curve) - 1)
        part = (self.radius - below).clamp_(max=1)
        found = table[below]
        return found.add_(part.mul_(table[below + 1] - found))

    def apply(self, values: torch.Tensor, curves: torch.Tensor) -> torch.Tensor:
        """`values` (sets, n) filtered by one curve (shells,) or by one for each set (sets, shells), in the domain."""
        out = torch.empty_like(values)
        shape = (self.box,) * 3
        for row, curve in enumerate(curves.expand(len(values), -1)):
            volume = torch.zeros(self.box**3, dtype=values.dtype, device=values.device)
            volume[self.voxels] = values[row]
            spectrum = torch.fft.rfftn(volume.view(shape)).mul_(self.grid(curve))
            out[row] = torch.fft.irfftn(spectrum, s=shape).reshape(-1)[self.voxels]
        return out

    def seen_through(self, taper: torch.Tensor, curves: torch.Tensor) -> torch.Tensor:
        """`curves` (sets, shells), zero beyond, of a filter between two products with `taper` (n,): the mean in each
        shell, to the corners, of what plane waves are multiplied with."""
        shape = (self.box,) * 3
        volume = torch.zeros(self.box**3, device=taper.device)
        volume[self.voxels] = taper
        overlap = torch.fft.irfftn(torch.fft.rfftn(volume.view(shape)).abs().square_(), s=shape)
        overlap /= overlap[0, 0, 0].clone()
        shell = self.radius.round().long().flatten().cpu()  # on a GPU sums come out differently each time
        count = torch.bincount(shell).double()
        rows = []
        for curve in curves:
            spectrum = torch.fft.rfftn(torch.fft.irfftn(self.grid(curve) + 0j, s=shape).mul_(overlap)).real
            rows.append(torch.bincount(shell, spectrum.flatten().double().cpu()) / count)
        return torch.stack(rows).clamp_(min=0)
