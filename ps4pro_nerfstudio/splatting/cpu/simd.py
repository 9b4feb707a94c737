# SPDX-License-Identifier: Apache-2.0
"""An explicit SIMD vector type for numba kernels.

numba can only hope that LLVM vectorises a scalar loop. This module removes the
hope: it registers two numba types that *are* LLVM vectors, so every operation
below becomes one vector instruction (or two, where the CPU is narrower) and
LLVM picks AVX-512, AVX2, SSE or NEON for the machine it runs on.

Types
    VF  ``<LANES x float>``   a block of pixels
    VM  ``<LANES x i1>``      a mask over such a block

Operators ``+ - * /`` work on (VF, VF) and ``<= > >=`` return a VM. Mixing VF with
a scalar is a typing error on purpose; wrap the scalar in ``broadcast``. A mask read as an integer
(``mask_bits``) is walked with ``lowest_bit``.

All loads and stores are unchecked: no bounds test, no negative-index wrap.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core.typing.templates import AbstractTemplate, signature
from numba.core.typing.templates import infer_global as numba_infer_global
from numba.extending import intrinsic as numba_intrinsic
from numba.extending import lower_builtin, models, register_model

# Type checkers do not know that numba passes the first parameter of an intrinsic by itself, nor
# that its registries can be called.
intrinsic: Callable[..., Any] = numba_intrinsic
infer_global: Callable[..., Any] = numba_infer_global  # type: ignore[assignment]

LANES = 16

# Like numba's fastmath=True, spelled out because llvmlite builders take a tuple.
_FAST = ("reassoc", "nsz", "arcp", "contract", "afn", "nnan", "ninf")

_F32 = ir.FloatType()
_I32 = ir.IntType(32)
_VEC_F32 = ir.VectorType(_F32, LANES)
_VEC_I32 = ir.VectorType(_I32, LANES)
_VEC_I1 = ir.VectorType(ir.IntType(1), LANES)


class _FloatVector(types.Type):
    def __init__(self):
        super().__init__(name=f"f32x{LANES}")


class _MaskVector(types.Type):
    def __init__(self):
        super().__init__(name=f"i1x{LANES}")


VF = _FloatVector()
VM = _MaskVector()


@register_model(_FloatVector)
class _FloatVectorModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, _VEC_F32)


@register_model(_MaskVector)
class _MaskVectorModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, _VEC_I1)


# --------------------------------------------------------------------------- helpers


def _constant(value):
    """A vector constant holding one float32 value in every lane."""
    return ir.Constant(_VEC_F32, [float(np.float32(value))] * LANES)


def _indices(values):
    """A shuffle mask."""
    return ir.Constant(ir.VectorType(_I32, len(values)), list(values))


def _declare(builder, name, return_type, argument_types):
    """Declares an LLVM intrinsic once per module and returns it."""
    function = builder.module.globals.get(name)
    if function is None:
        function = ir.Function(builder.module, ir.FunctionType(return_type, argument_types), name)
    return function


def _element_pointer(context, builder, array_type, array, index):
    data = context.make_array(array_type)(context, builder, array).data
    return builder.gep(data, [index])


# --------------------------------------------------------------------------- scalar access


@intrinsic
def load_scalar(typingctx, array, index):
    """``array[index]`` of a contiguous 1-D array, unchecked."""

    def codegen(context, builder, signature, args):
        return builder.load(_element_pointer(context, builder, signature.args[0], args[0], args[1]))

    return array.dtype(array, types.intp), codegen


@intrinsic
def floor(typingctx, value):
    """``floor`` of a float32 as a float32; `math.floor` gives an integer."""

    def codegen(context, builder, signature, args):
        return builder.call(_declare(builder, "llvm.floor.f32", _F32, [_F32]), [args[0]])

    return types.float32(types.float32), codegen


def _prefetch(context, builder, signature, args, write):
    pointer = _element_pointer(context, builder, signature.args[0], args[0], args[1])
    pointer = builder.bitcast(pointer, ir.IntType(8).as_pointer())
    function = _declare(
        builder, "llvm.prefetch.p0", ir.VoidType(), [pointer.type, _I32, _I32, _I32]
    )
    # (address, 0 = read or 1 = write, 3 = keep in all levels, 1 = data)
    builder.call(function, [pointer, _I32(write), _I32(3), _I32(1)])
    return context.get_dummy_value()


@intrinsic
def prefetch(typingctx, array, index):
    """Asks the CPU to bring ``array[index]`` into its first-level cache."""

    def codegen(context, builder, signature, args):
        return _prefetch(context, builder, signature, args, 0)

    return types.void(array, types.intp), codegen


@intrinsic
def prefetch_for_write(typingctx, array, index):
    """The same for an element that will be written."""

    def codegen(context, builder, signature, args):
        return _prefetch(context, builder, signature, args, 1)

    return types.void(array, types.intp), codegen


@intrinsic
def align_stack(typingctx):
    """Aligns the stack frame of the calling function to whole vectors, and keeps it a function.

    Where registers run out, vectors are kept on the stack, which is aligned to 16 bytes only: then
    most of them straddle two cache lines, by chance of the process (20 to 40 % of the time).
    """

    def codegen(context, builder, signature, args):
        builder.function.attributes.add("noinline")
        builder.function.attributes.alignstack = 4 * LANES
        return context.get_dummy_value()

    return types.void(), codegen


# --------------------------------------------------------------------------- vector access


@intrinsic
def broadcast(typingctx, scalar):
    """One float32 copied to every lane."""

    def codegen(context, builder, signature, args):
        undefined = ir.Constant(_VEC_F32, ir.Undefined)
        first = builder.insert_element(undefined, args[0], _I32(0))
        return builder.shuffle_vector(first, undefined, _indices([0] * LANES))

    return VF(types.float32), codegen


@intrinsic
def load(typingctx, array, index):
    """``array[index : index + LANES]`` of a contiguous float32 array."""

    def codegen(context, builder, signature, args):
        pointer = _element_pointer(context, builder, signature.args[0], args[0], args[1])
        value = builder.load(builder.bitcast(pointer, _VEC_F32.as_pointer()))
        value.align = 4
        return value

    return VF(array, types.intp), codegen


@intrinsic
def store(typingctx, array, index, value):
    """``array[index : index + LANES] = value``."""

    def codegen(context, builder, signature, args):
        pointer = _element_pointer(context, builder, signature.args[0], args[0], args[1])
        instruction = builder.store(args[2], builder.bitcast(pointer, _VEC_F32.as_pointer()))
        instruction.align = 4
        return context.get_dummy_value()

    return types.void(array, types.intp, VF), codegen


# --------------------------------------------------------------------------- arithmetic


def _define_operator(python_operator, result, build):
    """Type and lower an operator on two VF directly; an overload would be compiled at every use."""

    @infer_global(python_operator)
    class _Template(AbstractTemplate):
        def generic(self, args, kws):
            return signature(result, VF, VF) if args == (VF, VF) and not kws else None

    @lower_builtin(python_operator, VF, VF)
    def _lower(context, builder, _signature, args):
        return build(builder, args[0], args[1])


def _define_arithmetic(python_operator, builder_method):
    def build(builder, left, right):
        return getattr(builder, builder_method)(left, right, flags=_FAST)

    _define_operator(python_operator, VF, build)


def _define_comparison(python_operator, symbol):
    def build(builder, left, right):
        return builder.fcmp_ordered(symbol, left, right)

    _define_operator(python_operator, VM, build)


_define_arithmetic(operator.add, "fadd")
_define_arithmetic(operator.sub, "fsub")
_define_arithmetic(operator.mul, "fmul")
_define_arithmetic(operator.truediv, "fdiv")
_define_comparison(operator.le, "<=")
_define_comparison(operator.gt, ">")
_define_comparison(operator.ge, ">=")


@intrinsic
def minimum(typingctx, left, right):
    """Lane-wise smaller value."""

    def codegen(context, builder, signature, args):
        smaller = builder.fcmp_ordered("<", args[0], args[1], flags=_FAST)
        return builder.select(smaller, args[0], args[1])

    return VF(VF, VF), codegen


@intrinsic
def maximum(typingctx, left, right):
    """Lane-wise larger value."""

    def codegen(context, builder, signature, args):
        larger = builder.fcmp_ordered(">", args[0], args[1], flags=_FAST)
        return builder.select(larger, args[0], args[1])

    return VF(VF, VF), codegen


@intrinsic
def absolute(typingctx, value):
    """Lane-wise absolute value."""

    def codegen(context, builder, signature, args):
        function = _declare(builder, f"llvm.fabs.v{LANES}f32", _VEC_F32, [_VEC_F32])
        return builder.call(function, [args[0]])

    return VF(VF), codegen


@intrinsic
def exp_negative(typingctx, value):
    """``exp(-value)``; relative error about 1e-6 below x = 6, results below 2**-126 are flushed.

    Base-2 split: exp(-x) = 2**n * 2**f with n = round(-x / ln 2) and |f| <= 1/2.
    2**f is the best degree-5 polynomial (relative error 8e-8), 2**n is written straight into the
    exponent bits.
    """

    def codegen(context, builder, signature, args):
        scaled = builder.fmul(args[0], _constant(-1.442695041), flags=_FAST)
        in_range = builder.fcmp_ordered(">", scaled, _constant(-126))
        scaled = builder.select(in_range, scaled, _constant(-126))
        rint = _declare(builder, f"llvm.rint.v{LANES}f32", _VEC_F32, [_VEC_F32])
        whole = builder.call(rint, [scaled])
        fraction = builder.fsub(scaled, whole)
        power = _constant(1.3276455e-3)
        for coefficient in (9.67554e-3, 5.5507135e-2, 2.402212e-1, 6.9314694e-1, 1.0000001):
            power = builder.fmul(power, fraction, flags=_FAST)
            power = builder.fadd(power, _constant(coefficient), flags=_FAST)
        biased = builder.add(builder.fptosi(whole, _VEC_I32), ir.Constant(_VEC_I32, [127] * LANES))
        exponent_bits = builder.shl(biased, ir.Constant(_VEC_I32, [23] * LANES))
        return builder.fmul(power, builder.bitcast(exponent_bits, _VEC_F32), flags=_FAST)

    return VF(VF), codegen


# --------------------------------------------------------------------------- masks


@intrinsic
def both(typingctx, left, right):
    """Lane-wise logical and of two masks."""

    def codegen(context, builder, signature, args):
        return builder.and_(args[0], args[1])

    return VM(VM, VM), codegen


@intrinsic
def keep(typingctx, mask, value):
    """``value`` where the mask is set, zero elsewhere."""

    def codegen(context, builder, signature, args):
        return builder.select(args[0], args[1], _constant(0))

    return VF(VM, VF), codegen


@intrinsic
def choose(typingctx, mask, value, otherwise):
    """``value`` where the mask is set, ``otherwise`` elsewhere."""

    def codegen(context, builder, signature, args):
        return builder.select(args[0], args[1], args[2])

    return VF(VM, VF, VF), codegen


@intrinsic
def mask_bits(typingctx, mask):
    """The mask as an int64 whose bit i is lane i."""

    def codegen(context, builder, signature, args):
        bits = builder.bitcast(args[0], ir.IntType(LANES))
        return builder.zext(bits, ir.IntType(64))

    return types.int64(VM), codegen


@intrinsic
def lowest_bit(typingctx, bits):
    """Index of the lowest set bit of a non-zero int64."""

    def codegen(context, builder, signature, args):
        wide = ir.IntType(64)
        function = _declare(builder, "llvm.cttz.i64", wide, [wide, ir.IntType(1)])
        return builder.call(function, [args[0], ir.IntType(1)(1)])

    return types.int64(types.int64), codegen


@intrinsic
def any_lane(typingctx, mask):
    """True when at least one lane of the mask is set.

    The mask is read as one LANES-bit integer. Should that be slow on ARM, use
    llvm.vector.reduce.or instead.
    """

    def codegen(context, builder, signature, args):
        as_integer = ir.IntType(LANES)
        bits = builder.bitcast(args[0], as_integer)
        return builder.icmp_unsigned("!=", bits, ir.Constant(as_integer, 0))

    return types.boolean(VM), codegen


# --------------------------------------------------------------------------- reduction


@intrinsic
def store_four_sums(typingctx, array, index, a, b, c, d):
    """``array[index : index + 4] = [sum(a), sum(b), sum(c), sum(d)]``.

    A 4 x 4 transpose-and-add inside every group of four lanes, then log2(LANES / 4)
    halvings: about a third of the instructions of four separate reductions.
    """

    def codegen(context, builder, signature, args):
        a, b, c, d = args[2:]
        groups = range(0, LANES, 4)
        low = [k for g in groups for k in (g, g + LANES, g + 1, g + 1 + LANES)]
        high = [k for g in groups for k in (g + 2, g + 2 + LANES, g + 3, g + 3 + LANES)]
        even = [k for g in groups for k in (g, g + 1, g + LANES, g + 1 + LANES)]
        odd = [k for g in groups for k in (g + 2, g + 3, g + 2 + LANES, g + 3 + LANES)]

        def shuffle_add(left, right, first, second):
            return builder.fadd(
                builder.shuffle_vector(left, right, _indices(first)),
                builder.shuffle_vector(left, right, _indices(second)),
                flags=_FAST,
            )

        pairs_ab = shuffle_add(a, b, low, high)
        pairs_cd = shuffle_add(c, d, low, high)
        total = shuffle_add(pairs_ab, pairs_cd, even, odd)
        width = LANES
        while width > 4:
            width //= 2
            total = shuffle_add(total, total, range(width), range(width, 2 * width))
        pointer = _element_pointer(context, builder, signature.args[0], args[0], args[1])
        instruction = builder.store(total, builder.bitcast(pointer, total.type.as_pointer()))
        instruction.align = 4
        return context.get_dummy_value()

    return types.void(array, types.intp, VF, VF, VF, VF), codegen
