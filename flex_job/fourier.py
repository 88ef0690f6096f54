"""Fourier crops and grids shared by images and volumes. Transforms are uncentred (zero frequency first)."""

from __future__ import annotations

import numpy as np
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
    spectrum = np.fft.fftshift(np.fft.fftn(np.fft.ifftshift(volume.data)))
    n, keep = volume.box, min(box, volume.box)
    out = np.zeros((box,) * 3, dtype=complex)
    # An even box holds its Nyquist frequency on one side only, so it cannot be copied symmetrically: leave it out.
    inner = keep // 2 - (keep % 2 == 0)
    into = slice(box // 2 - inner, box // 2 + inner + 1)
    take = slice(n // 2 - inner, n // 2 + inner + 1)
    out[into, into, into] = spectrum[take, take, take]
    data = np.fft.fftshift(np.fft.ifftn(np.fft.ifftshift(out)).real) * (box / n) ** 3
    return Volume(data.astype(np.float32), volume.pixel_size_A * n / box)


def low_pass(volume: Volume, frequency_per_A: float) -> Volume:
    """Cosine-edged low-pass at `frequency_per_A`, the edge a tenth of it wide on either side."""
    f = np.fft.fftfreq(volume.box, volume.pixel_size_A)
    radius = np.sqrt(f[:, None, None] ** 2 + f[None, :, None] ** 2 + np.abs(f[None, None, : volume.box // 2 + 1]) ** 2)
    ramp = np.clip((radius / frequency_per_A - 0.9) / 0.2, 0, 1)
    spectrum = np.fft.rfftn(volume.data) * (0.5 + 0.5 * np.cos(np.pi * ramp))
    filtered = np.fft.irfftn(spectrum, s=volume.data.shape, axes=(0, 1, 2))
    return Volume(filtered.astype(np.float32), volume.pixel_size_A)
