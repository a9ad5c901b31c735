"""Log-probabilities and divergences against scipy, mpmath and numerical integration."""

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from totalvi.nn.likelihoods import (
    digamma_difference,
    log_normal_log_prob,
    log_rising_ratio,
    negative_binomial_log_prob,
    negative_binomial_mixture_log_prob,
    normal_kl,
    normal_log_prob,
    standard_normal_kl,
    zero_inflated_negative_binomial_log_prob,
)

LOG_MEANS = [-14.0, -5.0, -1.0, 0.0, 2.0, 6.0, 9.0]
LOG_RS = [-12.0, -4.0, 0.0, 2.0, 3.39, 3.41, 5.0, 9.0, 16.0]
COUNTS = [0, 1, 2, 7, 60, 3000, 20000]


def grid() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return tuple(a.ravel() for a in np.meshgrid(COUNTS, LOG_MEANS, LOG_RS))  # type: ignore[return-value]


def exact_negative_binomial(count: float, log_mean: float, log_r: float) -> float:
    with mpmath.workdps(60):
        mean, r = mpmath.exp(log_mean), mpmath.exp(log_r)
        value = (
            mpmath.loggamma(count + r)
            - mpmath.loggamma(r)
            - mpmath.loggamma(count + 1)
            + r * mpmath.log(r / (r + mean))
            + count * mpmath.log(mean / (r + mean))
        )
        return float(value)


@pytest.mark.parametrize(
    ("dtype", "relative", "absolute"), [(torch.float64, 1e-9, 1e-7), (torch.float32, 2e-6, 2e-5)]
)
def test_negative_binomial_is_exact_over_all_ranges(
    dtype: torch.dtype, relative: float, absolute: float
) -> None:
    arrays = [torch.tensor(a, dtype=dtype) for a in grid()]
    ours = negative_binomial_log_prob(*arrays).double().numpy()
    exact = np.array(
        [exact_negative_binomial(*map(float, row)) for row in zip(*arrays, strict=True)]
    )
    # a log-probability is a sum of terms as large as count * log(count)
    size = np.maximum(np.abs(exact), arrays[0].double().numpy() * 10)
    np.testing.assert_array_less(np.abs(ours - exact), absolute + relative * size)


def test_negative_binomial_agrees_with_scipy() -> None:
    count = torch.arange(0, 200, dtype=torch.float64)
    mean, r = 7.3, 1.7
    ours = negative_binomial_log_prob(
        count, torch.tensor(mean).double().log(), torch.tensor(r).double().log()
    )
    expected = stats.nbinom.logpmf(count.numpy(), r, r / (r + mean))
    np.testing.assert_allclose(ours, expected, rtol=1e-6)


def test_negative_binomial_of_huge_inverse_dispersion_is_poisson() -> None:
    count = torch.arange(0, 30).float()
    ours = negative_binomial_log_prob(count, torch.tensor(1.2), torch.tensor(25.0))
    expected = stats.poisson.logpmf(count.numpy(), np.exp(1.2))
    np.testing.assert_allclose(ours, expected, rtol=1e-5)


@settings(max_examples=60, deadline=None)
@given(
    log_mean=st.floats(-6, 5),
    log_r=st.floats(-2, 9),
    dropout_logit=st.floats(-30, 30),
    log_factor=st.floats(0, 4),
)
def test_probabilities_sum_to_one(
    log_mean: float, log_r: float, dropout_logit: float, log_factor: float
) -> None:
    mean, r = np.exp(log_mean), np.exp(log_r)
    largest = mean * np.exp(log_factor)
    last = int(largest + 60 * np.sqrt(largest + largest**2 / r) + 60 * (1 + largest / r))
    if last > 2_000_000:
        return
    count = torch.arange(0, last, dtype=torch.float64)
    a, b, c, d = (
        torch.tensor(v, dtype=torch.float64) for v in (log_mean, log_r, dropout_logit, log_factor)
    )
    for log_prob in (
        negative_binomial_log_prob(count, a, b),
        zero_inflated_negative_binomial_log_prob(count, a, b, c),
        negative_binomial_mixture_log_prob(count, a, a + d, b, c),
    ):
        assert log_prob.exp().sum().item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("logit", [-40.0, -3.0, 0.0, 2.0, 40.0])
def test_zero_inflation_and_mixture_are_weighted_sums(dtype: torch.dtype, logit: float) -> None:
    count = torch.tensor([0.0, 1, 5, 40], dtype=dtype)
    low, high, log_r, weight = (torch.tensor(v, dtype=dtype) for v in (0.3, 2.5, 0.4, logit))
    background = negative_binomial_log_prob(count, low, log_r)
    foreground = negative_binomial_log_prob(count, high, log_r)
    share = torch.sigmoid(weight.double())
    zero = (count == 0).double()
    expected = share * zero + torch.sigmoid(-weight.double()) * background.double().exp()
    ours = zero_inflated_negative_binomial_log_prob(count, low, log_r, weight)
    np.testing.assert_allclose(ours, expected.log(), rtol=1e-5, atol=1e-6)
    mixed = (
        share * background.double().exp()
        + torch.sigmoid(-weight.double()) * foreground.double().exp()
    )
    ours = negative_binomial_mixture_log_prob(count, low, high, log_r, weight)
    np.testing.assert_allclose(ours, mixed.log(), rtol=1e-5, atol=1e-6)


def test_extreme_arguments_stay_finite_with_their_gradients() -> None:
    arguments = [
        torch.tensor(a).float().requires_grad_()
        for a in np.meshgrid(LOG_MEANS, LOG_RS, [-80, 0, 80])
    ]
    log_mean, log_r, logit = arguments
    for count in map(float, COUNTS):
        for value in (
            zero_inflated_negative_binomial_log_prob(
                torch.full_like(log_mean, count), log_mean, log_r, logit
            ),
            negative_binomial_mixture_log_prob(
                torch.full_like(log_mean, count), log_mean, log_mean + 1, log_r, logit
            ),
        ):
            assert value.isfinite().all()
            gradients = torch.autograd.grad(value.sum(), arguments)
            assert all(gradient.isfinite().all() for gradient in gradients)


def test_rising_ratio_is_the_sum_of_its_logs_and_continuous_where_the_series_begins() -> None:
    r = torch.tensor([0.01, 3.0, 29.999, 30.001, 1e4, 1e8], dtype=torch.float64)
    for count in (0, 1, 2, 50):
        expected = torch.log1p(torch.arange(count)[:, None] / r).sum(dim=0)
        ours = log_rising_ratio(r, torch.tensor(float(count), dtype=torch.float64))
        np.testing.assert_allclose(ours, expected, rtol=1e-7, atol=1e-10)
        single = log_rising_ratio(r.float(), torch.tensor(float(count)))
        np.testing.assert_allclose(single, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("count", [1.0, 4.0, 300.0])
def test_digamma_difference_is_exact_in_float32(count: float) -> None:
    r = torch.tensor([1e-3, 1.0, 29.9, 30.1, 1e4, 1e7])
    exact = [
        float(mpmath.digamma(float(value) + count) - mpmath.digamma(float(value))) for value in r
    ]
    np.testing.assert_allclose(digamma_difference(r, torch.tensor(count)), exact, rtol=2e-5)


@pytest.mark.parametrize(
    ("mean", "variance", "prior_mean", "prior_variance"),
    [(0.0, 1.0, 0.0, 1.0), (1.5, 0.2, -0.5, 2.0), (-3.0, 4.0, 1.0, 0.3), (0.1, 1e-3, 0, 1)],
)
def test_divergences_match_numerical_integration(
    mean: float, variance: float, prior_mean: float, prior_variance: float
) -> None:
    q = stats.norm(mean, np.sqrt(variance))

    def expected(m: float, v: float) -> float:
        p = stats.norm(m, np.sqrt(v))
        width = 12 * np.sqrt(variance)
        value = np.linspace(mean - width, mean + width, 20_001)
        integrand = q.pdf(value) * (q.logpdf(value) - p.logpdf(value))
        return float(integrate.simpson(integrand, x=value))

    tensors = [
        torch.tensor(v, dtype=torch.float64) for v in (mean, variance, prior_mean, prior_variance)
    ]
    assert normal_kl(*tensors).item() == pytest.approx(
        expected(prior_mean, prior_variance), abs=1e-7
    )
    assert standard_normal_kl(*tensors[:2]).item() == pytest.approx(expected(0, 1), abs=1e-7)


def test_log_normal_density() -> None:
    value = torch.tensor([0.1, 1.0, 7.0], dtype=torch.float64)
    np.testing.assert_allclose(
        log_normal_log_prob(value.log()), stats.lognorm(1).logpdf(value.numpy())
    )


def test_normal_density_agrees_with_scipy() -> None:
    value, mean, scale = (torch.tensor(v, dtype=torch.float64) for v in (1.7, -0.4, 0.03))
    ours = normal_log_prob(value, mean, scale).item()
    assert ours == pytest.approx(stats.norm.logpdf(1.7, -0.4, 0.03), rel=1e-12)
    assert normal_log_prob(value, 0.0, 1.0).item() == pytest.approx(stats.norm.logpdf(1.7))
