"""The aggregated posterior against scipy's mixtures, and the density of groups on a known shift."""

import numpy as np
import pytest
from scipy import stats
from scipy.special import logsumexp

from totalvi.posterior import aggregated_posterior as aggregate
from totalvi.posterior.aggregated_posterior import AggregatedPosterior, log_density_by_group


def mixture(n_cells: int = 12, n_latent: int = 3) -> AggregatedPosterior:
    rng = np.random.default_rng(0)
    mean = rng.normal(2, 2, (n_cells, n_latent)).astype(np.float32)
    return AggregatedPosterior(
        mean, rng.gamma(1, 0.5, (n_cells, n_latent)).astype(np.float32) + 1e-4
    )


def densities(components: AggregatedPosterior, u: np.ndarray) -> np.ndarray:
    return np.array(
        [
            stats.multivariate_normal(m, np.diag(v)).logpdf(u)
            for m, v in zip(components.mean, components.variance, strict=True)
        ]
    ).T


@pytest.mark.parametrize("pairs_at_once", [1, 50, 2**22])
def test_log_density_is_that_of_the_mixture(
    pairs_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aggregate, "_PAIRS_AT_ONCE", pairs_at_once)
    components, u = mixture(), np.random.default_rng(1).normal(2, 3, (40, 3))
    each = densities(components, u)
    np.testing.assert_allclose(
        components.log_prob(u), logsumexp(each, axis=1) - np.log(12), rtol=1e-6
    )
    left_out = np.array([3, -1] * 20)
    each[::2, 3] = -np.inf
    expected = logsumexp(each, axis=1) - np.log(np.where(left_out >= 0, 11, 12))
    np.testing.assert_allclose(components.log_prob(u, left_out), expected, rtol=1e-6)


def test_density_is_exact_for_narrow_components_far_from_zero() -> None:
    mean = np.full((2, 4), 80.0)
    components = AggregatedPosterior(mean, np.full((2, 4), 1e-4))
    expected = stats.norm.logpdf([80.01] * 4, 80, 0.01).sum()
    assert components.log_prob(mean[:1] + 0.01)[0] == pytest.approx(expected, rel=1e-6)


def test_samples_are_those_of_the_mixture() -> None:
    components = mixture()
    samples = components.sample(20000, seed=1)
    assert np.array_equal(samples, components.sample(20000, seed=1))
    assert not np.array_equal(samples, components.sample(20000, seed=2))
    np.testing.assert_allclose(samples.mean(axis=0), components.mean.mean(axis=0), atol=0.06)
    second = (components.mean**2 + components.variance).mean(axis=0)
    np.testing.assert_allclose((samples**2).mean(axis=0), second, rtol=0.03)


def test_density_integrates_to_one() -> None:
    components = AggregatedPosterior(np.array([[0.0], [3.0]]), np.array([[0.2], [1.5]]))
    grid = np.linspace(-6, 12, 3001)[:, None]
    assert np.trapezoid(np.exp(components.log_prob(grid)), grid[:, 0]) == pytest.approx(1, abs=1e-6)


def test_wrong_points_are_refused() -> None:
    with pytest.raises(ValueError, match=r"allowed is \(points, 3\)"):
        mixture().log_prob(np.zeros((4, 2)))
    with pytest.raises(ValueError, match="group of one"):
        mixture(1).log_prob(np.zeros((1, 3)), np.array([0]))


def latent(n_cells: int, shift: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    mean = rng.normal(size=(n_cells, 5))
    mean[:, 0] += shift
    return mean, rng.uniform(0.1, 0.3, (n_cells, 5))


def test_the_sample_that_is_enriched_is_found() -> None:
    """Samples 0 and 1 differ along one dimension by a shift whose log ratio of densities is known."""
    (mean_a, variance_a), (mean_b, variance_b) = latent(600, 0.0, 0), latent(400, 2.0, 1)
    mean, variance = np.vstack([mean_a, mean_b]), np.vstack([variance_a, variance_b])
    density = log_density_by_group(mean, variance, np.repeat([0, 1], [600, 400]), 2)
    ratio = density[:, 1] - density[:, 0]
    truth = 2 * mean[:, 0] - 2  # log N(u; 2, 1) - log N(u; 0, 1)
    assert np.corrcoef(ratio, truth)[0, 1] > 0.8
    clear = np.abs(truth) > 1.5
    assert (np.sign(ratio) == np.sign(truth))[clear].mean() > 0.9


def test_a_cell_does_not_speak_for_its_own_sample() -> None:
    """Two random halves are equally dense; with each cell's own part they would not be."""
    mean, variance = latent(600, 0.0, 2)
    group = np.repeat([0, 1], [300, 300])
    density = log_density_by_group(mean, variance, group, 2)
    own, other = density[np.arange(600), group], density[np.arange(600), 1 - group]
    assert abs(np.median(own - other)) < 0.2
    with_itself = [
        AggregatedPosterior(mean[group == code], variance[group == code]).log_prob(mean)
        for code in (0, 1)
    ]
    biased = np.array(with_itself)[group, np.arange(600)]
    assert np.median(biased - other) > 0.5


def test_cells_of_no_group_are_given_a_density() -> None:
    mean, variance = latent(20, 0.0, 0)
    group = np.repeat([0, -1, 1], [8, 4, 8])
    density = log_density_by_group(mean, variance, group, 2)
    expected = AggregatedPosterior(mean[:8], variance[:8]).log_prob(mean[8:12])
    np.testing.assert_allclose(density[8:12, 0], expected)
