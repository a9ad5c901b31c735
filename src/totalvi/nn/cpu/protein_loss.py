"""Compute the protein likelihood and the background's divergence with gradients.

With a = log mean - log r and S = log(1 + e**a) of each part of the mixture,

    P = rising(r, y) - log y! + y log mean - (y + r) S      log NB of the part
    t = P_foreground - P_background - logit                 sigmoid(t): posterior of the foreground
    log p(y) = P_background + log(1 + e**t) - log(1 + e**-logit)

With K samples of the log background, the loss of each protein is -log of the average of p(y) over them.
The weight of a sample in the gradients is its share of the sum. Blocks of counts are computed at once,
with vector instructions.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numba import prange
from torch import Tensor
from torch.autograd.function import once_differentiable

from totalvi.compiled import compiled
from totalvi.nn.cpu.math import as_array, exp, log, log1p, log_factorial, rising

_BLOCK = 64  # cells and proteins side by side; a constant, so that loops become vector instructions
# where in the work of a block each value begins, and in that of a sample
(
    _COUNT, _LOG_R, _R, _LOG_FACTOR, _LOGIT, _MEAN,
    _LARGEST, _WEIGHT, _BY_FORE, _FOREGROUND, _BY_RATE, _PRIOR, _BACKGROUND_PRIOR,
) = range(0, 13 * _BLOCK, _BLOCK)  # fmt: skip
_WORK = 13 * _BLOCK
(
    _LOG_LIKELIHOOD, _SAMPLE_BY_MEAN, _SAMPLE_BY_FORE, _SAMPLE_FOREGROUND, _SAMPLE_BY_RATE,
) = range(0, 5 * _BLOCK, _BLOCK)  # fmt: skip
_WORK_OF_SAMPLE = 5 * _BLOCK


@compiled(error_model="numpy", forceinline=True)
def _softplus(x: float, one: float) -> tuple[float, float]:
    """Return log(1 + e**x) and its derivative, the sigmoid of x; ``one`` is 1 of x's type."""
    small = exp(-abs(x))
    share = one / (one + small)
    return max(x, one - one) + log1p(small), share if x >= 0 else small * share


@compiled(error_model="numpy")
def _evaluate_sample(w: np.ndarray, of_sample: np.ndarray) -> None:
    """Fill in the log-likelihood at a sample of the log background, and its derivatives."""
    one = w.dtype.type(1)
    for i in range(_BLOCK):
        count, r, log_r = w[_COUNT + i], w[_R + i], w[_LOG_R + i]
        mean_back = w[_MEAN + i]
        mean_fore = mean_back + w[_LOG_FACTOR + i]
        s_back, share_back = _softplus(mean_back - log_r, one)
        s_fore, share_fore = _softplus(mean_fore - log_r, one)
        back = count * mean_back - (count + r) * s_back
        fore = count * mean_fore - (count + r) * s_fore
        mixed, foreground = _softplus(fore - back - w[_LOGIT + i], one)
        background = one - foreground
        by_back = background * (count - (count + r) * share_back)
        by_fore = foreground * (count - (count + r) * share_fore)
        s = background * s_back + foreground * s_fore
        share = background * share_back + foreground * share_fore
        log_likelihood = back + mixed
        of_sample[_LOG_LIKELIHOOD + i] = log_likelihood
        of_sample[_SAMPLE_BY_MEAN + i] = by_back + by_fore
        of_sample[_SAMPLE_BY_FORE + i] = by_fore
        of_sample[_SAMPLE_FOREGROUND + i] = foreground
        of_sample[_SAMPLE_BY_RATE + i] = r * s - (count + r) * share
        w[_LARGEST + i] = max(w[_LARGEST + i], log_likelihood)


@compiled(error_model="numpy")
def _add_sample(w: np.ndarray, of_sample: np.ndarray) -> None:
    """Add a sample, times its likelihood divided by the largest, which replaces the logarithm."""
    for i in range(_BLOCK):
        own = exp(of_sample[_LOG_LIKELIHOOD + i] - w[_LARGEST + i])
        of_sample[_LOG_LIKELIHOOD + i] = own
        w[_WEIGHT + i] += own
        w[_BY_FORE + i] += own * of_sample[_SAMPLE_BY_FORE + i]
        w[_FOREGROUND + i] += own * of_sample[_SAMPLE_FOREGROUND + i]
        w[_BY_RATE + i] += own * of_sample[_SAMPLE_BY_RATE + i]


@compiled(error_model="numpy")
def _begin_block(w: np.ndarray) -> None:
    one = w.dtype.type(1)
    for i in range(_BLOCK):
        w[_R + i] = exp(w[_LOG_R + i])
        w[_LOG_FACTOR + i] = log(w[_LOG_FACTOR + i])
        w[_PRIOR + i], w[_BACKGROUND_PRIOR + i] = _softplus(-w[_LOGIT + i], one)
        w[_LARGEST + i] = -np.inf
        w[_WEIGHT + i] = w[_BY_FORE + i] = w[_FOREGROUND + i] = w[_BY_RATE + i] = one - one


@compiled(parallel=True, error_model="numpy")
def _mixture_loss(
    y: np.ndarray, measured: np.ndarray, log_background: np.ndarray, factor: np.ndarray,
    logit: np.ndarray, log_r: np.ndarray, group: np.ndarray, cost: np.ndarray,
    d_log_background: np.ndarray, d_factor: np.ndarray, d_logit: np.ndarray, d_log_r: np.ndarray,
) -> None:  # fmt: skip
    """Fill in minus the log-likelihood of each count, and its derivatives.

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
    cost
        Minus the log-likelihood (B, T), filled in.
    d_log_background, d_factor, d_logit, d_log_r
        Derivatives of the cost, the first (K, B, T), the others (B, T), filled in.
    """
    n_samples, n_cells, n_proteins = log_background.shape
    n = n_cells * n_proteins
    for block in prange(-(-n // _BLOCK)):
        one = y.dtype.type(1)
        zero = one - one
        start = block * _BLOCK
        w = np.empty(_WORK, y.dtype)
        of_sample = np.empty((n_samples, _WORK_OF_SAMPLE), y.dtype)
        for i in range(_BLOCK):
            b, t = divmod(min(start + i, n - 1), n_proteins)
            known = len(measured) == 0 or measured[b, t]
            w[_COUNT + i] = y[b, t] if known else zero
            w[_LOG_R + i], w[_LOG_FACTOR + i] = log_r[group[b], t], factor[b, t]
            w[_LOGIT + i] = logit[b, t]
        _begin_block(w)
        for k in range(n_samples):
            for i in range(_BLOCK):
                b, t = divmod(min(start + i, n - 1), n_proteins)
                w[_MEAN + i] = log_background[k, b, t]
            _evaluate_sample(w, of_sample[k])
        for k in range(n_samples):
            _add_sample(w, of_sample[k])
        for i in range(min(_BLOCK, n - start)):
            b, t = divmod(start + i, n_proteins)
            if len(measured) and not measured[b, t]:
                d_log_background[:, b, t] = 0
                cost[b, t] = d_factor[b, t] = d_logit[b, t] = d_log_r[b, t] = zero
                continue
            count, r, weight = w[_COUNT + i], w[_R + i], w[_WEIGHT + i]
            log_ratio, difference = rising(r, count)
            common = log_ratio - y.dtype.type(log_factorial(count))
            log_mean = w[_LARGEST + i] + log(weight) - log(one * n_samples)
            cost[b, t] = w[_PRIOR + i] - common - log_mean
            d_factor[b, t] = -w[_BY_FORE + i] / weight / factor[b, t]
            d_logit[b, t] = w[_FOREGROUND + i] / weight - w[_BACKGROUND_PRIOR + i]
            d_log_r[b, t] = count - r * difference + w[_BY_RATE + i] / weight
            for k in range(n_samples):
                share = of_sample[k, _LOG_LIKELIHOOD + i] / weight
                d_log_background[k, b, t] = -of_sample[k, _SAMPLE_BY_MEAN + i] * share


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
        cost = torch.empty_like(y)
        samples = log_background if log_background.dim() == 3 else log_background[None]
        derivatives = [torch.empty_like(samples), *(torch.empty_like(y) for _ in range(3))]
        _mixture_loss(
            as_array(y), _mask(measured),
            *map(as_array, (samples, factor, logit, log_r, group, cost)),
            *map(as_array, derivatives),
        )  # fmt: skip
        derivatives[0] = derivatives[0].view_as(log_background)
        ctx.save_for_backward(*derivatives, group)
        ctx.n_groups = len(log_r)
        return cost.sum(dim=1)

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
