"""Mean raw counts and expressing fractions of groups of cells."""

from typing import NamedTuple

import numpy as np

from totalvi.compiled import compiled
from totalvi.data.cite import CiteData


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
    total, n_expressing = (np.zeros((n_groups, data.rna.shape[1])) for _ in range(2))
    rna = data.rna
    _add_rows(rna.indptr, rna.indices, rna.data, group, total, n_expressing)
    used = group >= 0
    membership = np.zeros((n_groups, int(used.sum())))
    membership[group[used], np.arange(membership.shape[1])] = 1
    measured = np.array(data.schema.panel_measured)[data.panel[used]]
    protein = np.where(measured, data.protein[used], 0)  # what a panel lacks may be filled in
    n_cells = membership.sum(axis=1, keepdims=True)
    return RawCounts(
        np.hstack([np.broadcast_to(n_cells, total.shape), membership @ measured]),
        np.hstack([total, membership @ protein]),
        np.hstack([n_expressing, membership @ (protein > 0)]),
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
