"""Batch normalisation, ReLU and dropout of a hidden layer in training."""

from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from totalvi.nn.cpu import hidden_layer as hidden
from totalvi.nn.cpu.dispatch import as_array
from totalvi.nn.sync import SharedGenerator, first_own, n_cells_of_all, note_moments, shared_moments


def normalized_activation(
    x: Tensor, batch_norm: nn.BatchNorm1d, dropout_rate: float, generator: torch.Generator | None
) -> Tensor:
    """Return dropout(ReLU(batch_norm(x))) of a layer in training, (B, features)."""
    n_cells = n_cells_of_all(len(x), generator)
    if n_cells < 2:
        raise ValueError("x has 1 cell; batch normalisation needs 2 while training.")
    seed = int(torch.randint(2**31, (1,), generator=generator)) if dropout_rate else 0
    y, mean, variance = _NormalizedActivation.apply(
        x, batch_norm.weight, batch_norm.bias, batch_norm.eps, dropout_rate, seed, generator
    )
    note_moments(batch_norm, mean, variance, n_cells)
    result: Tensor = y
    return result


def scaled_relu(x: Tensor, batch_norm: nn.BatchNorm1d) -> Tensor:
    """Return ReLU(batch_norm(x)) of a layer that is not in training, without a gradient."""
    assert batch_norm.running_mean is not None
    assert batch_norm.running_var is not None
    scale = batch_norm.weight / (batch_norm.running_var + batch_norm.eps).sqrt()
    shift = batch_norm.bias - batch_norm.running_mean * scale
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    hidden.scaled_relu(*map(as_array, (x.contiguous(), scale, shift, y)))
    return y


class _NormalizedActivation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        epsilon: float,
        rate: float,
        seed: int,
        generator: torch.Generator | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        x = x.contiguous()
        y, mean, variance = torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight)
        hidden.moments(*map(as_array, (x, mean, variance)))
        if isinstance(generator, SharedGenerator):
            shared_moments(mean, variance, len(x), generator)
        hidden.activate(
            *map(as_array, (x, weight, bias, mean, variance)), epsilon, rate, seed,
            first_own(generator), as_array(y),
        )  # fmt: skip
        ctx.save_for_backward(x, y, weight, mean, variance)
        ctx.epsilon, ctx.rate = epsilon, rate
        ctx.n_cells = n_cells_of_all(len(x), generator)
        ctx.mark_non_differentiable(mean, variance)
        return y, mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, y, weight, mean, variance = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        sums, d_x = weight.new_empty(2, len(weight)), torch.empty_like(x)
        hidden.gradient_sums(*map(as_array, (gradient, x, y, mean, sums)))
        kept_scale = 1 / (1 - ctx.rate)
        d_bias = sums[0] * kept_scale
        d_weight = sums[1] * kept_scale / (variance + ctx.epsilon).sqrt()
        if ctx.n_cells > len(x):
            torch.distributed.all_reduce(sums)
        hidden.input_gradient(
            *map(as_array, (gradient, x, y, weight, mean, variance)), ctx.epsilon, ctx.rate,
            as_array(sums), ctx.n_cells, as_array(d_x),
        )  # fmt: skip
        return d_x, d_weight, d_bias, None, None, None, None
