"""Moderated comparisons of samples: closed forms, and properties over many simulated experiments."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from scipy.optimize import brentq
from scipy.special import digamma, polygamma

from totalvi.posterior.differential.differential_tables import adjusted
from totalvi.posterior.differential.moderated import (
    VariancePrior,
    between_variance,
    compare_samples,
    expected_power,
    fit_variance_prior,
    independent_columns,
    inverse_trigamma,
    moderate,
    smooth_sampling,
)


def two_groups(n: int, blocks: bool = False) -> np.ndarray:
    """Design of n samples a side; with blocks, sample k of both sides is of block k."""
    columns = [np.repeat([1.0, 0.0], n), np.ones(2 * n)]
    if blocks:
        columns += [np.tile(np.arange(n) == k, 2).astype(float) for k in range(1, n)]
    return np.column_stack(columns)


@pytest.mark.parametrize("y", [1e-8, 1e-3, 0.3, 2.0, 50.0, 1e9])
def test_the_inverse_of_trigamma(y: float) -> None:
    assert polygamma(1, inverse_trigamma(y)) == pytest.approx(y, rel=1e-4)


@pytest.mark.parametrize("n", [2, 5])
def test_few_features_have_ordinary_t_tests(n: int) -> None:
    levels = np.random.default_rng(n).normal(size=(2 * n, 2))
    found = compare_samples(levels, np.zeros_like(levels), two_groups(n))
    expected = stats.ttest_ind(levels[:n], levels[n:])
    np.testing.assert_allclose(found.p_value, expected.pvalue, rtol=1e-8)
    interval = expected.confidence_interval(0.95)
    np.testing.assert_allclose(found.interval()[0], interval.low, rtol=1e-8)
    np.testing.assert_allclose(found.interval()[1], interval.high, rtol=1e-8)


def test_blocks_of_two_are_a_paired_t_test() -> None:
    levels = np.random.default_rng(0).normal(size=(12, 2))
    found = compare_samples(levels, np.zeros_like(levels), two_groups(6, blocks=True))
    expected = stats.ttest_rel(levels[:6], levels[6:])
    np.testing.assert_allclose(found.p_value, expected.pvalue, rtol=1e-8)


def test_a_covariate_is_taken_out_as_by_least_squares() -> None:
    rng = np.random.default_rng(1)
    age = rng.normal(size=10)
    design = np.column_stack([two_groups(5), age])
    levels = rng.normal(size=(10, 2)) + 3 * age[:, None]
    found = compare_samples(levels, np.zeros_like(levels), design)
    coefficients, squares, *_ = np.linalg.lstsq(design, levels, rcond=None)
    error = np.sqrt(squares / 7 * np.linalg.inv(design.T @ design)[0, 0])
    np.testing.assert_allclose(found.effect, coefficients[0], rtol=1e-8)
    np.testing.assert_allclose(found.error, error, rtol=1e-8)
    np.testing.assert_allclose(found.df, 7)


def test_imprecise_samples_weigh_less() -> None:
    """With variances that are known to be v, the estimate is the mean weighted by 1 / v."""
    rng = np.random.default_rng(2)
    v = np.repeat([[0.01], [1.0], [0.04], [0.01], [0.09], [1.0]], 400, axis=1)
    found = compare_samples(rng.normal(size=v.shape) * np.sqrt(v), v, two_groups(3))
    expected = sum(1 / (1 / v[side]).sum(axis=0)[0] for side in (slice(3), slice(3, 6)))
    assert found.effect.var() == pytest.approx(expected, rel=0.15)
    assert (found.error**2).mean() == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize("df", [4.0, 14.0])
def test_the_prior_of_the_variances_is_recovered(df: float) -> None:
    rng = np.random.default_rng(3)
    sigma = 0.3 * 8 / rng.chisquare(8, 20_000)
    variance = sigma * rng.chisquare(df, len(sigma)) / df
    prior = fit_variance_prior(variance, np.full(len(sigma), df))
    assert prior.df == pytest.approx(8, rel=0.1)
    np.testing.assert_allclose(prior.variance, 0.3, rtol=0.05)
    posterior, posterior_df = moderate(variance, np.full(len(sigma), df), prior)
    assert ((posterior - sigma) ** 2).mean() < ((variance - sigma) ** 2).mean()
    np.testing.assert_allclose(posterior_df, 8 + df, rtol=0.1)


@pytest.mark.parametrize(("n", "df"), [(4, 6.0), (5, 4.0)])
def test_without_sampling_variances_it_is_the_test_of_limma(n: int, df: float) -> None:
    """By the formulas of Smyth (2004), with the prior's degrees of freedom by root finding."""
    rng = np.random.default_rng(13)
    levels = rng.normal(size=(2 * n, 2000)) * np.sqrt(0.2 * df / rng.chisquare(df, 2000))
    found = compare_samples(levels, np.zeros_like(levels), two_groups(n))
    means = np.array([levels[:n].mean(axis=0), levels[n:].mean(axis=0)])
    residual = 2 * n - 2
    square = ((levels - np.repeat(means, n, axis=0)) ** 2).sum(axis=0) / residual
    e = np.log(square) - digamma(residual / 2) + np.log(residual / 2)
    excess = e.var(ddof=1) - polygamma(1, residual / 2)
    prior = 2 * brentq(lambda x: polygamma(1, x) - excess, 1e-3, 1e4)
    scale = np.exp(e.mean() + digamma(prior / 2) - np.log(prior / 2))
    posterior = (prior * scale + residual * square) / (prior + residual)
    t = (means[0] - means[1]) / np.sqrt(posterior * 2 / n)
    np.testing.assert_allclose(found.effect, means[0] - means[1], atol=1e-10)
    np.testing.assert_allclose(found.df, prior + residual, rtol=1e-4)
    expected = 2 * stats.t.sf(np.abs(t), prior + residual)
    np.testing.assert_allclose(found.p_value, expected, rtol=1e-3)


def test_few_features_do_not_make_small_p_values_frequent() -> None:
    """The degrees of freedom of their prior are uncertain, and too many of them cut the tails."""
    rng = np.random.default_rng(5)
    design = np.column_stack([np.repeat([1.0, 0.0], 3), np.ones(6)])
    p_value = np.empty((1000, 20))
    for number in range(len(p_value)):
        sd = np.sqrt(0.04 * 8 / rng.chisquare(8, 20))
        p_value[number] = compare_samples(rng.normal(0, sd, (6, 20)), np.zeros((6, 20)), design)[3]
    assert (p_value < 0.002).sum() < 1.45 * 0.002 * p_value.size
    assert (p_value < 0.05).mean() == pytest.approx(0.05, rel=0.15)


def test_equal_variances_are_pooled() -> None:
    rng = np.random.default_rng(4)
    variance = rng.chisquare(4, 5000) / 4
    prior = fit_variance_prior(variance, np.full(5000, 4.0))
    posterior, df = moderate(variance, np.full(5000, 4.0), prior)
    np.testing.assert_allclose(posterior, 1, rtol=0.1)
    assert df.min() > 50
    pooled = moderate(variance, np.full(5000, 4.0), VariancePrior(1e12, np.ones(5000)))
    np.testing.assert_array_equal(pooled[1], 20_000)


def test_the_prior_follows_a_predictor() -> None:
    rng = np.random.default_rng(5)
    predictor = rng.uniform(size=5000)
    variance = np.exp(2 * predictor) * rng.chisquare(6, 5000) / 6
    with_trend = fit_variance_prior(variance, np.full(5000, 6.0), predictor)
    np.testing.assert_allclose(with_trend.variance, np.exp(2 * predictor), rtol=0.1)
    assert with_trend.df > 10 * fit_variance_prior(variance, np.full(5000, 6.0)).df


@pytest.mark.parametrize("between", [0.0, 0.04, 0.5])
def test_the_variance_between_samples_is_unbiased(between: float) -> None:
    rng = np.random.default_rng(6)
    v = rng.uniform(0.01, 0.2, (8, 4000))
    levels = rng.normal(size=v.shape) * np.sqrt(between + v)
    design = two_groups(4)
    found = between_variance(levels, v, [(np.arange(4000), np.arange(8), design)])
    assert found == pytest.approx(between, abs=0.005 + 0.03 * between)


@pytest.mark.parametrize("n", [3, 5, 8])
@pytest.mark.parametrize("miscalibrated", [0.5, 1.0, 2.0])
def test_null_p_values_are_uniform(n: int, miscalibrated: float) -> None:
    """Also where sampling variances are wrong by one factor, and donors differ by feature."""
    rng = np.random.default_rng((n, int(10 * miscalibrated)))
    p_values, any_call = [], 0
    for _ in range(60):
        sd = rng.uniform(0.1, 0.4, 150)
        v = 10 ** rng.uniform(-3, -0.3, 150) * np.exp(rng.normal(0, 0.5, (2 * n, 1)))
        levels = rng.normal(size=v.shape) * np.sqrt(sd**2 + v)
        found = compare_samples(levels, miscalibrated * v, two_groups(n))
        p_values.append(found.p_value)
        any_call += (adjusted(found.p_value) <= 0.05).any()
    every = np.concatenate(p_values)
    assert stats.kstest(every, "uniform").statistic < 0.02
    assert (every < 0.05).mean() == pytest.approx(0.05, abs=0.01)
    assert any_call <= 8  # of 60, with 3 expected


def test_intervals_cover_and_calls_hold_their_rate() -> None:
    rng = np.random.default_rng(7)
    covered, false, power = [], [], []
    for _ in range(60):
        effect = np.where(np.arange(150) < 20, 1.0, 0.0)
        sd = rng.uniform(0.1, 0.4, 150)
        v = 10 ** rng.uniform(-3, -0.5, (1, 150)) * np.exp(rng.normal(0, 0.5, (10, 1)))
        levels = rng.normal(size=v.shape) * np.sqrt(sd**2 + v)
        levels[:5] += effect
        found = compare_samples(levels, v, two_groups(5))
        low, high = found.interval()
        covered.append(((low < effect) & (effect < high)).mean())
        calls = adjusted(found.p_value) <= 0.05
        false.append((calls & (effect == 0)).sum() / max(calls.sum(), 1))
        power.append(calls[:20].mean())
    assert np.mean(covered) == pytest.approx(0.95, abs=0.01)
    assert np.mean(false) <= 0.06
    assert np.mean(power) > 0.8


def test_pairing_takes_out_what_donors_share() -> None:
    """The variance of an effect is 2 s^2 / n within donors, and 2 (s^2 + d^2) / n between them."""
    rng = np.random.default_rng(8)
    n, within, donor = 6, 0.2, 0.6
    noise = within * rng.normal(size=(2 * n, 3000))
    same = np.tile(donor * rng.normal(size=(n, 3000)), (2, 1))
    apart = donor * rng.normal(size=(2 * n, 3000))
    zeros = np.zeros_like(noise)
    paired = compare_samples(same + noise, zeros, two_groups(n, blocks=True))
    unpaired = compare_samples(apart + noise, zeros, two_groups(n))
    assert paired.effect.var() == pytest.approx(2 * within**2 / n, rel=0.1)
    assert (paired.error**2).mean() == pytest.approx(2 * within**2 / n, rel=0.1)
    assert unpaired.effect.var() == pytest.approx(2 * (within**2 + donor**2) / n, rel=0.1)
    assert (unpaired.error**2).mean() == pytest.approx(2 * (within**2 + donor**2) / n, rel=0.1)


def test_samples_that_lack_a_feature_do_not_count_for_it() -> None:
    rng = np.random.default_rng(9)
    levels = rng.normal(size=(8, 2))
    levels[[0, 7], 1] = np.nan
    found = compare_samples(levels, np.zeros_like(levels), two_groups(4))
    expected = stats.ttest_ind(levels[1:4, 1], levels[4:7, 1]).pvalue
    assert found.p_value[1] == pytest.approx(expected)
    levels[:4, 1] = np.nan
    found = compare_samples(levels, np.zeros_like(levels), two_groups(4))
    assert np.isnan(
        [found.effect[1], found.p_value[1], found.error[1], found.interval()[0][1]]
    ).all()
    assert np.isfinite(found.p_value[0])


def test_columns_that_cannot_be_told_apart_go_but_not_the_first() -> None:
    group, ones = np.array([1.0, 1, 0, 0]), np.ones(4)
    kept = independent_columns(np.column_stack([group, ones, ones * 2, [1, 0, 1, 0]]))
    assert kept is not None
    assert kept.shape == (4, 3)
    np.testing.assert_array_equal(kept[:, 0], group)
    assert independent_columns(np.column_stack([group, ones, 1 - group])) is None


def test_sampling_variances_follow_feature_and_sample_not_chance() -> None:
    rng = np.random.default_rng(10)
    truth = np.exp(rng.normal(size=(1, 300)) + rng.normal(size=(10, 1)))
    noisy = truth * np.exp(0.3 * rng.normal(size=truth.shape))
    noisy[2, :40] = np.nan
    smooth = smooth_sampling(noisy)
    assert np.isnan(smooth[2, :40]).all()
    known = np.isfinite(smooth)
    assert np.log(smooth / truth)[known].std() < 0.5 * np.log(noisy / truth)[known].std()
    np.testing.assert_array_equal(smooth_sampling(np.zeros((3, 2))), 0)


def test_adjusted_p_values_are_those_of_scipy_over_the_known() -> None:
    p = np.array([0.01, np.nan, 0.2, 0.03])
    known = stats.false_discovery_control(p[[0, 2, 3]])
    np.testing.assert_allclose(adjusted(p)[[0, 2, 3]], known)
    assert np.isnan(adjusted(p)[1])
    assert np.isnan(adjusted(np.array([np.nan]))).all()


@pytest.mark.parametrize("n", [3, 8])
def test_expected_power_is_that_of_simulated_experiments(n: int) -> None:
    rng = np.random.default_rng(11)
    sd = np.full(400, 0.5)
    changed = np.arange(400) < 40
    pilot = pd.DataFrame(
        {"comparison": "a", "modality": "rna", "sample_sd": sd, "df": 1e3,
         "n_samples1": 3, "n_samples2": 3}
    )  # fmt: skip
    table = expected_power(pilot, n_samples=[n], share_changed=0.1)
    found = []
    for _ in range(40):
        levels = rng.normal(size=(2 * n, 400)) * sd
        levels[:n, changed] += 1
        result = compare_samples(levels, np.zeros_like(levels), two_groups(n))
        found.append((adjusted(result.p_value) <= 0.05)[changed].mean())
    assert table[f"power_{n}"].iloc[0] == pytest.approx(np.mean(found), abs=0.1)


@pytest.mark.parametrize("n", [4, 8])
def test_power_of_a_study_in_pairs_is_that_of_paired_experiments(n: int) -> None:
    rng = np.random.default_rng(12)
    changed = np.arange(400) < 40
    pilot = pd.DataFrame(
        {"comparison": "a", "modality": "rna", "sample_sd": np.full(400, 0.5), "df": 2.0,
         "df_residual": 2.0, "design": "paired", "n_samples1": 3, "n_samples2": 3}
    )  # fmt: skip
    predicted = expected_power(pilot, n_samples=[n], share_changed=0.1)[f"power_{n}"].iloc[0]
    found = []
    for _ in range(60):
        levels = rng.normal(size=(2 * n, 400)) * 0.5 + np.tile(rng.normal(size=(n, 400)), (2, 1))
        levels[:n, changed] += 1
        test = stats.ttest_rel(levels[:n], levels[n:])  # without a prior, as the pilot has none
        found.append((adjusted(test.pvalue) <= 0.05)[changed].mean())
    assert predicted == pytest.approx(np.mean(found), abs=0.1)
    unpaired = expected_power(
        pilot.assign(design="unpaired", df=4.0, df_residual=4.0), n_samples=[n]
    )
    assert unpaired[f"power_{n}"].iloc[0] > predicted  # of donors that differ by no more


def test_power_is_of_an_effect_that_the_pseudocount_leaves() -> None:
    pilot = pd.DataFrame(
        {"comparison": "a", "modality": "rna", "sample_sd": 0.5, "df": 8.0, "n_samples1": 3,
         "n_samples2": 3, "scale2": [100.0, 1.0, 0.01], "pseudocounts": 1.0}
    )  # fmt: skip
    power = expected_power(pilot, n_samples=[8])["power_8"].to_numpy()
    assert (np.diff(power) < -0.05).all()
    as_left = expected_power(
        pilot.drop(columns=["scale2", "pseudocounts"]).iloc[[1]], 1.5, n_samples=[8]
    )
    of_one = expected_power(pilot.iloc[[1]], 2.0, n_samples=[8])
    assert of_one["power_8"].iloc[0] == pytest.approx(as_left["power_8"].iloc[0])
    with pytest.raises(ValueError, match="no change"):
        expected_power(pilot, 1.0)


def test_more_samples_and_less_spread_have_more_power() -> None:
    pilot = pd.DataFrame(
        {"comparison": "a", "modality": "rna", "sample_sd": [0.1, 0.5, 2.0, np.nan], "df": 12.0,
         "n_samples1": 3, "n_samples2": 3}
    )  # fmt: skip
    table = expected_power(pilot, n_samples=[3, 6, 12])
    assert len(table) == 3
    power = table.filter(like="power").to_numpy()
    assert (np.diff(power, axis=1) >= 0).all()
    assert (np.diff(power, axis=0) <= 0).all()
    assert table["n_80"].tolist()[0] == 3
    with pytest.raises(ValueError, match="sample_key"):
        expected_power(pilot.drop(columns="sample_sd"))
