"""Numba helpers that the kernels of several domains share: bits, memory, random words, rewards.

Numba inlines all of them into the kernels that call them, and nothing here knows a puzzle. A kernel
may use an array of its caller as `borrowed`; numba then does not count references to it.
"""
# mypy: ignore-errors

from typing import Final

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from plan_envs.instances import mix

GAMMA: Final = np.uint64(0x9E3779B97F4A7C15)
"""The step of a splitmix64 state (Steele, Lea, Flood 2014)."""

EVERY_BYTE: Final = np.uint64(0x0101010101010101)
TOP_BITS: Final = np.uint64(0x8080808080808080)


@intrinsic
def popcount(typingctx, bits):
    """Number of set bits (the machine's instruction)."""

    def codegen(context, builder, signature, args):
        return builder.zext(builder.ctpop(builder.trunc(args[0], ir.IntType(32))), args[0].type)

    return types.int64(types.int64), codegen


@intrinsic
def lowest(typingctx, bits):
    """Index of the lowest set bit of a set that is not empty."""

    def codegen(context, builder, signature, args):
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.int64), codegen


@intrinsic
def borrowed(typingctx, array):
    """An array, or a tuple of arrays, without reference counts, which the kernel's caller holds.

    An array that the kernel itself allocates must not be borrowed: nothing would keep it alive.

    Numba counts references of every array that a helper touches, atomically, also in inlined ones;
    that took half of a step.
    """

    def borrow(context, builder, kind, value):
        if isinstance(kind, types.BaseTuple):
            parts = zip(kind, cgutils.unpack_tuple(builder, value), strict=True)
            loans = [borrow(context, builder, part, item) for part, item in parts]
            return context.make_tuple(builder, kind, loans)
        if not isinstance(kind, types.Array):
            return value
        view = context.make_array(kind)(context, builder, value=value)
        view.meminfo = cgutils.get_null_value(view.meminfo.type)
        view.parent = cgutils.get_null_value(view.parent.type)
        return view._getvalue()

    def codegen(context, builder, signature, args):
        return borrow(context, builder, signature.args[0], args[0])

    return array(array), codegen


@intrinsic
def copy_bytes(typingctx, target, to, source, start, count):
    """One memcpy between contiguous arrays, places in bytes; slices would copy byte by byte."""

    def codegen(context, builder, signature, args):
        first = []
        for kind, array, place in zip(signature.args[:4:2], args[:4:2], args[1:4:2], strict=True):
            data = context.make_array(kind)(context, builder, value=array).data
            first.append(builder.gep(builder.bitcast(data, cgutils.voidptr_t), [place]))
        cgutils.raw_memcpy(builder, *first, args[4], 1)
        return context.get_dummy_value()

    return types.void(target, types.int64, source, types.int64, types.int64), codegen


@intrinsic
def prefetch(typingctx, array, place):
    """Ask for the cache line at a place of an array of bytes, which may lie behind its end."""

    def codegen(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, value=args[0]).data
        line = builder.gep(builder.bitcast(data, cgutils.voidptr_t), [args[1]])
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, number, number, number])
        hint = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        builder.call(hint, [line, *(ir.Constant(number, value) for value in (1, 3, 1))])
        return context.get_dummy_value()

    return types.void(array, types.int64), codegen


@njit(cache=True, forceinline=True)
def count_ones(data, start, stop):
    """Sum of 0/1 bytes; unsigned places let the loop run on vectors."""
    total = np.int64(0)
    for i in range(np.uint64(start), np.uint64(stop)):
        total += data[i]
    return total


@intrinsic
def word_at(typingctx, data, place):
    """Eight bytes from a place on, the first of them lowest."""

    def codegen(context, builder, signature, args):
        first = context.make_array(signature.args[0])(context, builder, value=args[0]).data
        word = builder.bitcast(builder.gep(first, [args[1]]), ir.IntType(64).as_pointer())
        return builder.load(word, align=1)

    return types.uint64(data, types.int64), codegen


@intrinsic
def ones_of(typingctx, word):
    """Number of set bits of a word: of 0/1 bytes, how many are 1."""

    def codegen(context, builder, signature, args):
        return builder.ctpop(args[0])

    return types.int64(types.uint64), codegen


@njit(cache=True, forceinline=True)
def word_before(data, place, end):
    """Up to eight bytes from a place on, 0 from `end` on; eight bytes lie before the end."""
    if place + 8 <= end:
        return word_at(data, place)
    return word_at(data, end - 8) >> np.uint64(8 * (place + 8 - end))


@njit(cache=True, forceinline=True)
def place_of_one(word, rank):
    """Index of the byte of a word of 0/1 bytes that has `rank` ones before it and is 1."""
    up_to = word * EVERY_BYTE  # byte j: ones in bytes 0..j, at most 8
    beyond = ((up_to | TOP_BITS) - np.uint64(rank + 1) * EVERY_BYTE) & TOP_BITS
    return 8 - ones_of(beyond)


@njit(cache=True, forceinline=True)
def next_word(states, at):
    """Advance the splitmix64 state at a place; the arithmetic of `plan_envs.engine.splitmix`."""
    state = np.uint64(states[at]) + GAMMA
    states[at] = np.int64(state)
    return mix(state)


@njit(cache=True, forceinline=True)
def below(word, bound):
    """Uniform integer in 0..bound - 1 from a random word; `bound` < 2**32."""
    return np.int64(((word >> np.uint64(32)) * np.uint64(bound)) >> np.uint64(32))


@njit(cache=True)
def draw_below(rng, bound):
    """Uniform integer in 0..bound - 1; advances the splitmix64 state `rng[0]`."""
    return below(next_word(rng, 0), bound)


@njit(cache=True)
def split_of_word(word):
    """Index into `SPLITS` from a random word: 0 with 8 parts of 10, 1 and 2 with one each."""
    return max(np.int64(word % np.uint64(10)) - 7, 0)


@njit(cache=True, forceinline=True)
def phi(score, top):
    """Potential, clip(score, 0, top) / top."""
    return min(max(score, 0), top) / top


@njit(cache=True, forceinline=True)
def folded(solved, absorbed, before, after, gamma, shaped):
    """Reward of an edit, `plan_envs.domain.edit_reward` in the same order of operations."""
    base = 1.0 if solved else 0.0
    if not shaped:
        return base
    return base + (0.0 if absorbed else gamma * after) - before
