"""Exact densities and projections of Gaussian beads, sampled at voxels and pixels.

A Gaussian is separable, so a sample is a product of one exponential per axis. Tails are cut at 6 sigma, where they
are below 2e-8 of the peak.
"""

from __future__ import annotations

import math

import numba
import numpy as np
from numpy.typing import NDArray

from flex_job.simulation.atoms import Beads
from flex_job.simulation.motion import Conformations
from flex_job.volume import Volume

__all__ = ["exact_density", "mean_density", "oversampled_box", "project_beads"]

REACH = 6.0  # sigmas


@numba.njit(cache=True)
def _axis_samples(centre: float, sigma: float, box: int, out: NDArray[np.float64]) -> tuple[int, int]:
    """Fill out[i] with the normalised 1D Gaussian at pixel first + i; give (first, past the last), cut to the box."""
    first = max(0, math.ceil(centre - REACH * sigma))
    last = min(box, math.floor(centre + REACH * sigma) + 1)
    norm = 1.0 / (math.sqrt(2.0 * math.pi) * sigma)
    for i in range(first, last):
        offset = (i - centre) / sigma
        out[i - first] = norm * math.exp(-0.5 * offset * offset)
    return first, max(first, last)


@numba.njit(parallel=True, cache=True)
def _splat_images(
    positions: NDArray[np.float64],
    amplitude: NDArray[np.float64],
    rotations: NDArray[np.float64],
    shifts: NDArray[np.float64],
    sigma: float,
    images: NDArray[np.float64],
) -> None:
    """Add every bead to every image. Positions (b or 1, n, 3), shifts (b, 2) and sigma are in pixels."""
    count, box = images.shape[0], images.shape[1]
    centre = box // 2
    for b in numba.prange(count):
        xyz = positions[b] if positions.shape[0] > 1 else positions[0]
        turn = rotations[b]
        width = int(2 * REACH * sigma) + 2
        along_x, along_y = np.empty(width), np.empty(width)
        for n in range(xyz.shape[0]):
            x, y, z = xyz[n, 0], xyz[n, 1], xyz[n, 2]
            px = turn[0, 0] * x + turn[0, 1] * y + turn[0, 2] * z + shifts[b, 0] + centre
            py = turn[1, 0] * x + turn[1, 1] * y + turn[1, 2] * z + shifts[b, 1] + centre
            x0, x1 = _axis_samples(px, sigma, box, along_x)
            y0, y1 = _axis_samples(py, sigma, box, along_y)
            for j in range(y0, y1):
                row = amplitude[n] * along_y[j - y0]
                for i in range(x0, x1):
                    images[b, j, i] += row * along_x[i - x0]


@numba.njit(cache=True)
def _splat_volume(
    positions: NDArray[np.float64], amplitude: NDArray[np.float64], sigma: float, volume: NDArray[np.float64]
) -> None:
    """Add every bead at `positions` (n, 3), in voxels, to `volume` (z, y, x)."""
    box = volume.shape[0]
    centre = box // 2
    width = int(2 * REACH * sigma) + 2
    along_x, along_y, along_z = np.empty(width), np.empty(width), np.empty(width)
    for n in range(positions.shape[0]):
        x0, x1 = _axis_samples(positions[n, 0] + centre, sigma, box, along_x)
        y0, y1 = _axis_samples(positions[n, 1] + centre, sigma, box, along_y)
        z0, z1 = _axis_samples(positions[n, 2] + centre, sigma, box, along_z)
        for k in range(z0, z1):
            for j in range(y0, y1):
                row = amplitude[n] * along_z[k - z0] * along_y[j - y0]
                for i in range(x0, x1):
                    volume[k, j, i] += row * along_x[i - x0]


def project_beads(
    beads: Beads,
    positions_A: NDArray[np.float64],
    rotations: NDArray[np.float64],
    shifts_A: NDArray[np.float64],
    box: int,
    pixel_size_A: float,
    area_A2: float | None = None,
) -> NDArray[np.float32]:
    """Projections (b, box, box), indexed [image, y, x], of beads along the viewing axis z.

    A bead at x is seen at `(R x)[:2] + shift` from pixel box // 2. `positions_A` is (b, n, 3), or (1, n, 3) when all
    images show the same conformation; `rotations` (b, 3, 3) map to view coordinates; `shifts_A` (b, 2) is xy.
    A pixel's value is the projected mass per angstrom squared times `area_A2`: by default the pixel's own area, so that
    an image sums to the mass. With several pixel sizes, give all the area of the map's voxel face: then each image
    is the sum over z of the same map, resampled.
    """
    images = np.zeros((len(rotations), box, box))
    area = pixel_size_A**2 if area_A2 is None else area_A2
    _splat_images(
        np.ascontiguousarray(positions_A, dtype=np.float64) / pixel_size_A,
        beads.amplitude * (area / pixel_size_A**2),
        np.ascontiguousarray(rotations, dtype=np.float64),
        np.ascontiguousarray(shifts_A, dtype=np.float64) / pixel_size_A,
        beads.sigma_A / pixel_size_A,
        images,
    )
    return images.astype(np.float32)


def exact_density(conformations: Conformations, latent: NDArray[np.float64], box: int, pixel_size_A: float) -> Volume:
    """The density (z, y, x) at `latent` (k,), as mass per voxel: its sum over z is the projection at no rotation."""
    return mean_density(conformations, np.atleast_2d(np.asarray(latent, dtype=np.float64)), box, pixel_size_A)


def mean_density(conformations: Conformations, latents: NDArray[np.float64], box: int, pixel_size_A: float) -> Volume:
    """The average of the exact densities at `latents` (m, k): what a perfect rigid refinement would see.

    Band-limited to the voxels, as the images are to their pixels, so that the images' transforms are slices of this
    volume's up to Nyquist. Raises ValueError when `box` is odd.
    """
    if box % 2:
        raise ValueError(f"box of {box} voxels; expected an even number")
    fine = oversampled_box(box)
    total = np.zeros((fine, fine, fine))
    beads, voxel_A = conformations.beads, pixel_size_A * box / fine
    amplitude = beads.amplitude * (box / fine) ** -3 / len(latents)
    for latent in latents:
        _splat_volume(conformations.positions(latent[None])[0] / voxel_A, amplitude, beads.sigma_A / voxel_A, total)
    spectrum, half = np.fft.rfftn(total), box // 2
    kept = np.zeros((box, box, half + 1), dtype=complex)
    low, high = slice(0, half), slice(-half + 1, None)
    for z in (low, high):
        for y in (low, high):
            kept[z, y, :half] = spectrum[z, y, :half]
    return Volume(
        np.fft.irfftn(kept * (box / fine) ** 3, s=(box,) * 3, axes=(0, 1, 2)).astype(np.float32), float(pixel_size_A)
    )


def oversampled_box(box: int) -> int:
    """An even box, at least 1.5 times as fine over the same length, and with its centre at the same place.

    A bead of 0.7 pixel sampled at the pixels alone would be aliased by a third of its amplitude at 0.9 Nyquist; on this
    grid, then cut in Fourier space, by less than 1e-3 at Nyquist.
    """
    return 2 * ((3 * box + 3) // 4)
