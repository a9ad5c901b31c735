"""The latent cell state."""

import numpy as np
import torch

from totalvi.data.cite import CiteData
from totalvi.feed import minibatches
from totalvi.module.totalvi import TOTALVI


@torch.no_grad()
def latent_representation(
    module: TOTALVI,
    data: CiteData,
    cells: np.ndarray,
    *,
    give_mean: bool,
    n_samples: int,
    batch_size: int,
    generator: torch.Generator,
) -> np.ndarray:
    """Return E[z] or one sample of z, (cells, n_latent).

    For the logistic normal, E[softmax(u)] is an average over ``n_samples`` samples.
    """
    parts = []
    for batch in minibatches(data, module, cells, batch_size):
        posterior = module.encode(batch.x, batch.y, batch.context)
        parts.append(
            module.latent_mean(posterior, n_samples, generator)
            if give_mean
            else module.sample_latent(posterior, generator)
        )
    return torch.cat(parts).numpy()
