"""The posterior of a protein's background and component given its count, against other integrators."""

import itertools
from typing import NamedTuple

import mpmath
import numpy as np
import pytest
import torch
from scipy import integrate, special, stats
from torch import Tensor

from totalvi.nn.count_integrals import CountPosterior, count_log_prob, count_posterior
from totalvi.nn.likelihoods import Dispersion, ProteinMixture


class Case(NamedTuple):
    """One protein of one cell: its count, and the parameters given z."""

    y: float
    mean: float
    scale: float
    factor: float
    logit: float
    r: float


def posterior(cases: list[Case], *, fast: bool, measured: Tensor | None = None) -> CountPosterior:
    """What the counts of the cases say, each a cell with one protein."""
    y, mean, scale, factor, logit, r = torch.tensor(cases, dtype=torch.float64).T[:, :, None]
    mixture = ProteinMixture(mean, factor, logit, Dispersion(r.log(), torch.arange(len(cases))))
    return count_posterior(y, mixture, scale, measured, fast=fast)


def log_prob(cases: list[Case], *, fast: bool, measured: Tensor | None = None) -> Tensor:
    """log p(y | z) of the cases, each a cell with one protein."""
    y, mean, scale, factor, logit, r = torch.tensor(cases, dtype=torch.float64).T[:, :, None]
    mixture = ProteinMixture(mean, factor, logit, Dispersion(r.log(), torch.arange(len(cases))))
    return count_log_prob(y, mixture, scale, measured, fast=fast)


def by_simpson(case: Case) -> tuple[float, float, float, float]:
    """The same by Simpson's rule on SciPy's densities, at 4,001 points of where there is any."""
    parts = []
    for factor in (1.0, case.factor):

        def log_joint(b: np.ndarray, factor: float = factor) -> np.ndarray:
            share = case.r / (case.r + np.exp(b) * factor)
            of_count = stats.nbinom.logpmf(case.y, case.r, share)
            log_prob: np.ndarray = stats.norm.logpdf(b, case.mean, case.scale) + of_count
            return log_prob

        of_count = np.log(case.y + 0.5) - np.log(factor)
        ends = min(case.mean, of_count), max(case.mean, of_count)
        wide = np.linspace(ends[0] - 12 * case.scale, ends[1] + 12 * case.scale, 20_001)
        logs, step = log_joint(wide), wide[1] - wide[0]
        heavy = logs + wide  # where the means below have their weight
        inside = wide[(logs > logs.max() - 40) | (heavy > heavy.max() - 40)]
        b = np.linspace(inside[0] - step, inside[-1] + step, 4001)
        density = np.exp(log_joint(b) - logs.max())
        mu = np.exp(b) * factor
        total, level, rate = (
            integrate.simpson(density * value, x=b)
            for value in (np.ones_like(b), mu, (case.r + case.y) * mu / (case.r + mu))
        )
        expected = np.exp(case.mean + case.scale**2 / 2) * factor
        parts.append(
            (logs.max() + np.log(total), level / total / expected, rate / total / expected)
        )
    (log_back, level_back, rate_back), (log_fore, level_fore, rate_fore) = parts
    ratio = log_fore - log_back
    pi = special.expit(case.logit - ratio)
    return ratio, pi * level_back + (1 - pi) * level_fore, rate_fore, rate_back


def random_cases(n: int, seed: int = 0) -> list[Case]:
    """Cases over all that fits give, and beyond."""
    rng = np.random.default_rng(seed)
    cases = []
    for _ in range(n):
        mean, scale = rng.normal(2, 2), np.exp(rng.uniform(np.log(0.05), np.log(3)))
        factor, r = 10 ** rng.uniform(0, 3), 10 ** rng.uniform(-1, 4)
        mu = np.exp(mean + scale * rng.normal()) * rng.choice([1.0, factor])
        y = float(min(rng.poisson(min(mu, 1e5) * rng.gamma(r, 1 / r)), 1e5))
        cases.append(Case(y, mean, scale, factor, rng.normal(0, 3), r))
    return cases


EXTREME = [
    Case(y, mean, scale, factor, 0.0, r)
    for y, mean, scale, factor, r in itertools.product(
        (0.0, 3.0, 1e5), (-3.0, 6.0), (0.05, 3.0), (1.0, 1000.0), (0.1, 1e4)
    )
]


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("cases", [random_cases(200), EXTREME], ids=["random", "extreme"])
def test_posterior_is_that_of_dense_integration(cases: list[Case], fast: bool) -> None:
    found = torch.cat(posterior(cases, fast=fast), dim=1).numpy()
    expected = np.array([by_simpson(case) for case in cases])
    narrow = np.array([case.scale < 0.6 for case in cases])
    tolerance = np.where(narrow, 1e-6, 5e-5)[:, None]
    assert (np.abs(found[:, :1] - expected[:, :1]) < tolerance).all()
    assert (np.abs(found[:, 1:] / expected[:, 1:] - 1) < tolerance).all()


def test_the_fast_form_is_the_readable_one() -> None:
    cases = random_cases(1000, seed=1)
    fast, plain = posterior(cases, fast=True), posterior(cases, fast=False)
    for name, a, b in zip(fast._fields, fast, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=3e-5, atol=3e-5, msg=name)


def test_evidence_of_a_count_in_arbitrary_precision() -> None:
    case = Case(7.0, 0.0, 1.0, 5.0, 1.0, 2.0)

    def evidence(factor: float) -> mpmath.mpf:
        def joint(b: mpmath.mpf) -> mpmath.mpf:
            mu, r, y = mpmath.exp(b) * factor, mpmath.mpf(case.r), case.y
            return mpmath.npdf(b) * (r / (r + mu)) ** r * (mu / (r + mu)) ** y

        return mpmath.quad(joint, [-12, -4, -1, 0, 1, 2, 4, 12])

    with mpmath.workdps(30):
        expected = float(mpmath.log(evidence(case.factor) / evidence(1.0)))
    found = posterior([case], fast=True).log_bayes_factor.item()
    assert found == pytest.approx(expected, abs=3e-6)


def log_prob_by_quad(case: Case) -> float:
    """log p(y | z) by adaptive quadrature of SciPy's mixture of densities, around its highest point."""
    pi = special.expit(case.logit)

    def log_joint(b: float | np.ndarray) -> np.ndarray:
        parts = [
            np.log(weight)
            + stats.nbinom.logpmf(case.y, case.r, case.r / (case.r + np.exp(b) * factor))
            for weight, factor in ((pi, 1.0), (1 - pi, case.factor))
        ]
        return np.logaddexp(*parts) + stats.norm.logpdf(b, case.mean, case.scale)

    of_count = np.log(case.y + 0.5)
    ends = min(case.mean, of_count - np.log(case.factor)), max(case.mean, of_count)
    grid = np.linspace(ends[0] - 10 * case.scale, ends[1] + 10 * case.scale, 20_001)
    logs = log_joint(grid)
    highest, inside = logs.max(), grid[logs > logs.max() - 45]
    points = np.linspace(inside[0], inside[-1], 21)
    total = sum(
        integrate.quad(
            lambda b: float(np.exp(log_joint(b) - highest)), *pair, epsabs=0, epsrel=1e-7
        )[0]
        for pair in itertools.pairwise(points)
    )
    return float(highest + np.log(total))


@pytest.mark.parametrize("fast", [True, False])
def test_probability_of_a_count_is_that_of_adaptive_quadrature(fast: bool) -> None:
    """Over extreme counts, dispersions and scales of the background."""
    cases = random_cases(40, seed=5) + EXTREME[::3]
    found = log_prob(cases, fast=fast)[:, 0].numpy()
    expected = np.array([log_prob_by_quad(case) for case in cases])
    tolerance = np.array([1e-6 if case.scale < 0.6 else 5e-5 for case in cases])
    # float64 has digits for 1e-9 of terms as large as those of a count of 1e5
    assert (np.abs(found - expected) < tolerance + 1e-9 * np.abs(expected)).all()


def test_probability_of_a_count_in_arbitrary_precision() -> None:
    cases = [Case(7.0, 0.0, 1.0, 5.0, 1.0, 2.0), Case(300.0, 1.0, 0.4, 30.0, -2.0, 50.0)]

    def probability(case: Case) -> float:
        pi = 1 / (1 + mpmath.exp(-case.logit))
        y, r = mpmath.mpf(case.y), mpmath.mpf(case.r)
        ways = mpmath.gamma(y + r) / mpmath.gamma(r) / mpmath.factorial(y)

        def joint(b: mpmath.mpf) -> mpmath.mpf:
            total = mpmath.mpf(0)
            for weight, factor in ((pi, 1), (1 - pi, case.factor)):
                mu = mpmath.exp(b) * factor
                total += weight * ways * (r / (r + mu)) ** r * (mu / (r + mu)) ** y
            return total * mpmath.npdf(b, case.mean, case.scale)

        ends = [case.mean + k * case.scale for k in (-14, -8, -4, -2, -1, 0, 1, 2, 4, 8, 14)]
        return float(mpmath.log(mpmath.quad(joint, ends)))

    with mpmath.workdps(30):
        expected = [probability(case) for case in cases]
    for fast in (True, False):
        assert log_prob(cases, fast=fast)[:, 0].tolist() == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize("fast", [True, False])
def test_probabilities_of_all_counts_sum_to_one(fast: bool) -> None:
    cases = [Case(float(y), 1.0, 0.5, 8.0, 0.3, 3.0) for y in range(3000)]
    assert log_prob(cases, fast=fast).exp().sum().item() == pytest.approx(1, abs=1e-6)


def test_the_fast_probability_is_the_readable_one() -> None:
    cases = random_cases(1000, seed=2)
    found = [log_prob(cases, fast=fast) for fast in (True, False)]
    torch.testing.assert_close(*found, rtol=1e-9, atol=3e-5)


def test_an_unmeasured_count_has_no_probability() -> None:
    cases = random_cases(8)
    measured = torch.arange(8)[:, None] % 2 == 0
    with_nan = [case if i % 2 == 0 else case._replace(y=np.nan) for i, case in enumerate(cases)]
    for fast in (True, False):
        found = log_prob(with_nan, fast=fast, measured=measured)
        assert (found[1::2] == 0).all()
        torch.testing.assert_close(found[::2], log_prob(cases, fast=fast)[::2])


def test_posterior_is_that_of_weighted_samples() -> None:
    """The rate of a count is Gamma(r, r / mu), and the count Poisson of it."""
    case = Case(12.0, 1.0, 0.6, 4.0, 0.5, 3.0)
    rng = np.random.default_rng(0)
    n = 400_000
    beta = np.exp(rng.normal(case.mean, case.scale, n))
    foreground = rng.random(n) > 1 / (1 + np.exp(-case.logit))
    mean = np.where(foreground, case.factor, 1) * beta
    rate = rng.gamma(case.r, mean / case.r)
    weight = stats.poisson.pmf(case.y, rate)
    mixture = ProteinMixture(
        torch.tensor([[case.mean + case.scale**2 / 2]]), torch.tensor([[case.factor]]),
        torch.tensor([[case.logit]]), Dispersion(torch.tensor([[case.r]]).log(), torch.zeros(1)),
    )  # fmt: skip
    found = posterior([case], fast=True)
    given = found.expression(mixture)
    pairs = [
        (given.foreground_probability(), np.average(foreground, weights=weight)),
        (given.mean(background=False), np.average(rate * foreground, weights=weight)),
        (given.mean(background=True), np.average(rate, weights=weight)),
        (found.background_mean(mixture), np.average(beta, weights=weight)),
    ]
    for ours, sampled in pairs:
        assert ours.item() == pytest.approx(sampled, rel=0.02)


@pytest.mark.parametrize("fast", [True, False])
def test_a_factor_of_one_tells_nothing_of_the_component(fast: bool) -> None:
    found = posterior([case._replace(factor=1.0) for case in random_cases(50)], fast=fast)
    torch.testing.assert_close(found.log_bayes_factor, torch.zeros(50, 1).double())
    torch.testing.assert_close(found.foreground_rate, found.background_rate)


@pytest.mark.parametrize("fast", [True, False])
def test_a_known_background_leaves_nothing_to_integrate(fast: bool) -> None:
    case = Case(30.0, 2.0, 1e-3, 3.0, 0.0, 5.0)
    found = posterior([case], fast=fast)
    mu = np.exp(case.mean) * np.array([1, case.factor])
    logs = stats.nbinom.logpmf(case.y, case.r, case.r / (case.r + mu))
    assert found.log_bayes_factor.item() == pytest.approx(logs[1] - logs[0], rel=1e-4)
    assert found.background.item() == pytest.approx(1, rel=1e-4)
    rates = (case.r + case.y) / (case.r + mu)
    assert found.background_rate.item() == pytest.approx(rates[0], rel=1e-4)
    assert found.foreground_rate.item() == pytest.approx(rates[1], rel=1e-4)


@pytest.mark.parametrize("fast", [True, False])
def test_unmeasured_counts_say_nothing(fast: bool) -> None:
    cases = random_cases(8)
    measured = torch.arange(8)[:, None] % 2 == 0
    found = posterior(cases, fast=fast, measured=measured)
    whole = posterior(cases, fast=fast)
    nan = posterior(
        [case if i % 2 == 0 else case._replace(y=np.nan) for i, case in enumerate(cases)],
        fast=fast, measured=measured,
    )  # fmt: skip
    for part, of_all, of_nan, nothing in zip(found, whole, nan, (0, 1, 1, 1), strict=True):
        assert (part[1::2] == nothing).all()
        torch.testing.assert_close(part[::2], of_all[::2])
        assert torch.equal(part, of_nan)


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_extreme_stays_finite(dtype: torch.dtype, fast: bool) -> None:
    grid = itertools.product(
        (0.0, 1.0, 1e7), (-60.0, 0.0, 29.0), (0.0, 0.3, 8.0), (1.0, 1e5), (-300.0, 300.0),
        (-40.0, 0.0, 40.0),
    )  # fmt: skip
    y, mean, scale, factor, logit, log_r = torch.tensor(list(grid), dtype=dtype).T[:, :, None]
    mixture = ProteinMixture(mean, factor, logit, Dispersion(log_r, torch.arange(len(y))))
    found = count_posterior(y, mixture, scale, None, fast=fast)
    for name, part in found._asdict().items():
        assert part.dtype == dtype
        assert torch.isfinite(part).all(), name
    assert (found.background_rate > 0).all()
    of_count = count_log_prob(y, mixture, scale, None, fast=fast)
    assert of_count.dtype == dtype
    assert torch.isfinite(of_count).all()
    assert (of_count < 1e-4).all()


def test_more_counts_are_more_foreground() -> None:
    cases = [Case(float(y), 1.0, 0.7, 6.0, 0.0, 4.0) for y in range(200)]
    found = posterior(cases, fast=True)
    assert (found.log_bayes_factor.diff(dim=0) > 0).all()
    assert (found.foreground_rate.diff(dim=0) > 0).all()
