"""Compare samples: a linear model of their levels, with variances moderated over features.

Each sample u (a donor, a mouse, a well) has a level e of each feature with a known sampling variance v,
that of its cells and counts. Samples of one group differ by more than that:

    e_u = x_u' b + d_u + s_u,   Var d_u = sigma^2 tau^2,   Var s_u = sigma^2 v_u

with x the design. tau^2, the variance between samples, is one number for all features (the method
of moments of DerSimonian and Laird, "Meta-analysis in clinical trials", Controlled Clinical Trials
1986, for any design), and gives the weights 1 / (tau^2 + v). Each feature's sigma^2 is estimated from
the weighted residuals and moderated over features (Smyth, "Linear models and empirical Bayes methods
for assessing differential expression in microarray experiments", SAGMB 2004): 1 / sigma^2 is drawn
from a scaled chi-square, whose scale may depend on how much of the variance is sampling (as in Law et
al., "voom", Genome Biology 2014). Effects over their errors then have t distributions, with the degrees
of freedom of the residuals and of that prior.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import digamma, erfcx, polygamma
from scipy.stats import nct
from scipy.stats import t as student

from totalvi.nn.config import at_least_one
from totalvi.posterior.arguments import checked_number

_FEWEST_FOR_A_PRIOR = 3  # features; with fewer each keeps its own variance
_FEWEST_FOR_A_TREND = 20
_LEAST_RELATIVE_VARIANCE = 1e-5  # of the median; its logarithm is taken
_TINY = 1e-12
_FEWEST_FOR_POWER = 2  # samples of a group
_ENOUGH_POWER = 0.8
_SURE_SHIFT = 40.0  # an effect of so many errors is found at any threshold


class Moderated(NamedTuple):
    """Effects of a contrast, each (features,); NaN where the samples cannot tell.

    Parameters
    ----------
    effect, error
        The estimate, and its standard error with the moderated variance.
    df
        Degrees of freedom of the t distribution of their ratio.
    p_value
        Two-sided, of no effect.
    sample_sd
        Standard deviation of one sample of mean precision around its group, moderated.
    residual_df
        Degrees of freedom of the residuals alone.
    """

    effect: np.ndarray
    error: np.ndarray
    df: np.ndarray
    p_value: np.ndarray
    sample_sd: np.ndarray
    residual_df: np.ndarray

    def interval(self, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
        """Return the bounds of the central interval of the effects."""
        half = student.isf((1 - level) / 2, self.df) * self.error
        return self.effect - half, self.effect + half


class VariancePrior(NamedTuple):
    """Prior of the variances: degrees of freedom, and the scale of each feature, (features,)."""

    df: float
    variance: np.ndarray


def inverse_trigamma(y: float) -> float:
    """Return x with trigamma(x) = y, by Newton's method (Smyth 2004, appendix).

    Examples
    --------
    >>> round(inverse_trigamma(float(polygamma(1, 3.5))), 6)
    3.5
    """
    if y > 1e7:
        return float(y**-0.5)
    if y < 1e-6:
        return 1 / y
    x = 0.5 + 1 / y
    for _ in range(50):
        trigamma = float(polygamma(1, x))
        step = trigamma * (1 - trigamma / y) / float(polygamma(2, x))
        x += step
        if abs(step) < 1e-10 * x:
            break
    return x


def fit_variance_prior(
    variance: np.ndarray, df: np.ndarray, predictor: np.ndarray | None = None
) -> VariancePrior:
    """Fit the prior by the mean and variance of the log variances (Smyth 2004, section 6.2).

    Parameters
    ----------
    variance, df
        Of the residuals, and their degrees of freedom, (features,); above 0.
    predictor
        What the log of the prior's scale may depend on linearly. None: nothing.
    """
    if len(variance) < _FEWEST_FOR_A_PRIOR:
        return VariancePrior(0.0, variance)
    floor = max(_LEAST_RELATIVE_VARIANCE * float(np.median(variance)), np.finfo(float).tiny)
    z = np.log(np.maximum(variance, floor)) - digamma(df / 2) + np.log(df / 2)
    columns = np.ones((len(z), 1))
    if predictor is not None and len(z) >= _FEWEST_FOR_A_TREND and np.ptp(predictor) > _TINY:
        columns = np.column_stack([columns, predictor])
    fitted = columns @ np.linalg.lstsq(columns, z, rcond=None)[0]
    square = (z - fitted) ** 2 * len(z) / (len(z) - columns.shape[1])
    excess = square.mean() - polygamma(1, df / 2).mean()
    # few features tell little of the excess: its mean given this estimate, under a flat prior above 0
    error = max(square.std() / np.sqrt(len(z)), _TINY)
    mean = excess + error * np.sqrt(2 / np.pi) / erfcx(-excess / error / np.sqrt(2))
    prior_df = 2 * inverse_trigamma(max(float(mean), _TINY))
    return VariancePrior(prior_df, np.exp(fitted + digamma(prior_df / 2) - np.log(prior_df / 2)))


def moderate(
    variance: np.ndarray, df: np.ndarray, prior: VariancePrior
) -> tuple[np.ndarray, np.ndarray]:
    """Return the posterior variances and their degrees of freedom, (features,).

    These are at most those of all residuals together, which the prior is estimated from.
    """
    posterior = (prior.df * prior.variance + df * variance) / (prior.df + df)
    return posterior, np.minimum(prior.df + df, df.sum())


def compare_samples(levels: np.ndarray, sampling: np.ndarray, design: np.ndarray) -> Moderated:
    """Estimate the coefficient of the first column of a design, for each feature.

    Parameters
    ----------
    levels
        e, (samples, features); NaN where a sample did not measure the feature.
    sampling
        v, of the same shape; 0 where it is not known.
    design
        (samples, columns). A feature whose samples cannot tell the first column from the others, or
        leave no degree of freedom, has no effect. Other columns that its samples cannot tell apart
        are left out.

    Examples
    --------
    >>> levels = np.random.default_rng(0).normal(0, 0.2, (6, 50))
    >>> levels[:3, 0] += 2
    >>> design = np.column_stack([[1, 1, 1, 0, 0, 0], np.ones(6)])
    >>> found = compare_samples(levels, np.zeros((6, 50)), design)
    >>> int(found.p_value.argmin()), bool(abs(found.effect[0] - 2) < 0.5)
    (0, True)
    """
    n_features = levels.shape[1]
    known = np.isfinite(levels) & np.isfinite(sampling)
    smooth = smooth_sampling(np.where(known, sampling, np.nan))
    patterns = _patterns(known, design)
    between = between_variance(levels, smooth, patterns)
    effect, unscaled, variance, share, mean_variance = np.full((5, n_features), np.nan)
    df = np.zeros(n_features)
    for features, rows, columns in patterns:
        total = between + smooth[np.ix_(rows, features)]
        total = np.maximum(total, _TINY)
        fit = _weighted_fit(levels[np.ix_(rows, features)], 1 / total, columns)
        effect[features], unscaled[features], variance[features] = fit
        df[features] = columns.shape[0] - columns.shape[1]
        mean_variance[features] = total.mean(axis=0)
        share[features] = 1 - between / total.mean(axis=0)
    posterior, posterior_df = (np.full(n_features, np.nan) for _ in range(2))
    used = np.flatnonzero(df > 0)
    if len(used):
        prior = fit_variance_prior(variance[used], df[used], share[used])
        posterior[used], posterior_df[used] = moderate(variance[used], df[used], prior)
    posterior = np.maximum(posterior, _TINY)
    error = np.sqrt(posterior * unscaled)
    p_value = np.asarray(2 * student.sf(np.abs(effect) / error, posterior_df))
    sample_sd = np.sqrt(posterior * mean_variance)
    residual_df = np.where(df > 0, df, np.nan)
    return Moderated(effect, error, posterior_df, p_value, sample_sd, residual_df)


def smooth_sampling(sampling: np.ndarray) -> np.ndarray:
    """Return sampling variances as one of each feature, times one factor of each sample.

    A sample whose counts are low by chance has a large variance of its own. As a weight that would
    follow the level, and draw the mean of a group up.

    Examples
    --------
    >>> smooth_sampling(np.array([[0.1, 0.2], [0.3, 0.6]])).round(2).tolist()
    [[0.1, 0.2], [0.3, 0.6]]
    """
    positive = np.where(sampling > 0, sampling, np.nan)
    if np.isnan(positive).all():
        return sampling
    log = np.log(positive)
    of_sample = np.zeros((len(log), 1))
    for _ in range(5):  # since samples lack different features
        of_feature = _nan(np.nanmean, log - of_sample, axis=0)
        of_sample = _nan(np.nanmedian, log - of_feature, axis=1)[:, None]
        of_sample = np.where(np.isnan(of_sample), 0, of_sample)
    of_feature = _nan(np.nanmean, log - of_sample, axis=0)
    return np.where(np.isnan(positive), sampling, np.exp(of_feature + of_sample))


def _nan(summary: object, values: np.ndarray, axis: int) -> np.ndarray:
    """Return a summary along an axis that leaves out NaN, NaN where there is nothing else."""
    some = ~np.isnan(values).all(axis=axis)
    result = np.full(len(some), np.nan)
    kept = values[:, some] if axis == 0 else values[some]
    if kept.size:
        result[some] = summary(kept, axis=axis)  # type: ignore[operator]
    return result


_Pattern = tuple[np.ndarray, np.ndarray, np.ndarray]


def _patterns(known: np.ndarray, design: np.ndarray) -> list[_Pattern]:
    """Return features that the same samples measured, these samples, and their design."""
    found: list[_Pattern] = []
    distinct, which = np.unique(known, axis=1, return_inverse=True)
    for number, pattern in enumerate(distinct.T):
        rows = np.flatnonzero(pattern)
        columns = independent_columns(design[rows])
        if columns is not None and len(columns) > columns.shape[1]:
            found.append((np.flatnonzero(which.ravel() == number), rows, columns))
    return found


def independent_columns(design: np.ndarray) -> np.ndarray | None:
    """Return a basis of the columns with the first in it; None: it follows from the others.

    Examples
    --------
    >>> design = np.array([[1.0, 1, 1, 0], [0, 1, 1, 0], [0, 1, 0, 1], [1, 1, 0, 1]])
    >>> independent_columns(design).shape, independent_columns(design[:1]) is None
    ((4, 3), True)
    """
    kept: list[int] = []
    for column in (*range(1, design.shape[1]), 0):
        trial = design[:, [*kept, column]]
        if len(trial) and np.linalg.matrix_rank(trial) == len(kept) + 1:
            kept.append(column)
    return design[:, [0, *kept[:-1]]] if kept and kept[-1] == 0 else None


def between_variance(levels: np.ndarray, sampling: np.ndarray, patterns: list[_Pattern]) -> float:
    """Return tau^2, the variance between samples beyond sampling, at least 0.

    With M = I - X (X'X)^-1 X', the unweighted residuals of a feature have the expected sum of squares
    tau^2 df + sum of M_uu v_u. That is solved for tau^2, and averaged over features by its precision.
    """
    estimates, mean_sampling, df = [], [], []
    for features, rows, columns in patterns:
        y, v = (values[np.ix_(rows, features)] for values in (levels, sampling))
        residual = np.eye(len(rows)) - columns @ np.linalg.pinv(columns)
        freedom = len(rows) - columns.shape[1]
        expected = np.diag(residual) @ v
        estimates.append((((residual @ y) ** 2).sum(axis=0) - expected) / freedom)
        mean_sampling.append(expected / freedom)
        df.append(np.full(len(features), freedom))
    if not estimates:
        return 0.0
    estimate, v, freedom = (np.concatenate(part) for part in (estimates, mean_sampling, df))
    between = max(float(np.median(estimate + v)), _TINY)
    for _ in range(10):
        weight = freedom / np.maximum(between + v, _TINY) ** 2
        between = max(float((weight * estimate).sum() / weight.sum()), 0.0)
    return between


def _weighted_fit(
    y: np.ndarray, weight: np.ndarray, columns: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the first coefficient, its variance over sigma^2, and sigma^2, of each feature."""
    information = np.einsum("up,uf,uq->fpq", columns, weight, columns, optimize=True)
    inverse = np.linalg.inv(information)
    coefficients = np.einsum("fpq,uq,uf->fp", inverse, columns, weight * y, optimize=True)
    residual = y - columns @ coefficients.T
    df = len(y) - columns.shape[1]
    variance = np.maximum((weight * residual**2).sum(axis=0) / df, np.finfo(float).tiny)
    return coefficients[:, 0], inverse[:, 0, 0], variance


def expected_power(
    table: pd.DataFrame,
    fold_change: float = 2.0,
    n_samples: Sequence[int] = (2, 3, 4, 5, 6, 8, 10, 12, 16, 20),
    *,
    fdr_target: float = 0.05,
    share_changed: float = 0.05,
) -> pd.DataFrame:
    """Return how likely a change of each feature would be found, by the number of donors a side.

    The pilot gives each feature's standard deviation between samples of a group, with the pilot's cells
    a sample, and the degrees of freedom of the prior. An effect over its error is then noncentral t
    distributed, with further degrees of freedom of a study like the pilot: 2 n - 2, or n - 1 of n
    pairs, less those of covariates and batches. The effect is r, which the pseudocount draws towards 0
    where a feature is low. The p-value that a call needs depends on how many features change: with a
    share s of them changed and the mean power b, it is q / (1 - q) s / (1 - s) b for a false discovery
    rate q (Jung, "Sample size for FDR-control in microarray data analysis", Bioinformatics 2005).

    Parameters
    ----------
    table
        Of `Model.differential_expression` with ``sample_key``.
    fold_change
        Ratio to find, not 1.
    n_samples
        Samples in each of two groups, 2 or more.
    fdr_target
        False discovery rate of the calls.
    share_changed
        Share of the features that change so much.

    Returns
    -------
    A row for each row of the table that was tested: ``comparison``, ``modality``, ``sample_sd``
    (log2), ``n_80`` (the fewest of ``n_samples`` with 80 % power; NaN: none), and a column
    ``power_<n>`` for each number of samples.

    Raises
    ------
    ValueError
        When the table is not one of a comparison over samples, or an argument is not allowed.

    Examples
    --------
    >>> pilot = pd.DataFrame(
    ...     {"comparison": "a vs b", "modality": "rna", "sample_sd": [0.2, 0.8], "df": 10.0,
    ...      "n_samples1": 3, "n_samples2": 3}, index=["stable", "variable"])
    >>> expected_power(pilot, n_samples=(3, 8)).filter(like="power").round(1).values.tolist()
    [[0.9, 1.0], [0.0, 0.2]]
    """  # fmt: skip
    if "sample_sd" not in table:
        raise ValueError("table has no column 'sample_sd'; give one of sample_key=.")
    checked_number("fold_change", fold_change)
    checked_number("fdr_target", fdr_target, below=1.0)
    checked_number("share_changed", share_changed, below=1.0)
    if fold_change == 1:
        raise ValueError("fold_change is 1, which is no change; give another.")
    sizes = sorted({at_least_one("n_samples", n) for n in n_samples})
    if min(sizes) < _FEWEST_FOR_POWER:
        raise ValueError("n_samples holds 1; a group needs 2 samples or more.")
    tested = table.dropna(subset=["sample_sd", "df"])
    effect = np.full(len(tested), abs(np.log2(fold_change)))
    if {"scale2", "pseudocounts"} <= set(tested):
        h, c = tested["scale2"].to_numpy(), tested["pseudocounts"].to_numpy()
        effect = np.abs(np.log2((fold_change * h + c) / (h + c)))
    odds = fdr_target / (1 - fdr_target) * share_changed / (1 - share_changed)
    power = tested[["comparison", "modality", "sample_sd"]].copy()
    groups = list(tested.groupby(["comparison", "modality"], observed=True).indices.values())
    found = np.full((len(tested), len(sizes)), np.nan)
    for rows in groups:
        some = tested.iloc[rows]
        pilot = float((some["n_samples1"] + some["n_samples2"]).median())
        residual = float(some["df_residual"].median()) if "df_residual" in some else pilot - 2
        prior = max(float(some["df"].median()) - residual, 0.0)
        for place, n in enumerate(sizes):
            shift = effect[rows] / (some["sample_sd"].to_numpy() * np.sqrt(2 / n))
            used = pilot - residual  # by the design; pairs and blocks grow with the samples
            if "design" in some and not str(some["design"].iloc[0]).startswith("unpaired"):
                used = 1 + (used - 1) * 2 * n / pilot
            found[rows, place] = _power_at_rate(shift, prior + max(2 * n - used, 1), odds)
    enough = found >= _ENOUGH_POWER
    power["n_80"] = np.where(enough.any(axis=1), np.array(sizes)[enough.argmax(axis=1)], np.nan)
    for place, n in enumerate(sizes):
        power[f"power_{n}"] = found[:, place]
    return power


def _power_at_rate(shift: np.ndarray, df: float, odds: float) -> np.ndarray:
    """Return the power of t tests with these noncentralities, at the p-value that their mean allows."""
    grid = np.linspace(0, _SURE_SHIFT, 120)
    power = np.ones(len(shift))
    for _ in range(30):  # from above, to the largest power that agrees with its own threshold
        threshold = student.isf(np.clip(odds * power.mean(), 1e-12, 1) / 2, df)
        at = nct.sf(threshold, df, grid) + nct.cdf(-threshold, df, grid)
        before, power = (
            power.mean(),
            np.interp(shift, grid, np.clip(np.nan_to_num(at, nan=1), 0, 1)),
        )
        if abs(before - power.mean()) < 1e-4:
            break
    return power
