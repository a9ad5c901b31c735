"""The staining level of a cell: how much brighter or fainter all its antibodies are than expected."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from totalvi.nn.coders import GaussianHead
from totalvi.nn.layers import Linear

_N_HIDDEN = 64
_FIRST_SCALE = 0.3  # of the log level, before training


class StainingLevel(nn.Module):
    """The posterior of each cell's staining level given its protein counts, and the scale of its prior.

    The log level of protein j is s_j t with t ~ N(0, 1) for each cell; q(t | y) is normal.

    Parameters
    ----------
    n_proteins
        T.
    generator
        Generator of the initial weights.
    """

    def __init__(self, n_proteins: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.hidden = Linear(n_proteins + 1, _N_HIDDEN, generator=generator)
        self.head = GaussianHead(_N_HIDDEN, 1, generator)
        self.log_scale = nn.Parameter(torch.full((n_proteins,), math.log(_FIRST_SCALE)))

    def forward(
        self, y: Tensor, seen: Tensor | None, log_background: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return mean and variance of q(t | y), each (B, 1): those of the prior without any protein.

        Parameters
        ----------
        y
            Counts (B, T), 0 where they are not seen.
        seen
            Which are seen, (B, T); None: all.
        log_background
            Log background of the average cell of each panel, (B, T). Counts are compared with it, so
            that one which is not seen is as if it were there.
        """
        above = torch.log1p(y) - F.softplus(log_background)
        if seen is None:
            n_seen = torch.full_like(y[:, :1], y.shape[1])
        else:
            above, n_seen = above * seen, seen.sum(dim=1, keepdim=True)
        mean_above = above.sum(dim=1, keepdim=True) / n_seen.clamp(min=1)
        given = torch.cat([above, mean_above], dim=1)
        mean, variance = self.head(F.silu(self.hidden(given)))
        return mean.masked_fill(n_seen == 0, 0.0), variance.masked_fill(n_seen == 0, 1.0)

    def log_level(self, level: Tensor) -> Tensor:
        """Return the log level of each protein, (..., B, T), at a standardised one, (..., B, 1)."""
        return self.log_scale.exp() * level
