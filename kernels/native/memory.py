"""Numbers at addresses, for kernels that numba compiles: views, loads and roundings in three dtypes, and a barrier.

A kernel gets addresses and sizes as 64-bit integers, so that one compiled function serves every tensor of a dtype. numba knows no 16-bit
floats: their bits are read as integers. Where a function takes `like`, that is any number of the type that stands for the element's dtype:
float32 for itself, uint16 for bfloat16, int16 for float16.
"""

import numpy as np
from llvmlite import ir
from numba import carray, njit, types
from numba.extending import intrinsic, overload

FAST = {"reassoc", "contract", "arcp", "nsz"}
"""What the compiler may do with float32: order sums anew, as vector units need. It may not assume that nothing is NaN or infinite."""


PATIENCE = 20000
"""Looks at a counter, some microseconds, after which a thread that waits lets others run."""


@intrinsic
def pointer(typing, address):
    """Return an address as a pointer."""

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(types.voidptr))

    return types.voidptr(types.intp), generate


def view(address, count, like):
    """Return the array of `count` elements at `address`; only in compiled code."""
    raise NotImplementedError


@overload(view)
def _view(address, count, like):
    dtype = like

    def implement(address, count, like):
        return carray(pointer(address), (count,), dtype)

    return implement


@intrinsic
def _bits_to_float(typing, bits):
    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.uint32), generate


@intrinsic
def float_bits(typing, number):
    """Return the bits of a float32."""

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.uint32(types.float32), generate


def wide(x):
    """Return an element as float32; only in compiled code."""
    raise NotImplementedError


@intrinsic
def _half_to_float(typing, bits):
    def generate(context, builder, signature, arguments):
        return builder.fpext(builder.bitcast(arguments[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.int16), generate


@intrinsic
def _float_to_half(typing, number):
    def generate(context, builder, signature, arguments):
        return builder.bitcast(builder.fptrunc(arguments[0], ir.HalfType()), ir.IntType(16))

    return types.int16(types.float32), generate


@overload(wide)
def _wide(x):
    if x == types.float32:
        return lambda x: x
    if x == types.int16:
        return lambda x: _half_to_float(x)
    return lambda x: _bits_to_float(np.uint32(np.uint32(x) << np.uint32(16)))


def size_of(like):
    """Return the bytes of an element; only in compiled code."""
    raise NotImplementedError


@overload(size_of)
def _size_of(like):
    size = 4 if like == types.float32 else 2
    return lambda like: size


def narrow(x, like):
    """Return a float32 as an element, rounded to the nearest, ties to even; only in compiled code."""
    raise NotImplementedError


@overload(narrow)
def _narrow(x, like):
    if like == types.float32:
        return lambda x, like: x
    if like == types.int16:
        return lambda x, like: _float_to_half(x)

    def implement(x, like):
        bits = float_bits(x)
        if x != x:
            return np.uint16((bits >> np.uint32(16)) | np.uint32(0x40))  # rounding could turn a NaN into infinity
        return np.uint16(np.uint32(bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))

    return implement


def rounded(x, like):
    """Return a float32 rounded to the precision of the element's type; only in compiled code."""
    raise NotImplementedError


@overload(rounded)
def _rounded(x, like):
    if like == types.float32:
        return lambda x, like: x
    return lambda x, like: wide(narrow(x, like))


@njit(fastmath=False, error_model="numpy")  # a caller's fast-math, which is inherited otherwise, would undo the rounding
def exp2(x):
    """Return 2 ** x for x <= 0, to 2e-7 of itself."""
    x = max(x, np.float32(-126.0)) if x == x else x
    shifted = x + np.float32(12582912.0)  # 1.5 * 2 ** 23: the nearest whole number is now in the low bits
    f = x - (shifted - np.float32(12582912.0))
    p = np.float32(1.5252734e-5)
    p = p * f + np.float32(1.5403530e-4)
    p = p * f + np.float32(1.3333558e-3)
    p = p * f + np.float32(9.6181291e-3)
    p = p * f + np.float32(5.5504109e-2)
    p = p * f + np.float32(2.4022651e-1)
    p = p * f + np.float32(6.9314718e-1)
    p = p * f + np.float32(1.0)
    return p * _bits_to_float(np.uint32((float_bits(shifted) + np.uint32(127)) << np.uint32(23)))


@intrinsic
def add_atomically(typing, address, amount):
    """Add to the int64 at `address` and return what it was."""

    def generate(context, builder, signature, arguments):
        pointer = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", pointer, arguments[1], "seq_cst")

    return types.int64(types.intp, types.int64), generate


@intrinsic
def load_atomically(typing, address):
    """Return the int64 at `address`."""

    def generate(context, builder, signature, arguments):
        pointer = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
        return builder.load_atomic(pointer, "seq_cst", 8)

    return types.int64(types.intp), generate


@intrinsic
def call(typing, function, thread, arguments):
    """Call the C function at an address with two integers."""

    def generate(context, builder, signature, values):
        word = ir.IntType(64)
        kind = ir.FunctionType(ir.VoidType(), [word, word])
        builder.call(builder.inttoptr(values[0], kind.as_pointer()), values[1:])
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp), generate


sched_yield = types.ExternalFunction("sched_yield", types.int32())
sem_wait = types.ExternalFunction("sem_wait", types.int32(types.intp))
sem_post = types.ExternalFunction("sem_post", types.int32(types.intp))


@njit(error_model="numpy")
def wait_for_all(counter, threads):
    """Wait until all `threads` have come here. `counter`: address of an int64 that only grows."""
    if threads > 1:
        goal = (add_atomically(counter, 1) // threads + 1) * threads
        spins = 0
        while load_atomically(counter) < goal:
            spins += 1
            if spins > PATIENCE:
                sched_yield()  # some thread has no core


@njit(error_model="numpy")
def part_of(count, thread, threads, grain):
    """Return the first and last + 1 of `count` items that a thread takes, in multiples of `grain`."""
    blocks = (count + grain - 1) // grain
    return min(count, blocks * thread // threads * grain), min(count, blocks * (thread + 1) // threads * grain)
