"""The 4 x 4 pixels around a voxel in every lane's own image: intrinsics that read them and add to them.

In memory four pixels of a row lie side by side; four lanes' rows fill a vector. A transpose makes of four such vectors
four pixels over all lanes, so that the kernels need not know where pixels come from.
"""

from __future__ import annotations

import functools

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from flex_job.operator.lanes import LANES, Lanes, joined, pointer_to, shuffle, spread

__all__ = ["add_product", "add_rows", "read_product", "read_rows"]


def _turn(builder: ir.IRBuilder, vectors: list[ir.Value]) -> list[ir.Value]:
    """Transpose the 4 x 4 blocks of four vectors: element i of block k of vector j <-> element j of block k of i."""
    blocks = range(0, LANES, 4)
    inner = [n for s in blocks for n in (s, LANES + s, s + 1, LANES + s + 1)]
    outer = [n for s in blocks for n in (s, s + 1, LANES + s, LANES + s + 1)]
    (a, b), (c, d) = (
        [shuffle(builder, x, y, [n + shift for n in inner]) for shift in (0, 2)] for x, y in (vectors[:2], vectors[2:])
    )
    return [shuffle(builder, x, y, [n + shift for n in outer]) for x, y in ((a, c), (b, d)) for shift in (0, 2)]


def _whole(builder: ir.IRBuilder, x: ir.Value) -> ir.Value:
    """`x` as one vector: LLVM would compute the parts that are used apart anew for each use, in more instructions."""
    name = f"llvm.arithmetic.fence.v{x.type.count}{x.type.element.intrinsic_name}"
    fence = cgutils.get_or_insert_function(builder.module, ir.FunctionType(x.type, [x.type]), name)
    return builder.call(fence, [x])


def _per_lane(builder: ir.IRBuilder, turned: list[ir.Value]) -> list[ir.Value]:
    """Four vectors over lanes, turned -> for each lane its four numbers."""
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
def read_rows(typingctx, images, pitch, place):
    """Pixel `place + j pitch + i` of every lane's image (LANES, pixels) as number i of row j, i, j = 0..3."""
    row = types.UniTuple(Lanes(images.dtype), 4)

    def lower(context, builder, sig, args):
        footprints = _Footprints(context, builder, sig.args[0], *args)
        fours = [[footprints.read(lane, j) for lane in range(LANES)] for j in range(4)]
        rows = [context.make_tuple(builder, row, _over_lanes(builder, four)) for four in fours]
        return context.make_tuple(builder, sig.return_type, rows)

    return types.UniTuple(row, 4)(images, types.intp, place), lower


@intrinsic
def add_rows(typingctx, images, pitch, place, rows):
    """Add number i of row j to pixel `place + j pitch + i` of every lane's image (LANES, pixels), i, j = 0..3."""

    def lower(context, builder, sig, args):
        footprints = _Footprints(context, builder, sig.args[0], *args[:3])
        for j, row in enumerate(cgutils.unpack_tuple(builder, args[3])):
            turned = [_whole(builder, x) for x in _turn(builder, cgutils.unpack_tuple(builder, row))]
            for lane, pixels in enumerate(_per_lane(builder, turned)):
                footprints.add(lane, j, pixels)
        return context.get_dummy_value()

    return types.void(images, types.intp, place, rows), lower


@intrinsic
def add_product(typingctx, images, pitch, place, w, h):
    """`add_rows` of h_j w_i, with one transpose in place of four: faster, as long as there is one product to add."""

    def lower(context, builder, sig, args):
        footprints = _Footprints(context, builder, sig.args[0], *args[:3])
        row, factors = (cgutils.unpack_tuple(builder, four) for four in args[3:])
        for lane, pixels in enumerate(_per_lane(builder, _turn(builder, row))):
            for j in range(4):
                factor = spread(builder, footprints.number(factors[j], lane), 4)
                footprints.add(lane, j, builder.fmul(factor, pixels))
        return context.get_dummy_value()

    return types.void(images, types.intp, place, w, h), lower


@intrinsic
def read_product(typingctx, images, pitch, place, w, h):
    """The transpose of `add_product`: numbers whose total is that of h_j w_i times pixel `place + j pitch + i`."""

    def lower(context, builder, sig, args):
        footprints = _Footprints(context, builder, sig.args[0], *args[:3])
        columns, factors = (cgutils.unpack_tuple(builder, four) for four in args[3:])
        parts = []
        # The total does not ask which number belongs to which lane: w is turned to the pixels, not all pixels to w.
        for k, row in enumerate(_turn(builder, columns)):
            lanes = range(k, LANES, 4)
            own = [lane for lane in lanes for _ in range(4)]
            terms = [
                builder.fmul(
                    shuffle(builder, factor, factor, own), joined(builder, [footprints.read(lane, j) for lane in lanes])
                )
                for j, factor in enumerate(factors)
            ]
            parts.append(builder.fmul(row, functools.reduce(builder.fadd, terms)))
        return functools.reduce(builder.fadd, parts)

    return Lanes(images.dtype)(images, types.intp, place, w, h), lower
