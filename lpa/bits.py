"""Rows of voxels as 64-bit masks: the few operations that numba does not offer, and how kernels are compiled.

One comparison of 64 neighbouring voxels gives one 64-bit word, bit ``k`` for voxel ``k``::

    left    . . 1 1 1 . 2 2 . . .           (64 voxels; "." is 0)
    right   . 1 1 1 . . 2 1 . . .
    equal   1 0 1 1 0 1 1 0 1 1 1           -> one machine word, lowest bit first

Everything after that (where runs start, where rows touch, which contacts are news) is arithmetic on such words.
``equal_bits`` is a vector comparison in LLVM's own terms: it becomes one instruction on AVX-512 and a few on AVX2, SSE2
or NEON. Kernels index arrays with unsigned integers: for signed ones numba provides for Python's negative indices.
numba's cache watches only the file that holds a kernel: after an edit to what is inlined, touch its callers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

Kernel = TypeVar("Kernel", bound=Callable[..., Any])

WORD = ir.IntType(64)
OPTIONS: dict[str, Any] = {"nogil": True, "boundscheck": False, "error_model": "numpy"}


def kernel(function: Kernel) -> Kernel:
    """Compile with numba: runs without the GIL; the machine code is cached on disk where that is possible."""
    try:
        return cast(Kernel, njit(cache=True, **OPTIONS)(function))
    except RuntimeError:  # neither the package folder nor the user's cache folder can be written
        return cast(Kernel, njit(**OPTIONS)(function))


def inlined(function: Kernel) -> Kernel:
    """Compile into the caller: a real call would count references of every array argument, at several ns each."""
    return cast(Kernel, njit(forceinline=True, **OPTIONS)(function))


@intrinsic  # type: ignore[untyped-decorator, unused-ignore]
def equal_bits(typing_context: Any, left: Any, i: Any, right: Any, j: Any) -> Any:
    """``equal_bits(left, i, right, j)``: bit ``k`` of the uint64 is ``left.flat[i + k] == right.flat[j + k]``.

    Both arrays are C-contiguous and of one dtype; neither index is checked.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        def load(kind: Any, array: Any, index: Any) -> Any:
            vector = ir.VectorType(context.get_data_type(kind.dtype), 64)
            first = builder.gep(context.make_array(kind)(context, builder, array).data, [index])
            voxels = builder.load(builder.bitcast(first, vector.as_pointer()))
            voxels.align = kind.dtype.bitwidth // 8
            return voxels

        a = load(signature.args[0], arguments[0], arguments[1])
        b = load(signature.args[2], arguments[2], arguments[3])
        return builder.bitcast(builder.icmp_unsigned("==", a, b), WORD)

    return types.uint64(left, types.int64, right, types.int64), generate


@intrinsic  # type: ignore[untyped-decorator, unused-ignore]
def nonzero_bits(typing_context: Any, array: Any, i: Any) -> Any:
    """``nonzero_bits(array, i)``: bit ``k`` of the uint64 is ``array.flat[i + k] != 0``; the index is not checked."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = signature.args[0]
        vector = ir.VectorType(context.get_data_type(kind.dtype), 64)
        first = builder.gep(context.make_array(kind)(context, builder, arguments[0]).data, [arguments[1]])
        voxels = builder.load(builder.bitcast(first, vector.as_pointer()))
        voxels.align = kind.dtype.bitwidth // 8
        return builder.bitcast(builder.icmp_unsigned("!=", voxels, ir.Constant(vector, None)), WORD)

    return types.uint64(array, types.int64), generate


@intrinsic  # type: ignore[untyped-decorator, unused-ignore]
def lowest_bit(typing_context: Any, word: Any) -> Any:
    """Return the position of the lowest set bit of a uint64 that is not 0, as int64."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(WORD, [WORD, ir.IntType(1)])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.cttz.i64")
        return builder.call(function, [arguments[0], ir.Constant(ir.IntType(1), 1)])

    return types.int64(types.uint64), generate


@intrinsic  # type: ignore[untyped-decorator, unused-ignore]
def count_bits(typing_context: Any, word: Any) -> Any:
    """Return the number of set bits of a uint64, as int64."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(WORD, [WORD])
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.ctpop.i64"), arguments)

    return types.int64(types.uint64), generate


@intrinsic  # type: ignore[untyped-decorator, unused-ignore]
def store_first(typing_context: Any, array: Any, i: Any, value: Any, count: Any) -> Any:
    """``store_first(array, i, value, count)``: ``array.flat[i : i + count] = value`` for ``count`` up to 16.

    One instruction on AVX-512, two on AVX2; nothing beyond is read or written. The index is not checked.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = signature.args[0]
        element = context.get_data_type(kind.dtype)
        vector, lanes = ir.VectorType(element, 16), ir.VectorType(ir.IntType(1), 16)
        first = builder.gep(context.make_array(kind)(context, builder, arguments[0]).data, [arguments[1]])
        pointer = builder.bitcast(first, vector.as_pointer())
        single = builder.insert_element(ir.Constant(vector, ir.Undefined), arguments[2], ir.IntType(32)(0))
        splat = builder.shuffle_vector(single, single, ir.Constant(ir.VectorType(ir.IntType(32), 16), None))
        bits = builder.sub(builder.shl(WORD(1), arguments[3]), WORD(1))
        mask = builder.bitcast(builder.trunc(bits, ir.IntType(16)), lanes)
        suffix = f"v16i{kind.dtype.bitwidth}.p0"
        store = ir.FunctionType(ir.VoidType(), [vector, vector.as_pointer(), ir.IntType(32), lanes])
        function = cgutils.get_or_insert_function(builder.module, store, f"llvm.masked.store.{suffix}")
        builder.call(function, [splat, pointer, ir.IntType(32)(kind.dtype.bitwidth // 8), mask])
        return context.get_dummy_value()

    return types.void(array, types.int64, array.dtype, types.int64), generate
