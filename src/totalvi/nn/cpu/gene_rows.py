"""Loops over the genes of a cell: its counts and their product with the encoder's first layer, what
the losses of RNA share, and sums of RNA proportions."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numba import prange
from torch import Tensor
from torch.autograd.function import once_differentiable

from totalvi.compiled import compiled, processor_has
from totalvi.nn.cell import LinearProduct, SparseCounts
from totalvi.nn.cpu.math import (
    as_array,
    exp,
    load,
    log,
    log1p,
    log_factorial,
    rising,
    rising_beyond,
    rising_tables,
    store,
)

N_CHUNKS = 16
_LARGEST_TABLED = 16
_SMALLEST_BASE = 8  # of `rising_beyond`
_LANES = 64
_PROPORTION_CHUNKS = 64  # of cells
_DENSE = 0.15  # share of counts that are not zero, above which bfloat16 products include the zeros


def tables(r: np.ndarray, n_nonzero: int) -> tuple[np.ndarray, np.ndarray]:
    """Return what `count_terms` returns, of as many counts as save time for a minibatch.

    Parameters
    ----------
    r
        Inverse dispersions (groups, G).
    n_nonzero
        Number of non-zero counts of the minibatch.

    Returns
    -------
    Two arrays (groups, largest count + 1, G).
    """
    largest = min(_LARGEST_TABLED, n_nonzero // r.size)
    log_ratio, difference = rising_tables(r, largest)
    log_factorials = np.array(
        [log_factorial(float(count)) for count in range(largest + 1)], r.dtype
    )
    return log_factorials[:, None] - log_ratio, difference


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
    count: float, r: float, constants: np.ndarray, differences: np.ndarray, g: int
) -> tuple[float, float]:
    """Return ``log c! - rising(r, c)`` of a non-zero count, and the difference of digammas.

    The tables are those of the cell's group, (counts, G).
    """
    whole, largest = int(count), len(constants) - 1
    if whole <= largest and whole == count:
        return constants[whole, g], differences[whole, g]
    return _terms_beyond(count, r, largest, constants[largest, g], differences[largest, g])


@compiled(error_model="numpy")
def _terms_beyond(
    count: float, r: float, largest: int, constant: float, difference: float
) -> tuple[float, float]:
    """Return `count_terms` of a count that is not in the tables, from those of the ``largest`` in it.

    It takes numbers, since a call that passes arrays counts their references, which takes longer.
    """
    number = type(constant)
    if count > largest >= _SMALLEST_BASE:
        log_ratio = log_factorial(number(largest)) - constant
        log_ratio, difference = rising_beyond(r, largest, log_ratio, difference, count)
    else:
        log_ratio, difference = rising(r, count)
    return number(log_factorial(count) - log_ratio), number(difference)


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


# ---------------------------------------------------------------------- counts of RNA


@compiled(parallel=True, error_model="numpy")
def take_rows(
    data: np.ndarray, column: np.ndarray, pointer: np.ndarray, rows: np.ndarray,
    new_data: np.ndarray, new_column: np.ndarray, new_pointer: np.ndarray,
) -> None:  # fmt: skip
    """Copy the chosen rows of a CSR matrix; ``new_pointer`` is an input, the others are filled in."""
    for i in prange(len(rows)):
        source, target = pointer[rows[i]], new_pointer[i]
        for j in range(new_pointer[i + 1] - target):
            new_data[target + j] = data[source + j]
            new_column[target + j] = column[source + j]


@compiled(parallel=True, fastmath=True, error_model="numpy")
def _transform(
    counts: np.ndarray, pointer: np.ndarray, n_genes: int, scale: bool, log: bool, value: np.ndarray
) -> None:
    """Fill in the encoder's input from each count: divided by 1 + the cell's mean, then log(1 + .)."""
    for b in prange(len(pointer) - 1):
        start, end = pointer[b], pointer[b + 1]
        factor = counts.dtype.type(1)
        if scale:
            total = counts.dtype.type(0)
            for j in range(start, end):
                total += counts[j]
            factor /= 1 + total / n_genes
        for j in range(start, end):
            value[j] = counts[j] * factor
        if log:
            for j in range(start, end):
                value[j] = log1p(value[j])


@compiled(parallel=True, error_model="numpy")
def _scatter(value: np.ndarray, gene: np.ndarray, pointer: np.ndarray, dense: np.ndarray) -> None:
    """Fill ``dense`` (B, G), float or bfloat16 in uint16, with the values and zeros elsewhere."""
    for b in prange(len(pointer) - 1):
        dense[b] = 0
        for j in range(pointer[b], pointer[b + 1]):
            store(dense, b, gene[j], value[j])


@compiled(fastmath=True, error_model="numpy", forceinline=True)
def _add_rows(value: np.ndarray, row: np.ndarray, matrix: np.ndarray, total: np.ndarray) -> None:
    """Fill ``total`` (H,) with the sum of rows of ``matrix`` (rows, H), each times its value."""
    total[:] = 0
    whole = len(row) // 4 * 4
    for k in range(0, whole, 4):  # four at a time, so that the total is read and written less often
        a, b, c, d = value[k], value[k + 1], value[k + 2], value[k + 3]
        of_a, of_b, of_c, of_d = row[k], row[k + 1], row[k + 2], row[k + 3]
        for h in range(len(total)):
            first = a * matrix[of_a, h] + b * matrix[of_b, h]
            total[h] += first + c * matrix[of_c, h] + d * matrix[of_d, h]
    for k in range(whole, len(row)):
        v, of_v = value[k], row[k]
        for h in range(len(total)):
            total[h] += v * matrix[of_v, h]


@compiled(parallel=True, fastmath=True, error_model="numpy")
def _product(
    value: np.ndarray, gene: np.ndarray, pointer: np.ndarray, weight: np.ndarray, result: np.ndarray
) -> None:
    """Fill ``result`` (B, H) with the sparse matrix times ``weight`` (G, H)."""
    for b in prange(len(pointer) - 1):
        start, end = pointer[b], pointer[b + 1]
        _add_rows(value[start:end], gene[start:end], weight, result[b])


@compiled()
def _by_gene(
    value: np.ndarray, gene: np.ndarray, pointer: np.ndarray, n_genes: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the values in the order of genes, the cell of each, and the start of each gene."""
    gene_pointer = np.zeros(n_genes + 1, np.int64)
    for g in gene:
        gene_pointer[g + 1] += 1
    for g in range(n_genes):
        gene_pointer[g + 1] += gene_pointer[g]
    following = gene_pointer[:-1].copy()
    of_gene, cell = np.empty_like(value), np.empty(len(gene), np.int32)
    for b in range(len(pointer) - 1):
        for j in range(pointer[b], pointer[b + 1]):
            place = following[gene[j]]
            of_gene[place], cell[place] = value[j], b
            following[gene[j]] += 1
    return of_gene, cell, gene_pointer


@compiled(parallel=True, fastmath=True, error_model="numpy")
def _transposed_product(
    value: np.ndarray,
    cell: np.ndarray,
    gene_pointer: np.ndarray,
    right: np.ndarray,
    result: np.ndarray,
) -> None:
    """Fill ``result`` (G, H) with the transposed sparse matrix times ``right`` (B, H).

    ``value``, ``cell`` and ``gene_pointer`` are results of `_by_gene`.
    """
    for g in prange(len(gene_pointer) - 1):
        start, end = gene_pointer[g], gene_pointer[g + 1]
        _add_rows(value[start:end], cell[start:end], right, result[g])


def transformed_counts(x: SparseCounts, scale: bool, log: bool) -> Tensor:
    """Return the encoder's input from the non-zero counts, (nnz,); see `Encoder`."""
    value = torch.empty_like(x.counts)
    _transform(x.counts.numpy(), x.cell_pointer.numpy(), x.n_genes, scale, log, value.numpy())
    return value


def input_product(value: Tensor, x: SparseCounts, weight: Tensor, bfloat16: bool) -> Tensor:
    """Multiply the sparse (B, G) matrix with ``value`` at the positions of ``x`` by ``weight`` (G, H).

    In bfloat16 the matrix becomes dense where that is faster than skipping the zeros: on processors
    with a matrix unit, and where zeros are few.
    """
    few = len(value) <= _DENSE * x.shape[0] * x.n_genes
    dense = bfloat16 and (processor_has("amx_bf16") or not few)
    return _apply_input_product(value, x, weight, dense)


class _InputProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, x: SparseCounts, weight: Tensor, dense: bool) -> Tensor:
        ctx.value, ctx.x = value, x
        if dense:
            ctx.dense = torch.empty(x.shape, dtype=torch.bfloat16)
            _scatter(value.numpy(), x.gene.numpy(), x.cell_pointer.numpy(), as_array(ctx.dense))
            wide: Tensor = ctx.dense @ weight.to(torch.bfloat16)
            return wide.to(weight.dtype)
        ctx.dense = None
        result = torch.empty(x.shape[0], weight.shape[1], dtype=weight.dtype)
        _product(
            value.numpy(), x.gene.numpy(), x.cell_pointer.numpy(),
            weight.detach().numpy(), result.numpy(),
        )  # fmt: skip
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, Tensor, None]:
        gradient = gradients[0].contiguous()
        if ctx.dense is not None:
            product = ctx.dense.t() @ gradient.to(torch.bfloat16)
            return None, None, product.to(gradient.dtype), None
        result = torch.empty(ctx.x.n_genes, gradient.shape[1], dtype=gradient.dtype)
        counts = ctx.value.numpy(), ctx.x.gene.numpy(), ctx.x.cell_pointer.numpy()
        _transposed_product(*_by_gene(*counts, len(result)), gradient.numpy(), result.numpy())
        return None, None, result, None


_apply_input_product: Callable[..., Tensor] = _InputProduct.apply
