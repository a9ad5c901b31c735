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
from totalvi.nn.cpu.gene_rows import (
    N_CHUNKS,
    count_terms,
    explain_nonzeros,
    pass_through_softmax,
    softmax_terms,
)
from totalvi.nn.cpu.math import log1p


@compiled(fastmath=True, error_model="numpy", forceinline=True)
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
        By log r, with the weight, in parts to be summed: (`N_CHUNKS`, groups, G) of zeros.
    """
    n_cells, n_genes = gradient.shape
    inverse_r = r.dtype.type(1) / r
    size = -(-n_cells // N_CHUNKS)
    for chunk in prange(N_CHUNKS):
        e = np.empty(n_genes, bias.dtype)
        q = np.empty(n_genes, bias.dtype)
        unexplained = np.empty(n_genes, bias.dtype)
        for b in range(min(chunk * size, n_cells), min((chunk + 1) * size, n_cells)):
            k = group[b]
            d_r, rising_k, digamma_k = d_log_r[chunk, k], rising_table[k], digamma_table[k]
            total_e = softmax_terms(logits, bias, b, e)
            scale = library[b] / total_e
            cost, total_q = _zeros(e, scale, r[k], inverse_r[k], weight[b], q, d_r)
            start, end = pointer[b], pointer[b + 1]
            cost += explain_nonzeros(
                counts[start:end], gene[start:end], e, scale, inverse_r[k], unexplained
            )
            for j in range(start, end):
                g = gene[j]
                constant, difference = count_terms(counts[j], r[k, g], rising_k, digamma_k, g)
                cost += constant
                d = unexplained[j - start]
                q[g] -= d
                total_q -= d
                d_r[g] += weight[b] * (d - r[k, g] * difference)
            loss[b], d_log_library[b] = cost, total_q
            pass_through_softmax(q, e, total_q / total_e, b, gradient)
