"""What this machine can do at best: copying, fused multiply-adds, and the operator's row updates by themselves.

The forward kernel adds four rows of four pixels per voxel to an image, the adjoint reads four: no kernel that treats
voxels one by one can be faster than these accesses alone, at positions known beforehand, in an image that stays in the
first-level cache.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
import torch
from clock import cores, fastest, use_threads
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

__all__ = ["Ceilings", "measure"]

COPY_FLOATS = 1 << 25  # 128 MiB, several times the last-level cache
MATRIX = 1536
BOX, FOOTPRINTS = 48, 1 << 19  # an image of 9 KiB
RING = 1024


@dataclass(frozen=True)
class Ceilings:
    """`copy_GBps` counts bytes read and bytes written, `gflops` an addition and a multiplication as two, both for all
    threads together. Nanoseconds per core for the four rows of four pixels of a footprint, float32: `update_ns` adds to
    them, `read_ns` sums them, `chained_ns` adds where the footprint before it has just written."""

    copy_GBps: float
    gflops: float
    update_ns: float
    read_ns: float
    chained_ns: float


def _rows(builder: ir.IRBuilder, context, kind, array, place, pitch):
    """Pointers to the four rows of four pixels from `place` on."""
    data = context.make_array(kind)(context, builder, array).data
    start = builder.gep(data, [place])
    rows = [builder.gep(start, [builder.mul(pitch, ir.Constant(pitch.type, j))]) for j in range(4)]
    return [builder.bitcast(row, ir.VectorType(ir.FloatType(), 4).as_pointer()) for row in rows]


@intrinsic
def _update(typingctx, image, place, pitch):
    """Add one to the rows of a footprint: four vector loads, additions and stores."""

    def lower(context, builder, sig, args):
        one = ir.Constant(ir.VectorType(ir.FloatType(), 4), [1.0] * 4)
        for row in _rows(builder, context, sig.args[0], *args):
            builder.store(builder.fadd(builder.load(row, align=4), one), row, align=4)
        return context.get_dummy_value()

    return types.void(image, types.intp, types.intp), lower


@intrinsic
def _sum(typingctx, image, place, pitch, out, at):
    """Write the sum of the rows of a footprint: four vector loads, three additions and a store."""

    def lower(context, builder, sig, args):
        a, b, c, d = (builder.load(row, align=4) for row in _rows(builder, context, sig.args[0], *args[:3]))
        first, *_ = _rows(builder, context, sig.args[3], args[3], args[4], args[2])
        builder.store(builder.fadd(builder.fadd(a, b), builder.fadd(c, d)), first, align=4)
        return context.get_dummy_value()

    return types.void(image, types.intp, types.intp, out, types.intp), lower


@numba.njit(parallel=True)
def _update_all(images, places, pitch):
    for t in numba.prange(len(images)):
        for place in places:
            _update(images[t], place, pitch)


@numba.njit(parallel=True)
def _sum_all(images, places, pitch, out):
    for t in numba.prange(len(images)):
        for v in range(len(places)):
            _sum(images[t], places[v], pitch, out[t], 4 * (v % RING))


@numba.njit(parallel=True)
def _copy(source, target):
    for i in numba.prange(len(source)):
        target[i] = source[i]


def measure(threads: int) -> Ceilings:
    """The ceilings with so many threads at work at once. Some seconds."""
    use_threads(threads)
    source, target = np.ones(COPY_FLOATS, np.float32), np.zeros(COPY_FLOATS, np.float32)
    copied = fastest(lambda: _copy(source, target))
    matrix = torch.ones(MATRIX, MATRIX)
    multiplied = fastest(lambda: matrix @ matrix)
    rng = np.random.default_rng(0)
    places = (rng.integers(0, BOX - 4, FOOTPRINTS) * BOX + rng.integers(0, BOX - 4, FOOTPRINTS)).astype(np.intp)
    images, out = np.zeros((threads, BOX * BOX), np.float32), np.zeros((threads, 4 * RING), np.float32)
    same = np.full_like(places, places[0])
    unit = 1e9 / FOOTPRINTS
    return Ceilings(
        copy_GBps=2 * source.nbytes / copied / 1e9,
        gflops=2 * MATRIX**3 / multiplied / 1e9,
        update_ns=unit * fastest(lambda: _update_all(images, places, BOX)),
        read_ns=unit * fastest(lambda: _sum_all(images, places, BOX, out)),
        chained_ns=unit * fastest(lambda: _update_all(images, same, BOX)),
    )


def main() -> None:
    for threads in sorted({1, cores()}):
        c = measure(threads)
        print(f"{threads} threads: copy {c.copy_GBps:.1f} GB/s, fused multiply-adds {c.gflops:.0f} GFLOP/s")
        print(
            f"    the four rows of a footprint, per core: update {c.update_ns:.2f} ns, read {c.read_ns:.2f} ns;",
            end=" ",
        )
        print(f"update where the one before it has just written {c.chained_ns:.2f} ns")


if __name__ == "__main__":
    main()
