"""Effects, log2 ratios of two levels: their posterior, or their spread over pairs of cells.

The posterior is that under a prior learned from all features. Source of the prior: Stephens, "False
discovery rates: a new deal", Biostatistics 2017. An effect is a draw from a mixture of normals
about one mode. Its weights are fitted by expectation maximisation to the estimates of all features
of a comparison, each with its own error. The prior thus adapts to a comparison with few
differences, and a feature with few counts does not stand out by its noise.

Features are exchangeable in the ratio of their levels, not in r, which a pseudocount c draws to 0 where
a level h is below it: r is about h / (h + c) times the log ratio. The prior is therefore that of r
divided by this ``share``. A prior of r itself would take the many features of few counts, all near 0,
for the spread of those with many, and shrink and narrow these too much.
"""

import math
from typing import NamedTuple

import numpy as np
from numba import prange
from scipy.special import erf

from totalvi.compiled import compiled

WIDTHS = 0.02 * 2.0 ** np.arange(10)  # standard deviations of the normals, in log2
_OUTER_STEPS, _INNER_STEPS = 8, 15
LEAST_DELTA = 0.1
_LEAST_SHARE = 1e-6  # a part of a mixture with a smaller share is left out
_PRECISION = 1e-5  # the error of quantiles, in log2
_TAIL = 1.96  # this standard normal quantile leaves 2.5 % above it


class Effects(NamedTuple):
    """Summaries of the posterior of effects r, each (comparisons, features); NaN where unknown.

    Parameters
    ----------
    mean, sd, median, low, high
        Of r, in log2; ``low`` and ``high`` bound the central 95 %.
    beyond
        P(|r| >= delta).
    above
        P(r > 0).
    """

    mean: np.ndarray
    sd: np.ndarray
    median: np.ndarray
    low: np.ndarray
    high: np.ndarray
    beyond: np.ndarray
    above: np.ndarray


_MEAN, _SD, _MEDIAN, _LOW, _HIGH, _BEYOND, _ABOVE = range(len(Effects._fields))


class Prior(NamedTuple):
    """Prior of r / share in each comparison: ``weight`` (comparisons, widths), ``mode``."""

    weight: np.ndarray
    mode: np.ndarray


def fit_prior(
    estimate: np.ndarray,
    variance: np.ndarray,
    share: np.ndarray | float = 1.0,
    *,
    free_mode: bool,
) -> Prior:
    """Fit the prior of each comparison to estimates of r and their variances.

    Parameters
    ----------
    estimate, variance
        (comparisons, features).
    share
        What a pseudocount leaves of each log ratio, above 0; (comparisons, features), or one for all.
    free_mode
        Whether the mode is fitted, as for proportions, where the rise of some features lowers all
        others; else it is 0.
    """
    n_comparisons = len(estimate)
    weight = np.full((n_comparisons, len(WIDTHS)), 1 / len(WIDTHS))
    mode = np.zeros(n_comparisons)
    estimate, variance = estimate / share, variance / share**2
    known = np.isfinite(estimate) & np.isfinite(variance)
    if free_mode:
        for c in range(n_comparisons):
            mode[c] = np.median(estimate[c, known[c]]) if known[c].any() else 0.0
    _fit_prior(estimate, variance, known, WIDTHS, free_mode, weight, mode)
    return Prior(weight, mode)


def robust_delta(prior: Prior) -> np.ndarray:
    """Return three robust standard deviations of each comparison's log ratios, at least 0.1.

    1.4826 times the median distance from the mode is the standard deviation of a normal; of the
    prior it is free of the noise of the estimates.
    """
    deltas = []
    for weight in prior.weight:
        low, high = 0.0, 10 * WIDTHS[-1]
        for _ in range(60):
            middle = (low + high) / 2
            inside = weight @ erf(middle / WIDTHS / math.sqrt(2))
            low, high = (middle, high) if inside < 0.5 else (low, middle)
        deltas.append(max(3 * 1.4826 * high, LEAST_DELTA))
    return np.array(deltas)


def posterior_effects(
    estimate: np.ndarray,
    variance: np.ndarray,
    prior: Prior,
    delta: np.ndarray,
    share: np.ndarray | float = 1.0,
) -> Effects:
    """Return the posterior of the effects, a mixture of normals for each.

    Parameters
    ----------
    estimate, variance, share
        As in `fit_prior`.
    delta
        Smallest effect r of interest, (comparisons,).
    """
    found = np.full((len(Effects._fields), *estimate.shape), np.nan)
    known = np.isfinite(estimate) & np.isfinite(variance)
    _summarize(
        estimate / share, variance / share**2, known, WIDTHS, prior.weight, prior.mode,
        np.broadcast_to(delta[:, None] / share, estimate.shape), found,
    )  # fmt: skip
    ratio = Effects(*found)
    of_ratio = ("mean", "sd", "median", "low", "high")
    return ratio._replace(**{name: getattr(ratio, name) * share for name in of_ratio})


@compiled(parallel=True)
def _fit_prior(
    estimate: np.ndarray,
    variance: np.ndarray,
    known: np.ndarray,
    widths: np.ndarray,
    free_mode: bool,
    weight: np.ndarray,
    mode: np.ndarray,
) -> None:
    """Expectation maximisation; one uniform feature is added to the counts, so no weight is 0."""
    n_widths = len(widths)
    for c in prange(len(estimate)):
        features = np.flatnonzero(known[c])
        density = np.empty((len(features), n_widths))
        shares = np.empty(n_widths)
        for _ in range(_OUTER_STEPS):
            for i in range(len(features)):
                f = features[i]
                least = np.inf
                for j in range(n_widths):
                    total = variance[c, f] + widths[j] ** 2
                    half = 0.5 * ((estimate[c, f] - mode[c]) ** 2 / total + math.log(total))
                    density[i, j] = half
                    least = min(least, half)
                for j in range(n_widths):
                    density[i, j] = math.exp(least - density[i, j])
            for _ in range(_INNER_STEPS):
                for j in range(n_widths):
                    shares[j] = 1 / n_widths
                for i in range(len(features)):
                    total = 0.0
                    for j in range(n_widths):
                        total += weight[c, j] * density[i, j]
                    for j in range(n_widths):
                        shares[j] += weight[c, j] * density[i, j] / total
                for j in range(n_widths):
                    weight[c, j] = shares[j] / (len(features) + 1)
            if not free_mode or len(features) == 0:
                continue
            weighted, precision = 0.0, 0.0
            for i in range(len(features)):
                f = features[i]
                total = 0.0
                for j in range(n_widths):
                    total += weight[c, j] * density[i, j]
                for j in range(n_widths):
                    share = weight[c, j] * density[i, j] / total
                    share /= variance[c, f] + widths[j] ** 2
                    weighted += share * estimate[c, f]
                    precision += share
            mode[c] = weighted / precision


@compiled()
def _normal_cdf(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2.0))


@compiled()
def _mixture_cdf(x: float, share: np.ndarray, mean: np.ndarray, sd: np.ndarray) -> float:
    total = 0.0
    for j in range(len(share)):
        if share[j] > _LEAST_SHARE:
            total += share[j] * _normal_cdf((x - mean[j]) / sd[j])
    return total


@compiled()
def _mixture_quantile(
    p: float,
    share: np.ndarray,
    mean: np.ndarray,
    sd: np.ndarray,
    low: float,
    high: float,
    start: float,
) -> float:
    """Return the quantile, between ``low`` and ``high``, by Newton steps that never leave them."""
    x = min(max(start, low), high)
    for _ in range(60):
        excess, slope = -p, 0.0
        for j in range(len(share)):
            if share[j] > _LEAST_SHARE:
                z = (x - mean[j]) / sd[j]
                excess += share[j] * _normal_cdf(z)
                slope += share[j] * math.exp(-0.5 * z * z) / (sd[j] * math.sqrt(2 * math.pi))
        if excess < 0:
            low = x
        else:
            high = x
        following = x - excess / slope if slope > 0 else low
        if not low < following < high:
            following = 0.5 * (low + high)
        if abs(following - x) < _PRECISION:
            return following
        x = following
    return x


@compiled(parallel=True)
def _summarize(
    estimate: np.ndarray,
    variance: np.ndarray,
    known: np.ndarray,
    widths: np.ndarray,
    weight: np.ndarray,
    mode: np.ndarray,
    delta: np.ndarray,
    found: np.ndarray,
) -> None:
    n_comparisons, n_features = estimate.shape
    n_widths = len(widths)
    for place in prange(n_comparisons * n_features):
        c, f = place // n_features, place % n_features
        if not known[c, f]:
            continue
        share, means, sds = np.empty(n_widths), np.empty(n_widths), np.empty(n_widths)
        mirrored = np.empty(n_widths)
        away = estimate[c, f] - mode[c]
        largest = -np.inf
        for j in range(n_widths):
            total = variance[c, f] + widths[j] ** 2
            share[j] = math.log(weight[c, j]) - 0.5 * (away**2 / total + math.log(total))
            largest = max(largest, share[j])
            kept = widths[j] ** 2 / total
            means[j] = mode[c] + kept * away
            mirrored[j] = -means[j]
            sds[j] = math.sqrt(kept * variance[c, f]) + 1e-9
        total = 0.0
        for j in range(n_widths):
            share[j] = math.exp(share[j] - largest)
            total += share[j]
        first, last, average, square = np.inf, -np.inf, 0.0, 0.0
        for j in range(n_widths):
            share[j] /= total
            average += share[j] * means[j]
            square += share[j] * (means[j] ** 2 + sds[j] ** 2)
            if share[j] > _LEAST_SHARE:
                first = min(first, means[j] - 5 * sds[j])
                last = max(last, means[j] + 5 * sds[j])
        found[_MEAN, c, f] = average
        found[_SD, c, f] = math.sqrt(max(square - average**2, 0.0))
        tail = _TAIL * found[_SD, c, f]
        found[_MEDIAN, c, f] = _mixture_quantile(0.5, share, means, sds, first, last, average)
        found[_LOW, c, f] = _mixture_quantile(
            0.025, share, means, sds, first, found[_MEDIAN, c, f], average - tail
        )
        found[_HIGH, c, f] = _mixture_quantile(
            0.975, share, means, sds, found[_MEDIAN, c, f], last, average + tail
        )
        below = _mixture_cdf(-delta[c, f], share, means, sds)
        found[_BEYOND, c, f] = min(below + _mixture_cdf(-delta[c, f], share, mirrored, sds), 1.0)
        found[_ABOVE, c, f] = _mixture_cdf(0.0, share, mirrored, sds)


class PairEffects(NamedTuple):
    """Effects of one comparison, each (features,), and the mean scales of the paired cells."""

    effects: Effects
    first_mean: np.ndarray
    second_mean: np.ndarray


def draw_pairs(
    first: list[np.ndarray], second: list[np.ndarray], n_pairs: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draw pairs of a cell of each group, within the same batch where any batch has cells of both.

    Parameters
    ----------
    first, second
        Cells of the groups, one array a batch.
    n_pairs
        How many; batches get shares as n m / (n + m) for n and m cells.
    """
    sizes = np.array([[len(a), len(b)] for a, b in zip(first, second, strict=True)], dtype=float)
    share = sizes.prod(axis=1) / np.maximum(sizes.sum(axis=1), 1)
    if not share.any():
        return rng.choice(np.concatenate(first), n_pairs), rng.choice(
            np.concatenate(second), n_pairs
        )
    drawn = rng.multinomial(n_pairs, share / share.sum())
    chosen = [
        (rng.choice(a, n), rng.choice(b, n))
        for a, b, n in zip(first, second, drawn, strict=True)
        if n
    ]
    a, b = zip(*chosen, strict=True)
    return np.concatenate(a), np.concatenate(b)


def pair_effects(
    values: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    pseudocount: np.ndarray,
    delta: float,
) -> PairEffects:
    """Return summaries of r = log2(h_a + c) - log2(h_b + c) over pairs of cells.

    Parameters
    ----------
    values
        Scales, (features, cells).
    first, second
        The cells of each pair.
    pseudocount
        c, (features,).
    delta
        Smallest effect of interest.
    """
    n_features = len(values)
    found = np.full((len(Effects._fields), n_features), np.nan)
    means = np.full((2, n_features), np.nan)
    _pair_effects(values, first, second, pseudocount, delta, means, found)
    return PairEffects(Effects(*found), *means)


@compiled(parallel=True)
def _pair_effects(
    values: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    pseudocount: np.ndarray,
    delta: float,
    means: np.ndarray,
    found: np.ndarray,
) -> None:
    for f in prange(len(values)):
        ratios = np.empty(len(first))
        n, total_a, total_b = 0, 0.0, 0.0
        for i in range(len(first)):
            a, b = values[f, first[i]], values[f, second[i]]
            if np.isnan(a) or np.isnan(b):
                continue
            total_a += a
            total_b += b
            ratios[n] = np.log2((a + pseudocount[f]) / (b + pseudocount[f]))
            n += 1
        if n == 0:
            continue
        means[0, f], means[1, f] = total_a / n, total_b / n
        _describe(np.sort(ratios[:n]), delta, found[:, f])


@compiled()
def _describe(r: np.ndarray, delta: float, found: np.ndarray) -> None:
    n = len(r)
    found[_MEAN], found[_SD] = r.mean(), r.std()
    found[_MEDIAN] = 0.5 * (r[(n - 1) // 2] + r[n // 2])
    found[_LOW], found[_HIGH] = r[int(0.025 * (n - 1))], r[int(np.ceil(0.975 * (n - 1)))]
    found[_BEYOND] = (np.abs(r) >= delta).sum() / n
    found[_ABOVE] = (r > 0).sum() / n
