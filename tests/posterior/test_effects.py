"""Posteriors of effects against numerical integration, and priors against known ones."""

import numpy as np
import pytest
from scipy.stats import norm

from totalvi.posterior.differential.effects import (
    WIDTHS,
    Prior,
    fit_prior,
    posterior_effects,
    robust_delta,
)

DELTA = 0.25


@pytest.mark.parametrize("estimate", [-3.0, -0.2, 0.0, 0.4, 6.0])
@pytest.mark.parametrize("sd", [0.05, 0.5, 2.0])
@pytest.mark.parametrize("mode", [0.0, 0.3])
@pytest.mark.parametrize("share", [1.0, 0.3])
def test_summaries_are_those_of_the_posterior(
    estimate: float, sd: float, mode: float, share: float
) -> None:
    rng = np.random.default_rng(1)
    weight = rng.dirichlet(np.ones(len(WIDTHS)))
    effects = posterior_effects(
        np.array([[estimate]]),
        np.array([[sd**2]]),
        Prior(weight[None], np.array([mode])),
        np.array([DELTA]),
        share,
    )

    r = np.linspace(-70, 70, 700_001)  # 100 points to the narrowest width
    density = norm.pdf(estimate, r, sd) * sum(
        w * norm.pdf(r, share * mode, share * width)
        for w, width in zip(weight, WIDTHS, strict=True)
    )
    density /= density.sum()
    mean = density @ r
    (values,) = np.array(effects).reshape(1, -1)
    got = effects._make(values)
    assert got.mean == pytest.approx(mean, abs=1e-6)
    assert got.sd == pytest.approx(np.sqrt(density @ (r - mean) ** 2), abs=1e-6)
    for quantile, p in ((got.low, 0.025), (got.median, 0.5), (got.high, 0.975)):
        assert quantile == pytest.approx(r[np.searchsorted(density.cumsum(), p)], abs=5e-4)
    assert got.beyond == pytest.approx(density[np.abs(r) >= DELTA].sum(), abs=2e-3)
    above = density[r > 1e-9].sum() + density[np.abs(r) < 1e-9].sum() / 2
    assert got.above == pytest.approx(above, abs=2e-3)


@pytest.mark.parametrize("mode", [0.0, -0.4])
def test_the_prior_is_found_again_through_the_noise(mode: float) -> None:
    rng = np.random.default_rng(0)
    n = 5000
    truth = mode + rng.normal(0, np.where(rng.random(n) < 0.8, 0.05, 2.0))
    variance = rng.uniform(0.1, 0.5, n) ** 2
    estimate = truth + rng.normal(0, np.sqrt(variance))
    prior = fit_prior(estimate[None], variance[None], free_mode=True)
    assert prior.weight.sum() == pytest.approx(1)
    assert prior.mode[0] == pytest.approx(mode, abs=0.03)
    assert prior.weight[0, WIDTHS < 0.4].sum() == pytest.approx(0.8, abs=0.05)
    effects = posterior_effects(estimate[None], variance[None], prior, np.array([DELTA]))
    covered = (effects.low[0] <= truth) & (truth <= effects.high[0])
    assert covered.mean() == pytest.approx(0.95, abs=0.02)
    beyond = np.abs(truth) >= DELTA
    for low, high in ((0.1, 0.4), (0.4, 0.8), (0.8, 1.0)):  # probabilities mean what they say
        some = (effects.beyond[0] >= low) & (effects.beyond[0] <= high)
        error = 3 * 0.5 / np.sqrt(some.sum())
        assert beyond[some].mean() == pytest.approx(effects.beyond[0, some].mean(), abs=error)


def test_few_counts_do_not_narrow_the_intervals_of_well_counted_features() -> None:
    """Ratios are alike in all features; of most, a pseudocount leaves little."""
    rng = np.random.default_rng(3)
    share = np.where(rng.random((20, 500)) < 0.25, 1.0, 0.1)
    truth = share * rng.normal(0, 0.3, share.shape)
    variance = rng.uniform(0.1, 0.25, share.shape) ** 2 * share
    estimate = truth + rng.normal(0, np.sqrt(variance))
    covered = {}
    for name, of in (("ratio", share), ("effect", 1.0)):
        prior = fit_prior(estimate, variance, of, free_mode=True)
        effects = posterior_effects(estimate, variance, prior, np.full(20, DELTA), of)
        inside = (effects.low <= truth) & (truth <= effects.high)
        covered[name] = inside[share == 1].mean()
    assert covered["ratio"] == pytest.approx(0.95, abs=0.02)
    assert covered["effect"] < 0.9  # a prior of the effects themselves


def test_without_a_free_mode_it_is_zero() -> None:
    estimate = np.full((1, 50), 2.0)
    assert fit_prior(estimate, np.full((1, 50), 0.01), free_mode=False).mode[0] == 0


def test_delta_is_three_standard_deviations_of_a_normal_prior() -> None:
    for j in (3, 5):
        weight = np.zeros((1, len(WIDTHS)))
        weight[0, j] = 1
        delta = robust_delta(Prior(weight, np.zeros(1)))[0]
        assert delta == pytest.approx(max(3 * WIDTHS[j], 0.1), rel=1e-3)
    weight = np.eye(1, len(WIDTHS))
    assert robust_delta(Prior(weight, np.zeros(1)))[0] == 0.1


def test_unknown_features_stay_unknown_and_change_nothing() -> None:
    rng = np.random.default_rng(2)
    estimate, variance = rng.normal(0, 1, (2, 40)), np.full((2, 40), 0.04)
    prior = fit_prior(estimate, variance, free_mode=True)
    more = np.hstack([estimate, np.full((2, 3), np.nan)])
    more_variance = np.hstack([variance, np.full((2, 3), np.nan)])
    again = fit_prior(more, more_variance, free_mode=True)
    np.testing.assert_array_equal(again.weight, prior.weight)
    effects = posterior_effects(more, more_variance, again, np.full(2, DELTA))
    assert np.isnan(effects.mean[:, 40:]).all()
    assert np.isfinite(effects.mean[:, :40]).all()


def test_no_known_feature_at_all() -> None:
    nothing = np.full((1, 4), np.nan)
    prior = fit_prior(nothing, nothing, free_mode=True)
    assert np.isnan(posterior_effects(nothing, nothing, prior, np.array([DELTA])).beyond).all()
    assert np.isfinite(prior.weight).all()
