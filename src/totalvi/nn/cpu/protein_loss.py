"""Compute the protein likelihood and the background's divergence with gradients, cell by cell.

With a = log mean - log r and S = log(1 + e**a) of each part of the mixture,

    P = rising(r, y) - log y! + y log mean - (y + r) S      log NB of the part
    t = P_foreground - P_background - logit                 sigmoid(t): posterior of the foreground
    log p(y) = P_background + log(1 + e**t) - log(1 + e**-logit)

With K samples of the log background, the loss of each protein is -log of the average of p(y) over them.
The weight of a sample in the gradients is its share of the sum.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numba import prange
from torch import Tensor
from torch.autograd.function import once_differentiable

from totalvi.nn.cpu.math import as_array, exp, log, log1p, log_factorial, rising
from totalvi.processes import compiled


@compiled(error_model="numpy")
def _softplus(x: float, one: float) -> tuple[float, float]:
    """Return log(1 + e**x) and its derivative, the sigmoid of x; ``one`` is 1 of x's type."""
    small = exp(-abs(x))
    share = one / (one + small)
    return max(x, one - one) + log1p(small), share if x >= 0 else small * share


@compiled(parallel=True, error_model="numpy")
def _mixture_loss(
    y: np.ndarray, measured: np.ndarray, log_background: np.ndarray, factor: np.ndarray,
    logit: np.ndarray, log_r: np.ndarray, group: np.ndarray, loss: np.ndarray,
    d_log_background: np.ndarray, d_factor: np.ndarray, d_logit: np.ndarray, d_log_r: np.ndarray,
) -> None:  # fmt: skip
    """Fill in minus the log-likelihood of each cell's proteins, and its derivatives.

    Parameters
    ----------
    y
        Counts (B, T).
    measured
        Which proteins the cell's panel measured, (B, T), or (0, 0) for all; others get zeros.
    log_background
        Samples of the log background mean, (K, B, T).
    factor, logit
        Foreground factor, and logit of the background, (B, T).
    log_r, group
        Log inverse dispersions (groups, T), and the group of each cell (B,).
    loss
        Loss (B,), filled in.
    d_log_background, d_factor, d_logit, d_log_r
        Derivatives of the loss of each cell, the first (K, B, T), the others (B, T), filled in.
    """
    n_samples, n_cells, n_proteins = log_background.shape
    for b in prange(n_cells):
        one = y.dtype.type(1)
        zero = one - one
        total = zero
        log_likelihood = np.empty(n_samples, dtype=y.dtype)
        for t in range(n_proteins):
            if len(measured) and not measured[b, t]:
                d_log_background[:, b, t] = 0
                d_factor[b, t] = d_logit[b, t] = d_log_r[b, t] = 0
                continue
            count, log_rate = y[b, t], log_r[group[b], t]
            r = exp(log_rate)
            log_factor = log(factor[b, t])
            prior, background_prior = _softplus(-logit[b, t], one)
            log_ratio, difference = rising(r, count)
            # sums over the samples, each times its likelihood divided by the largest so far
            weight, by_fore_sum, foreground_sum, by_rate_sum = zero, zero, zero, zero
            largest = zero
            for k in range(n_samples):
                mean_back = log_background[k, b, t]
                mean_fore = mean_back + log_factor
                s_back, share_back = _softplus(mean_back - log_rate, one)
                s_fore, share_fore = _softplus(mean_fore - log_rate, one)
                back = count * mean_back - (count + r) * s_back
                fore = count * mean_fore - (count + r) * s_fore
                mixed, foreground = _softplus(fore - back - logit[b, t], one)
                background = one - foreground
                by_back = background * (count - (count + r) * share_back)
                by_fore = foreground * (count - (count + r) * share_fore)
                s = background * s_back + foreground * s_fore
                share = background * share_back + foreground * share_fore
                log_likelihood[k] = back + mixed
                d_log_background[k, b, t] = -(by_back + by_fore)
                before, value = largest, log_likelihood[k]
                largest = max(before, value) if k else value
                shrink = exp(before - largest) if k else zero
                own = exp(value - largest)
                weight = weight * shrink + own
                by_fore_sum = by_fore_sum * shrink + own * by_fore
                foreground_sum = foreground_sum * shrink + own * foreground
                by_rate_sum = by_rate_sum * shrink + own * (r * s - (count + r) * share)
            log_sum = largest + log(weight)
            for k in range(n_samples):
                d_log_background[k, b, t] *= exp(log_likelihood[k] - log_sum)
            common = log_ratio - y.dtype.type(log_factorial(count))
            total -= common + log_sum - log(one * n_samples) - prior
            d_factor[b, t] = -by_fore_sum / weight / factor[b, t]
            d_logit[b, t] = foreground_sum / weight - background_prior
            d_log_r[b, t] = count - r * difference + by_rate_sum / weight
        loss[b] = total


@compiled(parallel=True, error_model="numpy")
def _divergence(
    measured: np.ndarray, mean: np.ndarray, scale: np.ndarray, prior_mean: np.ndarray,
    prior_log_scale: np.ndarray, panel: np.ndarray, divergence: np.ndarray,
    d_mean: np.ndarray, d_scale: np.ndarray, d_prior_log_scale: np.ndarray,
) -> None:  # fmt: skip
    """Fill in KL(N(mean, scale**2) || prior of the cell's panel) summed over proteins, and derivatives.

    Shapes are those of `_mixture_loss`; the prior's parameters are (panels, T). The derivative by the
    prior's mean is minus the derivative by the mean.
    """
    n_cells, n_proteins = mean.shape
    for b in prange(n_cells):
        total = mean.dtype.type(0)
        for t in range(n_proteins):
            if len(measured) and not measured[b, t]:
                d_mean[b, t] = d_scale[b, t] = d_prior_log_scale[b, t] = 0
                continue
            precision = exp(-2 * prior_log_scale[panel[b], t])
            difference = mean[b, t] - prior_mean[panel[b], t]
            variance_ratio = scale[b, t] * scale[b, t] * precision
            shift = difference * difference * precision
            total += (variance_ratio + shift - 1 - log(variance_ratio)) / 2
            d_mean[b, t] = difference * precision
            d_scale[b, t] = scale[b, t] * precision - 1 / scale[b, t]
            d_prior_log_scale[b, t] = 1 - variance_ratio - shift
        divergence[b] = total


def protein_mixture_loss(
    y: Tensor,
    measured: Tensor | None,
    log_background: Tensor,
    factor: Tensor,
    logit: Tensor,
    log_r: Tensor,
    group: Tensor,
) -> Tensor:
    """Return ``-log p(y)`` summed over measured proteins, (B,).

    ``log_background`` is one sample, (B, T), or several, (K, B, T), over which p(y) is averaged.
    """
    return _apply_mixture_loss(y, measured, log_background, factor, logit, log_r, group)


class _ProteinMixtureLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, y: Tensor, measured: Tensor | None, log_background: Tensor, factor: Tensor,
        logit: Tensor, log_r: Tensor, group: Tensor,
    ) -> Tensor:  # fmt: skip
        loss = torch.empty_like(y[:, 0])
        samples = log_background if log_background.dim() == 3 else log_background[None]
        derivatives = [torch.empty_like(samples), *(torch.empty_like(y) for _ in range(3))]
        _mixture_loss(
            as_array(y), _mask(measured),
            *map(as_array, (samples, factor, logit, log_r, group, loss)),
            *map(as_array, derivatives),
        )  # fmt: skip
        derivatives[0] = derivatives[0].view_as(log_background)
        ctx.save_for_backward(*derivatives, group)
        ctx.n_groups = len(log_r)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (by_background, by_factor, by_logit, by_log_r), group = _scaled(ctx, gradients)
        d_log_r = _sum_by_group(by_log_r, group, ctx.n_groups)
        return None, None, by_background, by_factor, by_logit, d_log_r, None


_apply_mixture_loss: Callable[..., Tensor] = _ProteinMixtureLoss.apply


def background_divergence(
    measured: Tensor | None,
    mean: Tensor,
    scale: Tensor,
    prior_mean: Tensor,
    prior_log_scale: Tensor,
    panel: Tensor,
) -> Tensor:
    """Return the divergence of q(b | z) from its prior, summed over measured proteins, (B,)."""
    return _apply_divergence(measured, mean, scale, prior_mean, prior_log_scale, panel)


class _BackgroundDivergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, measured: Tensor | None, mean: Tensor, scale: Tensor, prior_mean: Tensor,
        prior_log_scale: Tensor, panel: Tensor,
    ) -> Tensor:  # fmt: skip
        divergence = torch.empty_like(mean[:, 0])
        derivatives = [torch.empty_like(scale) for _ in range(3)]
        _divergence(
            _mask(measured),
            *map(as_array, (mean, scale, prior_mean, prior_log_scale, panel, divergence)),
            *map(as_array, derivatives),
        )  # fmt: skip
        ctx.n_panels = len(prior_mean)
        ctx.save_for_backward(*derivatives, panel)
        return divergence

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (by_mean, by_scale, by_prior_log_scale), panel = _scaled(ctx, gradients)
        d_prior_mean = -_sum_by_group(by_mean, panel, ctx.n_panels)
        d_prior_log_scale = _sum_by_group(by_prior_log_scale, panel, ctx.n_panels)
        return None, by_mean, by_scale, d_prior_mean, d_prior_log_scale, None


_apply_divergence: Callable[..., Tensor] = _BackgroundDivergence.apply


def _scaled(ctx: Any, gradients: tuple[Tensor, ...]) -> tuple[list[Tensor], Tensor]:
    """Return the stored derivatives times the gradient of each cell's result, and the groups."""
    *derivatives, group = ctx.saved_tensors
    return [derivative * gradients[0][:, None] for derivative in derivatives], group


def _sum_by_group(value: Tensor, group: Tensor, n_groups: int) -> Tensor:
    """Sum the rows of ``value`` (B, T) by group, giving (groups, T)."""
    if n_groups == 1:
        return value.sum(dim=0, keepdim=True)
    return value.new_zeros(n_groups, value.shape[1]).index_add(0, group, value)


def _mask(measured: Tensor | None) -> np.ndarray:
    return np.empty((0, 0), dtype=np.bool_) if measured is None else measured.numpy()
