"""Cells as tensors: a minibatch with its counts, or with a stored posterior in place of them."""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from totalvi.data.minified_cells import refuse_counts
from totalvi.nn.cell import CellContext, SparseCounts
from totalvi.nn.coders import CellPosterior
from totalvi.nn.network import Network
from totalvi.nn.sync import Share, SharedGenerator

_Terms = TypeVar("_Terms")


class Minibatch(NamedTuple):
    """Counts and context of B cells.

    Parameters
    ----------
    cells
        Their positions in the data, (B,).
    keys
        One number for each cell, hashed from its name, which seeds its noise, (B,).
    x, y
        RNA counts (B, G), sparse, and protein counts (B, T).
    context
        Batch, panel, label and covariates of the cells.
    library_log_mean, library_log_variance
        Prior of the log library size, (B, 1); None if it is not latent.
    share
        The part of these cells in a minibatch that several processes share; None: not shared.
    posterior
        Their posterior, where it is stored; None: it is that of the counts.
    """

    cells: np.ndarray
    keys: np.ndarray
    x: SparseCounts
    y: Tensor
    context: CellContext
    library_log_mean: Tensor | None
    library_log_variance: Tensor | None
    share: Share | None = None
    posterior: CellPosterior | None = None

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.context.batch.device

    def zeros(self, n_features: int) -> Tensor:
        """Return zeros, (B, n_features)."""
        return torch.zeros(len(self.cells), n_features, device=self.device)

    def encode(self, network: Network) -> CellPosterior:
        """Return the posterior of the cells: the one that is stored, or that of their counts."""
        if self.posterior is not None:
            return self.posterior
        return network.encode(self.x, self.y, self.context)

    def terms(self, elbo: Callable[..., _Terms], noise: torch.Generator) -> _Terms:
        """Return the terms of a network's ``elbo`` or ``held_out`` for these cells."""
        if self.share is not None:
            assert isinstance(noise, SharedGenerator)
            noise.share = self.share
        prior = self.library_log_mean, self.library_log_variance
        return elbo(self.x, self.y, self.context, *prior, noise)


class CountlessMinibatch(Minibatch):
    """Cells of a minified reference, with their posterior and without their counts."""

    @property
    def x(self) -> SparseCounts:
        """Refuse to give RNA counts."""
        refuse_counts()

    @property
    def y(self) -> Tensor:
        """Refuse to give protein counts."""
        refuse_counts()
