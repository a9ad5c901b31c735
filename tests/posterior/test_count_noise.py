"""Counts by cell follow the negative binomial, and belong to the cell and the feature."""

from typing import Any

import numpy as np
import pytest
from scipy import stats

from totalvi.posterior.noise import CellNoise, Drawn, gamma_values, negative_binomial_counts

N_DRAWS = 20_000
KEYS = np.random.default_rng(0).integers(0, 2**64, N_DRAWS, dtype=np.uint64)
FEATURES = np.arange(3)


def draw(
    mean: float, r: float, dropout: float | None = None, n_features: int = 1, sample: int = 0
) -> np.ndarray:
    shape = (N_DRAWS, n_features)
    return negative_binomial_counts(
        Drawn(CellNoise(7), sample, KEYS, np.arange(n_features)),
        np.full(shape, mean),
        np.full((1, n_features), r),
        None if dropout is None else np.full(shape, dropout),
    )


def uniform_if_true(counts: np.ndarray, law: Any) -> float:
    """p-value of the counts' ranks, ties broken at random, being uniform."""
    v = np.random.default_rng(1).random(counts.shape)
    rank = law.cdf(counts - 1) + v * law.pmf(counts)
    return float(stats.kstest(rank.ravel(), "uniform").pvalue)


@pytest.mark.parametrize("r", [0.01, 0.3, 1.0, 7.0, 1e3])
@pytest.mark.parametrize("mean", [1e-3, 0.1, 1.0, 15.9, 16.1, 60.0, 1e3, 1e5])
def test_counts_follow_the_negative_binomial(mean: float, r: float) -> None:
    counts = draw(mean, r)[:, 0].astype(np.float64)
    assert (counts >= 0).all()
    assert (counts == np.round(counts)).all()
    assert uniform_if_true(counts, stats.nbinom(r, r / (r + mean))) > 1e-3


@pytest.mark.parametrize("mean", [1e-3, 2.0, 15.0, 17.0, 300.0, 1e5])
def test_without_dispersion_counts_are_poisson(mean: float) -> None:
    counts = draw(mean, 1e20)[:, 0].astype(np.float64)
    assert uniform_if_true(counts, stats.poisson(mean)) > 1e-3


@pytest.mark.parametrize(("mean", "r"), [(0.5, 0.5), (40.0, 3.0)])
def test_small_counts_have_their_probabilities(mean: float, r: float) -> None:
    counts = draw(mean, r)[:, 0]
    law = stats.nbinom(r, r / (r + mean))
    last = int(law.ppf(0.999))
    observed = np.bincount(np.minimum(counts, last).astype(int), minlength=last + 1)
    expected = np.append(law.pmf(np.arange(last)), law.sf(last - 1)) * N_DRAWS
    assert stats.chisquare(observed, expected * observed.sum() / expected.sum()).pvalue > 1e-3


@pytest.mark.parametrize("mean", [2.0, 50.0])
def test_a_share_is_dropped(mean: float) -> None:
    counts, dropped = draw(mean, 5.0)[:, 0], draw(mean, 5.0, dropout=0.3)[:, 0]
    above = counts > 0
    assert (dropped[~above] == 0).all()
    kept = dropped[above] == counts[above]
    assert ((dropped[above] == 0) | kept).all()
    assert abs(kept.mean() - 0.7) < 4 * np.sqrt(0.21 / above.sum())


@pytest.mark.parametrize("mean", [1.0, 200.0])
def test_features_samples_and_neighbouring_cells_are_independent(mean: float) -> None:
    first, other = (draw(mean, 2.0, n_features=3, sample=sample) for sample in (0, 1))
    columns = np.column_stack([first[1:], first[:-1], other[1:]])
    correlation = np.corrcoef(columns.T) - np.eye(9)
    assert np.abs(correlation).max() < 4.5 / np.sqrt(N_DRAWS)


def test_counts_belong_to_the_cell_and_the_feature() -> None:
    rng = np.random.default_rng(0)
    mean = np.exp(rng.normal(1, 3, (50, 3)))
    r = np.exp(rng.normal(0, 2, (50, 3)))

    def counts(cells: np.ndarray, features: np.ndarray, seed: int = 0) -> np.ndarray:
        some = np.ix_(cells, features)
        return negative_binomial_counts(
            Drawn(CellNoise(seed), 0, KEYS[cells], features), mean[some], r[some]
        )

    whole = counts(np.arange(50), FEATURES)
    cells, features = np.array([31, 4, 17]), np.array([2, 0])
    assert np.array_equal(counts(cells, features), whole[np.ix_(cells, features)])
    assert not np.array_equal(counts(np.arange(50), FEATURES, seed=1), whole)


@pytest.mark.parametrize("r", [1e-40, 1e-3, 1e3, 1e30, np.inf])
@pytest.mark.parametrize("mean", [0.0, 1e-30, 1.0, 1e8, 1e14])
def test_extreme_parameters_give_finite_counts(mean: float, r: float) -> None:
    counts = draw(mean, r)
    assert np.isfinite(counts).all()
    if mean < 1e-20 or r < 1e-30:
        assert (counts == 0).all()


def test_what_is_no_mean_is_returned_as_it_is() -> None:
    assert np.isnan(draw(np.nan, 1.0)).all()
    assert np.isposinf(draw(np.inf, 1.0)).all()


@pytest.mark.parametrize("r", [0.01, 0.3, 1.0, 7.0, 1e3])
@pytest.mark.parametrize("mean", [1e-5, 1.0, 1e4])
def test_gamma_values_follow_the_gamma_distribution(mean: float, r: float) -> None:
    values = gamma_values(
        Drawn(CellNoise(7), 0, KEYS, np.arange(1)), np.full((N_DRAWS, 1), mean), np.full((1, 1), r)
    )[:, 0].astype(float)
    law = stats.gamma(r, scale=mean / r)
    above = values > 1e-30  # below it float32 has few digits left
    assert np.isclose((~above).mean(), law.cdf(1e-30), atol=0.01)
    uniform = (law.cdf(values[above]) - law.cdf(1e-30)) / law.sf(1e-30)
    assert stats.kstest(uniform, "uniform").pvalue > 1e-3


def test_gamma_values_belong_to_the_cell_and_the_feature() -> None:
    mean, r = np.full((50, 4), 3.0), np.array([[0.5, 1.0, 2.0, 4.0]])
    whole = gamma_values(Drawn(CellNoise(1), 0, KEYS[:50], np.arange(4)), mean, r)
    cells, features = np.array([7, 3, 30]), np.array([3, 0])
    part = gamma_values(
        Drawn(CellNoise(1), 0, KEYS[cells], features),
        mean[:3, :2],
        np.repeat(r[:, features], 3, axis=0),
    )
    assert np.array_equal(part, whole[np.ix_(cells, features)])
    for seed, sample in ((2, 0), (1, 1)):
        other = gamma_values(Drawn(CellNoise(seed), sample, KEYS[:50], np.arange(4)), mean, r)
        assert not np.isclose(other, whole).any()


@pytest.mark.parametrize("r", [0.0, 1e-38, np.inf])
def test_extreme_dispersions_give_finite_gamma_values(r: float) -> None:
    values = gamma_values(
        Drawn(CellNoise(0), 0, KEYS[:99], FEATURES), np.full((99, 3), 5.0), np.full((1, 3), r)
    )
    assert np.allclose(values, 5.0 if r > 1 else 0.0, rtol=1e-3)
