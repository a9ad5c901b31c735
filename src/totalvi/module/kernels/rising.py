"""Ratios of gamma functions inside compiled loops; `module.distributions` has them in torch."""

import numpy as np
from numba import prange

from totalvi.compiled import compiled
from totalvi.module.kernels.arithmetic import log, log1p

_BLOCK = 512  # genes that one thread works on
_SHIFT = 8  # from here on the series below are exact to float32
_LOG_FACTORIAL = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, 1024)))])


@compiled(error_model="numpy")
def _series(large: float, count: float) -> tuple[float, float]:
    """Return both functions for an r of at least 8, by Stirling's series and its derivative."""
    one = large / large  # of the type of large, so that all below is too
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
    """Return `rising` of a count above ``base``, from 8, by what it is there: no r need be raised."""
    one = r / r
    further = count - one * base
    log_ratio, difference = _series(r + one * base, further)
    log_ratio += rising_at_base + further * log1p(one * base / r)
    return log_ratio, digamma_at_base + difference


@compiled(error_model="numpy")
def log_factorial(count: float) -> float:
    """Return ``log count!``, also of counts with fractions."""
    whole = int(count)
    if whole < len(_LOG_FACTORIAL) and whole == count:
        return _LOG_FACTORIAL[whole]
    return rising(count / count, count)[0]


@compiled(error_model="numpy")
def _add_factor(
    r: np.ndarray, before: float, ratio: np.ndarray, difference: np.ndarray,
    next_ratio: np.ndarray, next_difference: np.ndarray,
) -> None:  # fmt: skip
    """Go on by one count: Gamma(c + r) = (c - 1 + r) Gamma(c - 1 + r), with c - 1 ``before``."""
    for g in range(len(r)):
        next_ratio[g] = ratio[g] + log1p(before / r[g])
        next_difference[g] = difference[g] + r.dtype.type(1) / (r[g] + before)


@compiled(parallel=True, error_model="numpy")
def rising_tables(r: np.ndarray, largest: int) -> tuple[np.ndarray, np.ndarray]:
    """Return both parts of `rising` of the counts up to ``largest``, by count and gene.

    Most non-zero counts are small, and there are far fewer pairs of gene and small count than there
    are non-zero counts in a minibatch.

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
