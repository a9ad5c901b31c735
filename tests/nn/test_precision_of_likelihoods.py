"""The likelihoods in float32, plain and compiled, against arbitrary precision, extremes included.

A log-probability is a sum of terms such as ``log Gamma(count + r)`` or ``count log mean``, of up to 1e7
each at a count of 1e6, and of what they leave float32 cannot hold more than their own rounding. So
an error is relative to the largest of

- the log-probability itself, and
- the terms ``log c!``, ``rising(r, c)``, ``c log(mean / (1 + mean / r))`` and ``r log(1 + mean / r)``.

Where nothing cancels, as at a count of zero, both are the same. Zero inflation and the proteins'
mixture are differences of two ``softplus`` as large as the logit of the mixture: of these they may have
the last digit besides, `LAST_DIGIT` of the logit's size in nats.
"""

from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from torch import Tensor

from totalvi.nn.cell import LinearProduct, SparseCounts
from totalvi.nn.cpu.gene_loss import gene_head_loss
from totalvi.nn.cpu.protein_loss import protein_mixture_loss
from totalvi.nn.likelihoods import (
    negative_binomial_log_prob,
    negative_binomial_mixture_log_prob,
    zero_inflated_negative_binomial_log_prob,
)
from totalvi.nn.ops import gene_reconstruction_loss

COUNTS = [0.0, 1.0, 2.0, 9.0, 16.0, 17.0, 250.0, 1e4, 1e6]
MEANS = [1e-8, 1e-3, 0.3, 1.0, 40.0, 1e3, 1e6]
R = [1e-4, 0.02, 0.7, 7.9, 8.1, 29.0, 31.0, 1e3, 1e6]
LOGITS = [-30.0, -3.0, 0.0, 2.5, 30.0]
TOLERANCE = 1e-5
LAST_DIGIT = 2.0**-23
GRID = np.array([(c, m, r) for c in COUNTS for m in MEANS for r in R])
ONE = mpmath.mpf(1)


def float32_logs(values: np.ndarray) -> Tensor:
    return torch.tensor(np.log(values), dtype=torch.float32)


def exact_terms(count: float, log_mean: float, log_r: float) -> tuple[Any, Any]:
    """Return log NB and the largest of its terms, of the very float32 numbers given."""
    with mpmath.workdps(60):
        c, m, r = mpmath.mpf(count), mpmath.exp(log_mean), mpmath.exp(log_r)
        s = mpmath.log1p(m / r)
        rising = mpmath.loggamma(c + r) - mpmath.loggamma(r) - c * mpmath.log(r)
        parts = [rising, -mpmath.loggamma(c + 1), c * (mpmath.mpf(log_mean) - s), -r * s]
        return mpmath.fsum(parts), max(abs(part) for part in parts)


def exact_softplus(x: Any) -> Any:
    return mpmath.log1p(mpmath.exp(x))


def exact_zero_inflated(
    count: float, log_mean: float, log_r: float, logit: float
) -> tuple[Any, Any]:
    with mpmath.workdps(60):
        nb, largest = exact_terms(count, log_mean, log_r)
        dropped = ONE / (1 + mpmath.exp(-mpmath.mpf(logit)))
        kept = ONE / (1 + mpmath.exp(mpmath.mpf(logit)))
        if count > 0:
            return mpmath.log(kept) + nb, max(largest, abs(mpmath.log(kept)))
        return mpmath.log(dropped + kept * mpmath.exp(nb)), largest


def exact_mixture(
    count: float, log_background: float, log_foreground: float, log_r: float, logit: float
) -> tuple[Any, Any]:
    with mpmath.workdps(60):
        back, largest = exact_terms(count, log_background, log_r)
        fore, larger = exact_terms(count, log_foreground, log_r)
        pi = ONE / (1 + mpmath.exp(-mpmath.mpf(logit)))
        rest = ONE / (1 + mpmath.exp(mpmath.mpf(logit)))
        value = mpmath.log(pi * mpmath.exp(back) + rest * mpmath.exp(fore))
        return value, max(largest, larger) if abs(back - fore) < 1e3 else largest


def assert_close(ours: Tensor, expected: list[tuple[Any, Any]], logit: float | None = None) -> None:
    values = ours.detach().double().flatten().tolist()
    rounding = 0.0 if logit is None else LAST_DIGIT * max(abs(logit), 1)
    worst = 0.0
    for value, (exact, largest) in zip(values, expected, strict=True):
        scale = float(max(abs(exact), largest))
        worst = max(worst, abs(value - float(exact)) / (scale * TOLERANCE + rounding + 1e-30))
    assert worst < 1


def counts32() -> Tensor:
    return torch.tensor(GRID[:, 0], dtype=torch.float32)


def exact_logs(values: Tensor) -> list[Any]:
    with mpmath.workdps(60):
        return [mpmath.log(mpmath.mpf(value)) for value in values.double().tolist()]


def cases() -> tuple[Tensor, Tensor, Tensor]:
    """Return counts, log means and log inverse dispersions of the grid, float32."""
    return counts32(), float32_logs(GRID[:, 1]), float32_logs(GRID[:, 2])


def test_negative_binomial_of_plain_torch() -> None:
    c, log_mean, log_r = cases()
    expected = [exact_terms(*map(float, case)) for case in zip(c, log_mean, log_r, strict=True)]
    assert_close(negative_binomial_log_prob(c, log_mean, log_r), expected)
    loss = gene_reconstruction_loss(column(c), log_mean[:, None], log_r[:, None])
    assert_close(-loss, expected)


@pytest.mark.parametrize("logit", LOGITS)
def test_zero_inflated_of_plain_torch(logit: float) -> None:
    c, log_mean, log_r = cases()
    expected = [
        exact_zero_inflated(*map(float, case), logit)
        for case in zip(c, log_mean, log_r, strict=True)
    ]
    d = torch.full_like(c, logit)
    assert_close(zero_inflated_negative_binomial_log_prob(c, log_mean, log_r, d), expected, logit)
    loss = gene_reconstruction_loss(column(c), log_mean[:, None], log_r[:, None], d[:, None])
    assert_close(-loss, expected, logit)


def column(c: Tensor) -> SparseCounts:
    """Return counts of one gene."""
    pointer = torch.cat([torch.zeros(1), (c > 0).cumsum(0)]).long()
    nonzero = c[c > 0]
    return SparseCounts(nonzero, torch.zeros(len(nonzero), dtype=torch.int32), pointer, 1)


def head(logit: Tensor) -> LinearProduct:
    """Return a last layer whose product is the logit itself."""
    return LinearProduct(logit[:, None], torch.ones(1, 1), torch.zeros(1), None, None)


def groups(c: Tensor, log_r: Tensor, tabled: bool) -> tuple[Tensor, Tensor]:
    """Return dispersions by group: few, so that small counts go by table, or one a cell."""
    if not tabled:
        return log_r[:, None], torch.arange(len(c))
    distinct, group = torch.unique(log_r, return_inverse=True)
    return distinct[:, None], group


@pytest.mark.parametrize("tabled", [True, False])
@pytest.mark.parametrize("logit", [None, *LOGITS])
def test_compiled_loops_of_rna(logit: float | None, tabled: bool) -> None:
    c, _, log_r = cases()
    mean = torch.tensor(GRID[:, 1], dtype=torch.float32)  # a single gene's is the library size
    exact: Callable[..., tuple[Any, Any]] = exact_terms
    further: tuple[float, ...] = ()
    dropout = None
    if logit is not None:
        exact, further, dropout = exact_zero_inflated, (logit,), head(torch.full_like(c, logit))
    expected = [
        exact(float(count), log_mean, float(log_rate), *further)
        for count, log_mean, log_rate in zip(c, exact_logs(mean), log_r, strict=True)
    ]
    by_group, group = groups(c, log_r, tabled)
    loss = gene_head_loss(
        head(torch.zeros_like(c)), dropout, column(c), mean[:, None], by_group, group, False
    )
    assert_close(-loss, expected, logit)


def test_compiled_loops_of_rna_with_unlike_genes() -> None:
    logits = torch.tensor([[0.0, -8.0, -30.0]])
    c = torch.tensor([[250.0, 3.0, 1.0]])
    log_r = float32_logs(np.array([[0.5, 20.0, 1e4]]))
    library = torch.tensor([[1e5]])
    x = SparseCounts(c[0], torch.arange(3, dtype=torch.int32), torch.tensor([0, 3]), 3)
    layer = LinearProduct(torch.ones(1, 1), logits, torch.zeros(3), None, None)
    loss = gene_head_loss(layer, None, x, library, log_r, torch.zeros(1, dtype=torch.long), False)
    with mpmath.workdps(60):
        total = mpmath.fsum(mpmath.exp(logit) for logit in logits[0].tolist())
        terms = [
            exact_terms(count, mpmath.log(1e5) + mpmath.mpf(logit) - mpmath.log(total), rate)
            for count, logit, rate in zip(
                c[0].tolist(), logits[0].tolist(), log_r[0].tolist(), strict=True
            )
        ]
        expected = mpmath.fsum(value for value, _ in terms)
    assert_close(-loss, [(expected, max(largest for _, largest in terms))])


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("logit", LOGITS)
def test_mixture_of_proteins(logit: float, compiled: bool) -> None:
    c, log_background, log_r = cases()
    chosen = slice(None, None, 3)
    c, log_background, log_r = c[chosen], log_background[chosen], log_r[chosen]
    factor = torch.tensor([1.0, 1.5, 40.0, 1e4])[torch.arange(len(c)) % 4]
    log_foreground = [
        mpmath.mpf(float(back)) + log_factor
        for back, log_factor in zip(log_background, exact_logs(factor), strict=True)
    ]
    expected = [
        exact_mixture(float(count), float(back), fore, float(rate), logit)
        for count, back, fore, rate in zip(c, log_background, log_foreground, log_r, strict=True)
    ]
    d = torch.full_like(c, logit)
    if not compiled:
        fore = log_background + factor.log()
        ours = negative_binomial_mixture_log_prob(c, log_background, fore, log_r, d)
    else:
        y, back, factors, logits = (each[:, None] for each in (c, log_background, factor, d))
        group = torch.arange(len(c))
        ours = -protein_mixture_loss(y, None, back, factors, logits, log_r[:, None], group)
    assert_close(ours, expected, logit)
