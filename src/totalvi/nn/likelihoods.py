"""Log-probabilities and divergences of the model's distributions, element by element.

``NB(mean, r)`` has inverse dispersion ``r``: its variance is ``mean + mean**2 / r``. Means and inverse
dispersions come in as logarithms, because that is how the network makes them and it keeps every
formula finite.
"""

import math
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F

from totalvi.nn.sparse import SparseCounts

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


class Dispersion(NamedTuple):
    """Inverse dispersions of all features, which may differ between groups of cells.

    Parameters
    ----------
    by_group
        Log inverse dispersions, (groups, F); one group where all cells share them.
    group
        The group of each cell, (B,).
    """

    by_group: Tensor
    group: Tensor

    @property
    def log_r(self) -> Tensor:
        """Log inverse dispersion of each cell and feature, (B, F); (1, F) with one group."""
        return self.by_group if len(self.by_group) == 1 else self.by_group[self.group]


class ProteinMixture(NamedTuple):
    """Distribution of protein counts: ``pi NB(beta, r) + (1 - pi) NB(beta alpha, r)``.

    `Network.proteins` makes it. The first three fields broadcast to (..., B, T).

    Parameters
    ----------
    log_background
        Log of the background mean beta.
    factor
        Foreground factor alpha, above 1.
    background_logit
        Logit of pi, the probability that a count is background.
    dispersion
        Inverse dispersions r, which both parts share.
    """

    log_background: Tensor
    factor: Tensor
    background_logit: Tensor
    dispersion: Dispersion

    @property
    def log_r(self) -> Tensor:
        """Log of the inverse dispersion, (1, T) or (B, T)."""
        return self.dispersion.log_r

    @property
    def log_foreground(self) -> Tensor:
        """Log of the foreground mean beta alpha."""
        return self.log_background + self.factor.log()

    def take(self, proteins: slice | np.ndarray) -> Self:
        """Return the mixture of the proteins at some positions."""
        by_group, group = self.dispersion
        return type(self)(
            self.log_background[..., proteins],
            self.factor[..., proteins],
            self.background_logit[..., proteins],
            Dispersion(by_group[:, proteins], group),
        )

    def log_prob(self, y: Tensor) -> Tensor:
        """Return the log-probability of counts ``y`` (B, T)."""
        return negative_binomial_mixture_log_prob(
            y, self.log_background, self.log_foreground, self.log_r, self.background_logit
        )

    def foreground_given(self, y: Tensor) -> Tensor:
        """Return the probability that counts ``y`` (B, T), once seen, are foreground."""
        log_r = self.log_r
        return torch.sigmoid(
            negative_binomial_log_prob(y, self.log_foreground, log_r)
            - negative_binomial_log_prob(y, self.log_background, log_r)
            - self.background_logit
        )

    def background_probability(self) -> Tensor:
        """Return pi."""
        return torch.sigmoid(self.background_logit)

    def foreground_probability(self) -> Tensor:
        """Return 1 - pi, which keeps its digits where it is small."""
        return torch.sigmoid(-self.background_logit)

    def background_mean(self) -> Tensor:
        """Return beta."""
        return self.log_background.exp()

    def foreground_mean(self) -> Tensor:
        """Return beta alpha."""
        return self.background_mean() * self.factor

    def mean(self, *, background: bool, in_background: Tensor | None = None) -> Tensor:
        """Return ``(1 - pi) beta alpha``, and with ``background`` ``pi beta`` besides.

        Parameters
        ----------
        background
            Whether the background part counts.
        in_background
            What stands for pi, such as draws of 0 and 1 with this probability. None: pi.
        """
        pi = self.background_probability() if in_background is None else in_background
        foreground = (1 - pi) * self.foreground_mean()
        return foreground + pi * self.background_mean() if background else foreground

    def mean_over_background(self) -> Tensor:
        """Return ``pi + (1 - pi) alpha``: the mean of a count in units of the background mean."""
        pi = self.background_probability()
        return pi + (1 - pi) * self.factor


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


def gene_reconstruction_loss(
    x: Tensor | SparseCounts, log_mean: Tensor, log_r: Tensor, dropout_logit: Tensor | None = None
) -> Tensor:
    """Return ``-log p(x)`` summed over genes, shape (B,).

    Parameters
    ----------
    x
        RNA counts (B, G), dense or sparse.
    log_mean
        Log of the NB mean, (B, G); with posterior samples (n_samples, B, G), giving (n_samples, B).
    log_r
        Log of the inverse dispersion, (1, G) or (B, G).
    dropout_logit
        Of the zero inflation, (B, G); None for NB.
    """
    if isinstance(x, SparseCounts) and log_mean.dim() > 2:
        x = x.to_dense()
    if isinstance(x, SparseCounts):
        if dropout_logit is None:
            loss: Tensor = _SparseNegativeBinomialLoss.apply(x, log_mean, log_r)
            return loss
        return _sparse_zero_inflated_loss(x, log_mean, log_r, dropout_logit)
    if dropout_logit is None:
        return -negative_binomial_log_prob(x, log_mean, log_r).sum(dim=-1)
    return -zero_inflated_negative_binomial_log_prob(x, log_mean, log_r, dropout_logit).sum(dim=-1)


class _SparseNegativeBinomialLoss(torch.autograd.Function):
    """NB loss by cell, with S = softplus(log mean - log r).

    A zero count costs r S. A count c > 0 costs further c S - c log mean + log c! - log_rising_ratio.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, x: SparseCounts, log_mean: Tensor, log_r: Tensor) -> Tensor:
        r = log_r.exp()
        s = F.softplus(log_mean - log_r)
        zero_cost = s @ r[0] if r.shape[0] == 1 else (s * r).sum(dim=1)
        s_nonzero = s[x.cell, x.gene]
        r_nonzero = _at(r, x)
        further_cost = (
            x.counts * (s_nonzero - log_mean[x.cell, x.gene])
            + torch.lgamma(x.counts + 1)
            - log_rising_ratio(r_nonzero, x.counts)
        )
        ctx.counts = x  # type: ignore[attr-defined]
        ctx.save_for_backward(r, s, r_nonzero, s_nonzero)
        return zero_cost + x.sum_by_cell(further_cost)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[None, Tensor, Tensor]:
        x: SparseCounts = ctx.counts  # type: ignore[attr-defined]
        r, s, r_nonzero, s_nonzero = ctx.saved_tensors  # type: ignore[attr-defined]
        by_cell = gradient[:, None]
        d_log_mean = torch.expm1(-s).mul_(r).mul_(-by_cell)  # sigmoid(log mean - log r) = 1 - e^-s
        flat = x.cell * x.shape[1] + x.gene
        counted = gradient[x.cell] * x.counts * torch.exp(-s_nonzero)
        d_log_mean.view(-1).index_add_(0, flat, counted, alpha=-1)

        # log r enters through r, at a fixed difference of the logs, and through that difference
        rising = gradient[x.cell] * r_nonzero * digamma_difference(r_nonzero, x.counts)
        if r.shape[0] == 1:
            d_log_r = (gradient @ s)[None] * r - d_log_mean.sum(dim=0, keepdim=True)
            d_log_r[0].index_add_(0, x.gene, rising, alpha=-1)
        else:
            d_log_r = s.mul(r).mul_(by_cell).sub_(d_log_mean)
            d_log_r.view(-1).index_add_(0, flat, rising, alpha=-1)
        return None, d_log_mean, d_log_r


def _sparse_zero_inflated_loss(
    x: SparseCounts, log_mean: Tensor, log_r: Tensor, dropout_logit: Tensor
) -> Tensor:
    """Charge every entry as a zero, then correct the non-zero ones."""
    log_zero = -log_r.exp() * F.softplus(log_mean - log_r)
    # with w the dropout probability: log(w + (1 - w) NB(0)) = softplus(log_zero - logit) + log w
    zero_cost = F.softplus(-dropout_logit) - F.softplus(log_zero - dropout_logit)
    logit = dropout_logit[x.cell, x.gene]
    nonzero_cost = F.softplus(logit) - negative_binomial_log_prob(
        x.counts, log_mean[x.cell, x.gene], _at(log_r, x)
    )
    return zero_cost.sum(dim=1) + x.sum_by_cell(nonzero_cost - zero_cost[x.cell, x.gene])


def _at(by_gene: Tensor, x: SparseCounts) -> Tensor:
    """Return the entries of a (1, G) or (B, G) tensor at the non-zero counts."""
    return by_gene[0, x.gene] if by_gene.shape[0] == 1 else by_gene[x.cell, x.gene]
