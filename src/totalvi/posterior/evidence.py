"""How well the model explains cells: the evidence lower bound."""

import numpy as np
import torch

from totalvi.data.cite import CiteData
from totalvi.feed import minibatches
from totalvi.module.totalvi import TOTALVI


@torch.no_grad()
def elbo_by_cell(
    module: TOTALVI,
    data: CiteData,
    cells: np.ndarray,
    *,
    batch_size: int,
    generator: torch.Generator,
) -> np.ndarray:
    """Return each cell's evidence lower bound, (cells,), in nats, from one posterior sample a cell."""
    parts = []
    for batch in minibatches(data, module, cells, batch_size):
        terms = module.elbo(
            batch.x,
            batch.y,
            batch.context,
            batch.library_log_mean,
            batch.library_log_variance,
            generator,
        )
        parts.append(-(terms.reconstruction() + terms.divergence()))
    return torch.cat(parts).numpy()
