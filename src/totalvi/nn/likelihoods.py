"""Distributions of the counts, divergences, and the objective that is made of them.

``NB(mean, r)`` has inverse dispersion ``r``: its variance is ``mean + mean**2 / r``. Means and inverse
dispersions are given as logarithms: the network makes them so, and every formula stays finite.
"""

import math
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from totalvi.nn.cell import CellContext, LinearProduct

SMALLEST_NORMAL = torch.finfo(torch.float32).tiny
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

    @classmethod
    def of(cls, by_group: Tensor, kind: str, context: CellContext) -> Self:
        """Return inverse dispersions that may differ by batch or label (``kind``)."""
        if kind.endswith("batch"):
            return cls(by_group, context.batch)
        if not kind.endswith("label"):
            return cls(by_group, torch.zeros_like(context.batch))
        if context.label is None:
            raise ValueError(
                f"label is None, but a dispersion is {kind!r}; give each cell's label."
            )
        return cls(by_group, context.label)

    @property
    def log_r(self) -> Tensor:
        """Log inverse dispersion of each cell and feature, (B, F); (1, F) with one group."""
        return self.by_group if len(self.by_group) == 1 else self.by_group[self.group]


class GeneLikelihood(NamedTuple):
    """Distribution of RNA counts: ``NB(l rho, r)``, which zero inflation sets to 0 at random.

    `Network.genes` makes it. The linear layers as wide as the genes are multiplied when they are read.

    Parameters
    ----------
    logit
        Linear layer that ends in the logits of the proportions rho, (..., B, G).
    dropout
        Linear layer that ends in the logits of zero inflation; None without.
    library_size
        Library size or size factor l, (..., B, 1).
    dispersion
        Inverse dispersions r.
    softplus
        Whether rho is the softplus of its logits, in place of their softmax.
    """

    logit: LinearProduct
    dropout: LinearProduct | None
    library_size: Tensor
    dispersion: Dispersion
    softplus: bool

    def log_proportions(self) -> Tensor:
        """Return log rho, (..., B, G)."""
        return log_proportions(self.logit.value(), softplus=self.softplus)

    def log_mean(self) -> Tensor:
        """Return the log of the NB mean l rho, (..., B, G)."""
        return self.log_proportions() + self.library_size.clamp(min=SMALLEST_NORMAL).log()

    def dropout_logit(self) -> Tensor | None:
        """Return the logits of zero inflation, (..., B, G); None without."""
        return None if self.dropout is None else self.dropout.value()

    def take_cells(self, rows: Tensor) -> Self:
        """Return the distribution of the cells at ``rows``."""
        return self._replace(
            logit=self.logit.take_cells(rows),
            dropout=None if self.dropout is None else self.dropout.take_cells(rows),
            library_size=self.library_size[..., rows, :],
            dispersion=self.dispersion._replace(group=self.dispersion.group[rows]),
        )

    @property
    def log_r(self) -> Tensor:
        """Log of the inverse dispersion, (1, G) or (B, G)."""
        return self.dispersion.log_r


def log_proportions(logit: Tensor, *, softplus: bool) -> Tensor:
    """Return the log of the softmax, or of the softplus, of the genes' logits, (..., B, G)."""
    if not softplus:
        return F.log_softmax(logit, dim=-1)
    # log softplus(a) tends to a where softplus(a) would underflow
    above = F.softplus(logit).clamp(min=SMALLEST_NORMAL).log()
    return torch.where(logit < -20, logit, above)


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
        in_units = self._replace(log_background=torch.zeros_like(self.log_background))
        return in_units.mean(background=True)


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


def profile_penalty(values: Tensor, profile: Tensor, precision: Tensor) -> Tensor:
    """Return ``1/2 sum precision (values - profile - shift)^2``, the shift of each row the best one.

    All (panels, T). What a normal prior around the profile costs, in nats, where all proteins of a
    panel may shift together at no cost: the best shift is the weighted mean difference.

    Examples
    --------
    >>> profile, ones = torch.tensor([[0.0, 1.0, 2.0]]), torch.ones(1, 3)
    >>> profile_penalty(profile + 5, profile, ones).item()
    0.0
    >>> profile_penalty(torch.tensor([[0.0, 1.0, 5.0]]), profile, ones).item()
    3.0
    """
    difference = values - profile
    weight = precision.sum(dim=1, keepdim=True).clamp(min=torch.finfo(precision.dtype).tiny)
    shift = (precision * difference).sum(dim=1, keepdim=True) / weight
    return 0.5 * (precision * (difference - shift).square()).sum()


def anchor_penalty(anchor: Tensor, prior_mean: Tensor, prior_log_scale: Tensor) -> Tensor:
    """Return what holds the background prior near an ``anchor``; see `Network.anchor_background`."""
    mean, log_scale, mean_precision, scale_precision = anchor
    log_mean = prior_mean + (2 * prior_log_scale).exp() / 2  # of a log-normal
    held: Tensor = (mean_precision * (log_mean - mean).square()).sum() / 2
    return held + profile_penalty(prior_log_scale, log_scale, scale_precision)


def without_unmeasured(y: Tensor, measured: Tensor | None) -> Tensor:
    """Return ``y`` with 0 where it was not measured."""
    return y if measured is None else torch.where(measured, y, torch.zeros_like(y))


def sum_measured(value: Tensor, measured: Tensor | None) -> Tensor:
    """Sum over proteins; where unmeasured, neither the value nor its gradient counts."""
    if measured is not None:
        value = torch.where(measured, value, torch.zeros_like(value))
    return value.sum(dim=-1)


def background_surprise(background_logit: Tensor, measured: Tensor | None) -> Tensor:
    """Return -log pi summed over measured proteins, (B,): how far all are from background."""
    return -sum_measured(F.logsigmoid(background_logit), measured)


class ElboTerms(NamedTuple):
    """The five terms of the negative evidence lower bound, each (B,).

    Parameters
    ----------
    reconst_loss_gene, reconst_loss_protein
        ``-log p(x | z, l)`` and ``-log p(y | z, b)``; unmeasured proteins count nothing.
    kl_div_z, kl_div_l_gene, kl_div_back_pro
        Divergences of q(u), q(log l) and q(b), the last summed over measured proteins.
    """

    reconst_loss_gene: Tensor
    reconst_loss_protein: Tensor
    kl_div_z: Tensor
    kl_div_l_gene: Tensor
    kl_div_back_pro: Tensor

    def reconstruction(self) -> Tensor:
        """Return the reconstruction loss of both modalities, (B,)."""
        return self.reconst_loss_gene + self.reconst_loss_protein

    def divergence(self) -> Tensor:
        """Return the sum of the three divergences, (B,)."""
        return self.kl_div_z + self.kl_div_l_gene + self.kl_div_back_pro


def objective(terms: ElboTerms, kl_weight: float | Tensor = 1.0) -> Tensor:
    """Return what training minimises: the mean over cells of reconstruction + weighted divergences.

    ``kl_weight`` scales the divergences of z and of the protein background, and grows from zero during
    the warm-up. The divergence of the library size counts in full, because its posterior follows the
    data from the start. At ``kl_weight=1``, with one sample of the background and without a penalty of
    foreground among ``terms``, this is the negative ELBO of the totalVI paper.

    Examples
    --------
    >>> import torch
    >>> ones = torch.ones(4)
    >>> objective(ElboTerms(ones, ones, ones, ones, ones), kl_weight=0.5).item()
    4.0
    """
    weighted = terms.kl_div_z + terms.kl_div_back_pro
    return torch.mean(terms.reconstruction() + terms.kl_div_l_gene + kl_weight * weighted)
