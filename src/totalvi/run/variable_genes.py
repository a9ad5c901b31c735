"""Select genes that vary more between cells than their mean expression explains."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData
from scipy import sparse

from totalvi.data.counts import Counts, CountsInMemory
from totalvi.errors import DataError, allowed, argument

SPANS = (0.3, 0.6, 1.0)  # fractions of genes in each local fit of the trend; the first that works
MIN_CELLS = 20  # of a batch, to judge variability by
MIN_VARYING_GENES = 10  # fewer make no trend, and crash the local regression


class BatchesLeftOut(UserWarning):
    """Some batches did not affect the selection of genes."""


def select_genes(
    rna: sparse.csr_matrix,
    gene_names: Sequence[str] | pd.Index,
    *,
    n_genes: int = 4000,
    batch: Sequence[object] | np.ndarray | pd.Series | None = None,
) -> np.ndarray:
    """Select highly variable genes from raw counts, batch by batch.

    In each batch, genes are ranked by the variance of their standardised, clipped counts, where the
    expected variance comes from a local regression of variance on mean expression. Genes are then
    taken by their median rank over the batches in which they are among the best `n_genes`, ties
    broken by the number of those batches. This is the ``seurat_v3`` method of scanpy, which does
    the ranking (Stuart et al. 2019, Cell 177, 1888). Where its regression fails, because a batch
    has few cells or many genes of equal mean, it is repeated over a wider span of genes.

    Parameters
    ----------
    rna
        Raw RNA counts, shape ``(n_cells, n_genes)``; not written to.
    gene_names
        Names of the columns.
    n_genes
        Number of genes to select.
    batch
        The batch of each cell; by default all cells are one batch. Batches of fewer than 20 cells
        are ignored, unless all are that small: then the cells are taken together.

    Returns
    -------
    ndarray of bool
        Shape ``(n_genes,)``: the genes selected. Those without any count never are; if `n_genes`
        is not less than the number of the others, all others are.

    Raises
    ------
    DataError
        If the counts are not finite and non-negative, the batches do not fit the cells, or no
        batch allows the regression.

    Warns
    -----
    BatchesLeftOut
        If the regression fails in some batches; the warning names them, and they are ignored.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> counts = rng.poisson(np.linspace(0.2, 5, 300), size=(100, 300))
    >>> counts[:50, 7] += 9  # a gene of half of the cells
    >>> chosen = select_genes(sparse.csr_matrix(counts), [f"g{i}" for i in range(300)], n_genes=20)
    >>> int(chosen.sum()), bool(chosen[7])
    (20, True)
    """
    if n_genes < 1:
        raise DataError(allowed("n_genes", n_genes, "whole numbers from 1"))
    _check_counts(rna, gene_names)
    expressed = np.asarray(rna.sum(axis=0)).ravel() > 0
    if n_genes >= expressed.sum():
        return expressed
    ranks = _ranks(rna, n_genes, cells_of_batches(batch, rna.shape[0]))
    return best_ranked(ranks, expressed, n_genes)


def best_ranked(ranks: np.ndarray, expressed: np.ndarray, n_genes: int) -> np.ndarray:
    """Mark the best genes by their median rank over batches (batches, genes; NaN: not ranked)."""
    times_best = (~np.isnan(ranks)).sum(axis=0)
    median_rank = np.full(len(expressed), np.inf)
    median_rank[times_best > 0] = np.nanmedian(ranks[:, times_best > 0], axis=0)
    best_first = np.lexsort((-times_best, median_rank, ~expressed))
    selected = np.zeros(len(expressed), dtype=bool)
    selected[best_first[:n_genes]] = True
    return selected


def _check_counts(rna: sparse.csr_matrix, gene_names: Sequence[str] | pd.Index) -> None:
    if len(gene_names) != rna.shape[1]:
        raise DataError(
            f"gene_names has {len(gene_names)} names for {rna.shape[1]} columns of RNA counts; "
            "give one name per column."
        )
    wrong = ~np.isfinite(rna.data) | (rna.data < 0)
    if wrong.any():
        gene = gene_names[int(rna.indices[np.argmax(wrong)])]
        raise DataError(
            f"The RNA counts of gene {gene!r} include {rna.data[wrong][0]}; "
            "give raw counts, which are finite and not negative."
        )


def cells_of_batches(
    batch: Sequence[object] | np.ndarray | pd.Series | None, n_cells: int
) -> dict[str, np.ndarray]:
    """Map the name of each batch that is large enough to the positions of its cells."""
    everything = {"all cells": np.arange(n_cells)}
    if batch is None:
        return everything
    codes, names = pd.factorize(np.asarray(batch, dtype=object), sort=False)
    if len(codes) != n_cells:
        raise DataError(f"batch has {len(codes)} values for {n_cells} cells; give one per cell.")
    if (codes < 0).any():
        raise DataError(
            f"batch is missing for {(codes < 0).sum()} cells, the first at position "
            f"{np.argmax(codes < 0)}; give each cell a batch, or remove those cells."
        )
    batches = {str(name): np.flatnonzero(codes == code) for code, name in enumerate(names)}
    return {name: cells for name, cells in batches.items() if len(cells) >= MIN_CELLS} or everything


def _ranks(
    rna: sparse.csr_matrix, n_genes: int, cells_by_batch: dict[str, np.ndarray]
) -> np.ndarray:
    """Rank the best genes (from 0; NaN for the others) in each batch that allows it."""
    ranks, failures = [], {}
    for name, cells in cells_by_batch.items():
        try:
            ranks.append(_ranks_in(rna if len(cells) == rna.shape[0] else rna[cells], n_genes))
        except ValueError as error:
            failures[name] = str(error)
    return complete_ranks(ranks, failures, rna.shape[0])


def complete_ranks(ranks: list[np.ndarray], failures: dict[str, str], n_cells: int) -> np.ndarray:
    """Return the ranks of the batches that have some; warn of those that failed, with their reason."""
    told = "; ".join(f"batch {name!r}: {why}" for name, why in failures.items())
    if not ranks:
        raise DataError(
            f"Variable genes cannot be told from {n_cells} cells ({told}); "
            f"keep all genes (a larger {argument('n_genes')}), or give a list of genes of your own."
        )
    if failures:
        warnings.warn(
            f"Variable genes were selected without the batches that have too little variation "
            f"({told}); merge them with others to use them.",
            BatchesLeftOut,
            stacklevel=4,
        )
    return np.stack(ranks)


def _ranks_in(counts: sparse.csr_matrix, n_genes: int) -> np.ndarray:
    """Rank the best genes of one batch, with the narrowest span that allows the regression."""
    largest = counts.max(axis=0).toarray().ravel()
    smallest = counts.min(axis=0).toarray().ravel()
    n_varying = int((largest > smallest).sum())
    if n_varying < MIN_VARYING_GENES:
        raise ValueError(f"only {n_varying} genes vary")
    failure: ValueError | None = None
    for span in SPANS:
        try:
            table = sc.pp.highly_variable_genes(
                AnnData(counts),
                flavor="seurat_v3",
                n_top_genes=n_genes,
                span=span,
                check_values=False,
                inplace=False,
            )
        except ValueError as error:  # the local regression met a singular matrix
            failure = error
            continue
        if np.isfinite(table["variances_norm"]).all():
            ranks: np.ndarray = table["highly_variable_rank"].to_numpy(dtype=float)
            return ranks
    raise ValueError("too few genes differ in mean for a trend of variance on mean") from failure


def select_genes_on_disk(
    rna: Counts[sparse.csr_matrix],
    *,
    n_genes: int = 4000,
    batch: Sequence[object] | np.ndarray | None = None,
    cells: np.ndarray | None = None,
) -> np.ndarray:
    """Select highly variable genes as `totalvi.run.variable_genes.select_genes` does, on disk.

    Means and variances by batch are summed in a first pass; the variance of the standardised counts,
    clipped at the square root of the number of cells, in a second. All cells are used.

    Parameters
    ----------
    rna
        Raw, checked RNA counts.
    n_genes, batch
        As in `select_genes`.
    cells
        Mask of the cells to use; None: all.

    Returns
    -------
    ndarray of bool
        Shape ``(n_genes,)``: the genes selected.
    """
    kept = np.arange(rna.shape[0]) if cells is None else np.flatnonzero(cells)
    of_kept = None if batch is None else np.asarray(batch, dtype=object)[kept]
    by_batch = {name: kept[some] for name, some in cells_of_batches(of_kept, len(kept)).items()}
    code = np.full(rna.shape[0], -1)
    for i, of_batch in enumerate(by_batch.values()):
        code[of_batch] = i
    size = np.array([len(of_batch) for of_batch in by_batch.values()], dtype=np.float64)[:, None]
    shape = (len(by_batch), rna.shape[1])
    total, of_squares = _sums(rna, code, np.full(shape, np.inf))
    mean = total / size
    variance = (of_squares - size * mean**2) / (size - 1)
    expected = np.full(shape, np.nan)
    failures: dict[str, str] = {}
    for i, name in enumerate(by_batch):
        try:
            expected[i] = _expected_deviation(mean[i], variance[i])
        except ValueError as error:
            failures[name] = str(error)
    clipped, of_clipped_squares = _sums(rna, code, expected * np.sqrt(size) + mean)
    squares = size * mean**2 + of_clipped_squares - 2 * clipped * mean
    standardised = squares / ((size - 1) * expected**2)
    ranks = []
    for of_batch in standardised[~np.isnan(standardised).any(axis=1)]:
        rank = np.empty(shape[1])
        rank[np.argsort(-of_batch, kind="stable")] = np.arange(shape[1])
        ranks.append(np.where(rank < n_genes, rank, np.nan))
    used = complete_ranks(ranks, failures, len(kept))
    return best_ranked(used, total.sum(axis=0) > 0, n_genes)


def _sums(
    rna: Counts[sparse.csr_matrix], code: np.ndarray, highest: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Sum counts, none taken as above ``highest`` (batches, genes), and their squares, by batch."""
    total, of_squares = np.zeros(highest.shape), np.zeros(highest.shape)
    for start, block in rna.blocks():
        batch = np.repeat(code[start : start + block.shape[0]], np.diff(block.indptr))
        some = batch >= 0
        place = batch[some] * rna.shape[1] + block.indices[some]
        counts = np.fmin(block.data[some], highest.ravel()[place])
        total += np.bincount(place, counts, highest.size).reshape(highest.shape)
        of_squares += np.bincount(place, counts**2, highest.size).reshape(highest.shape)
    return total, of_squares


def _expected_deviation(mean: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """Return the standard deviation that each gene's mean lets expect, by local regression."""
    from skmisc.loess import loess

    varies = variance > 0
    if varies.sum() < MIN_VARYING_GENES:
        raise ValueError(f"only {varies.sum()} genes vary")
    failure: ValueError | None = None
    for span in SPANS:
        trend = loess(np.log10(mean[varies]), np.log10(variance[varies]), span=span, degree=2)
        try:
            trend.fit()
        except ValueError as error:  # a singular matrix
            failure = error
            continue
        expected = np.ones(len(mean))
        expected[varies] = np.sqrt(10**trend.outputs.fitted_values)
        if np.isfinite(expected).all():
            return expected
    raise ValueError("too few genes differ in mean for a trend of variance on mean") from failure


def variable_genes(
    rna: Counts[sparse.csr_matrix],
    gene_names: pd.Index,
    *,
    n_genes: int,
    batch: np.ndarray | None,
    cells: np.ndarray,
) -> np.ndarray:
    """Select highly variable genes of counts, in memory or on disk; ``cells`` says which are used."""
    if not isinstance(rna, CountsInMemory):
        return select_genes_on_disk(rna, n_genes=n_genes, batch=batch, cells=cells)
    counts = rna.read() if cells.all() else rna.rows(cells)
    of_cells = None if batch is None else batch[cells]
    return select_genes(counts, gene_names, n_genes=n_genes, batch=of_cells)
