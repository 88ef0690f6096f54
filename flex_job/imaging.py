"""From a voxel domain and projected vertices to packed Fourier coefficients of particle images, and back (adjoint)."""

from __future__ import annotations

import torch

from flex_job.band import Band
from flex_job.operator import Operator
from flex_job.particles import Batch

__all__ = ["ImageModel"]


class ImageModel:
    """Images of a domain's density as packed coefficients (b, m) of `band`, before the CTF.

    The images are rendered on `box` pixels, `oversampling` times finer, which keeps the spectrum's replicas from
    folding into the band; the transform is divided by that of the B-spline, so `values` are a density. It is scaled
    to the unit-variance coefficients of a particle stack of `stack_box` pixels of `stack_pixel_size_A`: a domain with
    larger voxels and a smaller `box` then predicts the same coefficients from the same density.
    """

    def __init__(
        self,
        operator: Operator,
        box: int,
        band: Band,
        *,
        stack_box: int,
        stack_pixel_size_A: float,
        oversampling: int = 1,
    ) -> None:
        if box % 2:
            raise ValueError(f"box {box}: expected an even number of pixels")
        self.operator, self.domain = operator, operator.domain
        self.box, self.stack_box, self.oversampling = box, stack_box, oversampling
        self.band = Band.below(band.limit, operator.device)
        self.fine = box * oversampling
        self.index = self.band.flat_index(self.fine)
        if band.limit > box / 2:
            raise ValueError(f"{box} pixels carry frequencies below {box / 2} waves per box; asked for {band.limit}")
        ky, kx = self.band.ky, self.band.kx
        spline = (torch.sinc(ky / self.fine) * torch.sinc(kx / self.fine)) ** 4
        sign = 1.0 - 2.0 * ((ky + kx) % 2)  # the images' origin is their centre, pixel box // 2
        self.unit = (self.domain.pixel_size_A / stack_pixel_size_A) ** 3 / stack_box
        """Size of a coefficient per unit density at one voxel."""
        self.factor = sign * self.unit / spline

    def positions(self, batch: Batch, points_A: torch.Tensor) -> torch.Tensor:
        """Vertices q (b, V, 2) in pixels of the fine grid, of `points_A` (V, 3) or (b, V, 3)."""
        scale = self.fine / self.stack_box
        shift = (self.box // 2) * self.oversampling - batch.origins_px * scale
        # Coordinates first, then turned: three times as fast as a product with a last axis of two.
        planar = (batch.projections * scale) @ points_A.transpose(-2, -1) + shift[:, :, None]
        return planar.transpose(1, 2)

    def directions(self, batch: Batch, fields_A: torch.Tensor) -> torch.Tensor:
        """Derivatives of q (b, k, V, 2) along displacement fields (k, V, 3) or (b, k, V, 3) of the vertices."""
        projections = batch.projections * (self.fine / self.stack_box)
        if fields_A.dim() == 3:
            planar = projections.view(-1, 3) @ fields_A.reshape(-1, 3).T
            return planar.view(len(batch), 2, *fields_A.shape[:2]).permute(0, 2, 3, 1)
        return (projections[:, None] @ fields_A.transpose(-2, -1)).transpose(-2, -1)

    def transform(self, values: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
        """Coefficients (b, m) of the projected density."""
        return self._forward(self.operator.project(values, q, self.fine))

    def derivative(self, values: torch.Tensor, q: torch.Tensor, dq: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Coefficients (b, m) and their derivatives (b, k, m) along `dq` (b, k, V, 2)."""
        images, slopes = self.operator.derivative(values, q, dq, self.fine)
        return self._forward(images), self._forward(slopes)

    def gradient(
        self, residual: torch.Tensor, q: torch.Tensor, values: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Transpose of `transform` at `residual` (b, m), for the real inner product: to the values and, where `values`
        is given, to the vertices."""
        spectrum = self.band.spread(residual * (self.factor / 2**0.5), self.fine)
        images = torch.fft.irfft2(spectrum, s=(self.fine, self.fine), norm="forward")
        return self.operator.adjoint(images, q, values)

    def _forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.band.pack(torch.fft.rfft2(images)) * self.factor
