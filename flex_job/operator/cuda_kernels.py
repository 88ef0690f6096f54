"""Triton kernels of the operator; `cuda` says how they are laid out. Importing this module needs Triton.

One program is one warp: a block of voxels that lie side by side on a Hilbert curve, for every `groups`-th image of the
batch. Shared arguments: `cell` (n,) is the number of each voxel's cell; `corners` (b, c, 8) are, for x and then for y,
three edges of the cell in an image and the vertex that they start from, its fourth; `shares` (n, 4) what a voxel takes
of these: three barycentric weights, and one. (Edges lose less in float32 than four vertices or an affine map do: where
a cell is a sliver, weights and gradients are large and cancel.) BLOCK voxels, patches of P x P pixels.

Weights are computed as 3/4 of the spline, and 9/16 is divided out once per voxel.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["adjoint_kernel", "corners_kernel", "derivative_kernel", "project_kernel", "vertices_kernel"]


CBRT_HALF = tl.constexpr(0.5 ** (1 / 3))


@triton.jit
def _spline(d):
    """3/4 of the cubic B-spline at distance d, zero beyond two pixels. Written so that the clamps cost no instruction
    (.SAT) and only seven are left."""
    far = tl.clamp(1 - 0.5 * tl.abs(d), 0.0, 1.0)
    near = tl.clamp(CBRT_HALF - CBRT_HALF * tl.abs(d), 0.0, 1.0)
    return far * far * far - near * near * near


@triton.jit
def _slope(d):
    """Derivative of `_spline`."""
    far = tl.clamp(1 - 0.5 * tl.abs(d), 0.0, 1.0)
    near = tl.clamp(CBRT_HALF - CBRT_HALF * tl.abs(d), 0.0, 1.0)
    slope = 3 * CBRT_HALF * (near * near) - 1.5 * (far * far)
    return tl.where(d < 0, -slope, slope)


@triton.jit
def _turn(at, batch):
    """Neighbouring blocks begin with different images, so that they do not add to the same pixels at the same time."""
    image = at + tl.program_id(0) % batch
    return tl.where(image < batch, image, image - batch)


@triton.jit
def _product(a, b, total, PRECISION: tl.constexpr):
    """total + a @ b. "float32": each factor is the sum of two tf32 numbers, and the product of the small parts, 1e-6 of
    the whole at most, is left out. (Triton's own tf32x3 does the same with four times the instructions to split.)"""
    if PRECISION == "float64":
        total = tl.dot(a, b, total, input_precision="ieee", out_dtype=tl.float64)
    elif PRECISION == "tf32":  # the hardware cuts the last 13 bits: half a unit added makes it round
        a = (a.to(tl.int32, bitcast=True) + 0x1000).to(tl.float32, bitcast=True)
        b = (b.to(tl.int32, bitcast=True) + 0x1000).to(tl.float32, bitcast=True)
        total = tl.dot(a, b, total, input_precision="tf32")
    else:
        a_large = (a.to(tl.int32, bitcast=True) & -0x2000).to(tl.float32, bitcast=True)
        b_large = (b.to(tl.int32, bitcast=True) & -0x2000).to(tl.float32, bitcast=True)
        total = tl.dot(a - a_large, b_large, total, input_precision="tf32")
        total = tl.dot(a_large, b - b_large, total, input_precision="tf32")
        total = tl.dot(a_large, b_large, total, input_precision="tf32")
    return total


@triton.jit
def _block(shares, cell, n, BLOCK: tl.constexpr):
    """This program's voxels (BLOCK,), which of them exist, their shares (BLOCK, 4), and where their corners' x is."""
    v = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    known = v < n
    k = tl.arange(0, 4)[None, :]
    here = tl.load(shares + v[:, None] * 4 + k, mask=known[:, None], other=0)
    of_cell = tl.load(cell + v, mask=known, other=0)[:, None] * 8 + k
    return v, known, here, of_cell


@triton.jit
def _footprint(place, here, box):
    """Positions (BLOCK,) and the rectangle of pixels that the block touches (empty if none).

    A voxel whose footprint leaves the image, or whose position is not a number, stands at -8: more than two pixels
    from all of the image, so that its weights are zero. `place` (BLOCK, 4) points to the x of the voxels' corners.
    """
    x = tl.sum(tl.load(place) * here, axis=1)
    y = tl.sum(tl.load(place + 4) * here, axis=1)
    inside = (x >= 1) & (y >= 1) & (x < box - 2) & (y < box - 2)
    x = tl.where(inside, x, -8)
    y = tl.where(inside, y, -8)
    column = x.to(tl.int32)
    row = y.to(tl.int32)
    left = tl.min(tl.where(inside, column, box)) - 1
    top = tl.min(tl.where(inside, row, box)) - 1
    return x, y, left, top, tl.max(column) + 2, tl.max(row) + 2


@triton.jit(do_not_specialize=["n_vertices", "n_cells"])
def corners_kernel(q, vertices, corners, n_vertices, n_cells, BLOCK: tl.constexpr):
    """`corners` (b, c, 8) of `q` (b, n_vertices, 2) and `vertices` (c, 4)."""
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[:, None]
    k = tl.arange(0, 4)[None, :]
    image = tl.program_id(0).to(tl.int64)
    points = q + image * n_vertices * 2
    place = points + tl.load(vertices + c * 4 + k, mask=c < n_cells, other=0) * 2
    origin = points + tl.load(vertices + c * 4 + k * 0 + 3, mask=c < n_cells, other=0) * 2
    out = corners + (image * n_cells + c) * 8 + k
    x = tl.load(place)
    y = tl.load(place + 1)
    tl.store(out, tl.where(k == 3, x, x - tl.load(origin)), mask=c < n_cells)
    tl.store(out + 4, tl.where(k == 3, y, y - tl.load(origin + 1)), mask=c < n_cells)


@triton.jit(do_not_specialize=["n_vertices", "n_cells"])
def vertices_kernel(grad_corners, meeting, first, grad_q, n_vertices, n_cells, BLOCK: tl.constexpr):
    """Transpose of `corners_kernel`. In vertex v the corners (4 c + k) `meeting[first[v]:first[v + 1]]` meet."""
    v = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    known = v < n_vertices
    k = tl.arange(0, 4)[None, :]
    image = tl.program_id(0).to(tl.int64)
    begin = tl.load(first + v, mask=known, other=0)
    count = tl.load(first + v + 1, mask=known, other=0) - begin
    x = tl.zeros((BLOCK,), grad_q.dtype.element_ty)
    y = tl.zeros((BLOCK,), grad_q.dtype.element_ty)
    for at in range(tl.max(count)):
        corner = tl.load(meeting + begin + at, mask=at < count, other=0)[:, None]
        place = grad_corners + (image * n_cells + corner // 4) * 8 + k
        # The fourth vertex is where the three edges start.
        factor = tl.where(corner % 4 == k, 1, tl.where(corner % 4 == 3, -1, 0))
        factor = tl.where((at < count)[:, None], factor, 0).to(x.dtype)
        x += tl.sum(tl.load(place) * factor, axis=1)
        y += tl.sum(tl.load(place + 4) * factor, axis=1)
    out = grad_q + (image * n_vertices + v) * 2
    tl.store(out, x, mask=known)
    tl.store(out + 1, y, mask=known)


@triton.jit(do_not_specialize=["n", "n_cells", "batch", "box", "groups"])
def project_kernel(
    values, shares, cell, corners, images, n, n_cells, batch, box, groups,
    BLOCK: tl.constexpr, P: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add the voxels to `images` (b, box, box): patch = Wy^T (value Wx), a matrix product over the block's voxels."""
    v, known, here, of_cell = _block(shares, cell, n, BLOCK)
    value = tl.load(values + v, mask=known, other=0) / 0.5625
    along = tl.arange(0, P)
    nothing = tl.zeros((P, P), value.dtype)
    pixels = box.to(tl.int64) * box
    for at in range(tl.program_id(1), batch, groups):
        image = _turn(at, batch)
        x, y, left, top, right, bottom = _footprint(corners + image * n_cells.to(tl.int64) * 8 + of_cell, here, box)
        for y0 in range(top, bottom + 1, P):
            wy = _spline((y - y0)[None, :] - along.to(value.dtype)[:, None])
            for x0 in range(left, right + 1, P):
                wx = _spline((x - x0)[None, :] - along.to(value.dtype)[:, None])
                patch = _product(wy, tl.trans(wx * value[None, :]), nothing, PRECISION)
                touched = ((y0 + along) <= bottom)[:, None] & ((x0 + along) <= right)[None, :]
                to = images + image * pixels + (y0 + along)[:, None] * box + (x0 + along)[None, :]
                tl.atomic_add(to, patch, mask=touched, sem="relaxed")


@triton.jit(do_not_specialize=["n", "n_cells", "batch", "directions", "box", "groups"])
def derivative_kernel(
    values, shares, cell, corners, steps, images, slopes, n, n_cells, batch, directions, box, groups,
    BLOCK: tl.constexpr, P: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """As `project_kernel`, and for each of `steps` (b, k, c, 8): slope = Wy^T (value dx Wx') + Wy'^T (value dy Wx)."""
    v, known, here, of_cell = _block(shares, cell, n, BLOCK)
    value = tl.load(values + v, mask=known, other=0) / 0.5625
    along = tl.arange(0, P)
    nothing = tl.zeros((P, P), value.dtype)
    pixels = box.to(tl.int64) * box
    size = n_cells.to(tl.int64) * 8
    for at in range(tl.program_id(1), batch, groups):
        image = _turn(at, batch)
        x, y, left, top, right, bottom = _footprint(corners + image * size + of_cell, here, box)
        kept = tl.where(x > 0, value, 0)[:, None] * here  # a direction may be anything for a voxel outside
        for y0 in range(top, bottom + 1, P):
            dy = (y - y0)[None, :] - along.to(value.dtype)[:, None]
            for x0 in range(left, right + 1, P):
                dx = (x - x0)[None, :] - along.to(value.dtype)[:, None]
                touched = ((y0 + along) <= bottom)[:, None] & ((x0 + along) <= right)[None, :]
                pixel = (y0 + along)[:, None] * box + (x0 + along)[None, :]
                patch = _product(_spline(dy), tl.trans(_spline(dx) * value[None, :]), nothing, PRECISION)
                tl.atomic_add(images + image * pixels + pixel, patch, mask=touched, sem="relaxed")
                for direction in range(directions):
                    number = image * directions + direction
                    step = steps + number * size + of_cell
                    step_x = tl.sum(tl.load(step) * kept, axis=1)
                    step_y = tl.sum(tl.load(step + 4) * kept, axis=1)
                    patch = _product(_spline(dy), tl.trans(_slope(dx) * step_x[None, :]), nothing, PRECISION)
                    patch = _product(_slope(dy), tl.trans(_spline(dx) * step_y[None, :]), patch, PRECISION)
                    tl.atomic_add(slopes + number * pixels + pixel, patch, mask=touched, sem="relaxed")


@triton.jit(do_not_specialize=["n", "n_cells", "batch", "box", "groups"])
def adjoint_kernel(
    images, values, shares, cell, rank, first, cells, corners, partial, grad_corners, n, n_cells, batch, box, groups,
    WITH_Q: tl.constexpr, BLOCK: tl.constexpr, P: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradient to the values, `partial` (groups, n), summed over a group's images; to `grad_corners` (b, c, 8) WITH_Q.

    The block's cells are `cells[first[block]:first[block + 1]]`, and `rank` (n,) is a voxel's place among them.
    """
    v, known, here, of_cell = _block(shares, cell, n, BLOCK)
    along = tl.arange(0, P)
    nothing = tl.zeros((BLOCK, P), here.dtype)
    to_values = tl.zeros((BLOCK,), here.dtype)
    pixels = box.to(tl.int64) * box
    size = n_cells.to(tl.int64) * 8
    for image in range(tl.program_id(1), batch, groups):
        x, y, left, top, right, bottom = _footprint(corners + image * size + of_cell, here, box)
        to_x = tl.zeros((BLOCK,), here.dtype)
        to_y = tl.zeros((BLOCK,), here.dtype)
        for y0 in range(top, bottom + 1, P):
            dy = (y - y0)[:, None] - along.to(here.dtype)[None, :]
            for x0 in range(left, right + 1, P):
                dx = (x - x0)[:, None] - along.to(here.dtype)[None, :]
                touched = ((y0 + along) <= bottom)[:, None] & ((x0 + along) <= right)[None, :]
                pixel = (y0 + along)[:, None] * box + (x0 + along)[None, :]
                patch = tl.load(images + image * pixels + pixel, mask=touched, other=0)
                rows = _product(_spline(dy), patch, nothing, PRECISION)
                to_values += tl.sum(rows * _spline(dx), axis=1)
                if WITH_Q:
                    to_x += tl.sum(rows * _slope(dx), axis=1)
                    rows = _product(_slope(dy), patch, nothing, PRECISION)
                    to_y += tl.sum(rows * _spline(dx), axis=1)
        if WITH_Q:
            value = tl.load(values + v, mask=known, other=0) / 0.5625
            _add_to_corners(
                value * to_x, value * to_y, shares, rank, first, cells, grad_corners + image * size, v, known,
                tl.program_id(0), PRECISION,
            )  # fmt: skip
    tl.store(partial + tl.program_id(1).to(tl.int64) * n + v, to_values / 0.5625, mask=known)


@triton.jit
def _add_to_corners(to_x, to_y, shares, rank, first, cells, grad_corners, v, known, block, PRECISION: tl.constexpr):
    """Sum the gradients to positions, shared among the corners, over each cell of the block: a product with the matrix
    of which voxel is in which cell, sixteen cells at a time."""
    column = tl.arange(0, 8)[None, :]
    here = tl.load(shares + v[:, None] * 4 + column % 4, mask=known[:, None], other=0)
    shared = tl.where(column < 4, to_x[:, None], to_y[:, None]) * here
    place = tl.load(rank + v, mask=known, other=-1)
    begin = tl.load(first + block)
    count = tl.load(first + block + 1) - begin
    for start in range(0, count, 16):
        number = start + tl.arange(0, 16)
        belongs = (number[:, None] == place[None, :]).to(shared.dtype)
        total = _product(belongs, shared, tl.zeros((16, 8), shared.dtype), PRECISION)
        known_cell = number < count
        to = grad_corners + tl.load(cells + begin + number, mask=known_cell, other=0)[:, None] * 8 + column
        tl.atomic_add(to, total, mask=known_cell[:, None], sem="relaxed")
