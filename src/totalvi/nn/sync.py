"""Noise and batch normalisation of minibatches that several processes may share.

Each process draws the noise of all cells and uses that of its own cells. Batch normalisation is
over all cells. A step therefore has the same numbers, up to rounding, with any number of processes.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class Share(NamedTuple):
    """This process's own cells in a minibatch.

    Parameters
    ----------
    first
        Position of the first of them in the minibatch.
    n_cells
        Number of cells of all processes.
    """

    first: int
    n_cells: int


class SharedGenerator(torch.Generator):
    """A generator in the same state in all processes, for minibatches that they share.

    Attributes
    ----------
    share
        This process's part of the minibatch whose noise is drawn.
    """

    share: Share


def n_cells_of_all(n_own: int, generator: torch.Generator | None) -> int:
    """Return the number of cells in the minibatch; ``n_own`` of them are this process's."""
    return generator.share.n_cells if isinstance(generator, SharedGenerator) else n_own


def first_own(generator: torch.Generator | None) -> int:
    """Return the position of the first own cell in the minibatch."""
    return generator.share.first if isinstance(generator, SharedGenerator) else 0


def own_cells(
    of_all: Tensor, n_own: int, generator: torch.Generator | None, axis: int = 0
) -> Tensor:
    """Return the part of ``of_all`` for this process's cells, along ``axis``."""
    if not isinstance(generator, SharedGenerator):
        return of_all
    return of_all.narrow(axis, generator.share.first, n_own)


def of_all_cells(own: Tensor, generator: torch.Generator | None) -> Tensor:
    """Return the integers of all cells of the minibatch, (B,), from this process's own."""
    if not isinstance(generator, SharedGenerator):
        return own
    whole = own.new_zeros(generator.share.n_cells)
    own_cells(whole, len(own), generator).copy_(own)
    torch.distributed.all_reduce(whole)
    return whole


def standard_normal(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Return standard normal noise of the shape of ``like``, (..., B, features)."""
    noise = torch.randn(
        _shape_of_all(like, generator), generator=generator, dtype=like.dtype, device=like.device
    )
    return own_cells(noise, like.shape[-2], generator, axis=-2)


def _shape_of_all(like: Tensor, generator: torch.Generator | None) -> tuple[int, ...]:
    """Return the shape (..., B, features) of ``like`` with the cells of all processes."""
    *leading, n_own, n_features = like.shape
    return *leading, n_cells_of_all(n_own, generator), n_features


def stratified_normal(n_samples: int, like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Return standard normal noise, (n_samples, *like.shape), one from each equally likely interval.

    Averages over these samples vary less than over independent ones, with the same expectation.
    """
    shape = n_samples, *_shape_of_all(like, generator)
    dtype = torch.promote_types(like.dtype, torch.float32)  # ndtri has no half precision
    noise = torch.rand(shape, generator=generator, dtype=dtype, device=like.device)
    noise = own_cells(noise, like.shape[-2], generator, axis=-2)
    stratum = torch.arange(n_samples, dtype=dtype, device=like.device)
    noise.add_(stratum.view(-1, *(1,) * like.dim())).div_(n_samples)
    edge = torch.finfo(dtype).eps  # avoid infinite noise if the uniform sample is 0 or rounds to 1
    normal: Tensor = torch.special.ndtri(noise.clamp_(edge, 1 - edge))
    return normal


def shared_moments(mean: Tensor, variance: Tensor, n_own: int, generator: SharedGenerator) -> None:
    """Replace mean and biased variance of own cells by those of all cells, (features,), in place."""
    share = n_own / generator.share.n_cells
    # squared distances from the mean of all cells lose no digits, unlike sums of squares
    total = mean * share
    torch.distributed.all_reduce(total)
    within_and_between = (variance + (mean - total).square()) * share
    torch.distributed.all_reduce(within_and_between)
    mean.copy_(total)
    variance.copy_(within_and_between)


def shared_batch_norm(x: Tensor, batch_norm: nn.BatchNorm1d, generator: SharedGenerator) -> Tensor:
    """Return ``x`` (B, features) normalised by mean and variance of the cells of all processes."""
    n_cells = generator.share.n_cells
    wide = x.float()
    mean = _sum_of_all(wide.sum(dim=0)) / n_cells
    variance = _sum_of_all((wide - mean).square().sum(dim=0)) / n_cells
    note_moments(batch_norm, mean.detach(), variance.detach(), n_cells)
    normalized = (wide - mean) / (variance + batch_norm.eps).sqrt()
    return (normalized * batch_norm.weight + batch_norm.bias).to(x.dtype)


class _SumOfAll(torch.autograd.Function):
    """The sum of a tensor over processes; its gradient is the sum of their gradients."""

    @staticmethod
    def forward(_ctx: Any, own: Tensor) -> Tensor:
        total = own.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    @once_differentiable
    def backward(_ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        torch.distributed.all_reduce(total)
        return total


_sum_of_all: Callable[[Tensor], Tensor] = _SumOfAll.apply


def note_moments(batch_norm: nn.BatchNorm1d, mean: Tensor, variance: Tensor, n_cells: int) -> None:
    """Update the running mean and variance by those of a minibatch (with biased variance)."""
    running: Any = batch_norm
    running.running_mean.lerp_(mean, running.momentum)
    running.running_var.lerp_(variance * (n_cells / (n_cells - 1)), running.momentum)
    if running.num_batches_tracked is not None:
        running.num_batches_tracked.add_(1)
