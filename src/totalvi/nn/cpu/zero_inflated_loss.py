"""The zero-inflated negative binomial loss of RNA with its gradients, row by row.

In the notation of `gene_loss`, with z = r S and d the logit of dropout, a zero count costs

    log(1 + e**-d) - log(1 + e**(-z - d))

and any other count log(1 + e**d) besides its negative binomial cost.
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
from totalvi.nn.cpu.math import exp, load, log1p, store

# what a cell's zeros leave for its other counts, by gene
_COST, _LOGIT, _SOFTPLUS, _Z, _SHARE, _N_KEPT = range(6)


@compiled(fastmath=True, error_model="numpy", forceinline=True)
def _zeros(
    e: np.ndarray, scale: float, r: np.ndarray, inverse_r: np.ndarray, weight: float,
    dropout: np.ndarray, dropout_bias: np.ndarray, b: int,
    q: np.ndarray, d_dropout: np.ndarray, d_log_r: np.ndarray, kept: np.ndarray,
) -> tuple[float, float]:  # fmt: skip
    """Charge every gene as a zero; return the cost and the sum of the derivatives by log mean."""
    one, zero = e.dtype.type(1), e.dtype.type(0)
    cost, total = zero, zero
    for g in range(len(e)):
        ratio = e[g] * scale * inverse_r[g]
        z = r[g] * log1p(ratio)
        derivative = r[g] * (ratio / (one + ratio))
        logit = load(dropout, b, g) + dropout_bias[g]
        # log(1 + e**-d), and log(1 + e**a) at a = -z - d with its derivative
        softplus = max(-logit, zero) + log1p(exp(-abs(logit)))
        a = -z - logit
        small = exp(-abs(a))
        softplus_a = max(a, zero) + log1p(small)
        share = (one if a >= zero else small) / (one + small)
        zero_cost = softplus - softplus_a
        cost += zero_cost
        q[g] = share * derivative
        total += share * derivative
        d_log_r[g] += weight * share * (z - derivative)
        kept[_COST, g], kept[_LOGIT, g], kept[_SOFTPLUS, g] = zero_cost, logit, softplus
        kept[_Z, g], kept[_SHARE, g] = z, share
        store(d_dropout, b, g, share - exp(-logit - softplus))  # sigmoid(-d) = e**-d / (1 + e**-d)
    return cost, total


@compiled(parallel=True, error_model="numpy")
def zero_inflated_loss(
    logits: np.ndarray, bias: np.ndarray, dropout: np.ndarray, dropout_bias: np.ndarray,
    library: np.ndarray, counts: np.ndarray, gene: np.ndarray, pointer: np.ndarray,
    r: np.ndarray, group: np.ndarray, rising_table: np.ndarray, digamma_table: np.ndarray,
    weight: np.ndarray, loss: np.ndarray, gradient: np.ndarray, d_dropout: np.ndarray,
    d_log_library: np.ndarray, d_log_r: np.ndarray,
) -> None:  # fmt: skip
    """Fill in the loss of each cell and the gradients of ``sum(weight * loss)``.

    Parameters
    ----------
    dropout, dropout_bias
        Their sum is the logit of dropout: as ``logits`` and ``bias``.
    d_dropout
        Gradient by that logit, without the weight, (B, G), filled in.
    logits, bias, library, counts, gene, pointer, r, group, rising_table, digamma_table, weight, loss,
    gradient, d_log_library, d_log_r
        As in `gene_loss.negative_binomial_loss`.
    """
    n_cells, n_genes = gradient.shape
    inverse_r = r.dtype.type(1) / r
    one = r.dtype.type(1)
    size = -(-n_cells // N_CHUNKS)
    for chunk in prange(N_CHUNKS):
        e = np.empty(n_genes, bias.dtype)
        q = np.empty(n_genes, bias.dtype)
        unexplained = np.empty(n_genes, bias.dtype)
        kept = np.empty((_N_KEPT, n_genes), bias.dtype)
        for b in range(min(chunk * size, n_cells), min((chunk + 1) * size, n_cells)):
            k = group[b]
            d_r, rising_k, digamma_k = d_log_r[chunk, k], rising_table[k], digamma_table[k]
            total_e = softmax_terms(logits, bias, b, e)
            scale = library[b] / total_e
            cost, total_q = _zeros(
                e, scale, r[k], inverse_r[k], weight[b], dropout, dropout_bias, b,
                q, d_dropout, d_r, kept,
            )  # fmt: skip
            start, end = pointer[b], pointer[b + 1]
            cost += explain_nonzeros(
                counts[start:end], gene[start:end], e, scale, inverse_r[k], unexplained
            )
            for j in range(start, end):
                g = gene[j]
                constant, difference = count_terms(counts[j], r[k, g], rising_k, digamma_k, g)
                logit, softplus = kept[_LOGIT, g], kept[_SOFTPLUS, g]
                z, share = kept[_Z, g], kept[_SHARE, g]
                ratio = e[g] * scale * inverse_r[k, g]
                derivative = r[k, g] * (ratio / (one + ratio))
                d = unexplained[j - start]
                cost += constant + logit + softplus + z - kept[_COST, g]
                total_q += derivative - d - q[g]
                q[g] = derivative - d
                d_r[g] += weight[b] * ((one - share) * (z - derivative) + d - r[k, g] * difference)
                store(d_dropout, b, g, exp(-softplus))  # sigmoid(d)
            loss[b], d_log_library[b] = cost, total_q
            pass_through_softmax(q, e, total_q / total_e, b, gradient)
