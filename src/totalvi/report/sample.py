"""Which cells are drawn when there are too many to draw all."""

from typing import NamedTuple

import numpy as np

AT_LEAST = 50  # cells of each stratum, where it has so many


class Sample(NamedTuple):
    """A sample of cells.

    Attributes
    ----------
    rows
        Positions, in a random order, so that no stratum is drawn over another.
    weights
        How many cells each stands for, float32.
    """

    rows: np.ndarray
    weights: np.ndarray


def stratified_sample(strata: np.ndarray, n_wanted: int, seed: int = 0) -> Sample:
    """Take cells in proportion to the size of their stratum, but some of every stratum.

    Parameters
    ----------
    strata
        Stratum of each cell, 0 or more.
    n_wanted
        How many cells to take at most; all, if there are not more.

    Examples
    --------
    >>> sample = stratified_sample(np.repeat([0, 1], [9900, 100]), 1000)
    >>> np.bincount(np.repeat([0, 1], [9900, 100])[sample.rows]).tolist()
    [945, 54]
    """
    n_cells = len(strata)
    rng = np.random.default_rng(seed)
    if n_cells <= n_wanted:
        return Sample(rng.permutation(n_cells), np.ones(n_cells, dtype=np.float32))
    sizes = np.bincount(strata)
    sure = np.minimum(sizes, min(AT_LEAST, n_wanted // max((sizes > 0).sum(), 1)))
    left = sizes - sure
    taken = sure + left * (n_wanted - sure.sum()) // max(left.sum(), 1)
    order = rng.permutation(n_cells)
    order = order[np.argsort(strata[order], kind="stable")]
    starts = np.cumsum(sizes) - sizes
    kept = [order[start : start + n] for start, n in zip(starts, taken, strict=True)]
    rows = rng.permutation(np.concatenate(kept))
    weights = np.divide(sizes, taken, out=np.zeros(len(sizes)), where=taken > 0)
    return Sample(rows, weights[strata[rows]].astype(np.float32))
