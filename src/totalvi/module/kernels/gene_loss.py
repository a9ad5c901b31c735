"""The negative binomial loss of RNA from the decoder's logits, with its gradients, row by row.

With e = exp(logit - max), the mean of gene g is ``l e_g / sum(e)``; with ratio = mean / r,

    S = log(1 + ratio)                                  a zero count costs r S
    q = r ratio / (1 + ratio)                           the derivative of that by log mean
    further = c (S - log mean) + log c! - rising(r, c)  what a count c > 0 costs besides,
                                                        where S - log mean = -log(mean / (1 + ratio))

and the softmax takes from each logit's derivative its share e / sum(e) of the sum of all.
"""

import numpy as np
from numba import prange

from totalvi.compiled import compiled
from totalvi.module.kernels.arithmetic import exp, load, log, log1p, store
from totalvi.module.kernels.rising import (
    log_factorial,
    rising,
    rising_beyond,
    rising_tables,
)

_CHUNKS = 16  # of cells; their number is fixed, so that the number of threads changes no result
_LARGEST_TABLED = 16
_SMALLEST_BASE = 8  # of `rising_beyond`
_LANES = 64


def tables(r: np.ndarray, n_nonzero: int) -> tuple[np.ndarray, np.ndarray]:
    """Return `rising_tables` of as many counts as are worth it for a minibatch."""
    largest = min(_LARGEST_TABLED, n_nonzero // r.size)
    result: tuple[np.ndarray, np.ndarray] = rising_tables(r, largest)
    return result


@compiled(fastmath=True, error_model="numpy")
def _largest(values: np.ndarray) -> float:
    """Return the largest value, found in lanes side by side: one would wait for itself."""
    lanes = np.full(_LANES, values[0])
    whole = len(values) // _LANES * _LANES
    for start in range(0, whole, _LANES):
        for lane in range(_LANES):
            lanes[lane] = max(lanes[lane], values[start + lane])
    for g in range(whole, len(values)):
        lanes[0] = max(lanes[0], values[g])
    return lanes.max()


@compiled(fastmath=True, error_model="numpy")
def softmax_terms(logits: np.ndarray, bias: np.ndarray, b: int, e: np.ndarray) -> float:
    """Fill ``e`` (G,) with exp(logit - largest logit) of cell ``b``; return its sum."""
    for g in range(len(e)):
        e[g] = load(logits, b, g) + bias[g]
    largest = _largest(e)
    total = e.dtype.type(0)
    for g in range(len(e)):
        value = exp(e[g] - largest)
        e[g] = value
        total += value
    return total


@compiled(fastmath=True, error_model="numpy")
def _zeros(
    e: np.ndarray, scale: float, r: np.ndarray, inverse_r: np.ndarray, weight: float,
    q: np.ndarray, d_log_r: np.ndarray,
) -> tuple[float, float]:  # fmt: skip
    """Charge every gene as a zero; return the cost and the sum of q."""
    one = e.dtype.type(1)
    cost, total = e.dtype.type(0), e.dtype.type(0)
    for g in range(len(e)):
        ratio = e[g] * scale * inverse_r[g]
        zero_cost = r[g] * log1p(ratio)
        derivative = r[g] * (ratio / (one + ratio))
        q[g] = derivative
        cost += zero_cost
        total += derivative
        d_log_r[g] += weight * (zero_cost - derivative)
    return cost, total


@compiled(fastmath=True, error_model="numpy")
def _nonzeros(
    counts: np.ndarray, gene: np.ndarray, e: np.ndarray, scale: float,
    inverse_r: np.ndarray, unexplained: np.ndarray,
) -> float:  # fmt: skip
    """Return the sum of c (S - log mean), and fill in minus its derivative, c / (1 + ratio)."""
    one, least = e.dtype.type(1), e.dtype.type(1e-37)
    cost = e.dtype.type(0)
    for j in range(len(counts)):
        mean = e[gene[j]] * scale
        share = one / (one + mean * inverse_r[gene[j]])
        cost -= counts[j] * log(max(mean * share, least))
        unexplained[j] = counts[j] * share
    return cost


@compiled(fastmath=True, error_model="numpy")
def _through_softmax(
    q: np.ndarray, e: np.ndarray, share: float, b: int, gradient: np.ndarray
) -> None:
    for g in range(len(q)):
        store(gradient, b, g, q[g] - e[g] * share)


@compiled(parallel=True, error_model="numpy")
def negative_binomial_loss(
    logits: np.ndarray, bias: np.ndarray, library: np.ndarray,
    counts: np.ndarray, gene: np.ndarray, pointer: np.ndarray,
    r: np.ndarray, group: np.ndarray, rising_table: np.ndarray, digamma_table: np.ndarray,
    weight: np.ndarray, loss: np.ndarray, gradient: np.ndarray, d_log_library: np.ndarray,
    d_log_r: np.ndarray,
) -> None:  # fmt: skip
    """Fill in the loss of each cell and the gradients of ``sum(weight * loss)``.

    Parameters
    ----------
    logits, bias
        Their sum is the logit of each cell's RNA proportions: (B, G), float or bfloat16 in uint16, and
        (G,).
    library
        Library sizes (B,).
    counts, gene, pointer
        Non-zero counts of the cells in CSR form.
    r, group
        Inverse dispersions (groups, G), and the group of each cell (B,).
    rising_table, digamma_table
        `tables` of r.
    weight
        Of each cell's loss in the gradients, (B,).
    loss
        (B,), filled in.
    gradient
        By logit, without the weight, (B, G), float or bfloat16 in uint16, filled in.
    d_log_library
        By log library size, without the weight, (B,), filled in.
    d_log_r
        By log r, with the weight, in parts to be summed: (`n_chunks`, groups, G) of zeros.
    """
    n_cells, n_genes = gradient.shape
    largest = rising_table.shape[1] - 1
    inverse_r = r.dtype.type(1) / r
    size = -(-n_cells // _CHUNKS)
    for chunk in prange(_CHUNKS):
        e = np.empty(n_genes, bias.dtype)
        q = np.empty(n_genes, bias.dtype)
        unexplained = np.empty(n_genes, bias.dtype)
        for b in range(chunk * size, min((chunk + 1) * size, n_cells)):
            k = group[b]
            d_r = d_log_r[chunk, k]
            total_e = softmax_terms(logits, bias, b, e)
            scale = library[b] / total_e
            cost, total_q = _zeros(e, scale, r[k], inverse_r[k], weight[b], q, d_r)
            start, end = pointer[b], pointer[b + 1]
            cost += _nonzeros(
                counts[start:end], gene[start:end], e, scale, inverse_r[k], unexplained
            )
            for j in range(start, end):
                g, c = gene[j], counts[j]
                whole = int(c)
                if whole <= largest and whole == c:
                    log_ratio, difference = rising_table[k, whole, g], digamma_table[k, whole, g]
                elif c > largest >= _SMALLEST_BASE:
                    log_ratio, difference = rising_beyond(
                        r[k, g],
                        largest,
                        rising_table[k, largest, g],
                        digamma_table[k, largest, g],
                        c,
                    )
                else:
                    log_ratio, difference = rising(r[k, g], c)
                cost += r.dtype.type(log_factorial(c)) - log_ratio
                d = unexplained[j - start]
                q[g] -= d
                total_q -= d
                d_r[g] += weight[b] * (d - r[k, g] * difference)
            loss[b], d_log_library[b] = cost, total_q
            _through_softmax(q, e, total_q / total_e, b, gradient)


def n_chunks() -> int:
    """Return the number of parts in which the dispersion's gradient comes."""
    return _CHUNKS
