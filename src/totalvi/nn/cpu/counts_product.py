"""Loops over the non-zero counts of a minibatch in CSR form."""

import numpy as np
from numba import prange

from totalvi.compiled import compiled
from totalvi.nn.cpu.math import log1p, store


@compiled(parallel=True, error_model="numpy")
def take_rows(
    data: np.ndarray, column: np.ndarray, pointer: np.ndarray, rows: np.ndarray,
    new_data: np.ndarray, new_column: np.ndarray, new_pointer: np.ndarray,
) -> None:  # fmt: skip
    """Copy the chosen rows of a CSR matrix; ``new_pointer`` is given, the rest filled in."""
    for i in prange(len(rows)):
        source, target = pointer[rows[i]], new_pointer[i]
        for j in range(new_pointer[i + 1] - target):
            new_data[target + j] = data[source + j]
            new_column[target + j] = column[source + j]


@compiled(parallel=True, fastmath=True, error_model="numpy")
def transform(
    counts: np.ndarray, pointer: np.ndarray, n_genes: int, scale: bool, log: bool, value: np.ndarray
) -> None:
    """Fill in what the encoder sees of each count: divided by 1 + the cell's mean, then log(1 + .)."""
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
def scatter(value: np.ndarray, gene: np.ndarray, pointer: np.ndarray, dense: np.ndarray) -> None:
    """Fill ``dense`` (B, G), float or bfloat16 in uint16, with the values and zeros elsewhere."""
    for b in prange(len(pointer) - 1):
        dense[b] = 0
        for j in range(pointer[b], pointer[b + 1]):
            store(dense, b, gene[j], value[j])


@compiled(parallel=True, fastmath=True, error_model="numpy")
def product(
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
def by_gene(gene: np.ndarray, pointer: np.ndarray, n_genes: int) -> tuple[np.ndarray, ...]:
    """Return the order of the counts by gene, the cell of each, and where each gene's begin."""
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
def transposed_product(
    value: np.ndarray, order: np.ndarray, cell: np.ndarray, gene_pointer: np.ndarray,
    right: np.ndarray, result: np.ndarray,
) -> None:  # fmt: skip
    """Fill ``result`` (G, H) with the transposed sparse matrix times ``right`` (B, H).

    ``order``, ``cell`` and ``gene_pointer`` are what `by_gene` gave.
    """
    for g in prange(len(gene_pointer) - 1):
        result[g] = 0
        for k in range(gene_pointer[g], gene_pointer[g + 1]):
            v, b = value[order[k]], cell[k]
            for h in range(right.shape[1]):
                result[g, h] += v * right[b, h]
