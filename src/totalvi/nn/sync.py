"""Minibatches that several processes share, each with some of the cells.

Each process draws the noise of all cells and takes that of its own, and batch normalisation is over
all of them: whatever the number of processes, a step has the same numbers but for rounding.
"""

from typing import Any, NamedTuple

import torch
import torch.distributed
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class Share(NamedTuple):
    """Which cells of a minibatch are this process's own.

    Parameters
    ----------
    first
        Place of the first of them in the minibatch.
    n_cells
        Cells of all processes.
    """

    first: int
    n_cells: int


class SharedGenerator(torch.Generator):
    """A generator in the same state in all processes, for minibatches that they share.

    Attributes
    ----------
    share
        Of the minibatch whose noise is drawn.
    """

    share: Share


def n_cells_of_all(n_own: int, generator: torch.Generator | None) -> int:
    """Return the cells in the minibatch of which ``n_own`` are this process's."""
    return generator.share.n_cells if isinstance(generator, SharedGenerator) else n_own


def first_own(generator: torch.Generator | None) -> int:
    """Return the place of the first own cell in the minibatch."""
    return generator.share.first if isinstance(generator, SharedGenerator) else 0


def own_cells(
    of_all: Tensor, n_own: int, generator: torch.Generator | None, axis: int = 0
) -> Tensor:
    """Return the part of ``of_all`` that belongs to this process's cells, which lie along ``axis``."""
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


def shared_moments(mean: Tensor, variance: Tensor, n_own: int, generator: SharedGenerator) -> None:
    """Replace mean and biased variance of the own cells by those of all, (features,), in place."""
    share = n_own / generator.share.n_cells
    # distances from the mean of all, not squares less the squared mean: no digits are lost
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
    mean = _SumOfAll.apply(wide.sum(dim=0)) / n_cells
    variance = _SumOfAll.apply((wide - mean).square().sum(dim=0)) / n_cells
    note_moments(batch_norm, mean.detach(), variance.detach(), n_cells)
    normalized = (wide - mean) / (variance + batch_norm.eps).sqrt()
    return (normalized * batch_norm.weight + batch_norm.bias).to(x.dtype)


class _SumOfAll(torch.autograd.Function):
    """The sum of a tensor over processes; its gradient is the sum of theirs."""

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


def note_moments(batch_norm: nn.BatchNorm1d, mean: Tensor, variance: Tensor, n_cells: int) -> None:
    """Move the running mean and variance towards those of a minibatch (the variance biased)."""
    running: Any = batch_norm
    running.running_mean.lerp_(mean, running.momentum)
    running.running_var.lerp_(variance * (n_cells / (n_cells - 1)), running.momentum)
    if running.num_batches_tracked is not None:
        running.num_batches_tracked.add_(1)
