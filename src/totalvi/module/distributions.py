"""Log-probabilities and divergences of the model's distributions, element by element.

``NB(mean, r)`` has inverse dispersion ``r``: its variance is ``mean + mean**2 / r``. Means and inverse
dispersions come in as logarithms, because that is how the network makes them and it keeps every
formula finite.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

_STIRLING_FROM = 30.0  # above this r the series below is exact to float32


def log_rising_ratio(inverse_dispersion: Tensor, count: Tensor) -> Tensor:
    """Return ``log Gamma(count + r) - log Gamma(r) - count log r``.

    It is the sum of ``log(1 + k / r)`` over ``k < count``: small where ``r`` is large, while each
    log-gamma alone is so large there that float32 would lose the difference. For large ``r``
    Stirling's series is used.
    """
    r = inverse_dispersion
    small = r.clamp(max=_STIRLING_FROM)
    by_gamma = torch.lgamma(count + small) - torch.lgamma(small) - count * small.log()
    large = r.clamp(min=_STIRLING_FROM)
    total = large + count
    series = (
        (total - 0.5) * torch.log1p(count / large)
        - count
        + (1 / total - 1 / large) / 12
        - (total**-3 - large**-3) / 360
    )
    return torch.where(r < _STIRLING_FROM, by_gamma, series)


def digamma_difference(inverse_dispersion: Tensor, count: Tensor) -> Tensor:
    """Return ``digamma(count + r) - digamma(r)``, precise where ``r`` is large too."""
    r = inverse_dispersion
    large = r.clamp(min=_STIRLING_FROM)
    total = large + count
    series = (
        torch.log1p(count / large)
        - (1 / total - 1 / large) / 2
        - (total**-2 - large**-2) / 12
        + (total**-4 - large**-4) / 120
    )
    return torch.where(r < _STIRLING_FROM, torch.digamma(count + r) - torch.digamma(r), series)


def negative_binomial_log_prob(count: Tensor, log_mean: Tensor, log_r: Tensor) -> Tensor:
    """Return ``log NB(count; mean, r)``; the arguments broadcast."""
    r = log_r.exp()
    log_one_plus_ratio = F.softplus(log_mean - log_r)
    return (
        log_rising_ratio(r, count)
        - torch.lgamma(count + 1)
        + count * log_mean
        - (count + r) * log_one_plus_ratio
    )


def zero_inflated_negative_binomial_log_prob(
    count: Tensor, log_mean: Tensor, log_r: Tensor, dropout_logit: Tensor
) -> Tensor:
    """Return the log-probability of ``count`` where a share ``sigmoid(dropout_logit)`` is zero."""
    not_dropped = -F.softplus(dropout_logit)
    log_zero = negative_binomial_log_prob(torch.zeros_like(count), log_mean, log_r)
    at_zero = F.softplus(log_zero - dropout_logit) + F.logsigmoid(dropout_logit)
    above_zero = negative_binomial_log_prob(count, log_mean, log_r) + not_dropped
    return torch.where(count > 0, above_zero, at_zero)


def negative_binomial_mixture_log_prob(
    count: Tensor,
    log_mean_background: Tensor,
    log_mean_foreground: Tensor,
    log_r: Tensor,
    background_logit: Tensor,
) -> Tensor:
    """Return ``log(pi NB(count; background) + (1 - pi) NB(count; foreground))``.

    ``pi = sigmoid(background_logit)``, and both parts share one inverse dispersion.
    """
    background = negative_binomial_log_prob(count, log_mean_background, log_r)
    foreground = negative_binomial_log_prob(count, log_mean_foreground, log_r)
    return torch.logaddexp(background, foreground - background_logit) - F.softplus(
        -background_logit
    )


def normal_log_prob(value: Tensor, mean: Tensor | float, scale: Tensor | float) -> Tensor:
    """Return the log-density of ``N(mean, scale**2)`` at ``value``; the arguments broadcast."""
    scale = torch.as_tensor(scale, dtype=value.dtype, device=value.device)
    return -0.5 * ((value - mean) / scale) ** 2 - scale.log() - 0.5 * math.log(2 * math.pi)


def normal_kl(mean: Tensor, variance: Tensor, prior_mean: Tensor, prior_variance: Tensor) -> Tensor:
    """Return ``KL(N(mean, variance) || N(prior_mean, prior_variance))``."""
    ratio = variance / prior_variance
    return 0.5 * (ratio + (mean - prior_mean) ** 2 / prior_variance - 1 - ratio.log())


def standard_normal_kl(mean: Tensor, variance: Tensor) -> Tensor:
    """Return ``KL(N(mean, variance) || N(0, 1))``."""
    return 0.5 * (variance + mean**2 - 1 - variance.log())


def log_normal_log_prob(log_value: Tensor) -> Tensor:
    """Return the log-density of ``LogNormal(0, 1)`` at ``exp(log_value)``."""
    return -log_value - 0.5 * log_value**2 - 0.5 * math.log(2 * math.pi)
