"""Elementary functions inside compiled loops, and numbers of 16 bits.

numba's own ``exp`` and ``log`` of float32 call the C library once an element; these are polynomials
that the compiler turns into vector instructions. float64 goes to the C library, which makes the same
kernels precise where tests ask for it.
"""

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

_F = np.float32
# inlined, or the loops around them would not become vector instructions; no reassociation, which
# would undo the error-free steps
_INLINE: dict[str, Any] = {"forceinline": True, "error_model": "numpy"}
_EXACT_ORDER = _INLINE | {"fastmath": {"contract", "nnan", "ninf", "nsz"}}


@intrinsic
def _as_integer(_context: Any, _x: Any) -> Any:
    """Return the bits of a float32 as an integer of 32 bits."""

    def generate(_backend: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.int32(types.float32), generate


@intrinsic
def _as_float(_context: Any, _i: Any) -> Any:
    """Return the float32 that has these bits."""

    def generate(_backend: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), generate


def exp(x: float) -> float:
    """Return e**x; in float32 between e**-87 and e**88, to 2 units in the last place."""
    return math.exp(x)


def log1p(x: float) -> float:
    """Return log(1 + x) for x >= 0, precise where x is small too."""
    return math.log1p(x)


def log(x: float) -> float:
    """Return log x for x that is positive and not subnormal."""
    return math.log(x)


def load(array: np.ndarray, row: int, column: int) -> float:
    """Return an element; one of a uint16 array is taken for a bfloat16."""
    value: Any = array[row, column]
    if array.dtype == np.uint16:
        value = (np.uint32(value) << np.uint32(16)).view(_F)
    result: float = value
    return result


def store(array: np.ndarray, row: int, column: int, value: float) -> None:
    """Set an element; in a uint16 array as a bfloat16, rounded to nearest even."""
    if array.dtype != np.uint16:
        array[row, column] = value
    else:
        bits = int(_F(value).view(np.uint32))
        array[row, column] = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16


@overload(exp, jit_options=_EXACT_ORDER)
def _exp(x: Any) -> Any:
    if x != types.float32:

        def exp64(x: Any) -> Any:
            return math.exp(x)

        return exp64

    def exp32(x: Any) -> Any:
        # e**x = 2**n e**r; n log 2 is taken off in two parts, the first of few bits (Cody and Waite)
        x = min(max(x, _F(-87.0)), _F(88.0))
        n = np.floor(x * _F(1.4426950408889634) + _F(0.5))
        r = (x - n * _F(0.693359375)) - n * _F(-2.12194440e-4)
        p = _F(1.9875691500e-4)
        p = p * r + _F(1.3981999507e-3)
        p = p * r + _F(8.3334519073e-3)
        p = p * r + _F(4.1665795894e-2)
        p = p * r + _F(1.6666665459e-1)
        p = p * r + _F(5.0000001201e-1)
        p = p * r * r + r + _F(1.0)
        return p * _as_float(np.int32(np.int32(np.int32(n) + np.int32(127)) << np.int32(23)))

    return exp32


@overload(log, jit_options=_EXACT_ORDER)
def _log(x: Any) -> Any:
    if x != types.float32:

        def log64(x: Any) -> Any:
            return math.log(x)

        return log64

    def log32(x: Any) -> Any:
        # x = 2**e m with m around 1
        bits = _as_integer(x)
        e = np.int32(np.int32(bits - np.int32(0x3F3504F3)) >> np.int32(23))
        z = _as_float(np.int32(bits - np.int32(e << np.int32(23)))) - _F(1.0)
        p = _F(7.0376836292e-2)
        p = p * z + _F(-1.1514610310e-1)
        p = p * z + _F(1.1676998740e-1)
        p = p * z + _F(-1.2420140846e-1)
        p = p * z + _F(1.4249322787e-1)
        p = p * z + _F(-1.6668057665e-1)
        p = p * z + _F(2.0000714765e-1)
        p = p * z + _F(-2.4999993993e-1)
        p = p * z + _F(3.3333331174e-1)
        z2 = z * z
        small = _F(e) * _F(-2.12194440e-4) + z * z2 * p - _F(0.5) * z2
        return small + z + _F(e) * _F(0.693359375)

    return log32


@overload(log1p, jit_options=_EXACT_ORDER)
def _log1p(x: Any) -> Any:
    if x != types.float32:

        def log1p64(x: Any) -> Any:
            return math.log1p(x)

        return log1p64

    def log1p32(x: Any) -> Any:
        u = _F(1.0) + x
        lost = x - (u - _F(1.0))  # what rounding to u took from x
        return log(u) + lost / u

    return log1p32


@overload(load, jit_options=_INLINE)
def _load(array: Any, row: Any, column: Any) -> Any:
    if array.dtype != types.uint16:

        def load_as_is(array: Any, row: Any, column: Any) -> Any:
            return array[row, column]

        return load_as_is

    def load16(array: Any, row: Any, column: Any) -> Any:
        return _as_float(np.int32(np.int32(array[row, column]) << np.int32(16)))

    return load16


@overload(store, jit_options=_INLINE)
def _store(array: Any, row: Any, column: Any, value: Any) -> Any:
    if array.dtype != types.uint16:

        def store_as_is(array: Any, row: Any, column: Any, value: Any) -> None:
            array[row, column] = value

        return store_as_is

    def store16(array: Any, row: Any, column: Any, value: Any) -> None:
        bits = np.uint32(_as_integer(_F(value)))
        odd = (bits >> np.uint32(16)) & np.uint32(1)
        array[row, column] = np.uint16((bits + np.uint32(0x7FFF) + odd) >> np.uint32(16))

    return store16
