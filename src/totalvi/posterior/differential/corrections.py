"""What the counts of a group of cells correct in its decoded mean, and how far they leave it open."""

from typing import NamedTuple

import numpy as np
from scipy.special import polygamma

from totalvi.posterior.differential.moments import Moments

_PRIOR_COUNT = 0.5  # added to counts before their ratio is taken
_PRIOR_CELLS = 10  # what the model says of the variance of counts weighs as much as these
_LEAST_DISPERSION = 0.5  # of the variance of counts, relative to the model's


class Correction(NamedTuple):
    """Factor of the decoded mean of each feature, (features,), and the variance of its logarithm."""

    factor: np.ndarray
    variance: np.ndarray


def level_of_counts(moments: Moments, of_cell: np.ndarray) -> Correction:
    """Return how much higher counts are than expected, for a component those that are of it.

    Parameters
    ----------
    moments
        Sums of the group, one row a batch.
    of_cell
        Weight of each cell of a batch, (batches, features), 1 on average.
    """
    counted = _reweighted(moments.counted, of_cell)
    expected = (of_cell * moments.expected).sum(axis=0)
    # the variance of the logarithm of a gamma variable is a polygamma function
    variance = polygamma(1, counted.effective + _PRIOR_COUNT) * _dispersion(moments, of_cell)
    return Correction((counted.total + _PRIOR_COUNT) / (expected + _PRIOR_COUNT), variance)


def frequency(moments: Moments, of_cell: np.ndarray) -> Correction:
    """Return how much more frequent a component is than expected; for genes 1.

    The probabilities of the component given each count, summed, are one step of expectation
    maximisation. Counts that leave their component open keep the step short of the maximum, by the
    share of information that they lack, and the variance is larger by as much (Louis, 1982). The
    parameters are those of `level_of_counts`.
    """
    present = _reweighted(moments.present, of_cell)
    prior = (of_cell * moments.prior).sum(axis=0)
    informed, missing = ((of_cell * part).sum(0) for part in (moments.informed, moments.missing))
    complete = informed + missing  # p (1 - p), summed, on average
    known = np.divide(informed, complete, out=np.ones_like(complete), where=complete > 0)
    step = (present.total + _PRIOR_COUNT) / (prior + _PRIOR_COUNT)
    shortfall = (present.total + _PRIOR_COUNT) / (known * present.total + _PRIOR_COUNT)
    elsewhere = complete / (present.total + _PRIOR_COUNT)
    return Correction(step**shortfall, elsewhere / (known * present.effective + _PRIOR_COUNT))


def _dispersion(moments: Moments, of_cell: np.ndarray) -> np.ndarray:
    """Return the variance of counts relative to the model's, as the counts of the group show it."""
    excess, expected = ((of_cell**2 * part).sum(0) for part in (moments.excess, moments.expected))
    shown = np.divide(excess, expected, out=np.zeros_like(expected), where=expected > 0)
    n = (of_cell * moments.present).sum(axis=0)
    dispersion: np.ndarray = np.maximum(1 + shown * n / (n + _PRIOR_CELLS), _LEAST_DISPERSION)
    return dispersion


class _Reweighted(NamedTuple):
    total: np.ndarray
    effective: np.ndarray  # an unweighted sum of this size would be as uncertain


def _reweighted(part: np.ndarray, weight: np.ndarray) -> _Reweighted:
    total = (weight * part).sum(axis=0)
    square = (weight**2 * part).sum(axis=0)
    return _Reweighted(
        total, np.divide(total**2, square, out=np.zeros_like(total), where=square > 0)
    )
