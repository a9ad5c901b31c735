"""How well hidden counts are predicted: correlation, coverage, and limits that hold their share."""

from typing import NamedTuple

import numpy as np
import pandas as pd

from totalvi.posterior.column_correlations import correlation, correlation_limit

LEAST_PEARSON = 0.7  # a protein that surely has at least this is called reliable
_FEWEST_CELLS = 20  # with fewer, a 90 % interval cannot be calibrated


class HiddenCounts(NamedTuple):
    """Counts of N cells that were hidden from the model, and what it predicted; each (N, t).

    Parameters
    ----------
    observed
        Counts; NaN where a cell did not measure the feature.
    log1p
        Predicted mean of log(1 + count).
    below
        Probability that it gave to a lower count than the one observed (of ties half, or of RNA a
        random share).
    """

    observed: np.ndarray
    log1p: np.ndarray
    below: np.ndarray


class Reliability(NamedTuple):
    """How well each protein is imputed, each (t,); NaN where too few cells tell.

    Parameters
    ----------
    n_cells
        Cells whose counts were hidden.
    pearson, rmse
        Of log(1 + count) and its predicted mean: correlation, and root mean squared error.
    coverage
        Share of counts inside the interval of the wanted probability, before it is calibrated.
    within_pearson
        Pearson's correlation of what is left of both after the means of the cell's cluster.
    pearson_lower, within_pearson_lower
        Lower 95 % confidence limits of both correlations, by Fisher's z.
    """

    n_cells: np.ndarray
    pearson: np.ndarray
    rmse: np.ndarray
    coverage: np.ndarray
    within_pearson: np.ndarray
    pearson_lower: np.ndarray
    within_pearson_lower: np.ndarray


def reliability(hidden: HiddenCounts, interval: float, clusters: np.ndarray) -> Reliability:
    """Compare predictions with what was hidden.

    Parameters
    ----------
    interval
        Its probability.
    clusters
        Codes of the cells' clusters, (N,).
    """
    known = ~np.isnan(hidden.observed)
    n_cells = known.sum(axis=0)
    columns = [
        _of_protein(
            HiddenCounts(*(part[known[:, t], t] for part in hidden)),
            clusters[known[:, t]],
            interval,
        )
        for t in range(known.shape[1])
    ]
    return Reliability(n_cells, *np.array(columns).reshape(-1, 6).T)


def _of_protein(hidden: HiddenCounts, clusters: np.ndarray, interval: float) -> tuple[float, ...]:
    observed, log1p, below = hidden
    n_cells = len(observed)
    if n_cells < 2:
        return (np.nan,) * 6
    logs = np.log1p(observed)
    both = np.stack([logs, log1p])
    _, of_cell, sizes = np.unique(clusters, return_inverse=True, return_counts=True)
    means = np.stack([np.bincount(of_cell, weights=values) / sizes for values in both])
    pearson, within = correlation(*both), correlation(*(both - means[:, of_cell]))
    return (
        pearson,
        float(np.sqrt(((logs - log1p) ** 2).mean())),
        float((np.abs(below - 0.5) <= interval / 2).mean()),
        within,
        correlation_limit(pearson, n_cells),
        correlation_limit(within, n_cells - (len(sizes) - 1)),
    )


def limits_of(interval: float) -> np.ndarray:
    """Return the probabilities of `Predicted.summary` where the model is right, (3,)."""
    return np.array([(1 - interval) / 2, (1 + interval) / 2, interval])


def calibrated_limits(hidden: HiddenCounts, interval: float) -> np.ndarray:
    """Return the probabilities between which a share ``interval`` of hidden counts lies, (3, t).

    They are those of `Predicted.summary`. The predictive distribution functions at the hidden counts
    are uniform where the model is right; their own quantiles at the limits correct it where it is not
    (Kuleshov, Fenner and Ermon, 2018). With too few cells for that, they stay those of the interval.
    """
    limits = limits_of(interval)
    calibrated = np.repeat(limits[:, None], hidden.observed.shape[1], axis=1)
    known = ~np.isnan(hidden.observed)
    for t in np.flatnonzero(known.sum(axis=0) >= _FEWEST_CELLS):
        calibrated[:, t] = np.quantile(hidden.below[known[:, t], t], limits, method="weibull")
    return calibrated


def reliability_table(
    hidden: HiddenCounts, interval: float, names: np.ndarray, clusters: np.ndarray
) -> pd.DataFrame:
    """Return how well each protein is imputed, a row each; ``clusters`` are codes of the cells'."""
    table = pd.DataFrame(reliability(hidden, interval, clusters)._asdict(), index=pd.Index(names))
    surely = table["pearson_lower"] >= LEAST_PEARSON
    return table.assign(reliable=surely & (table["within_pearson_lower"] > 0))
