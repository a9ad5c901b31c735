"""Compute RNA's loss from the inputs of the decoder's last layers, with gradients, cell by cell.

With e = exp(logit - max), the mean of gene g is ``l e_g / sum(e)``; with ratio = mean / r,

    S = log(1 + ratio)                                  a zero count costs r S
    q = r ratio / (1 + ratio)                           its derivative by log mean
    further = c (S - log mean) + log c! - rising(r, c)  the further cost of a count c > 0,
                                                        where S - log mean = -log(mean / (1 + ratio))

The softmax subtracts from each logit's derivative its share e / sum(e) of the sum of all.

With zero inflation, z = r S and d the logit of dropout, a zero count costs

    log(1 + e**-d) - log(1 + e**(-z - d))

and any other count costs log(1 + e**d) in addition to its negative binomial cost.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numba import prange
from torch import Tensor
from torch.autograd.function import once_differentiable

from totalvi.compiled import compiled
from totalvi.nn.cell import LinearProduct, SparseCounts
from totalvi.nn.cpu.gene_rows import (
    N_CHUNKS,
    count_terms,
    explain_nonzeros,
    pass_through_softmax,
    softmax_terms,
    tables,
)
from totalvi.nn.cpu.math import as_array, exp, load, log1p, store

_TILE = 32  # rows and columns of the processor's matrix unit

# values from a cell's zeros for its other counts, by gene
_COST, _LOGIT, _SOFTPLUS, _Z, _SHARE, _N_KEPT = range(6)


@compiled(fastmath=True, error_model="numpy", forceinline=True)
def _zeros(
    e: np.ndarray, scale: float, r: np.ndarray, inverse_r: np.ndarray, weight: float,
    q: np.ndarray, d_log_r: np.ndarray,
) -> tuple[float, float]:  # fmt: skip
    """Compute the cost of every gene as a zero; return it and the sum of q."""
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


@compiled(error_model="numpy")
def _inverse(r: np.ndarray) -> np.ndarray:
    inverse: np.ndarray = r.dtype.type(1) / r
    return inverse


@compiled(parallel=True, error_model="numpy")
def _negative_binomial_loss(
    logits: np.ndarray, bias: np.ndarray, library: np.ndarray,
    counts: np.ndarray, gene: np.ndarray, pointer: np.ndarray,
    r: np.ndarray, group: np.ndarray, constant_table: np.ndarray, digamma_table: np.ndarray,
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
    constant_table, digamma_table
        `tables` of r.
    weight
        Weight of each cell's loss in the gradients, (B,).
    loss
        Loss (B,), filled in.
    gradient
        Gradient by logit, without the weight, (B, G), float or bfloat16 in uint16, filled in.
    d_log_library
        Gradient by log library size, without the weight, (B,), filled in.
    d_log_r
        Gradient by log r, with the weight, in parts to sum: (`N_CHUNKS`, groups, G) of zeros.
    """
    n_cells, n_genes = gradient.shape
    inverse_r = _inverse(r)
    size = -(-n_cells // N_CHUNKS)
    for chunk in prange(N_CHUNKS):
        e = np.empty(n_genes, bias.dtype)
        q = np.empty(n_genes, bias.dtype)
        unexplained = np.empty(n_genes, bias.dtype)
        for b in range(min(chunk * size, n_cells), min((chunk + 1) * size, n_cells)):
            k, start, end = group[b], pointer[b], pointer[b + 1]
            d_r, constant_k, digamma_k = d_log_r[chunk, k], constant_table[k], digamma_table[k]
            total_e = softmax_terms(logits, bias, b, e)
            scale = library[b] / total_e
            cost, total_q = _zeros(e, scale, r[k], inverse_r[k], weight[b], q, d_r)
            cost += explain_nonzeros(
                counts[start:end], gene[start:end], e, scale, inverse_r[k], unexplained
            )
            for j in range(start, end):
                g = gene[j]
                constant, difference = count_terms(counts[j], r[k, g], constant_k, digamma_k, g)
                cost += constant
                d = unexplained[j - start]
                q[g] -= d
                total_q -= d
                d_r[g] += weight[b] * (d - r[k, g] * difference)
            loss[b], d_log_library[b] = cost, total_q
            pass_through_softmax(q, e, total_q / total_e, b, gradient)


@compiled(fastmath=True, error_model="numpy", forceinline=True)
def _inflated_zeros(
    e: np.ndarray, scale: float, r: np.ndarray, inverse_r: np.ndarray, weight: float,
    dropout: np.ndarray, dropout_bias: np.ndarray, b: int,
    q: np.ndarray, d_dropout: np.ndarray, d_log_r: np.ndarray, kept: np.ndarray,
) -> tuple[float, float]:  # fmt: skip
    """Compute the cost of every gene as a zero; return it and the sum of derivatives by log mean."""
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
def _zero_inflated_loss(
    logits: np.ndarray, bias: np.ndarray, dropout: np.ndarray, dropout_bias: np.ndarray,
    library: np.ndarray, counts: np.ndarray, gene: np.ndarray, pointer: np.ndarray,
    r: np.ndarray, group: np.ndarray, constant_table: np.ndarray, digamma_table: np.ndarray,
    weight: np.ndarray, loss: np.ndarray, gradient: np.ndarray, d_dropout: np.ndarray,
    d_log_library: np.ndarray, d_log_r: np.ndarray,
) -> None:  # fmt: skip
    """Fill in the loss of each cell and the gradients of ``sum(weight * loss)``.

    Parameters
    ----------
    dropout, dropout_bias
        Their sum is the logit of dropout, in the form of ``logits`` and ``bias``.
    d_dropout
        Gradient by this logit, without the weight, (B, G), filled in.
    logits, bias, library, counts, gene, pointer, r, group, constant_table, digamma_table, weight, loss,
    gradient, d_log_library, d_log_r
        As in `_negative_binomial_loss`.
    """
    n_cells, n_genes = gradient.shape
    inverse_r = _inverse(r)
    one = r.dtype.type(1)
    size = -(-n_cells // N_CHUNKS)
    for chunk in prange(N_CHUNKS):
        e = np.empty(n_genes, bias.dtype)
        q = np.empty(n_genes, bias.dtype)
        unexplained = np.empty(n_genes, bias.dtype)
        kept = np.empty((_N_KEPT, n_genes), bias.dtype)
        for b in range(min(chunk * size, n_cells), min((chunk + 1) * size, n_cells)):
            k, start, end = group[b], pointer[b], pointer[b + 1]
            d_r, constant_k, digamma_k = d_log_r[chunk, k], constant_table[k], digamma_table[k]
            total_e = softmax_terms(logits, bias, b, e)
            scale = library[b] / total_e
            cost, total_q = _inflated_zeros(
                e, scale, r[k], inverse_r[k], weight[b], dropout, dropout_bias, b,
                q, d_dropout, d_r, kept,
            )  # fmt: skip
            cost += explain_nonzeros(
                counts[start:end], gene[start:end], e, scale, inverse_r[k], unexplained
            )
            for j in range(start, end):
                g = gene[j]
                constant, difference = count_terms(counts[j], r[k, g], constant_k, digamma_k, g)
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


def gene_head_loss(
    head: LinearProduct,
    dropout_head: LinearProduct | None,
    counts: SparseCounts,
    library: Tensor,
    log_r: Tensor,
    group: Tensor,
    bfloat16: bool,
) -> Tensor:
    """Return ``-log p(x)`` of RNA summed over genes, (B,), directly from the decoder's last layers.

    If ``bfloat16`` is True, no tensor as wide as the genes is kept in float32 between passes.

    Parameters
    ----------
    head, dropout_head
        The linear layers that end in the logits of the genes' proportions and of dropout; the latter is
        None without zero inflation.
    library
        Library sizes above 0, (B, 1).
    log_r, group
        Log inverse dispersions (groups, G), and each cell's group, (B,).
    """
    heads = [*head] if dropout_head is None else [*head, *dropout_head]
    return _apply_gene_head_loss(counts, library, log_r, group, bfloat16, *heads)


class _GeneHeadLoss(torch.autograd.Function):
    """The loss of RNA: one loop computes it with its gradients, and backward scales them.

    Each cell's gradient by its logits does not depend on the weight of the cell in the objective,
    so the weight is applied to the narrow side of the products. The gradient of the dispersion is a
    sum over cells: it is computed for equal weights, and again if they are not equal.
    """

    @staticmethod
    def forward(
        ctx: Any, counts: SparseCounts, library: Tensor, log_r: Tensor, group: Tensor,
        bfloat16: bool, *parts: Any,
    ) -> Tensor:  # fmt: skip
        heads = _heads(parts)
        products = [_wide_product(head, bfloat16) for head in heads]
        logits = [
            (product.logits, head.bias) for product, head in zip(products, heads, strict=True)
        ]
        losses = _losses(counts, torch.ones_like(library[:, 0]), logits, library, log_r, group)
        # not the loss itself: it refers to this context, and the two would keep each other in memory
        ctx.save_for_backward(
            library, log_r, group, losses.by_library, losses.by_log_r,
            *(part for pair in logits for part in pair), *losses.by_logits,
            *(part for product in products for part in (product.wide, product.weights)),
        )  # fmt: skip
        ctx.counts = counts
        ctx.widths = [
            (head.x.shape[1], 0 if head.covariates is None else head.covariates.shape[1])
            for head in heads
        ]
        return losses.loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        by_cell = gradients[0]
        library, log_r, group, by_library, by_log_r, *rest = ctx.saved_tensors
        n_heads = len(ctx.widths)
        logits = _pairs(rest[: 2 * n_heads])
        by_logits, operands = rest[2 * n_heads : 3 * n_heads], _pairs(rest[3 * n_heads :])
        if bool((by_cell == by_cell[:1]).all()):
            d_log_r = by_log_r * by_cell[:1].sum()
        else:
            d_log_r = _losses(ctx.counts, by_cell, logits, library, log_r, group).by_log_r
        d_library = (by_library * by_cell)[:, None]
        d_heads: list[Tensor | None] = []
        for pair, by_logit, widths in zip(operands, by_logits, ctx.widths, strict=True):
            d_heads += _head_gradients(*pair, by_logit, by_cell, *widths)
        return None, d_library, d_log_r, None, None, *d_heads


_apply_gene_head_loss: Callable[..., Tensor] = _GeneHeadLoss.apply


def _heads(parts: Sequence[Any]) -> list[LinearProduct]:
    n_parts = len(LinearProduct._fields)
    return [LinearProduct(*parts[i : i + n_parts]) for i in range(0, len(parts), n_parts)]


def _pairs(tensors: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    return list(zip(tensors[::2], tensors[1::2], strict=True))


class _WideProduct(NamedTuple):
    """A product as wide as the genes, and its operands: concatenated inputs and covariates."""

    wide: Tensor
    weights: Tensor
    logits: Tensor


def _wide_product(head: LinearProduct, bfloat16: bool) -> _WideProduct:
    inputs, weights = [head.x], [head.weight]
    if head.covariates is not None and head.covariate_weight is not None:
        inputs, weights = [*inputs, head.covariates], [*weights, head.covariate_weight]
    if bfloat16:
        wide, joint = _in_tiles(inputs, dim=1), _in_tiles(weights, dim=0)
    else:
        wide, joint = _joined(inputs, dim=1), _joined(weights, dim=0)
    return _WideProduct(wide, joint, wide @ joint)


def _joined(parts: Sequence[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=dim)


def _in_tiles(parts: Sequence[Tensor], dim: int) -> Tensor:
    """Return the parts side by side in bfloat16, with zeros up to a whole number of tiles."""
    size = list(parts[0].shape)
    size[dim] = sum(part.shape[dim] for part in parts)
    size[dim] += -size[dim] % _TILE
    result = parts[0].new_zeros(size, dtype=torch.bfloat16)
    start = 0
    for part in parts:
        result.narrow(dim, start, part.shape[dim]).copy_(part)
        start += part.shape[dim]
    return result


def _head_gradients(
    wide: Tensor, weights: Tensor, by_logit: Tensor, by_cell: Tensor, n_inputs: int,
    n_covariates: int,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """Return the gradients by the parts of a `LinearProduct`; the bias has a column of ones."""
    dtype, n = by_cell.dtype, n_inputs + n_covariates
    d_wide = (by_logit @ weights.t())[:, :n_inputs].to(dtype) * by_cell[:, None]
    weighted = torch.cat([wide[:, :n] * by_cell[:, None], by_cell[:, None]], dim=1)
    whole = weighted if wide.dtype == dtype else _in_tiles([weighted], dim=1)
    d_weights = (whole.t().contiguous() @ by_logit)[: n + 1].to(dtype)
    d_weight, d_covariates, d_bias = d_weights.tensor_split((n_inputs, n))
    d_rest = d_covariates if n_covariates else None
    return d_wide, d_weight, d_bias[0], None, d_rest


class _Losses(NamedTuple):
    """The loss (B,) and its gradients.

    Those by logits (B, G) and library size (B,) are of each cell's own loss, and that by log r
    (groups, G) is of the weighted sum.
    """

    loss: Tensor
    by_logits: list[Tensor]
    by_library: Tensor
    by_log_r: Tensor


def _losses(
    counts: SparseCounts, weight: Tensor, logits: list[tuple[Tensor, Tensor]], library: Tensor,
    log_r: Tensor, group: Tensor,
) -> _Losses:  # fmt: skip
    """Return the loss from (logits, bias) of one head, or of two with zero inflation."""
    r = log_r.detach().exp()
    library = library.detach()[:, 0].contiguous()
    loss, by_log_library = torch.empty_like(weight), torch.empty_like(weight)
    by_logits = [torch.empty_like(product) for product, _ in logits]
    by_log_r = torch.zeros(N_CHUNKS, *r.shape, dtype=r.dtype)
    compute = _negative_binomial_loss if len(logits) == 1 else _zero_inflated_loss
    arrays = [as_array(part) for pair in logits for part in pair]
    given = library, counts.counts, counts.gene, counts.cell_pointer, r, group
    filled = loss, *by_logits, by_log_library, by_log_r
    arrays += [*map(as_array, given), *tables(as_array(r), len(counts.counts))]
    arrays += [as_array(weight.contiguous()), *map(as_array, filled)]
    compute(*arrays)
    return _Losses(loss, by_logits, by_log_library / library, by_log_r.sum(dim=0))
