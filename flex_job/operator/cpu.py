"""Numba kernels of the operator, parallel over images: forward (scatter), adjoint (gather), forward-mode derivative.

Arguments shared by all: `values` (n_voxels,) in the domain's order; `vertices` q (b, n_vertices, 2), projected vertices
in pixels (x, y) of the rendered image; images (b, box, box) with pixel (0, 0) at q = 0. A voxel whose
4 x 4 footprint leaves the image gives nothing, in all three kernels alike. float32 or float64, as `values`.
"""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

from flex_job.operator.domain import VoxelDomain

__all__ = ["adjoint", "derivative", "project"]

# All of fastmath but "no NaN, no infinity": where a flow diverges, the tests for leaving the image must still fail.
FAST = {"reassoc", "contract", "nsz", "arcp", "afn"}
_OPTIONS = {"parallel": True, "fastmath": FAST, "cache": True, "nogil": True}


@numba.njit(inline="always", fastmath=FAST)
def _spline(t):
    """Cubic B-spline at distances 1 + t, t, 1 - t, 2 - t (0 <= t < 1): the weights of four neighbouring pixels."""
    s = 1 - t
    return (
        s * s * s / 6,
        (4 - 3 * t * t * (2 - t)) / 6,
        (4 - 3 * s * s * (2 - s)) / 6,
        t * t * t / 6,
    )


@numba.njit(inline="always", fastmath=FAST)
def _spline_slope(t):
    """Derivative of the four weights in the direction of the voxel's own displacement."""
    s = 1 - t
    return -s * s / 2, (3 * t * t - 4 * t) / 2, (4 * s - 3 * s * s) / 2, t * t / 2


@numba.njit(inline="always", fastmath=FAST)
def _cell_map(q, vertices, gradients, offsets, c):
    """The cell's affine map from local position to pixels: (2 x 3 matrix, 2 offsets) as eight scalars."""
    a00 = a01 = a02 = a10 = a11 = a12 = b0 = b1 = gradients.dtype.type(0)
    for k in range(4):
        qx = q[vertices[c, k], 0]
        qy = q[vertices[c, k], 1]
        a00 += qx * gradients[c, k, 0]
        a01 += qx * gradients[c, k, 1]
        a02 += qx * gradients[c, k, 2]
        a10 += qy * gradients[c, k, 0]
        a11 += qy * gradients[c, k, 1]
        a12 += qy * gradients[c, k, 2]
        b0 += qx * offsets[c, k]
        b1 += qy * offsets[c, k]
    return a00, a01, a02, a10, a11, a12, b0, b1


@numba.njit(**_OPTIONS)
def _project(values, q, local, start, vertices, gradients, offsets, images):
    box = images.shape[1]
    for i in numba.prange(q.shape[0]):
        image = images[i]
        for c in range(len(vertices)):
            a00, a01, a02, a10, a11, a12, b0, b1 = _cell_map(q[i], vertices, gradients, offsets, c)
            for v in range(start[c], start[c + 1]):
                x, y, z = local[0, v], local[1, v], local[2, v]
                px = a00 * x + a01 * y + a02 * z + b0
                py = a10 * x + a11 * y + a12 * z + b1
                if not (px >= 1 and py >= 1 and px < box - 2 and py < box - 2):
                    continue
                ix, iy = int(px), int(py)
                w0, w1, w2, w3 = _spline(px - ix)
                h = _spline(py - iy)
                for j in range(4):
                    g = values[v] * h[j]
                    row = image[iy - 1 + j]
                    row[ix - 1] += g * w0
                    row[ix] += g * w1
                    row[ix + 1] += g * w2
                    row[ix + 2] += g * w3


@numba.njit(**_OPTIONS)
def _adjoint_values(images, q, local, start, vertices, gradients, offsets, partial):
    box = images.shape[1]
    threads = len(partial)
    for t in numba.prange(threads):
        out = partial[t]
        for i in range(t, q.shape[0], threads):
            image = images[i]
            for c in range(len(vertices)):
                a00, a01, a02, a10, a11, a12, b0, b1 = _cell_map(q[i], vertices, gradients, offsets, c)
                for v in range(start[c], start[c + 1]):
                    x, y, z = local[0, v], local[1, v], local[2, v]
                    px = a00 * x + a01 * y + a02 * z + b0
                    py = a10 * x + a11 * y + a12 * z + b1
                    if not (px >= 1 and py >= 1 and px < box - 2 and py < box - 2):
                        continue
                    ix, iy = int(px), int(py)
                    w0, w1, w2, w3 = _spline(px - ix)
                    h = _spline(py - iy)
                    total = partial.dtype.type(0)
                    for j in range(4):
                        row = image[iy - 1 + j]
                        total += h[j] * (w0 * row[ix - 1] + w1 * row[ix] + w2 * row[ix + 1] + w3 * row[ix + 2])
                    out[v] += total


@numba.njit(**_OPTIONS)
def _adjoint(values, images, q, local, start, vertices, gradients, offsets, partial, out):
    box = images.shape[1]
    zero = values.dtype.type(0)
    threads = len(partial)
    for t in numba.prange(threads):
        to_values = partial[t]
        for i in range(t, q.shape[0], threads):
            image = images[i]
            for c in range(len(vertices)):
                a00, a01, a02, a10, a11, a12, b0, b1 = _cell_map(q[i], vertices, gradients, offsets, c)
                gx = gy = gxx = gxy = gxz = gyx = gyy = gyz = zero
                for v in range(start[c], start[c + 1]):
                    x, y, z = local[0, v], local[1, v], local[2, v]
                    px = a00 * x + a01 * y + a02 * z + b0
                    py = a10 * x + a11 * y + a12 * z + b1
                    if not (px >= 1 and py >= 1 and px < box - 2 and py < box - 2):
                        continue
                    ix, iy = int(px), int(py)
                    w0, w1, w2, w3 = _spline(px - ix)
                    d0, d1, d2, d3 = _spline_slope(px - ix)
                    h = _spline(py - iy)
                    e = _spline_slope(py - iy)
                    # The four columns of the footprint, each summed over its rows with the spline and with its slope.
                    m0 = m1 = m2 = m3 = n0 = n1 = n2 = n3 = zero
                    for j in range(4):
                        row = image[iy - 1 + j]
                        r0, r1, r2, r3 = row[ix - 1], row[ix], row[ix + 1], row[ix + 2]
                        hj, ej = h[j], e[j]
                        m0, m1, m2, m3 = m0 + hj * r0, m1 + hj * r1, m2 + hj * r2, m3 + hj * r3
                        n0, n1, n2, n3 = n0 + ej * r0, n1 + ej * r1, n2 + ej * r2, n3 + ej * r3
                    to_values[v] += w0 * m0 + w1 * m1 + w2 * m2 + w3 * m3
                    along_x = values[v] * (d0 * m0 + d1 * m1 + d2 * m2 + d3 * m3)
                    along_y = values[v] * (w0 * n0 + w1 * n1 + w2 * n2 + w3 * n3)
                    gx += along_x
                    gxx += along_x * x
                    gxy += along_x * y
                    gxz += along_x * z
                    gy += along_y
                    gyx += along_y * x
                    gyy += along_y * y
                    gyz += along_y * z
                for k in range(4):
                    g0, g1, g2, o = gradients[c, k, 0], gradients[c, k, 1], gradients[c, k, 2], offsets[c, k]
                    out[i, vertices[c, k], 0] += gx * o + gxx * g0 + gxy * g1 + gxz * g2
                    out[i, vertices[c, k], 1] += gy * o + gyx * g0 + gyy * g1 + gyz * g2


@numba.njit(**_OPTIONS)
def _derivative(values, q, dq, local, start, vertices, gradients, offsets, images, slopes):
    box = images.shape[1]
    directions = dq.shape[1]
    for i in numba.prange(q.shape[0]):
        image = images[i]
        maps = np.empty((directions, 8), dtype=values.dtype)
        for c in range(len(vertices)):
            a00, a01, a02, a10, a11, a12, b0, b1 = _cell_map(q[i], vertices, gradients, offsets, c)
            for k in range(directions):
                maps[k] = _cell_map(dq[i, k], vertices, gradients, offsets, c)
            for v in range(start[c], start[c + 1]):
                x, y, z = local[0, v], local[1, v], local[2, v]
                px = a00 * x + a01 * y + a02 * z + b0
                py = a10 * x + a11 * y + a12 * z + b1
                if not (px >= 1 and py >= 1 and px < box - 2 and py < box - 2):
                    continue
                ix, iy = int(px), int(py)
                w0, w1, w2, w3 = _spline(px - ix)
                d0, d1, d2, d3 = _spline_slope(px - ix)
                h = _spline(py - iy)
                e = _spline_slope(py - iy)
                value = values[v]
                for j in range(4):
                    g = value * h[j]
                    row = image[iy - 1 + j]
                    row[ix - 1] += g * w0
                    row[ix] += g * w1
                    row[ix + 1] += g * w2
                    row[ix + 2] += g * w3
                for k in range(directions):
                    m = maps[k]
                    dx = value * (m[0] * x + m[1] * y + m[2] * z + m[6])
                    dy = value * (m[3] * x + m[4] * y + m[5] * z + m[7])
                    for j in range(4):
                        gx = dx * h[j]
                        gy = dy * e[j]
                        row = slopes[i, k, iy - 1 + j]
                        row[ix - 1] += gx * d0 + gy * w0
                        row[ix] += gx * d1 + gy * w1
                        row[ix + 1] += gx * d2 + gy * w2
                        row[ix + 2] += gx * d3 + gy * w3


def _tables(domain: VoxelDomain, dtype: np.dtype) -> tuple[NDArray, ...]:
    return (
        domain.local.astype(dtype, copy=False),
        domain.start,
        domain.vertices,
        domain.gradients.astype(dtype, copy=False),
        domain.offsets.astype(dtype, copy=False),
    )


def project(domain: VoxelDomain, values: NDArray, q: NDArray, box: int) -> NDArray:
    """Images (b, box, box) of `values` with the mesh at `q`. Linear in `values`; weights sum to one per voxel."""
    images = np.zeros((len(q), box, box), dtype=values.dtype)
    _project(values, q.astype(values.dtype, copy=False), *_tables(domain, values.dtype), images)
    return images


def adjoint(
    domain: VoxelDomain, images: NDArray, q: NDArray, values: NDArray | None = None
) -> tuple[NDArray, NDArray | None]:
    """Transpose of `project` at `images`: gradient to the values (n_voxels,), summed over the batch, and, where
    `values` is given, to the vertices (b, n_vertices, 2)."""
    q = q.astype(images.dtype, copy=False)
    tables = _tables(domain, images.dtype)
    partial = np.zeros((min(numba.get_num_threads(), len(q)), len(domain)), dtype=images.dtype)
    if values is None:
        _adjoint_values(images, q, *tables, partial)
        return partial.sum(axis=0), None
    grad_q = np.zeros_like(q)
    _adjoint(values, images, q, *tables, partial, grad_q)
    return partial.sum(axis=0), grad_q


def derivative(domain: VoxelDomain, values: NDArray, q: NDArray, dq: NDArray, box: int) -> tuple[NDArray, NDArray]:
    """Images (b, box, box) and their directional derivatives (b, k, box, box) along `dq` (b, k, n_vertices, 2)."""
    images = np.zeros((len(q), box, box), dtype=values.dtype)
    slopes = np.zeros((len(q), dq.shape[1], box, box), dtype=values.dtype)
    q, dq = q.astype(values.dtype, copy=False), dq.astype(values.dtype, copy=False)
    _derivative(values, q, dq, *_tables(domain, values.dtype), images, slopes)
    return images, slopes
