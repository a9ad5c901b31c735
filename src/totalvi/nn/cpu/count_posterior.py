"""The integrals over the log background given a count, for blocks of cells and proteins at a time.

The density of the log mean x = log(beta) given a count y of one component is, up to a constant, that of
N(m, s^2) times e^(xy) / (r + e^x)^(y + r). With d = x - x0, p = e^x0 / (r + e^x0) and N = y + r, it is

    exp(d y - d (x0 - m) / s^2 - d^2 / (2 s^2) - N log(1 + p (e^d - 1)))

times its value at x0, so one logarithm and one exponential give it at a node. It is analytic and
log-concave; sums over equal steps, the rule of trapezoids, converge at an exponential rate (Trefethen
and Weideman, 2014). x0 is near the mode, and the nodes reach to where the density is e^-14 of that.
"""

import math
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import prange, types
from numba.extending import intrinsic
from torch import Tensor

from totalvi.compiled import compiled

BLOCK = 64  # cells and proteins side by side; a constant, so that loops become vector instructions
_MOST_NODES = 128
_NEWTON_STEPS = 2
_DROP = 28.0  # twice the fall of the logarithm to where the nodes end
_LARGEST_STEP = 0.6
# Where in one array of work each value of a block begins: for several arrays, the compiler would have
# to ask each time whether they overlap.
(
    _COUNT, _MEAN, _SCALE, _LOG_R, _LOG_FACTOR, _LOGIT,
    _X, _P, _NOT_P, _N, _SLOPE, _HALF_PRECISION, _STEP, _N_STEPS, _D, _E, _RATIO,
    _SUM, _LEVEL, _RATE, _LOG_PROB, _OTHER_LEVEL, _OTHER_RATE, _OTHER_LOG_PROB,
) = range(0, 24 * BLOCK, BLOCK)  # fmt: skip
_WORK = 24 * BLOCK

# no reassociation, which would undo the error-free steps of the two functions below
_FAST: dict[str, Any] = {"error_model": "numpy", "fastmath": {"contract", "nnan", "ninf", "nsz"}}
_TO_INTEGER = 6755399441055744.0  # 1.5 2^52: once added, the last bits are the rounded number
_TO_INTEGER_BITS = 0x4338000000000000


@intrinsic  # type: ignore[untyped-decorator]
def _bits(_context: Any, _x: Any) -> Any:
    """Return the bits of a float64 as an integer."""

    def generate(_backend: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(64))

    return types.int64(types.float64), generate


@intrinsic  # type: ignore[untyped-decorator]
def _from_bits(_context: Any, _i: Any) -> Any:
    """Return the float64 that has these bits."""

    def generate(_backend: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.DoubleType())

    return types.float64(types.int64), generate


@compiled(forceinline=True, **_FAST)
def exp64(x: float) -> float:
    """Return e**x of a float64 between -700 and 700, to 2 units in the last place.

    Unlike the C library's, it becomes vector instructions. e**x = 2**n e**t, with n log 2 taken off in
    two parts, the first of few bits (Cody and Waite), and the Taylor series of e**t.
    """
    x = min(max(x, -700.0), 700.0)
    shifted = x * 1.4426950408889634 + _TO_INTEGER
    n = shifted - _TO_INTEGER
    t = (x - n * 6.93145751953125e-1) - n * 1.42860682030941723212e-6
    p = 1 / 479001600
    p = p * t + 1 / 39916800
    p = p * t + 1 / 3628800
    p = p * t + 1 / 362880
    p = p * t + 1 / 40320
    p = p * t + 1 / 5040
    p = p * t + 1 / 720
    p = p * t + 1 / 120
    p = p * t + 1 / 24
    p = p * t + 1 / 6
    p = p * t + 1 / 2
    p = p * t * t + t + 1.0
    value: float = _from_bits(_bits(p) + (_bits(shifted) << 52))
    return value


@compiled(forceinline=True, **_FAST)
def log64(x: float) -> float:
    """Return log x of a positive, not subnormal float64, to 2 units in the last place.

    x = 2**e m with m around 1, and log m = 2 artanh(w) with w = (m - 1) / (m + 1).
    """
    e = (_bits(x) - 0x3FE6A09E667F3BCD) >> 52
    m = _from_bits(_bits(x) - (e << 52))
    whole = _from_bits(e + _TO_INTEGER_BITS) - _TO_INTEGER
    w = (m - 1) / (m + 1)
    w2 = w * w
    p = 1 / 21
    p = p * w2 + 1 / 19
    p = p * w2 + 1 / 17
    p = p * w2 + 1 / 15
    p = p * w2 + 1 / 13
    p = p * w2 + 1 / 11
    p = p * w2 + 1 / 9
    p = p * w2 + 1 / 7
    p = p * w2 + 1 / 5
    p = p * w2 + 1 / 3
    small = 2 * w * w2 * p + whole * 1.90821492927058770002e-10
    value: float = whole * 6.93147180369123816490e-1 + (2 * w + small)
    return value


@compiled(**_FAST)
def _centre(w: np.ndarray) -> None:
    """Fill in the points x0 near the modes, what the nodes around them need, and how many these are.

    With u = x - log r, the mode is where N sigmoid(u) = y - (u - u0) / s^2. For a mode at u < 0,
    sigmoid(u) is near e^u, so the root is near that of Lambert's function W; the other modes follow by
    exchanging y and r and the sign of u. The start is the larger of two lower bounds, or nearly; from
    there Newton's method passes the root once and comes back fast. x0 need not be the mode.
    """
    for i in range(BLOCK):
        y, s, log_r = w[_COUNT + i], w[_SCALE + i], w[_LOG_R + i]
        r = exp64(log_r)
        variance, n, u0 = s * s, y + r, w[_MEAN + i] - log_r
        precision, pull = 1 / variance, variance * n
        is_above = variance * (y - n * 0.5) + u0 > 0
        bound = (-u0 if is_above else u0) + variance * (r if is_above else y)
        t = log64(pull) + bound
        softplus = max(t, 0.0) + log64(1 + exp64(-abs(t)))
        lambert = softplus * (1 - log64(1 + softplus) / (2 + softplus))  # Iacono and Boyd, 2017
        u = max(bound - pull, bound - lambert)
        u = -u if is_above else u
        for _ in range(_NEWTON_STEPS):  # both sides times s^2 (1 + e^-u)^2, for one division
            e = exp64(-u)
            change = ((variance * y - u + u0) * (1 + e) - pull) * (1 + e)
            u += change / (pull * e + (1 + e) * (1 + e))
        small = exp64(-abs(u))
        larger = 1 / (1 + small)
        curvature = n * larger * larger * small
        total = curvature + precision
        # the curvature falls by no more than e^-|d|, which bounds the fall of the logarithm from below
        room = 1 + math.sqrt(_DROP) / 3 * s
        reach = math.sqrt(_DROP * room / (curvature + precision * room))
        room = 1 + reach * (1 / 3)
        reach = math.sqrt(_DROP * room / (curvature + precision * room))
        room = 1 + reach * 0.5
        width = 2 * reach + room / (curvature + precision * room)  # further, for the mean of e^x
        w[_X + i], w[_N + i] = u + log_r, n
        w[_P + i] = larger if u > 0 else larger * small
        w[_NOT_P + i] = larger * small if u > 0 else larger
        w[_SLOPE + i], w[_HALF_PRECISION + i] = y - (u - u0) * precision, 0.5 * precision
        w[_STEP + i], w[_N_STEPS + i] = width, width * max(math.sqrt(total), 1 / _LARGEST_STEP)
        w[_D + i], w[_E + i] = -reach, exp64(-reach)
        w[_LOG_PROB + i] = (
            y * u - n * (max(u, 0.0) + log64(1 + small)) - (u - u0) * (u - u0) * 0.5 * precision
        )


@compiled(error_model="numpy")
def _n_steps(w: np.ndarray) -> int:
    """Return how many steps between nodes the block needs; what is no number needs none."""
    most = 1.0
    for i in range(BLOCK):
        if w[_N_STEPS + i] > most:
            most = w[_N_STEPS + i]
    return int(min(most, _MOST_NODES)) + 1


@compiled(**_FAST)
def _integrate(w: np.ndarray) -> None:
    """Fill in log p(y | component), E[beta | y] / E[beta] and E[rate | y] / E[rate] of one component.

    The first leaves out what both components share. Given b and y, the rate of the counts has mean
    (r + y) mu / (r + mu).
    """
    _centre(w)
    n_steps = _n_steps(w)
    for i in range(BLOCK):
        w[_STEP + i] /= n_steps
        w[_RATIO + i] = exp64(w[_STEP + i])
        w[_SUM + i] = w[_LEVEL + i] = w[_RATE + i] = 0.0
    for _ in range(n_steps + 1):
        for i in range(BLOCK):
            d, e = w[_D + i], w[_E + i]
            q = w[_NOT_P + i] + w[_P + i] * e  # 1 + p (e^d - 1)
            exponent = d * (w[_SLOPE + i] - w[_HALF_PRECISION + i] * d) - w[_N + i] * log64(q)
            density = exp64(exponent)
            w[_SUM + i] += density
            w[_LEVEL + i] += density * e
            w[_RATE + i] += density * e / q
            w[_D + i], w[_E + i] = d + w[_STEP + i], e * w[_RATIO + i]
    for i in range(BLOCK):
        s = w[_SCALE + i]
        w[_LOG_PROB + i] += log64(w[_SUM + i] * w[_STEP + i])
        over_expected = exp64(w[_X + i] - w[_MEAN + i] - 0.5 * s * s) / w[_SUM + i]
        w[_LEVEL + i] *= over_expected
        w[_RATE + i] *= over_expected * w[_N + i] * w[_NOT_P + i] * exp64(-w[_LOG_R + i])


@compiled(parallel=True, **_FAST)
def _count_integrals(
    count: np.ndarray, mean: np.ndarray, scale: np.ndarray, log_factor: np.ndarray,
    logit: np.ndarray, log_r: np.ndarray, log_background: np.ndarray, log_bayes_factor: np.ndarray,
    level: np.ndarray, foreground: np.ndarray, background: np.ndarray,
) -> None:  # fmt: skip
    """Fill in the last five from the others, all (B, T) float64.

    A block has cells of one protein, because it takes as many nodes as any of its counts needs.
    """
    n_cells, n_proteins = count.shape
    n_blocks = -(-n_cells // BLOCK)
    for block in prange(n_proteins * n_blocks):
        t, start = block // n_blocks, block % n_blocks * BLOCK
        w = np.empty(_WORK)
        for i in range(BLOCK):
            b = min(start + i, n_cells - 1)
            w[_COUNT + i], w[_MEAN + i], w[_SCALE + i] = count[b, t], mean[b, t], scale[b, t]
            w[_LOG_FACTOR + i], w[_LOGIT + i] = log_factor[b, t], logit[b, t]
            w[_LOG_R + i] = log_r[b, t]
        _integrate(w)
        for i in range(BLOCK):
            w[_OTHER_LOG_PROB + i], w[_OTHER_LEVEL + i] = w[_LOG_PROB + i], w[_LEVEL + i]
            w[_OTHER_RATE + i] = w[_RATE + i]
            w[_MEAN + i] += w[_LOG_FACTOR + i]
        _integrate(w)
        for i in range(min(BLOCK, n_cells - start)):
            b = start + i
            ratio = w[_LOG_PROB + i] - w[_OTHER_LOG_PROB + i]
            in_foreground = 1 / (1 + exp64(w[_LOGIT + i] - ratio))
            in_background = 1 / (1 + exp64(ratio - w[_LOGIT + i]))
            log_background[b, t], log_bayes_factor[b, t] = w[_OTHER_LOG_PROB + i], ratio
            level[b, t] = in_foreground * w[_LEVEL + i] + in_background * w[_OTHER_LEVEL + i]
            foreground[b, t], background[b, t] = w[_RATE + i], w[_OTHER_RATE + i]


def count_integrals(*values: Tensor) -> tuple[Tensor, ...]:
    """Return the integrals over the log background of `totalvi.nn.count_integrals`, each (B, T).

    ``values`` are, (B, T) or what broadcasts to it: the count, mean and standard deviation of the log
    background, log factor, background logit and log inverse dispersion.
    """
    shape = values[0].shape
    given = [value.double().expand(shape).contiguous().numpy() for value in values]
    results = [np.empty_like(given[0]) for _ in range(5)]
    _count_integrals(*given, *results)
    return tuple(map(torch.from_numpy, results))
