"""Choose variable genes of counts on disk, which are read twice, some cells at a time."""

from collections.abc import Sequence

import numpy as np
from scipy import sparse

from totalvi.analysis.genes import (
    MIN_VARYING_GENES,
    SPANS,
    best_ranked,
    cells_of_batches,
    complete_ranks,
)
from totalvi.data.counts import Counts


def select_genes_on_disk(
    rna: Counts[sparse.csr_matrix],
    *,
    n_genes: int = 4000,
    batch: Sequence[object] | np.ndarray | None = None,
    cells: np.ndarray | None = None,
) -> np.ndarray:
    """Select highly variable genes as `totalvi.analysis.genes.select_genes` does, on disk.

    Means and variances by batch are summed in a first pass; the variance of the standardised counts,
    clipped at the square root of the number of cells, in a second. All cells have a say.

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
