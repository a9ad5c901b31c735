"""Batch normalisation, ReLU and dropout of a hidden layer in training."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from totalvi.module.fused.arrays import as_array
from totalvi.module.kernels import hidden


def normalized_activation(
    x: Tensor, batch_norm: nn.BatchNorm1d, dropout_rate: float, generator: torch.Generator | None
) -> Tensor:
    """Return dropout(ReLU(batch_norm(x))) of a layer in training, (B, features)."""
    assert batch_norm.running_mean is not None
    assert batch_norm.running_var is not None
    assert batch_norm.momentum is not None
    n_cells = len(x)
    if n_cells < 2:
        raise ValueError("x has 1 cell; batch normalisation needs 2 while training.")
    seed = int(torch.randint(2**31, (1,), generator=generator)) if dropout_rate else 0
    y, mean, variance = _NormalizedActivation.apply(
        x, batch_norm.weight, batch_norm.bias, batch_norm.eps, dropout_rate, seed
    )
    momentum = batch_norm.momentum
    batch_norm.running_mean.lerp_(mean, momentum)
    batch_norm.running_var.lerp_(variance * (n_cells / (n_cells - 1)), momentum)
    if batch_norm.num_batches_tracked is not None:
        batch_norm.num_batches_tracked.add_(1)
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
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, epsilon: float, rate: float, seed: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        x = x.contiguous()
        y, mean, variance = torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight)
        hidden.forward(
            as_array(x), as_array(weight), as_array(bias), epsilon, rate, seed,
            as_array(mean), as_array(variance), as_array(y),
        )  # fmt: skip
        ctx.save_for_backward(x, y, weight, mean, variance)
        ctx.epsilon, ctx.rate = epsilon, rate
        ctx.mark_non_differentiable(mean, variance)
        return y, mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, y, weight, mean, variance = ctx.saved_tensors
        d_x, d_weight, d_bias = (torch.empty_like(like) for like in (x, weight, weight))
        hidden.backward(
            *map(as_array, (gradients[0].contiguous(), x, y, weight, mean, variance)),
            ctx.epsilon, ctx.rate, *map(as_array, (d_x, d_weight, d_bias)),
        )  # fmt: skip
        return d_x, d_weight, d_bias, None, None, None
