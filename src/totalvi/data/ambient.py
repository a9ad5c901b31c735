"""Each protein's ambient distribution, from empty droplets."""

from typing import NamedTuple

import numpy as np

_LOG_SCALE_RANGE = (0.1, 1.5)


class Ambient(NamedTuple):
    """Of the count of each protein in empty droplets, (T,).

    Attributes
    ----------
    log_mean
        Log of the mean count.
    log_sd
        Standard deviation of the log of the rate that counts are drawn at.
    standard_error
        Of ``log_mean``, given the number of droplets.
    """

    log_mean: np.ndarray
    log_sd: np.ndarray
    standard_error: np.ndarray


def estimate_ambient(protein: np.ndarray) -> Ambient:
    """Estimate the ambient distribution of each protein from counts in empty droplets, (N, T).

    A count is Poisson at a log-normal rate: of mean m and variance ``m + m^2 (exp(sd^2) - 1)``. Half
    a count is added to each protein's sum, so that one without any has a finite, uncertain level.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> rate = np.exp(rng.normal(np.log([1.0, 8.0, 60.0]), 0.4, (4000, 3)))
    >>> ambient = estimate_ambient(rng.poisson(rate))
    >>> (ambient.log_mean - np.log([1.0, 8.0, 60.0]) - 0.08).round(1) + 0, ambient.log_sd.round(1)
    (array([0., 0., 0.]), array([0.4, 0.4, 0.4]))
    """
    n_droplets = len(protein)
    mean = (protein.sum(axis=0, dtype=np.float64) + 0.5) / n_droplets
    excess = (protein.var(axis=0, dtype=np.float64) - mean) / mean**2
    return _ambient(mean, excess, n_droplets)


def pooled_ambient(log_mean: np.ndarray, log_sd: np.ndarray, n_droplets: np.ndarray) -> Ambient:
    """Return what the droplets of several estimates hold together.

    Parameters
    ----------
    log_mean, log_sd, n_droplets
        Of each estimate, (estimates, T); NaN where one lacks a protein.
    """
    mean = np.exp(log_mean)
    total = np.nansum(n_droplets, axis=0)
    pooled = np.nansum(n_droplets * mean, axis=0) / total
    square = np.nansum(n_droplets * mean**2 * np.exp(log_sd**2), axis=0) / total
    return _ambient(pooled, square / pooled**2 - 1, total)


def _ambient(mean: np.ndarray, excess: np.ndarray, n_droplets: float | np.ndarray) -> Ambient:
    """Return the distribution with this mean and squared coefficient of variation of the rate."""
    excess = np.clip(excess, *np.expm1(np.square(_LOG_SCALE_RANGE)))
    return Ambient(
        log_mean=np.log(mean),
        log_sd=np.sqrt(np.log1p(excess)),
        standard_error=np.sqrt((1 / mean + excess) / n_droplets),
    )
