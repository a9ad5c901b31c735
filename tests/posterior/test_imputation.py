"""Predictive distributions of unmeasured proteins, and what hidden counts say of them."""

import numpy as np
import pytest
import torch
from scipy import stats

from totalvi.nn.likelihoods import Dispersion, ProteinMixture
from totalvi.posterior.column_correlations import correlation_limit
from totalvi.posterior.hidden_counts import (
    HiddenCounts,
    calibrated_limits,
    reliability,
    reliability_table,
)
from totalvi.posterior.protein_predictions import Predicted, mixture_moments


def test_moments_are_those_of_the_mixture() -> None:
    background, foreground, r, pi = 3.0, 40.0, 2.5, 0.3
    given = (np.log(background), foreground / background, np.log(pi / (1 - pi)), np.log(r))
    *means, log_r = (torch.tensor([[value]], dtype=torch.float64) for value in given)
    dispersion = Dispersion(log_r, torch.tensor([0]))
    first, second = mixture_moments(ProteinMixture(*means, dispersion))
    counts = np.arange(2000)
    density = pi * stats.nbinom.pmf(counts, r, r / (r + background))
    density += (1 - pi) * stats.nbinom.pmf(counts, r, r / (r + foreground))
    assert first.item() == pytest.approx((density * counts).sum(), rel=1e-9)
    assert second.item() == pytest.approx((density * counts**2).sum(), rel=1e-9)


@pytest.mark.parametrize("n_samples", [20, 100])
def test_a_further_count_is_below_a_quantile_as_often_as_asked(n_samples: int) -> None:
    rng = np.random.default_rng(0)
    drawn = np.sort(rng.normal(size=(5000, 2, n_samples)), axis=2)
    predicted = Predicted(np.zeros((5000, 2)), np.ones((5000, 2)), drawn)
    below = rng.normal(size=(5000, 2)) < predicted.quantile(np.full((5000, 2), [0.05, 0.9]))
    np.testing.assert_allclose(below.mean(axis=0), [0.05, 0.9], atol=0.015)


def test_quantile_and_distribution_function_agree() -> None:
    counts = np.arange(99.0).reshape(1, 1, 99)
    predicted = Predicted(np.zeros((1, 1)), np.ones((1, 1)), counts)
    for value in (0.0, 7.0, 50.0, 98.0):
        probability = predicted.distribution_function(np.array([[value]]))
        assert predicted.quantile(probability) == pytest.approx(value)
    ties = Predicted(np.zeros((1, 1)), np.ones((1, 1)), np.zeros((1, 1, 9)))
    assert ties.distribution_function(np.zeros((1, 1))) == 0.5


def hidden(below: np.ndarray, observed: np.ndarray | None = None) -> HiddenCounts:
    below = below[:, None]
    observed = np.ones_like(below) if observed is None else observed[:, None]
    return HiddenCounts(observed, np.log1p(observed), below)


def test_calibration_leaves_a_right_model_and_narrows_a_wide_one() -> None:
    uniform = (np.arange(999) + 1) / 1000
    np.testing.assert_allclose(
        calibrated_limits(hidden(uniform), 0.9)[:, 0], [0.05, 0.95, 0.9], atol=1e-3
    )
    wide = 0.25 + uniform / 2  # all counts in the middle half of what was expected
    lower, upper, upper_alone = calibrated_limits(hidden(wide), 0.9)[:, 0]
    assert ((wide > lower) & (wide < upper)).mean() == pytest.approx(0.9, abs=0.005)
    assert (wide < upper_alone).mean() == pytest.approx(0.9, abs=0.005)
    few = calibrated_limits(hidden(wide[:19]), 0.9)[:, 0]
    np.testing.assert_allclose(few, [0.05, 0.95, 0.9])


def test_reliability_counts_only_what_was_measured() -> None:
    observed = np.array([1.0, 5.0, 20.0, np.nan, 90.0])
    table = reliability(hidden(np.array([0.5, 0.02, 0.4, 0.99, 0.6]), observed), 0.9, np.zeros(5))
    assert table.n_cells == [4]
    assert table.pearson == pytest.approx(1)
    assert table.rmse == pytest.approx(0)
    assert table.coverage == pytest.approx(0.75)
    nothing = reliability(hidden(np.full(3, 0.5), np.full(3, np.nan)), 0.9, np.zeros(3))
    assert np.isnan(nothing.pearson).all()


@pytest.mark.parametrize("n_cells", [5, 40, 900])
def test_the_limit_of_a_correlation_is_that_of_scipy(n_cells: int) -> None:
    first, noise = np.random.default_rng(n_cells).normal(size=(2, n_cells))
    found = stats.pearsonr(first, first + noise)
    expected = found.confidence_interval(0.9).low  # two-sided at 90 %, one-sided at 95 %
    assert correlation_limit(found.statistic, n_cells) == pytest.approx(expected)


def test_correlation_within_clusters_is_the_partial_one() -> None:
    rng = np.random.default_rng(0)
    clusters = rng.integers(3, size=200)
    observed, log1p = (
        np.exp(rng.normal(size=(200, 1)) + clusters[:, None]),
        rng.normal(size=(200, 1)),
    )
    log1p = log1p + np.log1p(observed) / 2 + 2 * clusters[:, None]
    found = reliability(HiddenCounts(observed, log1p, np.full((200, 1), 0.5)), 0.9, clusters)
    dummies = np.eye(3)[clusters]
    rest = [
        values - dummies @ np.linalg.lstsq(dummies, values, rcond=None)[0]
        for values in (np.log1p(observed), log1p)
    ]
    within = np.corrcoef(*(values[:, 0] for values in rest))[0, 1]
    assert found.within_pearson[0] == pytest.approx(within)
    assert found.within_pearson_lower[0] == pytest.approx(correlation_limit(within, 200 - 2))


def test_what_is_known_between_clusters_only_is_not_reliable() -> None:
    """Three proteins: known of each cell, known of its cluster only, and known of few cells."""
    rng = np.random.default_rng(1)
    clusters = np.repeat([0, 1], 200)
    logs = 4 * clusters[:, None] + rng.normal(2, 0.3, (400, 3)).clip(0)
    known = logs + rng.normal(0, 0.1, logs.shape)
    level = np.array([logs[clusters == k].mean(axis=0) for k in (0, 1)])
    known[:, 1] = level[clusters, 1] - 0.05 * (logs[:, 1] - level[clusters, 1])
    logs[6:, 2] = np.nan
    hidden = HiddenCounts(np.expm1(logs), known, np.full(logs.shape, 0.5))
    table = reliability_table(hidden, 0.9, np.array(["cell", "cluster", "few"]), clusters)
    assert table.loc["cluster", "pearson_lower"] > 0.9
    assert table["reliable"].tolist() == [True, False, table.loc["few", "pearson_lower"] >= 0.7]
    assert table.loc["few", "pearson_lower"] < table.loc["few", "pearson"] - 0.05
