"""The product of the encoder's first layer with the RNA counts, and loops over counts in CSR form."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numba import prange
from torch import Tensor
from torch.autograd.function import once_differentiable

from totalvi.compiled import compiled
from totalvi.nn.cell import SparseCounts
from totalvi.nn.cpu.math import as_array, log1p, store


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


@compiled(parallel=True, fastmath=True, error_model="numpy")
def _product(
    value: np.ndarray, gene: np.ndarray, pointer: np.ndarray, weight: np.ndarray, result: np.ndarray
) -> None:
    """Fill ``result`` (B, H) with the sparse matrix times ``weight`` (G, H)."""
    for b in prange(len(pointer) - 1):
        result[b] = 0
        for j in range(pointer[b], pointer[b + 1]):
            v, g = value[j], gene[j]
            for h in range(weight.shape[1]):
                result[b, h] += v * weight[g, h]


@compiled()
def _by_gene(
    gene: np.ndarray, pointer: np.ndarray, n_genes: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the order of the counts by gene, the cell of each, and the start of each gene."""
    gene_pointer = np.zeros(n_genes + 1, np.int64)
    for g in gene:
        gene_pointer[g + 1] += 1
    for g in range(n_genes):
        gene_pointer[g + 1] += gene_pointer[g]
    following = gene_pointer[:-1].copy()
    order = np.empty(len(gene), np.int32)
    cell = np.empty(len(gene), np.int32)
    for b in range(len(pointer) - 1):
        for j in range(pointer[b], pointer[b + 1]):
            place = following[gene[j]]
            order[place], cell[place] = j, b
            following[gene[j]] += 1
    return order, cell, gene_pointer


@compiled(parallel=True, fastmath=True, error_model="numpy")
def _transposed_product(
    value: np.ndarray, order: np.ndarray, cell: np.ndarray, gene_pointer: np.ndarray,
    right: np.ndarray, result: np.ndarray,
) -> None:  # fmt: skip
    """Fill ``result`` (G, H) with the transposed sparse matrix times ``right`` (B, H).

    ``order``, ``cell`` and ``gene_pointer`` are results of `_by_gene`.
    """
    for g in prange(len(gene_pointer) - 1):
        result[g] = 0
        for k in range(gene_pointer[g], gene_pointer[g + 1]):
            v, b = value[order[k]], cell[k]
            for h in range(right.shape[1]):
                result[g, h] += v * right[b, h]


def transformed_counts(x: SparseCounts, scale: bool, log: bool) -> Tensor:
    """Return the encoder's input from the non-zero counts, (nnz,); see `Encoder`."""
    value = torch.empty_like(x.counts)
    _transform(x.counts.numpy(), x.cell_pointer.numpy(), x.n_genes, scale, log, value.numpy())
    return value


def input_product(value: Tensor, x: SparseCounts, weight: Tensor, bfloat16: bool) -> Tensor:
    """Multiply the sparse (B, G) matrix with ``value`` at the positions of ``x`` by ``weight`` (G, H).

    In bfloat16 the matrix becomes dense, because the matrix unit is faster than skipping the zeros.
    """
    return _apply_input_product(value, x, weight, bfloat16)


class _InputProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, x: SparseCounts, weight: Tensor, bfloat16: bool) -> Tensor:
        ctx.value, ctx.x = value, x
        if bfloat16:
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
        places = _by_gene(ctx.x.gene.numpy(), ctx.x.cell_pointer.numpy(), len(result))
        _transposed_product(ctx.value.numpy(), *places, gradient.numpy(), result.numpy())
        return None, None, result, None


_apply_input_product: Callable[..., Tensor] = _InputProduct.apply
