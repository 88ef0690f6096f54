"""Lanes against NumPy, footprints against loops, and what only concerns the CPU backend: threads, padding, blocks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from flex_job.operator import VoxelDomain, cpu, cpu_kernels, rigid_domain, voxel_domain
from flex_job.operator.cpu import CpuOperator
from flex_job.operator.footprints import add_product, add_rows, read_product, read_rows
from flex_job.operator.lanes import LANES, load, load_rows, split, store, store_rows, total, where
from flex_job.volume import Volume

DTYPES = [np.float32, np.float64]
PIXELS, PITCH = 100, 9


@numba.njit
def arithmetic(a, b, number, out):
    """What Lanes can do, in the first seven rows of `out` (8, LANES)."""
    x, y, flat = load(a, 0), load(b, 0), out.reshape(-1)
    store(flat, 0, x + y)
    store(flat, LANES, x - number)
    store(flat, 2 * LANES, number * y * x)
    store(flat, 3 * LANES, where((x >= y) & (x < number), x, y))
    store(flat, 4 * LANES, where(x < number, x, 7))
    _, fraction = split(y)
    store(flat, 5 * LANES, fraction)
    x += y
    store(flat, 6 * LANES, x)
    return total(x)


@numba.njit
def whole_part(a, out):
    whole, _ = split(load(a, 0))
    store(out, 0, 3 * whole - 1)


@numba.njit
def through_rows(points, first, rows, step, offset, out):
    store_rows(out, first, rows, step, offset, load_rows(points, first, rows, step, offset))


@numba.njit
def four(a):
    return load(a, 0), load(a, LANES), load(a, 2 * LANES), load(a, 3 * LANES)


@numba.njit
def reading(images, place, out):
    a, b, c, d = read_rows(images, PITCH, load(place, 0))
    for j, row in enumerate((a, b, c, d)):
        store(out, (4 * j) * LANES, row[0])
        store(out, (4 * j + 1) * LANES, row[1])
        store(out, (4 * j + 2) * LANES, row[2])
        store(out, (4 * j + 3) * LANES, row[3])


@numba.njit
def reading_product(images, place, w, h):
    return total(read_product(images, PITCH, load(place, 0), four(w), four(h)))


@numba.njit
def adding(images, place, a, b, c, d):
    add_rows(images, PITCH, load(place, 0), (four(a), four(b), four(c), four(d)))


@numba.njit
def adding_product(images, place, w, h):
    add_product(images, PITCH, load(place, 0), four(w), four(h))


@pytest.mark.parametrize("dtype", DTYPES)
def test_arithmetic_is_that_of_numpy(dtype: type) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=LANES).astype(dtype), rng.uniform(0, 50, LANES).astype(dtype)
    a[3] = np.nan
    out = np.zeros((8, LANES), dtype)
    found = arithmetic(a, b, dtype(0.5), out)
    expected = [
        a + b,
        a - dtype(0.5),
        dtype(0.5) * b * a,
        np.where((a >= b) & (a < 0.5), a, b),
        np.where(a < 0.5, a, 7),
    ]
    for row, wanted in zip(out, [*expected, b - np.floor(b), a + b], strict=False):
        np.testing.assert_allclose(row, wanted, rtol=1e-6)
    assert out[4, 3] == 7 and not out[7].any()  # comparisons with NaN are false
    assert np.isnan(found)
    a[3] = 1
    assert arithmetic(a, b, dtype(0.5), out) == pytest.approx((a + b).sum(), rel=1e-5)
    integers = np.zeros(LANES, np.int32)
    whole_part(b, integers)
    assert np.array_equal(integers, 3 * b.astype(np.int32) - 1)


@pytest.mark.parametrize("rows", [1, 5, LANES, LANES + 3])
def test_rows_are_read_and_written_where_they_are_and_nowhere_else(rows: int) -> None:
    points = np.random.default_rng(0).normal(size=(rows, 6))
    out = np.zeros((LANES + 9, 6))
    for first in range(0, rows, LANES):
        through_rows(points.ravel(), first, rows, 6, 2, out.ravel())
    assert np.array_equal(out[:rows, 2], points[:, 2])
    out[:rows, 2] = 0
    assert not out.any()


def footprints(dtype: type) -> tuple[NDArray, NDArray, NDArray]:
    """Images, first pixels (one at the very end of its image) and what to add there (row, column, lane)."""
    rng = np.random.default_rng(1)
    place = rng.integers(0, PIXELS - 3 * PITCH - 4, LANES).astype(np.int32)
    place[-1] = PIXELS - 3 * PITCH - 4
    return rng.normal(size=(LANES, PIXELS)).astype(dtype), place, rng.normal(size=(4, 4, LANES)).astype(dtype)


def pixels_of(place: NDArray) -> tuple[NDArray, NDArray]:
    """Lane and pixel (row, column, lane) of the footprints."""
    j, i, lane = np.indices((4, 4, LANES))
    return lane, place + j * PITCH + i


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_footprints_are_read_from_every_lanes_own_image(dtype: type) -> None:
    images, place, (w, h, *_) = footprints(dtype)
    out, pixels = np.zeros((4, 4, LANES), dtype), images[pixels_of(place)]
    reading(images, place, out.reshape(-1))
    assert np.array_equal(out, pixels)
    expected = (h[:, None] * w * pixels).sum()
    assert reading_product(images, place, w.ravel(), h.ravel()) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("product", [False, True])
def test_rows_of_footprints_go_to_every_lanes_own_image(dtype: type, product: bool) -> None:
    images, place, rows = footprints(dtype)
    expected, (w, h) = images.copy(), rows[:2]
    expected[pixels_of(place)] += h[:, None] * w if product else rows
    untouched = expected == images
    if product:
        adding_product(images, place, w.ravel(), h.ravel())
    else:
        adding(images, place, *rows.reshape(4, -1))
    np.testing.assert_allclose(images, expected, atol=1e-6)
    assert np.array_equal(images[untouched], expected[untouched])


# -- the operator on the CPU -----------------------------------------------------------------------------------------


def scene(domain: VoxelDomain, vertices_A: NDArray, batch: int) -> tuple[torch.Tensor, ...]:
    """values, q, dq, images of 16 px."""
    rng = np.random.default_rng(2)
    q = 8 + (vertices_A[None] + rng.normal(size=(batch, *vertices_A.shape)))[..., :2] / 3.0
    shapes = [(len(domain),), (batch, 2, *q.shape[1:]), (batch, 16, 16)]
    values, dq, images = (torch.from_numpy(rng.normal(size=shape)) for shape in shapes)
    return values, torch.from_numpy(q), dq, images


@pytest.mark.parametrize("batch", [1, 3 * LANES + 1])
def test_the_number_of_threads_changes_only_the_rounding(mesh_of, monkeypatch: pytest.MonkeyPatch, batch: int) -> None:
    monkeypatch.setattr(cpu, "SMALL", 0)
    mesh = mesh_of((2, 2, 2), 40.0)
    domain = voxel_domain(mesh, Volume(np.ones((16,) * 3, np.float32), 3.0))
    values, q, dq, images = scene(domain, mesh.vertices_A, batch)
    operator, found = CpuOperator(domain), []
    for threads in (1, 2, 3, 5):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        slopes = operator.derivative(values, q, dq, 16)
        found.append([operator.project(values, q, 16), *slopes, *operator.adjoint(images, q, values)])
        found[-1].append(operator.adjoint(images, q)[0])
    for one in found[1:]:
        for tensor, expected in zip(one, found[0], strict=True):
            assert (tensor - expected).abs().max() < 1e-12 * expected.abs().max()


@pytest.mark.parametrize(("groups", "threads"), [(1, 1), (1, 8), (4, 3), (13, 2), (13, 64), (100, 8)])
def test_threads_share_every_group_and_block_once(groups: int, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    domain, _ = rigid_domain(Volume(np.ones((24,) * 3, np.float32), 3.0))
    ranges, blocks = CpuOperator(domain)._grid(groups * LANES)
    assert len(ranges) * len(blocks) <= threads
    for parts, count in ((ranges, groups), (blocks, -(-(24**3) // cpu_kernels.BLOCK))):
        assert [at for first, last in parts for at in range(first, last)] == list(range(count))
    if groups % threads == 0:
        assert len(blocks) == 1  # no images to sum where threads are busy anyway


@pytest.mark.parametrize("batch", [1, LANES - 1, LANES + 2])
def test_lanes_beyond_the_last_image_touch_nothing(mesh_of, batch: int) -> None:
    """The results are the beginning of larger arrays here; what lies behind them stays."""
    mesh = mesh_of((2, 2, 2), 30.0)
    domain = voxel_domain(mesh, Volume(np.ones((8,) * 3, np.float32), 3.0))
    values, q, dq, images = scene(domain, mesh.vertices_A, batch)
    operator = CpuOperator(domain)
    tables, ranges = operator._tables(torch.float64), (0, -(-batch // LANES), 0, len(operator._cells[-1]) - 1)
    memory, along = (q.numpy().ravel(), q.stride()), (dq.numpy().ravel(), dq.stride())
    big = {"image": (16, 16), "slope": (2, 16, 16), "q": q.shape[1:]}
    out = {name: np.full((batch + LANES, *shape), -77.0) for name, shape in big.items()}
    image, slope, to_q = (array[:batch] for array in out.values())
    cpu_kernels.derivative(values.numpy(), *memory, *along, *tables, *ranges, image, slope)
    found = image.copy()
    cpu_kernels.project(values.numpy(), *memory, *tables, *ranges, image)
    cpu_kernels.adjoint(values.numpy(), images.numpy(), *memory, *tables, *ranges, np.zeros(len(domain)), to_q)
    for array in out.values():
        assert (array[batch:] == -77).all() and (array[:batch] != -77).all()
    np.testing.assert_allclose(image, found, atol=1e-12)
    assert torch.equal(operator.project(values, q, 16), torch.from_numpy(image))


def test_a_second_process_finds_the_kernels_compiled(tmp_path: Path) -> None:
    # The domain is written by hand: to locate voxels in a mesh would compile more.
    program = """
import numpy as np, torch
from flex_job.operator import VoxelDomain, cpu, cpu_kernels
one = np.ones(1, np.int64)
cell = np.arange(4, dtype=np.int32)[None], np.ones((1, 4, 3), np.float32), np.ones((1, 4), np.float32)
domain = VoxelDomain(2, 1.0, 4, one, np.zeros((3, 1), np.float32), np.arange(2), *cell)
cpu.CpuOperator(domain).project(torch.ones(1), torch.zeros(1, 4, 2), 8)
print(sum(cpu_kernels.project.stats.cache_hits.values()), sum(cpu_kernels.project.stats.cache_misses.values()))
"""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}

    def run() -> str:
        command = [sys.executable, "-c", program]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    assert [run().split() for _ in range(2)] == [["0", "1"], ["1", "0"]]
