"""Elementary functions for compiled loops, and 16-bit numbers.

numba's own ``exp`` and ``log`` of float32 call the C library for each element. These are
polynomials that the compiler turns into vector instructions. float64 uses the C library, so that
tests can run the same loops with full precision.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import prange, types
from numba.extending import intrinsic, overload
from torch import Tensor

from totalvi.compiled import Function, compiled

# numba has no types for these two.
_intrinsic: Callable[[Any], Callable[..., Any]] = intrinsic
_overload: Callable[..., Callable[[Function], Function]] = overload

_F = np.float32
# Inlined, because otherwise the loops around them would not become vector instructions. Without
# reassociation, which would undo the error-free steps.
_INLINE: dict[str, Any] = {"forceinline": True, "error_model": "numpy"}
_EXACT_ORDER = _INLINE | {"fastmath": {"contract", "nnan", "ninf", "nsz"}}


@_intrinsic
def _as_integer(_context: Any, _x: Any) -> Any:
    """Return the bits of a float32 as a 32-bit integer."""

    def generate(_backend: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.int32(types.float32), generate


@_intrinsic
def _as_float(_context: Any, _i: Any) -> Any:
    """Return the float32 with these bits."""

    def generate(_backend: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), generate


def exp(x: float) -> float:
    """Return e**x; in float32 between e**-87 and e**88, to 2 units in the last place."""
    return math.exp(x)


def log1p(x: float) -> float:
    """Return log(1 + x) for x >= 0, also precise for small x."""
    return math.log1p(x)


def log(x: float) -> float:
    """Return log x for x that is positive and not subnormal."""
    return math.log(x)


def load(array: np.ndarray, row: int, column: int) -> float:
    """Return an element; uint16 arrays hold bfloat16."""
    value: Any = array[row, column]
    if array.dtype == np.uint16:
        value = (np.uint32(value) << np.uint32(16)).view(_F)
    result: float = value
    return result


def store(array: np.ndarray, row: int, column: int, value: float) -> None:
    """Set an element; uint16 arrays hold bfloat16, rounded to nearest even."""
    if array.dtype != np.uint16:
        array[row, column] = value
    else:
        bits = int(_F(value).view(np.uint32))
        array[row, column] = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16


def _in_float32(function: Function, single: Function) -> None:
    """Compile ``function`` as ``single`` where its argument is a float32, and else as it is."""

    @_overload(function, jit_options=_EXACT_ORDER, strict=False)  # annotations may differ
    def _choose(x: Any) -> Any:
        return single if x == types.float32 else function


def _exp32(x: Any) -> Any:
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


def _log32(x: Any) -> Any:
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


def _log1p32(x: Any) -> Any:
    u = _F(1.0) + x
    lost = x - (u - _F(1.0))  # what rounding to u took from x
    return log(u) + lost / u


_in_float32(exp, _exp32)
_in_float32(log, _log32)
_in_float32(log1p, _log1p32)


@_overload(load, jit_options=_INLINE)
def _load(array: Any, row: Any, column: Any) -> Any:
    if array.dtype != types.uint16:

        def load_as_is(array: Any, row: Any, column: Any) -> Any:
            return array[row, column]

        return load_as_is

    def load16(array: Any, row: Any, column: Any) -> Any:
        return _as_float(np.int32(np.int32(array[row, column]) << np.int32(16)))

    return load16


@_overload(store, jit_options=_INLINE)
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


_BLOCK = 512  # number of genes of one thread
_SHIFT = 8  # from this value on, the series below are exact to float32
_LOG_FACTORIAL = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, 1024)))])


@compiled(error_model="numpy")
def _series(large: float, count: float) -> tuple[float, float]:
    """Return both functions for an r of at least 8, by Stirling's series and its derivative."""
    one = large / large  # of the same type as large, so that all values below are too
    total = large + count
    a, b = one / total, one / large
    logarithm = log1p(count * b)
    rising = (
        (total - one * 0.5) * logarithm
        - count
        + (a - b) * (one / 12)
        - (a * a * a - b * b * b) * (one / 360)
    )
    a2, b2 = a * a, b * b
    digamma = logarithm - (a - b) / 2 - (a2 - b2) * (one / 12) + (a2 * a2 - b2 * b2) * (one / 120)
    return rising, digamma


@compiled(error_model="numpy")
def rising(r: float, count: float) -> tuple[float, float]:
    """Return ``log Gamma(count + r) - log Gamma(r) - count log r``, and its digamma's difference.

    The latter is ``digamma(count + r) - digamma(r)``. Below 8, r is first raised by 8 with
    ``Gamma(x + 1) = x Gamma(x)``.
    """
    if r >= _SHIFT:
        return _series(r, count)
    one = r / r
    log_ratio, difference = _series(r + one * _SHIFT, count)
    first, second = one, one
    for k in range(4):
        first *= (r + count + k * one) / (r + k * one)
        second *= (r + count + (k + 4) * one) / (r + (k + 4) * one)
    for k in range(_SHIFT):
        difference += one / (r + k * one) - one / (r + count + k * one)
    log_ratio += count * log1p(one * _SHIFT / r) - log(first) - log(second)
    return log_ratio, difference


@compiled(error_model="numpy")
def rising_beyond(
    r: float, base: int, rising_at_base: float, digamma_at_base: float, count: float
) -> tuple[float, float]:
    """Return `rising` of a count above ``base``, which is at least 8, from its value at ``base``."""
    one = r / r
    further = count - one * base
    log_ratio, difference = _series(r + one * base, further)
    log_ratio += rising_at_base + further * log1p(one * base / r)
    return log_ratio, digamma_at_base + difference


@compiled(error_model="numpy")
def log_factorial(count: float) -> float:
    """Return ``log count!``, also for fractional counts."""
    whole = int(count)
    if whole < len(_LOG_FACTORIAL) and whole == count:
        value: float = _LOG_FACTORIAL[whole]
        return value
    return rising(count / count, count)[0]


@compiled(error_model="numpy")
def _add_factor(
    r: np.ndarray, before: float, ratio: np.ndarray, difference: np.ndarray,
    next_ratio: np.ndarray, next_difference: np.ndarray,
) -> None:  # fmt: skip
    """Advance by one count: Gamma(c + r) = (c - 1 + r) Gamma(c - 1 + r), with c - 1 ``before``."""
    for g in range(len(r)):
        next_ratio[g] = ratio[g] + log1p(before / r[g])
        next_difference[g] = difference[g] + r.dtype.type(1) / (r[g] + before)


@compiled(parallel=True, error_model="numpy")
def rising_tables(r: np.ndarray, largest: int) -> tuple[np.ndarray, np.ndarray]:
    """Return both parts of `rising` of the counts up to ``largest``, by count and gene.

    Most non-zero counts are small. There are far fewer pairs of gene and small count than non-zero
    counts in a minibatch.

    Parameters
    ----------
    r
        Inverse dispersions (groups, G).

    Returns
    -------
    Two arrays (groups, largest + 1, G).
    """
    n_groups, n_genes = r.shape
    ratio = np.zeros((n_groups, largest + 1, n_genes), r.dtype)
    difference = np.zeros((n_groups, largest + 1, n_genes), r.dtype)
    n_blocks = -(-n_genes // _BLOCK)
    for part in prange(n_groups * n_blocks):
        k, start = part // n_blocks, part % n_blocks * _BLOCK
        block = slice(start, min(start + _BLOCK, n_genes))
        for count in range(1, largest + 1):
            _add_factor(
                r[k, block], r.dtype.type(count - 1), ratio[k, count - 1, block],
                difference[k, count - 1, block], ratio[k, count, block], difference[k, count, block],
            )  # fmt: skip
    return ratio, difference


def as_array(tensor: Tensor) -> np.ndarray:
    """Return a tensor as an array that shares its memory; bfloat16 as uint16, as `load` reads it."""
    if tensor.requires_grad:
        tensor = tensor.detach()
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
