"""Loops over the genes of one cell for the losses of RNA, and sums of RNA proportions."""

import numpy as np
from numba import prange
from torch import Tensor

from totalvi.compiled import compiled
from totalvi.nn.cell import LinearProduct
from totalvi.nn.cpu.math import (
    as_array,
    exp,
    load,
    log,
    log_factorial,
    rising,
    rising_beyond,
    rising_tables,
    store,
)

# Chunks of cells; their fixed number makes results independent of the number of threads.
N_CHUNKS = 16
_LARGEST_TABLED = 16
_SMALLEST_BASE = 8  # of `rising_beyond`
_LANES = 64
_PROPORTION_CHUNKS = 64  # of cells


def tables(r: np.ndarray, n_nonzero: int) -> tuple[np.ndarray, np.ndarray]:
    """Return `rising_tables` with as many counts as save time for a minibatch."""
    largest = min(_LARGEST_TABLED, n_nonzero // r.size)
    result: tuple[np.ndarray, np.ndarray] = rising_tables(r, largest)
    return result


@compiled(fastmath=True, error_model="numpy", forceinline=True)
def _largest(values: np.ndarray) -> float:
    """Return the largest value; parallel lanes avoid that each step waits for the last."""
    lanes = np.full(_LANES, values[0])
    whole = len(values) // _LANES * _LANES
    for start in range(0, whole, _LANES):
        for lane in range(_LANES):
            lanes[lane] = max(lanes[lane], values[start + lane])
    for g in range(whole, len(values)):
        lanes[0] = max(lanes[0], values[g])
    largest: float = lanes.max()
    return largest


@compiled(fastmath=True, error_model="numpy", forceinline=True)
def softmax_terms(logits: np.ndarray, bias: np.ndarray, b: int, e: np.ndarray) -> float:
    """Fill ``e`` (G,) with exp(logit - largest logit) of cell ``b``; return its sum."""
    for g in range(len(e)):
        e[g] = load(logits, b, g) + bias[g]
    largest = _largest(e)
    total: float = e.dtype.type(0)
    for g in range(len(e)):
        value = exp(e[g] - largest)
        e[g] = value
        total += value
    return total


@compiled(fastmath=True, error_model="numpy", forceinline=True)
def explain_nonzeros(
    counts: np.ndarray, gene: np.ndarray, e: np.ndarray, scale: float,
    inverse_r: np.ndarray, unexplained: np.ndarray,
) -> float:  # fmt: skip
    """Return the sum of c (S - log mean), and fill in minus its derivative, c / (1 + ratio)."""
    one, least = e.dtype.type(1), e.dtype.type(1e-37)
    cost: float = e.dtype.type(0)
    for j in range(len(counts)):
        mean = e[gene[j]] * scale
        share = one / (one + mean * inverse_r[gene[j]])
        cost -= counts[j] * log(max(mean * share, least))
        unexplained[j] = counts[j] * share
    return cost


@compiled(fastmath=True, error_model="numpy", forceinline=True)
def pass_through_softmax(
    q: np.ndarray, e: np.ndarray, share: float, b: int, gradient: np.ndarray
) -> None:
    """Fill in the gradient by logit: the softmax subtracts from each its share of the sum."""
    for g in range(len(q)):
        store(gradient, b, g, q[g] - e[g] * share)


@compiled(error_model="numpy", forceinline=True)
def count_terms(
    count: float, r: float, rising_table: np.ndarray, digamma_table: np.ndarray, g: int
) -> tuple[float, float]:
    """Return ``log c! - rising(r, c)`` of a non-zero count, and the difference of digammas.

    The tables are those of the cell's group, (counts, G).
    """
    largest = len(rising_table) - 1
    whole = int(count)
    if whole <= largest and whole == count:
        log_ratio, difference = rising_table[whole, g], digamma_table[whole, g]
    elif count > largest >= _SMALLEST_BASE:
        log_ratio, difference = rising_beyond(
            r, largest, rising_table[largest, g], digamma_table[largest, g], count
        )
    else:
        log_ratio, difference = rising(r, count)
    return rising_table.dtype.type(log_factorial(count)) - log_ratio, difference


@compiled(parallel=True, fastmath=True, error_model="numpy")
def _add_proportions(
    logits: np.ndarray, bias: np.ndarray, scale: np.ndarray, total: np.ndarray
) -> None:
    """Add ``scale * softmax(logits + bias)`` of each cell to ``total``.

    Parameters
    ----------
    logits, bias, total
        (B, G), (G,) and (B, G).
    scale
        (B,).
    """
    n_cells, n_genes = logits.shape
    size = -(-n_cells // _PROPORTION_CHUNKS)
    for chunk in prange(_PROPORTION_CHUNKS):
        e = np.empty(n_genes, bias.dtype)
        for b in range(min(chunk * size, n_cells), min((chunk + 1) * size, n_cells)):
            factor = scale[b] / softmax_terms(logits, bias, b, e)
            for g in range(n_genes):
                total[b, g] += factor * e[g]


def add_proportions(head: LinearProduct, scale: Tensor, total: Tensor) -> None:
    """Add each cell's RNA proportions times ``scale`` (B, 1) to ``total`` (B, G), in place."""
    logits = head.x @ head.weight
    if head.covariates is not None and head.covariate_weight is not None:
        logits.addmm_(head.covariates, head.covariate_weight)
    flat = scale.expand(len(logits), 1).reshape(-1).contiguous()
    _add_proportions(*map(as_array, (logits, head.bias, flat, total)))
