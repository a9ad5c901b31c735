"""Mean raw counts and expressing fractions of groups of cells."""

from typing import NamedTuple

import numpy as np

from totalvi.compiled import compiled
from totalvi.data.cells import CiteData


class RawCounts(NamedTuple):
    """Sums over the cells of each group, each (groups, genes + proteins).

    Parameters
    ----------
    n_cells
        Cells whose panel measured the feature.
    total
        Of the raw counts.
    n_expressing
        Cells with a count.
    """

    n_cells: np.ndarray
    total: np.ndarray
    n_expressing: np.ndarray

    def of(self, groups: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Return the mean count and the expressing fraction of several groups as one; NaN: no cell."""
        n_cells, total, n_expressing = (part[list(groups)].sum(axis=0) for part in self)
        n_cells = np.where(n_cells > 0, n_cells, np.nan)
        return total / n_cells, n_expressing / n_cells


def raw_counts(data: CiteData, group: np.ndarray, n_groups: int) -> RawCounts:
    """Sum the counts of the cells of each group.

    Parameters
    ----------
    group
        Of each cell, (N,); -1: none.
    """
    n_genes, n_proteins = data.rna.shape[1], data.protein.shape[1]
    total, n_expressing = (np.zeros((n_groups, n_genes)) for _ in range(2))
    for start, rna in data.rna.blocks():
        rows = slice(start, start + rna.shape[0])
        _add_rows(rna.indptr, rna.indices, rna.data, group[rows], total, n_expressing)
    n_measured, protein_total, n_positive = (np.zeros((n_groups, n_proteins)) for _ in range(3))
    by_panel = np.array(data.schema.panel_measured)
    for start, protein in data.protein.blocks():
        codes = group[start : start + len(protein)]
        used = np.flatnonzero(codes >= 0)
        membership = np.zeros((n_groups, len(used)))
        membership[codes[used], np.arange(len(used))] = 1
        measured = by_panel[data.panel[start + used]]
        counts = np.where(measured, protein[used], 0)  # what a panel lacks may be filled in
        n_measured += membership @ measured
        protein_total += membership @ counts
        n_positive += membership @ (counts > 0)
    n_cells = np.bincount(group[group >= 0], minlength=n_groups).astype(np.float64)[:, None]
    return RawCounts(
        np.hstack([np.broadcast_to(n_cells, total.shape), n_measured]),
        np.hstack([total, protein_total]),
        np.hstack([n_expressing, n_positive]),
    )


@compiled()
def _add_rows(
    pointer: np.ndarray,
    gene: np.ndarray,
    counts: np.ndarray,
    group: np.ndarray,
    total: np.ndarray,
    n_expressing: np.ndarray,
) -> None:
    for cell in range(len(group)):
        k = group[cell]
        if k < 0:
            continue
        for i in range(pointer[cell], pointer[cell + 1]):
            total[k, gene[i]] += counts[i]
            n_expressing[k, gene[i]] += counts[i] > 0
