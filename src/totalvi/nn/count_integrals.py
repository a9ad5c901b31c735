"""The integrals over the log background of a protein, its count given.

Given the latent state z, the log background of one protein is one-dimensional and normal. So what its
count says, and the probability of the count, are sums over points. docs/model.md has the formulas.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from totalvi.nn.cpu import count_posterior as compiled_loops
from totalvi.nn.likelihoods import ProteinMixture, log_rising_ratio, without_unmeasured
from totalvi.nn.ops import suits_compiled_loops

LARGEST_SCALE = 4.0  # of the log background; a wider normal distribution is taken to be as wide
_N_STEPS = 128
_TWICE_DEPTH = 40.0  # the sums end where the logarithm of the density has fallen by half of it
_N_HALVINGS = 40
_AT_A_TIME = 16  # points of the sums, because a GPU takes long to begin each operation


class CountPosterior(NamedTuple):
    """What a protein's count says of its background and component, each (B, T).

    `count_posterior` makes it; docs/model.md has the formulas. What an unmeasured protein says is
    0, 1, 1 and 1.

    Parameters
    ----------
    log_bayes_factor
        log p(y | z, foreground) - log p(y | z, background).
    background
        E[beta | z, y] / E[beta | z].
    foreground_rate, background_rate
        Mean of the rate of a component's counts given y, over that given z alone.
    """

    log_bayes_factor: Tensor
    background: Tensor
    foreground_rate: Tensor
    background_rate: Tensor

    def expression(self, prior: ProteinMixture) -> ProteinMixture:
        """Return a mixture given z, with beta at its expectation, as it is given y as well."""
        return prior._replace(
            log_background=prior.log_background + self.background_rate.log(),
            factor=prior.factor * self.foreground_rate / self.background_rate,
            background_logit=prior.background_logit - self.log_bayes_factor,
        )

    def background_mean(self, prior: ProteinMixture) -> Tensor:
        """Return E[beta | z, y] from a mixture given z, with beta at its expectation."""
        return prior.background_mean() * self.background


class _Integrals(NamedTuple):
    """The integrals over the log background of each count, (B, T) in float64.

    Parameters
    ----------
    log_background
        log p(y | z, background) without what `_log_constant` returns.
    log_bayes_factor, background, foreground_rate, background_rate
        As in `CountPosterior`.
    """

    log_background: Tensor
    log_bayes_factor: Tensor
    background: Tensor
    foreground_rate: Tensor
    background_rate: Tensor


def count_posterior(
    y: Tensor, proteins: ProteinMixture, scale: Tensor, measured: Tensor | None, *, fast: bool
) -> CountPosterior:
    """Return what counts ``y`` (B, T) say of their background and component, z given.

    Parameters
    ----------
    proteins
        Distribution of the counts, with its log background at the mean of the normal distribution that
        is integrated over.
    scale
        Standard deviation of that distribution, (B, T).
    measured
        As in `totalvi.nn.ops.protein_loss`.
    """
    _, *parts = _integrals(_values(y, proteins, scale, measured), fast=fast)
    if measured is not None:
        nothing = (0.0, 1.0, 1.0, 1.0)
        parts = [part.where(measured, x) for part, x in zip(parts, nothing, strict=True)]
    return CountPosterior(*(part.to(y.dtype) for part in parts))


def count_log_prob(
    y: Tensor, proteins: ProteinMixture, scale: Tensor, measured: Tensor | None, *, fast: bool
) -> Tensor:
    """Return log p(y | z) of each protein, (B, T), its log background integrated; 0 if unmeasured.

    The parameters are those of `count_posterior`.
    """
    values = count, _, scale, _, logit, log_r = _values(y, proteins, scale, measured)
    found = _integrals(values, fast=fast)
    log_mixture = torch.logaddexp(
        F.logsigmoid(logit), F.logsigmoid(-logit) + found.log_bayes_factor
    )
    log_prob = found.log_background + log_mixture + _log_constant(count, scale, log_r)
    if measured is not None:
        log_prob = log_prob.where(measured, 0.0)
    return log_prob.to(y.dtype)


def _values(
    y: Tensor, proteins: ProteinMixture, scale: Tensor, measured: Tensor | None
) -> tuple[Tensor, ...]:
    """Return count, mean, scale, log factor, background logit and log r, within limits, in float64."""
    values = (
        without_unmeasured(y, measured),
        proteins.log_background.clamp(-50, 50),
        scale.clamp(1e-3, LARGEST_SCALE),
        proteins.factor.log(),
        proteins.background_logit,
        proteins.log_r.clamp(-18, 18),
    )
    return tuple(value.double() for value in values)


def _log_constant(y: Tensor, scale: Tensor, log_r: Tensor) -> Tensor:
    """Return what log p(y | z, v) has in common for both components, and for all log backgrounds."""
    of_count = log_rising_ratio(log_r.exp(), y) + y * log_r - torch.lgamma(y + 1)
    return of_count - scale.log() - 0.5 * math.log(2 * math.pi)


def _integrals(values: tuple[Tensor, ...], *, fast: bool) -> _Integrals:
    y, mean, scale, log_factor, logit, log_r = values
    if fast and suits_compiled_loops(y):
        return _Integrals(*compiled_loops.count_integrals(*values))
    foreground = mean + log_factor
    means = torch.stack([mean.expand_as(foreground), foreground])
    log_prob, level, rate = _given_component(y, means, scale, log_r)
    log_bayes_factor = log_prob[1] - log_prob[0]
    pi = torch.sigmoid(logit - log_bayes_factor)
    background = pi * level[0] + (1 - pi) * level[1]
    return _Integrals(log_prob[0], log_bayes_factor, background, rate[1], rate[0])


def mode_of_log_mean(y: Tensor, mean: Tensor, variance: Tensor, log_r: Tensor) -> Tensor:
    """Return the x where N(x; mean, variance) NB(y; e^x, r) is highest, by halving an interval."""
    r = log_r.exp()
    n = y + r
    low, high = mean - variance * r, mean + variance * y
    for _ in range(_N_HALVINGS):
        mode = (low + high) / 2
        rises = y - n * torch.sigmoid(mode - log_r) > (mode - mean) / variance
        low, high = torch.where(rises, mode, low), torch.where(rises, high, mode)
    return mode


def _given_component(
    y: Tensor, mean: Tensor, scale: Tensor, log_r: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return log p(y) up to a constant, E[e^x | y] / E[e^x] and E[rate | y] / E[rate].

    x ~ N(mean, scale^2) is the log mean of the component, and (r + y) e^x / (r + e^x) the mean of the
    rate given x. Sums are over equal steps around the mode, which is found by halving an interval.
    """
    r, variance = log_r.exp(), scale**2
    n = y + r

    def log_density(x: Tensor) -> Tensor:
        return y * (x - log_r) - n * F.softplus(x - log_r) - (x - mean) ** 2 / (2 * variance)

    mode = mode_of_log_mean(y, mean, variance, log_r)
    p = torch.sigmoid(mode - log_r)
    precision, curvature = 1 / variance, n * p * (1 - p)
    reach = math.sqrt(_TWICE_DEPTH) * scale
    for _ in range(2):  # curvature falls by no more than e^-distance, which bounds the density
        reach = (_TWICE_DEPTH / (curvature / (1 + reach / 3) + precision)).sqrt()
    further = 1 / (
        curvature / (1 + reach / 2) + precision
    )  # where the means above have their weight
    step = (2 * reach + further) / _N_STEPS
    highest = log_density(mode)
    total, level, rate = (torch.zeros_like(mode) for _ in range(3))
    points = torch.arange(_N_STEPS + 1, dtype=mode.dtype, device=mode.device)
    for k in torch.split(points.view(-1, *[1] * mode.dim()), _AT_A_TIME):
        x = mode - reach + k * step
        density = torch.exp(log_density(x) - highest)
        log_level = x - mean - variance / 2
        total += density.sum(dim=0)
        level += (density * torch.exp(log_level)).sum(dim=0)
        rate += (density * torch.exp(log_level - torch.logaddexp(x, log_r))).sum(dim=0)
    return highest + (total * step).log(), level / total, n * rate / total
