"""How well the model explains cells: the evidence lower bound."""

from collections.abc import Iterable

import numpy as np
import torch

from totalvi.feed import Minibatch
from totalvi.module.elbo import ElboTerms
from totalvi.module.totalvi import TOTALVI
from totalvi.posterior.draws import Draw, draws
from totalvi.posterior.noise import CellNoise


@torch.no_grad()
def elbo_by_cell(module: TOTALVI, batches: Iterable[Minibatch], noise: CellNoise) -> np.ndarray:
    """Return each cell's evidence lower bound, (cells,), in nats, from one posterior sample a cell."""
    parts = []
    for batch in batches:
        (draw,) = draws(module, batch, 1, noise)
        terms = elbo_terms(module, batch, draw)
        parts.append(-(terms.reconstruction() + terms.divergence()))
    return torch.cat(parts).numpy()


def elbo_terms(module: TOTALVI, batch: Minibatch, draw: Draw) -> ElboTerms:
    """Return the terms of the negative evidence lower bound at one posterior sample."""
    return module.elbo_terms(
        batch.x,
        batch.y,
        draw.context,
        draw.posterior,
        draw.decoded,
        draw.library_size,
        draw.log_background,
        batch.library_log_mean,
        batch.library_log_variance,
    )
