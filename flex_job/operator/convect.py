"""Convection in three dimensions (paper, equation 3): every voxel deposits its density around y + u(y)."""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

from flex_job.fourier import fourier_resize
from flex_job.operator.cpu_kernels import FAST, spline
from flex_job.operator.domain import VoxelDomain
from flex_job.volume import Volume

__all__ = ["convect"]


@numba.njit(fastmath=FAST, cache=True)
def _deposit(values, corners, local, start, vertices, gradients, offsets, volume):
    box = volume.shape[0]
    for c in range(len(vertices)):
        a = np.zeros((3, 4), dtype=volume.dtype)
        for k in range(4):
            for axis in range(3):
                corner = corners[vertices[c, k], axis]
                a[axis, 0] += corner * gradients[c, k, 0]
                a[axis, 1] += corner * gradients[c, k, 1]
                a[axis, 2] += corner * gradients[c, k, 2]
                a[axis, 3] += corner * offsets[c, k]
        for v in range(start[c], start[c + 1]):
            x, y, z = local[0, v], local[1, v], local[2, v]
            px = a[0, 0] * x + a[0, 1] * y + a[0, 2] * z + a[0, 3]
            py = a[1, 0] * x + a[1, 1] * y + a[1, 2] * z + a[1, 3]
            pz = a[2, 0] * x + a[2, 1] * y + a[2, 2] * z + a[2, 3]
            if not (px >= 1 and py >= 1 and pz >= 1 and px < box - 2 and py < box - 2 and pz < box - 2):
                continue
            ix, iy, iz = int(px), int(py), int(pz)
            wx, wy, wz = spline(px - ix), spline(py - iy), spline(pz - iz)
            for k in range(4):
                for j in range(4):
                    g = values[v] * wz[k] * wy[j]
                    for i in range(4):
                        volume[iz - 1 + k, iy - 1 + j, ix - 1 + i] += g * wx[i]


def convect(
    domain: VoxelDomain, values: NDArray[np.float32], vertices_A: NDArray[np.floating], *, oversampling: int = 2
) -> Volume:
    """The density (z, y, x) with the mesh's vertices at `vertices_A` (V, 3), on the domain's grid.

    Deposited on a grid `oversampling` times finer, divided by the spline's transform, and cropped in Fourier space to
    the frequencies below Nyquist in every direction.
    """
    fine = domain.box * oversampling
    corners = vertices_A / domain.pixel_size_A * oversampling + fine // 2
    volume = np.zeros((fine,) * 3, dtype=np.float32)
    tables = (domain.local, domain.start, domain.vertices, domain.gradients, domain.offsets)
    _deposit(values, corners.astype(np.float32), *tables, volume)
    spectrum = np.fft.rfftn(volume)
    full, half = np.fft.fftfreq(fine).astype(np.float32), (np.arange(fine // 2 + 1) / fine).astype(np.float32)
    for axis in (full[:, None, None], full[None, :, None], half):
        spectrum /= np.sinc(axis) ** 4
    # Beyond the sphere of the coarse grid's Nyquist frequency lie replicas of the voxel lattice, turned by the motion.
    spectrum[full[:, None, None] ** 2 + full[None, :, None] ** 2 + half**2 >= (0.5 / oversampling) ** 2] = 0
    data = np.fft.irfftn(spectrum, s=volume.shape, axes=(0, 1, 2)).astype(np.float32)
    cropped = fourier_resize(Volume(data, domain.pixel_size_A / oversampling), domain.box)
    # The mean over the finer voxels is 1 / oversampling^3 of the density that was deposited per coarse voxel.
    return Volume(cropped.data * np.float32(oversampling**3), domain.pixel_size_A)
