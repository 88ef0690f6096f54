"""Raw particle images as packed Fourier coefficients, aberrations of odd order and premultiplication undone."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from flex_job.band import Band
from flex_job.consensus import Consensus
from flex_job.ctf import CtfParameters, ctf_at, ctf_parameters, odd_phase_at
from flex_job.fourier import centred_window
from flex_job.images import ImageReader

__all__ = ["RawImages"]

BATCH_PIXELS = 4_000_000  # pixels in a batch's images, so that memory does not grow with the box
Pieces = list[tuple[int, NDArray[np.intp], NDArray[np.float32]]]  # optics group, rows in a batch, images (b, n, n)
MIN_CTF = 0.02  # below this a premultiplied image holds no information that division could bring back


class RawImages:
    """Raw images of a consensus as packed coefficients (b, m) below the Nyquist frequency of `box` pixels."""

    def __init__(self, consensus: Consensus, box: int) -> None:
        self.consensus, self.box = consensus, box
        self.band = Band.below(box / 2)
        self.reader = ImageReader(consensus)
        self.ctf: CtfParameters = ctf_parameters(consensus)
        extent = consensus.map.box * consensus.map.pixel_size_A
        self.pixel_size_A = extent / box
        # The window is a whole, even number of raw pixels, so groups differ a little in extent; the exact pixel
        # size that follows enters projections and CTFs, and nothing is interpolated.
        self.windows = [max(box, 2 * round(extent / group.pixel_size_A / 2)) for group in consensus.optics]
        largest = max(*self.windows, *(group.box for group in consensus.optics))
        self.batch_size = int(np.clip(BATCH_PIXELS // largest**2, 8, 200))
        self.optics_pixels_A = np.array(
            [w * g.pixel_size_A / box for w, g in zip(self.windows, consensus.optics, strict=True)]
        )
        self.pixel_sizes_A = self.optics_pixels_A[consensus.optics_index]
        magnification = np.array([group.magnification for group in consensus.optics])[consensus.optics_index]
        rotations = consensus.rotations[:, :2]
        self.projections = (magnification.transpose(0, 2, 1) @ rotations) / self.pixel_sizes_A[:, None, None]
        self.origins_px = consensus.origins_A / self.pixel_sizes_A[:, None]

    def read(self, index: NDArray[np.int64]) -> Pieces:
        """The particles' images as they are on disk, by optics group: what of `coefficients` is waiting for files."""
        groups = self.consensus.optics_index[index]
        parts = ((int(group), np.flatnonzero(groups == group)) for group in np.unique(groups))
        return [(group, rows, self.reader.read(index[rows])) for group, rows in parts]

    def coefficients(self, index: NDArray[np.int64], pieces: Pieces | None = None) -> torch.Tensor:
        """Packed coefficients (b, m), the image's centre as origin, odd aberrations and premultiplication undone;
        of `pieces`, where `read` has given them before."""
        band = self.band
        out = torch.empty((len(index), len(band)), dtype=torch.complex64)
        groups = self.consensus.optics_index[index]
        for group, rows, raw in self.read(index) if pieces is None else pieces:
            images = centred_window(_on_zero(raw), self.windows[group])
            images = torch.fft.ifftshift(torch.from_numpy(images), dim=(-2, -1))
            # images are density per area: the same density has the same coefficient whatever the window's extent
            area = (self.optics_pixels_A[group] / self.pixel_size_A) ** 2
            scale = float(area * self.box / self.windows[group] ** 2)
            out[torch.from_numpy(rows)] = band.pack(torch.fft.rfft2(images)) * scale
        extents = self.pixel_sizes_A[index] * self.box
        phase = odd_phase_at(self.ctf, index, band.ky, band.kx, extents)
        if phase is not None:
            out *= torch.polar(torch.ones_like(phase), -phase)
        premultiplied = np.array([group.premultiplied for group in self.consensus.optics])[groups]
        if premultiplied.any():
            strength = ctf_at(self.ctf, index, band.ky, band.kx, extents).abs()
            undone = torch.where(strength > MIN_CTF, out / strength.clamp(min=MIN_CTF), 0.0)
            out = torch.where(torch.from_numpy(premultiplied)[:, None], undone, out)
        return out


def _on_zero(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Images (b, n, n) less the mean of their border: a window larger than they are continues them without a step."""
    border = np.concatenate([images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1]], axis=1)
    return images - border.mean(axis=1)[:, None, None]
