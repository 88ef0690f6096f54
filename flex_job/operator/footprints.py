"""The 4 x 4 pixels around a voxel in every lane's own image: intrinsics that add to them and combine them by rows."""

from __future__ import annotations

import functools

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from flex_job.operator.lanes import LANES, joined, pointer_to, shuffle, spread

__all__ = ["add_rows", "combine_rows"]


def _turn(builder: ir.IRBuilder, vectors: list[ir.Value]) -> list[ir.Value]:
    """Transpose the 4 x 4 blocks of four vectors: element i of block k of vector j <-> element j of block k of i."""
    blocks = range(0, LANES, 4)
    inner = [n for s in blocks for n in (s, LANES + s, s + 1, LANES + s + 1)]
    outer = [n for s in blocks for n in (s, s + 1, LANES + s, LANES + s + 1)]
    (a, b), (c, d) = (
        [shuffle(builder, x, y, [n + shift for n in inner]) for shift in (0, 2)] for x, y in (vectors[:2], vectors[2:])
    )
    return [shuffle(builder, x, y, [n + shift for n in outer]) for x, y in ((a, c), (b, d)) for shift in (0, 2)]


def _per_lane(builder: ir.IRBuilder, columns: list[ir.Value]) -> list[ir.Value]:
    """Four vectors over lanes -> for each lane its four numbers."""
    turned = _turn(builder, columns)
    return [shuffle(builder, x, x, [k + i for i in range(4)]) for k in range(0, LANES, 4) for x in turned]


def _over_lanes(builder: ir.IRBuilder, fours: list[ir.Value]) -> list[ir.Value]:
    """For each lane four numbers -> four vectors over lanes."""
    return _turn(builder, [joined(builder, fours[k::4]) for k in range(4)])


class _Footprints:
    """Access to the rows of every lane's footprint: pixels `place + j * pitch + i` of images (LANES, pixels)."""

    def __init__(self, context, builder: ir.IRBuilder, array_type, images, pitch, place) -> None:
        array = context.make_array(array_type)(context, builder, images)
        self.builder, self.data, self.pitch = builder, array.data, pitch
        self.size = context.get_abi_sizeof(array.data.type.pointee)
        pixels = cgutils.unpack_tuple(builder, array.shape)[-1]
        self.starts = [
            builder.add(builder.mul(pixels, pixels.type(lane)), builder.sext(self.number(place, lane), pixels.type))
            for lane in range(LANES)
        ]

    def number(self, lanes: ir.Value, lane: int) -> ir.Value:
        return self.builder.extract_element(lanes, ir.IntType(32)(lane))

    def _pointer(self, lane: int, row: int) -> ir.Value:
        place = self.builder.add(self.starts[lane], self.builder.mul(self.pitch, self.pitch.type(row)))
        return pointer_to(self.builder, self.builder.gep(self.data, [place]), self.data.type.pointee, 4)

    def read(self, lane: int, row: int) -> ir.Value:
        return self.builder.load(self._pointer(lane, row), align=self.size)

    def add(self, lane: int, row: int, pixels: ir.Value) -> None:
        pointer = self._pointer(lane, row)
        self.builder.store(self.builder.fadd(self.builder.load(pointer, align=self.size), pixels), pointer, self.size)


@intrinsic
def add_rows(typingctx, images, pitch, place, w, h):
    """Add sum_t h_tj w_ti to pixel `place + j pitch + i` of every lane's image, i, j = 0..3; images (LANES, pixels)."""

    def lower(context, builder, sig, args):
        footprints = _Footprints(context, builder, sig.args[0], *args[:3])
        rows, factors = (
            [cgutils.unpack_tuple(builder, four) for four in cgutils.unpack_tuple(builder, fours)] for fours in args[3:]
        )
        rows = [_per_lane(builder, four) for four in rows]
        for lane in range(LANES):
            for j in range(4):
                terms = [
                    builder.fmul(spread(builder, footprints.number(h[j], lane), 4), w[lane])
                    for w, h in zip(rows, factors, strict=True)
                ]
                footprints.add(lane, j, functools.reduce(builder.fadd, terms))
        return context.get_dummy_value()

    return types.void(images, types.intp, place, w, h), lower


@intrinsic
def combine_rows(typingctx, images, pitch, place, h):
    """The four columns sum_j h_j image[place + j pitch + i], i = 0..3, of every lane's image (LANES, pixels)."""

    def lower(context, builder, sig, args):
        footprints = _Footprints(context, builder, sig.args[0], *args[:3])
        factors = cgutils.unpack_tuple(builder, args[3])
        sums = []
        for lane in range(LANES):
            terms = [
                builder.fmul(spread(builder, footprints.number(factors[j], lane), 4), footprints.read(lane, j))
                for j in range(4)
            ]
            sums.append(functools.reduce(builder.fadd, terms))
        return context.make_tuple(builder, sig.return_type, _over_lanes(builder, sums))

    return h(images, types.intp, place, h), lower
