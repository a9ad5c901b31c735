"""Compute batch normalisation, ReLU and dropout of a hidden layer in few loops, with gradients.

Statistics are computed and used in separate loops, so that processes that share a minibatch can add up
theirs in between.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.distributed
from numba import prange
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from totalvi.compiled import compiled
from totalvi.nn.cpu.math import as_array
from totalvi.nn.sync import SharedGenerator, first_own, n_cells_of_all, note_moments, shared_moments

# Chunks of cells; their fixed number makes results independent of the number of threads.
_CHUNKS = 16


@compiled(forceinline=True)
def _hash(word: np.uint32) -> np.uint32:
    """Return a hash of 32 bits (two multiplications between shifts; Wellons, 2018)."""
    word = np.uint32(word ^ np.uint32(word >> np.uint32(16)))
    word = np.uint32(word * np.uint32(0x7FEB352D))
    word = np.uint32(word ^ np.uint32(word >> np.uint32(15)))
    word = np.uint32(word * np.uint32(0x846CA68B))
    return np.uint32(word ^ np.uint32(word >> np.uint32(16)))


@compiled(inline="always")
def _rows(chunk: int, n_cells: int) -> tuple[int, int]:
    """Return the first cell of a chunk, and the first of the next."""
    size = -(-n_cells // _CHUNKS)
    return min(chunk * size, n_cells), min((chunk + 1) * size, n_cells)


@compiled(parallel=True, fastmath=True, error_model="numpy")
def _moments(x: np.ndarray, mean: np.ndarray, variance: np.ndarray) -> None:
    """Fill in the mean and biased variance of the columns of ``x`` (B, features)."""
    n_cells, n_features = x.shape
    # sums of distances from the first cell, which lose no digits if the mean is large
    sums = np.zeros((_CHUNKS, 2, n_features), x.dtype)
    for chunk in prange(_CHUNKS):
        start, end = _rows(chunk, n_cells)
        for b in range(start, end):
            for j in range(n_features):
                difference = x[b, j] - x[0, j]
                sums[chunk, 0, j] += difference
                sums[chunk, 1, j] += difference * difference
    zero = x.dtype.type(0)
    for j in range(n_features):
        total, squares = zero, zero
        for chunk in range(_CHUNKS):
            total += sums[chunk, 0, j]
            squares += sums[chunk, 1, j]
        total /= n_cells
        mean[j] = x[0, j] + total
        variance[j] = max(squares / n_cells - total * total, zero)


@compiled(parallel=True, fastmath=True, error_model="numpy")
def _activate(
    epsilon: float, dropout_rate: float, seed: int, first: int, x: np.ndarray, weight: np.ndarray,
    bias: np.ndarray, mean: np.ndarray, variance: np.ndarray, y: np.ndarray,
) -> None:  # fmt: skip
    """Fill in ``y``.

    Parameters
    ----------
    epsilon
        Added to the variance.
    dropout_rate, seed
        Share of the values set to zero; a hash of seed and position chooses them.
    first
        Position of the first cell in the minibatch.
    x
        (B, features).
    weight, bias
        Parameters of batch normalisation, (features,).
    mean, variance
        Mean and biased variance of the minibatch, (features,).
    y
        (B, features), filled in. Values of 0 have no gradient.
    """
    n_cells, n_features = x.shape
    zero = x.dtype.type(0)
    scale, shift = np.empty_like(mean), np.empty_like(mean)
    for j in range(n_features):
        scale[j] = weight[j] / math.sqrt(variance[j] + epsilon)
        shift[j] = bias[j] - mean[j] * scale[j]
    threshold = np.uint32(min(dropout_rate * 2.0**32, 2.0**32 - 1))
    kept_scale = x.dtype.type(1.0 / (1.0 - dropout_rate))
    for chunk in prange(_CHUNKS):
        start, end = _rows(chunk, n_cells)
        for b in range(start, end):
            place = np.uint32((first + b) * n_features)
            for j in range(n_features):
                value = max(x[b, j] * scale[j] + shift[j], zero) * kept_scale
                word = np.uint32(np.uint32(place + np.uint32(j)) * np.uint32(0x9E3779B9))
                kept = _hash(np.uint32(word + np.uint32(seed))) >= threshold
                y[b, j] = value if kept else zero


@compiled(parallel=True, fastmath=True, error_model="numpy")
def _gradient_sums(
    gradient: np.ndarray, x: np.ndarray, y: np.ndarray, mean: np.ndarray, sums: np.ndarray
) -> None:
    """Fill ``sums`` (2, features) with sums of the gradient, and of it times distance from the mean."""
    n_cells, n_features = x.shape
    zero = x.dtype.type(0)
    of_chunk = np.zeros((_CHUNKS, 2, n_features), x.dtype)
    for chunk in prange(_CHUNKS):
        start, end = _rows(chunk, n_cells)
        for b in range(start, end):
            for j in range(n_features):
                g = gradient[b, j] if y[b, j] > zero else zero
                of_chunk[chunk, 0, j] += g
                of_chunk[chunk, 1, j] += g * (x[b, j] - mean[j])
    for j in range(n_features):
        by_bias, by_weight = zero, zero
        for chunk in range(_CHUNKS):
            by_bias += of_chunk[chunk, 0, j]
            by_weight += of_chunk[chunk, 1, j]
        sums[0, j] = by_bias
        sums[1, j] = by_weight


@compiled(parallel=True, fastmath=True, error_model="numpy")
def _input_gradient(
    epsilon: float, dropout_rate: float, n_cells: int, gradient: np.ndarray, x: np.ndarray,
    y: np.ndarray, weight: np.ndarray, mean: np.ndarray, variance: np.ndarray, sums: np.ndarray,
    d_x: np.ndarray,
) -> None:  # fmt: skip
    """Fill in the gradient by ``x`` from that by ``y``; ``sums`` and ``n_cells`` cover all cells."""
    n_own, n_features = x.shape
    zero = x.dtype.type(0)
    kept_scale = x.dtype.type(1.0 / (1.0 - dropout_rate))
    scale, constant, slope = np.empty_like(mean), np.empty_like(mean), np.empty_like(mean)
    for j in range(n_features):
        inverse_scale = 1 / math.sqrt(variance[j] + epsilon)
        scale[j] = weight[j] * inverse_scale * kept_scale
        slope[j] = scale[j] * sums[1, j] * inverse_scale * inverse_scale / n_cells
        constant[j] = scale[j] * sums[0, j] / n_cells - slope[j] * mean[j]
    for chunk in prange(_CHUNKS):
        start, end = _rows(chunk, n_own)
        for b in range(start, end):
            for j in range(n_features):
                g = gradient[b, j] if y[b, j] > zero else zero
                d_x[b, j] = scale[j] * g - constant[j] - slope[j] * x[b, j]


@compiled(parallel=True, fastmath=True, error_model="numpy")
def _scaled_relu(x: np.ndarray, scale: np.ndarray, shift: np.ndarray, y: np.ndarray) -> None:
    """Fill ``y`` (B, features) with max(x scale + shift, 0)."""
    n_cells, n_features = x.shape
    for b in prange(n_cells):
        for j in range(n_features):
            y[b, j] = max(x[b, j] * scale[j] + shift[j], x.dtype.type(0))


def hidden(
    x: Tensor, batch_norm: nn.BatchNorm1d, dropout_rate: float, generator: torch.Generator | None
) -> Tensor:
    """Return dropout(ReLU(batch_norm(x))), (B, features); see `totalvi.nn.ops.hidden`."""
    if batch_norm.training:
        return normalized_activation(x, batch_norm, dropout_rate, generator)
    return scaled_relu(x, batch_norm)


def normalized_activation(
    x: Tensor, batch_norm: nn.BatchNorm1d, dropout_rate: float, generator: torch.Generator | None
) -> Tensor:
    """Return dropout(ReLU(batch_norm(x))) of a layer in training, (B, features)."""
    n_cells = n_cells_of_all(len(x), generator)
    if n_cells < 2:
        raise ValueError("x has 1 cell; batch normalisation needs 2 while training.")
    seed = int(torch.randint(2**31, (1,), generator=generator)) if dropout_rate else 0
    y, mean, variance = _apply_activation(
        x, batch_norm.weight, batch_norm.bias, batch_norm.eps, dropout_rate, seed, generator
    )
    note_moments(batch_norm, mean, variance, n_cells)
    return y


def scaled_relu(x: Tensor, batch_norm: nn.BatchNorm1d) -> Tensor:
    """Return ReLU(batch_norm(x)) of a layer that is not in training, without a gradient."""
    assert batch_norm.running_mean is not None
    assert batch_norm.running_var is not None
    scale = batch_norm.weight / (batch_norm.running_var + batch_norm.eps).sqrt()
    shift = batch_norm.bias - batch_norm.running_mean * scale
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    _scaled_relu(*map(as_array, (x.contiguous(), scale, shift, y)))
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
        _moments(*map(as_array, (x, mean, variance)))
        if isinstance(generator, SharedGenerator):
            shared_moments(mean, variance, len(x), generator)
        arrays = map(as_array, (x, weight, bias, mean, variance, y))
        _activate(epsilon, rate, seed, first_own(generator), *arrays)
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
        _gradient_sums(*map(as_array, (gradient, x, y, mean, sums)))
        kept_scale = 1 / (1 - ctx.rate)
        d_bias = sums[0] * kept_scale
        d_weight = sums[1] * kept_scale / (variance + ctx.epsilon).sqrt()
        if ctx.n_cells > len(x):
            torch.distributed.all_reduce(sums)
        arrays = map(as_array, (gradient, x, y, weight, mean, variance, sums, d_x))
        _input_gradient(ctx.epsilon, ctx.rate, ctx.n_cells, *arrays)
        return d_x, d_weight, d_bias, None, None, None, None


_apply_activation: Callable[..., tuple[Tensor, Tensor, Tensor]] = _NormalizedActivation.apply
