"""The proteins' loss and the divergence of their background."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from totalvi.nn.cpu import protein_loss as protein_terms
from totalvi.nn.cpu.dispatch import as_array


def protein_mixture_loss(
    y: Tensor,
    measured: Tensor | None,
    log_background: Tensor,
    factor: Tensor,
    logit: Tensor,
    log_r: Tensor,
    group: Tensor,
) -> Tensor:
    """Return ``-log p(y)`` summed over measured proteins, (B,); see `kernels.protein_terms`.

    ``log_background`` is one sample, (B, T), or several, (K, B, T), over which p(y) is averaged.
    """
    loss: Tensor = _ProteinMixtureLoss.apply(
        y, measured, log_background, factor, logit, log_r, group
    )
    return loss


class _ProteinMixtureLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, y: Tensor, measured: Tensor | None, log_background: Tensor, factor: Tensor,
        logit: Tensor, log_r: Tensor, group: Tensor,
    ) -> Tensor:  # fmt: skip
        loss = torch.empty_like(y[:, 0])
        samples = log_background if log_background.dim() == 3 else log_background[None]
        derivatives = [torch.empty_like(samples), *(torch.empty_like(y) for _ in range(3))]
        protein_terms.mixture_loss(
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
        *derivatives, group = ctx.saved_tensors
        by_background, by_factor, by_logit, by_log_r = (
            derivative * gradients[0][:, None] for derivative in derivatives
        )
        d_log_r = _sum_by_group(by_log_r, group, ctx.n_groups)
        return None, None, by_background, by_factor, by_logit, d_log_r, None


def background_divergence(
    measured: Tensor | None,
    mean: Tensor,
    scale: Tensor,
    prior_mean: Tensor,
    prior_log_scale: Tensor,
    panel: Tensor,
) -> Tensor:
    """Return the divergence of q(b | z) from its prior, summed over measured proteins, (B,)."""
    divergence: Tensor = _BackgroundDivergence.apply(
        measured, mean, scale, prior_mean, prior_log_scale, panel
    )
    return divergence


class _BackgroundDivergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, measured: Tensor | None, mean: Tensor, scale: Tensor, prior_mean: Tensor,
        prior_log_scale: Tensor, panel: Tensor,
    ) -> Tensor:  # fmt: skip
        divergence = torch.empty_like(mean[:, 0])
        derivatives = [torch.empty_like(scale) for _ in range(3)]
        protein_terms.background_divergence(
            _mask(measured),
            *map(as_array, (mean, scale, prior_mean, prior_log_scale, panel, divergence)),
            *map(as_array, derivatives),
        )  # fmt: skip
        ctx.save_for_backward(*derivatives, panel)
        ctx.n_panels = len(prior_mean)
        return divergence

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        *derivatives, panel = ctx.saved_tensors
        by_mean, by_scale, by_prior_log_scale = (
            derivative * gradients[0][:, None] for derivative in derivatives
        )
        d_prior_mean = -_sum_by_group(by_mean, panel, ctx.n_panels)
        d_prior_log_scale = _sum_by_group(by_prior_log_scale, panel, ctx.n_panels)
        return None, by_mean, by_scale, d_prior_mean, d_prior_log_scale, None


def _sum_by_group(value: Tensor, group: Tensor, n_groups: int) -> Tensor:
    """Sum the rows of ``value`` (B, T) by group, giving (groups, T)."""
    if n_groups == 1:
        return value.sum(dim=0, keepdim=True)
    return value.new_zeros(n_groups, value.shape[1]).index_add(0, group, value)


def _mask(measured: Tensor | None) -> np.ndarray:
    return np.empty((0, 0), dtype=np.bool_) if measured is None else measured.numpy()
