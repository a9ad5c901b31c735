"""The lower mode of each protein's counts in cells, and what it says beside the profile of droplets."""

from typing import NamedTuple

import numpy as np

from totalvi.data.background.ambient import AmbientRates, rates_of_moments
from totalvi.errors import Finding

_EM_ITERATIONS = 50
_LEAST_CELLS = 20
_LEAST_BACKGROUND = 0.05  # counts per cell
_LEAST_MODE = 0.5  # counts per cell; below, a lower mode is no more than zeros
_APART = 2.0  # standard deviations between two modes (Ashman's D) from which both are modes
_LEAST_SHARE = 0.03  # of the cells, that a mode needs
# How near the prior is held, as standard deviations of log counts and of the log spread: in each cell,
# and how well lower modes are known, however many cells they have.
_MEAN_HELD, _SCALE_HELD = 0.1, 0.3
_MEAN_OF_MODES, _SCALE_OF_MODES = 0.1, 0.3
# What droplets and cells differ by until proteins have shown it, and the number that this counts for.
_USUAL_DEVIATION, _COUNTS_FOR = 0.35, 4
_FEWEST_COMPARED = 4
_FAR_ABOVE = 3.0  # deviations, from which a lower mode is taken for signal that all cells have
_DISAGREE = 0.7  # log counts


class LowerModes(NamedTuple):
    """The lower of two normal components of log(1 + counts), by protein; each field is (T,).

    Attributes
    ----------
    log_mean, log_sd
        Mean and standard deviation of the component, in log counts.
    rates
        Moments of the counts in the component, as those of droplets.
    is_clear
        Whether the two components are apart, so that the lower one is a mode of its own.
    """

    log_mean: np.ndarray
    log_sd: np.ndarray
    rates: AmbientRates
    is_clear: np.ndarray


def lower_modes(counts: np.ndarray) -> LowerModes:
    """Find the lower mode of each protein in counts of cells, (N, T), by expectation maximisation.

    With too few cells for two components, the lower quartile is used instead, and no mode is clear.
    Two components are apart if their means differ by more than twice the root mean square of their
    standard deviations (Ashman, Bird and Zepf, 1994).

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> counts = rng.poisson(np.where(np.arange(900)[:, None] < 300, [8, 60], [300, 60]))
    >>> modes = lower_modes(counts)
    >>> modes.is_clear.tolist(), np.exp(modes.rates.log_mean[0]).round().item()
    ([True, False], 8.0)
    """
    counts = counts.astype(np.float64)
    values = np.log1p(counts)
    low, high = np.quantile(values, [0.25, 0.9], axis=0)
    if len(values) < _LEAST_CELLS:
        rates = rates_of_moments(np.expm1(low) + _LEAST_BACKGROUND, np.zeros_like(low), 1)
        return LowerModes(_log_counts(low), np.full_like(low, 0.5), rates, low < 0)
    means = np.stack([low, high])  # (2, T)
    variances = np.tile(np.maximum(values.var(axis=0) / 4, 1e-2), (2, 1))
    shares = np.full_like(means, 0.5)
    for _ in range(_EM_ITERATIONS):
        log_density = (
            np.log(shares)
            - 0.5 * np.log(variances)
            - 0.5 * (values[:, None, :] - means) ** 2 / variances
        )  # (N, 2, T)
        log_density -= log_density.max(axis=1, keepdims=True)
        weight = np.exp(log_density)
        weight /= weight.sum(axis=1, keepdims=True)
        total = weight.sum(axis=0) + 1e-6
        shares = total / total.sum(axis=0)
        means = (weight * values[:, None, :]).sum(axis=0) / total
        spread = (weight * (values[:, None, :] - means) ** 2).sum(axis=0) / total
        variances = np.maximum(spread, 1e-2)
    lower, columns = means.argmin(axis=0), np.arange(values.shape[1])
    apart = np.ptp(means, axis=0) > _APART * np.sqrt(variances.mean(axis=0))
    own = weight[:, lower, columns]
    n_cells = total[lower, columns]
    mean = ((own * counts).sum(axis=0) + 0.5) / n_cells
    variance = (own * (counts - mean) ** 2).sum(axis=0) / n_cells
    return LowerModes(
        log_mean=_log_counts(means[lower, columns]),
        log_sd=np.sqrt(variances[lower, columns]),
        rates=rates_of_moments(mean, (variance - mean) / mean**2, n_cells),
        is_clear=apart & (shares.min(axis=0) > _LEAST_SHARE) & (mean > _LEAST_MODE),
    )


def _log_counts(values: np.ndarray) -> np.ndarray:
    """Return the log of counts whose log(1 + count) is given."""
    logs: np.ndarray = np.log(np.maximum(np.expm1(values), _LEAST_BACKGROUND))
    return logs


class Agreement(NamedTuple):
    """How the profile of empty droplets agrees with the lower modes of the cells in one panel.

    Attributes
    ----------
    deviation
        Standard deviation over proteins of the log ratio of the two: how far droplets are believed
        where cells have no clear lower mode.
    n_compared
        Number of proteins with a clear lower mode, from which it is estimated.
    level
        Log of the ratio of the median protein with a clear lower mode; with fewer than four of them,
        of the half of all proteins that agree best.
    differences
        Log ratio less the level, (T,); NaN without droplets or a clear lower mode.
    """

    deviation: float
    n_compared: int
    level: float
    differences: np.ndarray


def compare_with_modes(droplets: AmbientRates, modes: LowerModes) -> Agreement:
    """Estimate by how much the profile of droplets, (T,), deviates from the lower modes of cells.

    Until proteins show it, a deviation of 0.35 is assumed, which counts for four proteins.

    Examples
    --------
    >>> levels = np.log([3.0, 6.0, 9.0, 12.0, 15.0])
    >>> droplets = AmbientRates(levels - 1, np.full(5, 0.4), np.full(5, 0.01))
    >>> cells = AmbientRates(levels + [0, 0, 0, 0, 4], np.full(5, 0.4), np.full(5, 0.01))
    >>> clear = np.ones(5, dtype=bool)
    >>> found = compare_with_modes(droplets, LowerModes(levels, levels, cells, clear))
    >>> round(found.level), found.differences.round() + 0
    (1, array([ 0.,  0.,  0.,  0., nan]))
    """
    ratio = modes.rates.log_mean - droplets.log_mean
    known = np.isfinite(ratio)
    clear = known & modes.is_clear
    if clear.sum() >= _FEWEST_COMPARED:
        level = float(np.median(ratio[clear]))
    else:
        level = densest_half(ratio[known])
    away = ratio - level
    squared_error = droplets.standard_error**2 + modes.rates.standard_error**2
    robust = 1.4826 * np.median(np.abs(away[clear])) if clear.any() else 0.0
    chance = np.median(squared_error[clear]) if clear.any() else 0.0
    n_compared = int(clear.sum())
    excess = n_compared * max(robust**2 - chance, 0.0) + _COUNTS_FOR * _USUAL_DEVIATION**2
    deviation = np.sqrt(excess / (n_compared + _COUNTS_FOR))
    clear &= away < _FAR_ABOVE * deviation
    return Agreement(float(deviation), n_compared, level, np.where(clear, away, np.nan))


def combined(droplets: AmbientRates, modes: LowerModes, agreement: Agreement) -> np.ndarray:
    """Return the fields of the anchor of one panel, (4, T): droplets and lower modes together."""
    own = np.isfinite(agreement.differences)
    error = np.sqrt(modes.rates.standard_error**2 + _MEAN_OF_MODES**2)
    of_droplets = droplets.standard_error**2
    deviating = agreement.deviation**2 + of_droplets
    share_of_mean = np.where(own, error**2 / (error**2 + deviating), 1.0)  # that droplets have
    away = np.where(own, agreement.differences, 0.0)
    log_mean = droplets.log_mean + agreement.level + (1 - share_of_mean) * away
    log_scale, scale_of_modes = np.log(droplets.log_sd), np.log(modes.rates.log_sd)
    difference = scale_of_modes - log_scale
    shift = densest_half(difference[own]) if own.any() else 0.0
    spread = float(np.std(difference[own])) if own.sum() >= _FEWEST_COMPARED else _SCALE_HELD
    share = np.where(own, _SCALE_OF_MODES**2 / (_SCALE_OF_MODES**2 + spread**2), 1.0)
    log_scale = log_scale + shift + (1 - share) * np.where(own, difference - shift, 0.0)
    mean_precision = 1 / (_MEAN_HELD**2 + share_of_mean * of_droplets)
    scale_precision = np.full_like(log_mean, 1 / _SCALE_HELD**2)
    return np.stack([log_mean, log_scale, mean_precision, scale_precision])


def densest_half(values: np.ndarray) -> float:
    """Return the mean of the half of the values that lie closest together."""
    ordered = np.sort(values)
    n_half = len(ordered) // 2 + 1
    widths = ordered[n_half - 1 :] - ordered[: len(ordered) - n_half + 1]
    first = int(widths.argmin())
    return float(ordered[first : first + n_half].mean())


def agreement_finding(agreement: Agreement, of_batch: str) -> Finding:
    """Say how far droplets and cells differ; as a warning where they disagree."""
    n_compared, deviation = agreement.n_compared, agreement.deviation
    disagree = n_compared >= _FEWEST_COMPARED and deviation > _DISAGREE
    if disagree:
        fix = "see that they are of the same cells, or give empty_droplets=False"
    else:
        fix = "so far they are believed where cells have no clear lower mode"
    message = (
        f"the empty droplets{of_batch} and the lower modes of the cells differ by {deviation:.2f} "
        f"between proteins (standard deviation of the logs, from {n_compared} proteins with a clear "
        f"lower mode); {fix}."
    )
    return Finding("warning" if disagree else "note", "empty_droplets_agreement", message)
