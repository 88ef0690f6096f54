"""Compiled kernels of the operator on the CPU: groups of `LANES` images, blocks of voxels.

The images of a group are the lanes of vector registers (see `lanes`), so that a voxel's place and its spline weights in
all of them cost as much as in one. Only the 4 x 4 footprints are visited lane by lane, in rows of four pixels;
consecutive writes go to different images and do not wait for one another. A block of voxels is placed first and visited
after that, which hides the latency of the arithmetic. All of a group's images lie in a workspace with spare columns.

Arguments shared by all: `q`, the memory of the projected vertices (b, V, 2), and `steps`, its strides from one image,
vertex and coordinate to the next; `shares` (n, 3), barycentric weights of the first three vertices of a voxel's cell;
`start` and `vertices` (c, 4) of the cells, which count among the `used` vertices of q; `blocks`, the first cell of each
block of at most `BLOCK` voxels. A kernel does the groups [i0, i1) of images and the blocks [b0, b1).
"""

from __future__ import annotations

import numba
import numpy as np

from flex_job.operator.footprints import add_product, add_rows, read_product, read_rows
from flex_job.operator.lanes import LANES, load, load_rows, split, store, store_rows, total, where

__all__ = ["BLOCK", "FAST", "adjoint", "adjoint_values", "barycentric", "derivative", "project", "spline"]

BLOCK = 64
"""Voxels placed before they are visited: the arrays of a block (12 KiB in float32) stay in the first cache."""

# All of fastmath but "no NaN, no infinity": where a flow diverges, the tests for leaving the image must still fail.
FAST = {"reassoc", "contract", "nsz", "arcp", "afn"}
_kernel = numba.njit(fastmath=FAST, cache=True, nogil=True, error_model="numpy")
_inline = numba.njit(fastmath=FAST, forceinline=True, error_model="numpy")


# -- the equations: for numbers and for lanes -------------------------------------------------------------------------


@_inline
def spline(t):
    """Cubic B-spline at distances 1 + t, t, 1 - t, 2 - t (0 <= t < 1): the weights of four neighbouring pixels."""
    s = 1 - t
    return s * s * s * (1 / 6), 2 / 3 - t * t * (1 - 0.5 * t), 2 / 3 - s * s * (1 - 0.5 * s), t * t * t * (1 / 6)


@_inline
def _spline_slope(t):
    """Derivative of the four weights in the direction of the voxel's own displacement."""
    s = 1 - t
    return s * s * -0.5, t * (1.5 * t - 2), s * (2 - 1.5 * s), t * t * 0.5


@_inline
def _times(a, b):
    return a * b[0], a * b[1], a * b[2], a * b[3]


@_inline
def _dot(a, b):
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2] + a[3] * b[3]


@_inline
def _sum(f, a, g, b):
    return f * a[0] + g * b[0], f * a[1] + g * b[1], f * a[2] + g * b[2], f * a[3] + g * b[3]


@_inline
def _columns(h, rows):
    """The four columns of a footprint, each summed over its rows with factors h."""
    a, b, c, d = rows
    first, second = _dot(h, (a[0], b[0], c[0], d[0])), _dot(h, (a[1], b[1], c[1], d[1]))
    return first, second, _dot(h, (a[2], b[2], c[2], d[2])), _dot(h, (a[3], b[3], c[3], d[3]))


@_inline
def _cell(q, corners):
    """The last vertex of a cell and the three edges from it, x and y, in all lanes."""
    a, b, c, d = 2 * LANES * corners[0], 2 * LANES * corners[1], 2 * LANES * corners[2], 2 * LANES * corners[3]
    x, y = load(q, d), load(q, d + LANES)
    edges_x = load(q, a) - x, load(q, b) - x, load(q, c) - x
    edges_y = load(q, a + LANES) - y, load(q, b + LANES) - y, load(q, c + LANES) - y
    return (x, *edges_x), (y, *edges_y)


@_inline
def _mix(cell, share):
    """Linear in the cell: the vertices' x and y by the voxel's barycentric weights."""
    x, y = cell
    a, b, c = share[0], share[1], share[2]
    return x[0] + a * x[1] + b * x[2] + c * x[3], y[0] + a * y[1] + b * y[2] + c * y[3]


@_inline
def _add(array, index, x):
    store(array, index, load(array, index) + x)


@_kernel
def _locate(q, shares, start, vertices, first, last, box, pitch, place, tx, ty):
    """For the voxels of some cells: the first pixel of the footprint in all lanes, and the position within its pixel.

    A voxel outside the image, or nowhere (NaN), has its footprint in the spare columns right of the image.
    """
    for c in range(first, last):
        cell = _cell(q, vertices[c])
        for v in range(start[c], start[c + 1]):
            x, y = _mix(cell, shares[v])
            inside = (x >= 1) & (y >= 1) & (x < box - 2) & (y < box - 2)
            ix, fx = split(where(inside, x, 1))
            iy, fy = split(where(inside, y, 1))
            at = (v - start[first]) * LANES
            store(place, at, where(inside, (iy - 1) * pitch + (ix - 1), box))
            store(tx, at, fx)
            store(ty, at, fy)


@_inline
def _deposit(values, begin, end, place, tx, ty, pitch, work):
    for v in range(begin, end):
        at = (v - begin) * LANES
        h = _times(values[v], spline(load(ty, at)))
        add_product(work, pitch, load(place, at), spline(load(tx, at)), h)


@_kernel
def _move(dq, values, shares, start, vertices, first, last, dx, dy):
    """The displacements of the voxels of some cells, times their values."""
    for c in range(first, last):
        cell = _cell(dq, vertices[c])
        for v in range(start[c], start[c + 1]):
            x, y = _mix(cell, shares[v])
            at = (v - start[first]) * LANES
            store(dx, at, values[v] * x)
            store(dy, at, values[v] * y)


@_inline
def _deposit_slope(dx, dy, count, place, tx, ty, pitch, work):
    for v in range(count):
        at = v * LANES
        p, x, y = load(place, at), load(tx, at), load(ty, at)
        w, h = _times(load(dy, at), spline(x)), spline(y)
        d, e = _times(load(dx, at), _spline_slope(x)), _spline_slope(y)
        upper = _sum(h[0], d, e[0], w), _sum(h[1], d, e[1], w)
        add_rows(work, pitch, p, (*upper, _sum(h[2], d, e[2], w), _sum(h[3], d, e[3], w)))


@_inline
def _to_corners(dx, dy, shares, start, first, c, corners, gradient):
    """Add the gradients at the voxels of a cell to those at its vertices: the transpose of `_mix`."""
    at = (start[c] - start[first]) * LANES
    x = y = xa = ya = xb = yb = xc = yc = load(dx, at) * 0
    for v in range(start[c], start[c + 1]):
        at = (v - start[first]) * LANES
        vx, vy = load(dx, at), load(dy, at)
        a, b, c_ = shares[v, 0], shares[v, 1], shares[v, 2]
        x, xa, xb, xc = x + vx, xa + a * vx, xb + b * vx, xc + c_ * vx
        y, ya, yb, yc = y + vy, ya + a * vy, yb + b * vy, yc + c_ * vy
    _add(gradient, 2 * LANES * corners[0], xa)
    _add(gradient, 2 * LANES * corners[0] + LANES, ya)
    _add(gradient, 2 * LANES * corners[1], xb)
    _add(gradient, 2 * LANES * corners[1] + LANES, yb)
    _add(gradient, 2 * LANES * corners[2], xc)
    _add(gradient, 2 * LANES * corners[2] + LANES, yc)
    _add(gradient, 2 * LANES * corners[3], x - xa - xb - xc)
    _add(gradient, 2 * LANES * corners[3] + LANES, y - ya - yb - yc)


# -- between images in memory and lanes -------------------------------------------------------------------------------


@_kernel
def _to_lanes(points, offset, steps, images, used, first, lanes):
    """The used vertices of images first, first + 1, ... side by side, x and y; the last image again beyond it."""
    for u in range(len(used)):
        for axis in range(2):
            at = offset + used[u] * steps[1] + axis * steps[2]
            store(lanes, (2 * u + axis) * LANES, load_rows(points, first, images, steps[0], at))


@_kernel
def _from_lanes(lanes, used, first, to_q):
    images, vertices = to_q.shape[:2]
    points = to_q.reshape(-1)
    for u in range(len(used)):
        for axis in range(2):
            at = 2 * used[u] + axis
            store_rows(points, first, images, 2 * vertices, at, load(lanes, (2 * u + axis) * LANES))


@_kernel
def _copy_in(images, first, pitch, work):
    box = images.shape[-1]
    for lane in range(LANES):
        for y in range(box):
            for x in range(box):
                work[lane, y * pitch + x] = images[first + lane, y, x] if first + lane < len(images) else 0


@_kernel
def _copy_out(work, pitch, images):
    box = images.shape[-1]
    for lane in range(len(images)):
        for y in range(box):
            for x in range(box):
                images[lane, y, x] = work[lane, y * pitch + x]


@_kernel
def _scratch(box, dtype):
    """Row length, images of a group with spare columns, and place, tx, ty of a block."""
    pitch = box + 8
    work = np.zeros((LANES, max(box, 4) * pitch + 16), dtype)  # 16: neighbouring lanes in different sets of the cache
    size = BLOCK * LANES
    return pitch, work, np.empty(size, np.int32), np.empty(size, dtype), np.empty(size, dtype)


# -- kernels: groups [i0, i1) of images and blocks [b0, b1) of voxels -------------------------------------------------


@_kernel
def project(values, q, steps, shares, start, vertices, used, blocks, i0, i1, b0, b1, images):
    box = images.shape[1]
    pitch, work, place, tx, ty = _scratch(box, values.dtype)
    lanes = np.empty(2 * len(used) * LANES, values.dtype)
    for i in range(i0 * LANES, min(i1 * LANES, len(images)), LANES):
        _to_lanes(q, 0, steps, len(images), used, i, lanes)
        work[:] = 0
        for b in range(b0, b1):
            first, last = blocks[b], blocks[b + 1]
            _locate(lanes, shares, start, vertices, first, last, box, pitch, place, tx, ty)
            _deposit(values, start[first], start[last], place, tx, ty, pitch, work)
        _copy_out(work, pitch, images[i : i + LANES])


@_kernel
def adjoint_values(images, q, steps, shares, start, vertices, used, blocks, i0, i1, b0, b1, to_values):
    box = images.shape[1]
    pitch, work, place, tx, ty = _scratch(box, images.dtype)
    lanes = np.empty(2 * len(used) * LANES, images.dtype)
    for i in range(i0 * LANES, min(i1 * LANES, len(images)), LANES):
        _to_lanes(q, 0, steps, len(images), used, i, lanes)
        _copy_in(images, i, pitch, work)
        for b in range(b0, b1):
            first, last = blocks[b], blocks[b + 1]
            _locate(lanes, shares, start, vertices, first, last, box, pitch, place, tx, ty)
            for v in range(start[first], start[last]):
                at = (v - start[first]) * LANES
                w, h = spline(load(tx, at)), spline(load(ty, at))
                to_values[v] += total(read_product(work, pitch, load(place, at), w, h))


@_kernel
def adjoint(values, images, q, steps, shares, start, vertices, used, blocks, i0, i1, b0, b1, to_values, to_q):
    box = images.shape[1]
    pitch, work, place, tx, ty = _scratch(box, images.dtype)
    lanes = np.empty(2 * len(used) * LANES, images.dtype)
    gradient = np.empty_like(lanes)
    for i in range(i0 * LANES, min(i1 * LANES, len(images)), LANES):
        _to_lanes(q, 0, steps, len(images), used, i, lanes)
        _copy_in(images, i, pitch, work)
        gradient[:] = 0
        for b in range(b0, b1):
            first, last = blocks[b], blocks[b + 1]
            _locate(lanes, shares, start, vertices, first, last, box, pitch, place, tx, ty)
            for v in range(start[first], start[last]):
                at = (v - start[first]) * LANES
                p, x, y = load(place, at), load(tx, at), load(ty, at)
                w = spline(x)  # before the rows, though needed after them: otherwise LLVM's order is a tenth slower
                rows = read_rows(work, pitch, p)
                m, n = _columns(spline(y), rows), _columns(_spline_slope(y), rows)
                to_values[v] += total(_dot(w, m))
                store(tx, at, values[v] * _dot(_spline_slope(x), m))
                store(ty, at, values[v] * _dot(w, n))
            for c in range(first, last):
                _to_corners(tx, ty, shares, start, first, c, vertices[c], gradient)
        _from_lanes(gradient, used, i, to_q)


@_kernel
def derivative(values, q, steps, dq, steps_dq, shares, start, vertices, used, blocks, i0, i1, b0, b1, images, slopes):
    box, directions = images.shape[1], slopes.shape[1]
    pitch, work, place, tx, ty = _scratch(box, values.dtype)
    slope = np.empty((directions, *work.shape), values.dtype)
    lanes = np.empty(2 * len(used) * LANES, values.dtype)
    moves = np.empty((directions, len(lanes)), values.dtype)
    dx, dy = np.empty_like(tx), np.empty_like(ty)
    for i in range(i0 * LANES, min(i1 * LANES, len(images)), LANES):
        _to_lanes(q, 0, steps, len(images), used, i, lanes)
        for k in range(directions):
            _to_lanes(dq, k * steps_dq[1], (steps_dq[0], steps_dq[2], steps_dq[3]), len(images), used, i, moves[k])
        work[:] = 0
        slope[:] = 0
        for b in range(b0, b1):
            first, last = blocks[b], blocks[b + 1]
            _locate(lanes, shares, start, vertices, first, last, box, pitch, place, tx, ty)
            _deposit(values, start[first], start[last], place, tx, ty, pitch, work)
            for k in range(directions):
                _move(moves[k], values, shares, start, vertices, first, last, dx, dy)
                _deposit_slope(dx, dy, start[last] - start[first], place, tx, ty, pitch, slope[k])
        _copy_out(work, pitch, images[i : i + LANES])
        for k in range(directions):
            _copy_out(slope[k], pitch, slopes[i : i + LANES, k])


@_kernel
def barycentric(local, start, gradients, offsets, shares):
    """Barycentric weights (n, 3) of all voxels for the first three vertices of their cells."""
    for c in range(len(offsets)):
        for v in range(start[c], start[c + 1]):
            for k in range(3):
                mixed = offsets[c, k] * np.float64(1)
                for axis in range(3):
                    mixed += np.float64(gradients[c, k, axis]) * local[axis, v]
                shares[v, k] = mixed
