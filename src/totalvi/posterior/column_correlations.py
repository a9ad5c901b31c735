"""Correlations of the columns of a matrix that comes in blocks of rows, and of two columns."""

from collections.abc import Iterable

import numpy as np
from scipy.stats import rankdata

_FEATURES_RANKED_AT_ONCE = 256
_ONE_SIDED = 1.6448536269514722  # the quantile of the normal distribution at 95 %


def pearson(parts: Iterable[np.ndarray], n_features: int) -> np.ndarray:
    """Correlate the columns of a matrix that comes in blocks of rows.

    Means and co-moments are updated block by block, each centred at its own mean (Chan, Golub and
    LeVeque, 1983), which loses nothing where a mean is large beside its deviation.
    """
    count, mean = 0, np.zeros(n_features)
    co_moment = np.zeros((n_features, n_features))
    for part in parts:
        part_mean = part.mean(axis=0, dtype=np.float64)
        shift = part_mean - mean
        together = count + len(part)
        deviations = np.vstack([part - part_mean, np.sqrt(count * len(part) / together) * shift])
        deviations = deviations.astype(np.float32)
        co_moment += deviations.T @ deviations
        mean += shift * (len(part) / together)
        count = together
    rounding = count * (np.finfo(np.float32).eps * mean) ** 2
    squares = np.diagonal(co_moment)
    return _normalised(co_moment, np.where(squares > rounding, squares, 0.0))


def spearman(parts: Iterable[np.ndarray], n_features: int, n_cells: int) -> np.ndarray:
    """Correlate the ranks of the columns of a matrix that comes in blocks of rows; ties share theirs.

    Ranks need all cells of a feature: features x cells are held, as float32. What is NaN is left
    out, as in `pairwise_pearson`; ranks are among the other rows of the column.
    """
    ranks = np.empty((n_features, n_cells), dtype=np.float32)
    start = 0
    for part in parts:
        ranks[:, start : start + len(part)] = part.T
        start += len(part)
    for first in range(0, n_features, _FEATURES_RANKED_AT_ONCE):
        rows = slice(first, first + _FEATURES_RANKED_AT_ONCE)
        n_known = np.isfinite(ranks[rows]).sum(axis=1, keepdims=True)
        ordered = rankdata(ranks[rows], axis=1, nan_policy="omit")
        # mean ranks are halves, which are exact, and have no variance where all cells tie
        ranks[rows] = (ordered - (n_known + 1) / 2) / n_cells
    if np.isnan(ranks).any():
        size = max(1, 2**24 // n_features)
        return pairwise_pearson(
            (ranks[:, i : i + size].T for i in range(0, n_cells, size)), n_features
        )
    co_moment = (ranks @ ranks.T).astype(np.float64)
    return _normalised(co_moment, np.diagonal(co_moment))


def pairwise_pearson(parts: Iterable[np.ndarray], n_features: int) -> np.ndarray:
    """Correlate each pair of columns over the rows that know both; NaN says that a row does not.

    The sums of each column are over the rows of the pair, and about a mean of the column that is near
    its own. Without two such rows the correlation is NaN.
    """
    n, total, square, product = np.zeros((4, n_features, n_features))
    centre = np.full(n_features, np.nan)
    for part in parts:
        known = np.isfinite(part)
        first = np.isnan(centre) & known.any(axis=0)
        centre[first] = np.nanmean(part[:, first], axis=0, dtype=np.float64)
        deviation, counts = np.where(known, part - centre, 0.0), known.astype(np.float64)
        n += counts.T @ counts
        total += deviation.T @ counts
        square += (deviation**2).T @ counts
        product += deviation.T @ deviation
    n[n < 2] = np.nan
    co_moment, square = product - total * total.T / n, square - total**2 / n
    rounding = n * (np.finfo(np.float32).eps * (centre[:, None] + total / n)) ** 2
    inverse = np.zeros_like(square)
    np.divide(1.0, np.sqrt(np.abs(square)), out=inverse, where=square > rounding)
    correlations: np.ndarray = np.clip(co_moment * (inverse * inverse.T), -1.0, 1.0)
    np.fill_diagonal(correlations, np.where(np.isnan(np.diagonal(n)), np.nan, 1.0))
    return correlations


def _normalised(co_moment: np.ndarray, squares: np.ndarray) -> np.ndarray:
    """Return correlations: 0 between a constant feature and any other, 1 on the diagonal."""
    inverse = np.zeros_like(squares)
    np.divide(1.0, np.sqrt(squares), out=inverse, where=squares > 0)
    correlations: np.ndarray = np.clip(co_moment * np.outer(inverse, inverse), -1.0, 1.0)
    np.fill_diagonal(correlations, 1.0)
    return correlations


def correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Return Pearson's correlation; NaN where either does not vary, but for rounding."""
    varies = first.std() > 1e-9 and second.std() > 1e-9
    return float(np.corrcoef(first, second)[0, 1]) if varies else np.nan


def correlation_limit(pearson: float, n_cells: int) -> float:
    """Return the lower 95 % confidence limit of a correlation by Fisher's z; NaN below 4 cells.

    Of a partial correlation, ``n_cells`` is smaller by one for each degree of freedom taken out.

    Examples
    --------
    >>> round(correlation_limit(0.9, 30), 3), correlation_limit(0.9, 3)
    (0.82, nan)
    """
    if n_cells < 4 or not np.isfinite(pearson):
        return np.nan
    bounded = np.clip(pearson, -1 + 1e-12, 1 - 1e-12)
    return float(np.tanh(np.arctanh(bounded) - _ONE_SIDED / np.sqrt(n_cells - 3)))
