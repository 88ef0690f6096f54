"""From a voxel domain and projected vertices to the Fourier transform of particle images, and back (adjoint)."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from flex_job import operator
from flex_job.fourier import crop_half_plane, radius_half_plane
from flex_job.operator import VoxelDomain

__all__ = ["ImageModel"]


class ImageModel:
    """Images of a domain's density as half planes (b, box, box // 2 + 1) of their transforms, before the CTF.

    The images are rendered on a grid `oversampling` times finer than `box`, which keeps the spectrum's replicas from
    folding into the band; the transform is cropped and divided by that of the B-spline, so `values` are a density.
    The transform is scaled to the unit-variance coefficients of a particle stack of `stack_box` pixels of
    `stack_pixel_size_A`: a domain with larger voxels then predicts the same coefficients from the same density.
    """

    def __init__(
        self, domain: VoxelDomain, box: int, *, stack_box: int, stack_pixel_size_A: float, oversampling: int = 1
    ) -> None:
        if box % 2:
            raise ValueError(f"box {box}: expected an even number of pixels")
        self.domain, self.box, self.oversampling = domain, box, oversampling
        self.fine = box * oversampling
        spline_y = torch.sinc(torch.fft.fftfreq(box, oversampling)) ** 4
        spline_x = torch.sinc(torch.arange(box // 2 + 1) / self.fine) ** 4
        sign = (-1.0) ** (torch.arange(box)[:, None] + torch.arange(box // 2 + 1))  # centre at pixel box // 2
        voxel = (domain.pixel_size_A / stack_pixel_size_A) ** 3
        radius = radius_half_plane(box)
        factor = sign * voxel / stack_box / (spline_y[:, None] * spline_x)
        self.factor = torch.where(radius < box // 2, factor, 0.0)

    def positions(self, projections: torch.Tensor, origins_px: torch.Tensor, points_A: torch.Tensor) -> torch.Tensor:
        """Vertices q (b, V, 2) in pixels of the fine grid; `projections` (b, 2, 3) in pixels per angstrom at `box`,
        `points_A` (V, 3) or (b, V, 3)."""
        q = points_A @ projections.transpose(1, 2)
        return (q - origins_px[:, None] + self.box // 2) * self.oversampling

    def transform(self, values: NDArray[np.float32], q: torch.Tensor) -> torch.Tensor:
        """Transforms (b, box, box // 2 + 1) of the projected density."""
        return self._forward(operator.project(self.domain, values, q.numpy(), self.fine))

    def derivative(
        self, values: NDArray[np.float32], q: torch.Tensor, dq: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Transforms (b, ...) and their derivatives (b, k, ...) along `dq` (b, k, V, 2)."""
        images, slopes = operator.derivative(self.domain, values, q.numpy(), dq.numpy(), self.fine)
        return self._forward(images), self._forward(slopes)

    def gradient(
        self,
        residual: torch.Tensor,
        q: torch.Tensor,
        values: NDArray[np.float32] | None = None,
    ) -> tuple[NDArray[np.float32], torch.Tensor | None]:
        """Transpose of `transform` for the real inner product over the whole plane: to the values and, where `values`
        is given, to the vertices."""
        spectrum = torch.zeros((len(residual), self.fine, self.fine // 2 + 1), dtype=residual.dtype)
        half = self.box // 2
        scaled = residual * self.factor
        spectrum[:, :half, : half + 1] = scaled[:, :half]
        spectrum[:, -half:, : half + 1] = scaled[:, half:]
        images = torch.fft.irfft2(spectrum, s=(self.fine, self.fine), norm="forward").numpy()
        grad_values, grad_q = operator.adjoint(self.domain, images, q.numpy(), values)
        return grad_values, None if grad_q is None else torch.from_numpy(grad_q)

    def _forward(self, images: NDArray[np.float32]) -> torch.Tensor:
        return crop_half_plane(torch.fft.rfft2(torch.from_numpy(images)), self.box) * self.factor
