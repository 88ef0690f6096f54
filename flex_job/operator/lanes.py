"""Vectors of one number per image for Numba: a kernel written with them does the same for `LANES` images at once.

`Lanes` adds, subtracts, multiplies and compares with itself and with numbers, and comparisons join by `&`. The rest are
intrinsics: functions that write LLVM's instructions where they are called, unrolled over the lanes.

Numba keeps compiled kernels on disk as long as the *kernels'* file is unchanged: whoever changes this file or
`footprints` should also touch `cpu_kernels.py` (or delete `__pycache__`), else the old instructions stay in use.
"""

from __future__ import annotations

import operator

from llvmlite import ir
from numba import types
from numba.core.datamodel import PrimitiveModel, register_default
from numba.core.imputils import lower_builtin
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic

__all__ = [
    "LANES",
    "Lanes",
    "joined",
    "load",
    "load_rows",
    "pointer_to",
    "shuffle",
    "split",
    "spread",
    "store",
    "store_rows",
    "total",
    "where",
]

LANES = 16


class Lanes(types.Type):
    """`LANES` numbers of one dtype in a vector register (or in several: LLVM splits what the machine has not)."""

    def __init__(self, dtype: types.Type) -> None:
        self.dtype = dtype
        super().__init__(f"Lanes({dtype})")

    @property
    def key(self):
        return self.dtype


@register_default(Lanes)
class _LanesModel(PrimitiveModel):
    def __init__(self, manager, lanes: Lanes) -> None:
        bit = lanes.dtype == types.boolean
        super().__init__(manager, lanes, _vector(ir.IntType(1) if bit else manager[lanes.dtype].get_value_type()))


def _vector(element: ir.Type, count: int = LANES) -> ir.VectorType:
    return ir.VectorType(element, count)


def shuffle(builder: ir.IRBuilder, a: ir.Value, b: ir.Value, order: list[int]) -> ir.Value:
    """The numbers of two vectors, counted through, in a new order."""
    return builder.shuffle_vector(a, b, ir.Constant(_vector(ir.IntType(32), len(order)), order))


def spread(builder: ir.IRBuilder, number: ir.Value, count: int = LANES) -> ir.Value:
    """The vector that holds `number` in every lane."""
    empty = ir.Constant(_vector(number.type, count), ir.Undefined)
    first = builder.insert_element(empty, number, ir.Constant(ir.IntType(32), 0))
    return shuffle(builder, first, empty, [0] * count)


def joined(builder: ir.IRBuilder, parts: list[ir.Value]) -> ir.Value:
    """One vector of short ones, end to end."""
    while len(parts) > 1:
        order = list(range(2 * parts[0].type.count))
        parts = [shuffle(builder, a, b, order) for a, b in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


# -- arithmetic: vectors with vectors and with numbers --------------------------------------------------------------


def _common(a: types.Type, b: types.Type) -> Lanes | None:
    lanes = [x for x in (a, b) if isinstance(x, Lanes)]
    alike = all(x == lanes[0] or isinstance(x, types.Number) for x in (a, b)) if lanes else False
    return lanes[0] if alike else None


def _declare(op, compares: bool, emit) -> None:
    @infer_global(op)
    class _Typing(AbstractTemplate):
        def generic(self, args, kws):
            lanes = _common(*args) if len(args) == 2 else None
            if lanes is not None:
                number = [x if isinstance(x, Lanes) else lanes.dtype for x in args]
                return signature(Lanes(types.boolean) if compares else lanes, *number)
            return None

    def lower(context, builder, sig, args):
        vectors = [a if isinstance(t, Lanes) else spread(builder, a) for a, t in zip(args, sig.args, strict=True)]
        return emit(builder, *vectors)

    for pair in ((Lanes, Lanes), (Lanes, types.Number), (types.Number, Lanes)):
        lower_builtin(op, *pair)(lower)


def _by_kind(floats: str, integers: str):
    def emit(builder, a, b):
        whole = isinstance(a.type.element, ir.IntType)
        return getattr(builder, integers if whole else floats)(a, b)

    return emit


_declare(operator.add, False, _by_kind("fadd", "add"))
_declare(operator.iadd, False, _by_kind("fadd", "add"))
_declare(operator.sub, False, _by_kind("fsub", "sub"))
_declare(operator.mul, False, _by_kind("fmul", "mul"))
_declare(operator.and_, False, lambda builder, a, b: builder.and_(a, b))
# Ordered comparisons: false where a number is NaN.
_declare(operator.ge, True, lambda builder, a, b: builder.fcmp_ordered(">=", a, b))
_declare(operator.lt, True, lambda builder, a, b: builder.fcmp_ordered("<", a, b))


@intrinsic
def where(typingctx, mask, a, b):
    """`a` where `mask` holds, else `b`; one of the two may be a number."""
    lanes = _common(a, b)
    if lanes is None:
        return None

    def lower(context, builder, sig, args):
        chosen = [
            x if isinstance(t, Lanes) else spread(builder, x) for x, t in zip(args[1:], sig.args[1:], strict=True)
        ]
        return builder.select(args[0], *chosen)

    return lanes(mask, *[x if isinstance(x, Lanes) else lanes.dtype for x in (a, b)]), lower


@intrinsic
def split(typingctx, x):
    """Whole part (int32) and fraction of positive numbers."""
    whole = Lanes(types.int32)

    def lower(context, builder, sig, args):
        integer = builder.fptosi(args[0], _vector(ir.IntType(32)))
        fraction = builder.fsub(args[0], builder.sitofp(integer, args[0].type))
        return context.make_tuple(builder, sig.return_type, (integer, fraction))

    return types.Tuple((whole, x))(x), lower


@intrinsic
def total(typingctx, x):
    """Sum over the lanes."""

    def lower(context, builder, sig, args):
        vector, count = args[0], LANES
        while count > 1:
            count //= 2
            low, high = ([i + start for i in range(count)] for start in (0, count))
            vector = builder.fadd(shuffle(builder, vector, vector, low), shuffle(builder, vector, vector, high))
        return builder.extract_element(vector, ir.Constant(ir.IntType(32), 0))

    return x.dtype(x), lower


# -- memory -----------------------------------------------------------------------------------------------------------


def _address(context, builder, array_type, array, index):
    data = context.make_array(array_type)(context, builder, array).data
    return builder.gep(data, [index])


def pointer_to(builder: ir.IRBuilder, address: ir.Value, element: ir.Type, count: int) -> ir.Value:
    """An address as that of `count` neighbouring numbers."""
    return builder.bitcast(address, _vector(element, count).as_pointer())


@intrinsic
def load(typingctx, array, index):
    """The LANES neighbouring elements of a contiguous 1-D array from `index` on."""

    def lower(context, builder, sig, args):
        address = _address(context, builder, sig.args[0], args[0], args[1])
        element = address.type.pointee
        return builder.load(pointer_to(builder, address, element, LANES), align=context.get_abi_sizeof(element))

    return Lanes(array.dtype)(array, types.intp), lower


@intrinsic
def store(typingctx, array, index, x):
    """Write LANES neighbouring elements of a contiguous 1-D array."""

    def lower(context, builder, sig, args):
        address = _address(context, builder, sig.args[0], args[0], args[1])
        element = address.type.pointee
        builder.store(args[2], pointer_to(builder, address, element, LANES), align=context.get_abi_sizeof(element))
        return context.get_dummy_value()

    return types.void(array, types.intp, x), lower


def _rows(context, builder: ir.IRBuilder, array_type, array, first, rows, step, offset) -> list[ir.Value]:
    """Addresses of array[row * step + offset], row = first + lane; the last row again for lanes beyond it."""
    addresses = []
    for lane in range(LANES):
        row, last = builder.add(first, first.type(lane)), builder.sub(rows, rows.type(1))
        row = builder.select(builder.icmp_signed("<", row, last), row, last)
        addresses.append(_address(context, builder, array_type, array, builder.add(builder.mul(row, step), offset)))
    return addresses


@intrinsic
def load_rows(typingctx, array, first, rows, step, offset):
    """Over the lanes: array[(first + lane) * step + offset]; lanes beyond the last of `rows` hold the last again."""

    def lower(context, builder, sig, args):
        result = ir.Constant(_vector(context.get_value_type(array.dtype)), ir.Undefined)
        for lane, address in enumerate(_rows(context, builder, sig.args[0], *args)):
            result = builder.insert_element(result, builder.load(address), ir.IntType(32)(lane))
        return result

    return Lanes(array.dtype)(array, *[types.intp] * 4), lower


@intrinsic
def store_rows(typingctx, array, first, rows, step, offset, x):
    """array[(first + lane) * step + offset] = x in every lane that has a row."""

    def lower(context, builder, sig, args):
        addresses = _rows(context, builder, sig.args[0], *args[:5])
        for lane in reversed(range(LANES)):  # lanes beyond the last row write there first, its own lane last
            builder.store(builder.extract_element(args[5], ir.IntType(32)(lane)), addresses[lane])
        return context.get_dummy_value()

    return types.void(array, *[types.intp] * 4, x), lower
