"""Fourier crops and grids shared by images and volumes. Transforms are uncentred (zero frequency first)."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from flex_job.volume import Volume

__all__ = ["centred_window", "fourier_resize", "low_pass"]


def centred_window(images: NDArray[np.float32], box: int) -> NDArray[np.float32]:
    """Crop or zero-pad images (..., n, n) in real space to (..., box, box), centre pixel n // 2 to box // 2."""
    n = images.shape[-1]
    if box == n:
        return images
    out = np.zeros((*images.shape[:-2], box, box), dtype=images.dtype)
    low, high = max(0, n // 2 - box // 2), min(n, n // 2 - box // 2 + box)
    start = box // 2 - n // 2 + low
    out[..., start : start + high - low, start : start + high - low] = images[..., low:high, low:high]
    return out


def fourier_resize(volume: Volume, box: int) -> Volume:
    """The same density sampled on `box` voxels of the same extent: cropped or padded in Fourier space, mean kept."""
    if box == volume.box:
        return volume
    n, keep = volume.box, min(box, volume.box)
    # An even box holds its Nyquist frequency on one side only, so it cannot be copied symmetrically: leave it out.
    inner = keep // 2 - (keep % 2 == 0)
    spectrum = torch.fft.rfftn(torch.fft.ifftshift(torch.from_numpy(volume.data)))
    out = torch.zeros((box, box, box // 2 + 1), dtype=spectrum.dtype)
    halves = [
        (slice(0, inner + 1), slice(0, inner + 1)),
        (slice(box - inner, box), slice(n - inner, n)),
    ]
    for into_z, z in halves:
        for into_y, y in halves:
            out[into_z, into_y, : inner + 1] = spectrum[z, y, : inner + 1]
    data = torch.fft.fftshift(torch.fft.irfftn(out, s=(box,) * 3)) * (box / n) ** 3
    return Volume(data.numpy(), volume.pixel_size_A * n / box)


def low_pass(volume: Volume, frequency_per_A: float) -> Volume:
    """Cosine-edged low-pass at `frequency_per_A`, the edge a tenth of it wide on either side."""
    n = volume.box
    f = torch.fft.fftfreq(n, volume.pixel_size_A)
    square = f[:, None, None] ** 2 + f[None, :, None] ** 2 + f[None, None, : n // 2 + 1] ** 2
    ramp = ((square.sqrt() / frequency_per_A - 0.9) / 0.2).clamp(0, 1)
    spectrum = torch.fft.rfftn(torch.from_numpy(volume.data)) * (0.5 + 0.5 * torch.cos(torch.pi * ramp))
    return Volume(torch.fft.irfftn(spectrum, s=(n, n, n)).numpy(), volume.pixel_size_A)
