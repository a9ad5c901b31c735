"""The latent cell state and the library size."""

from collections.abc import Iterable

import numpy as np
import torch

from totalvi.feed import Minibatch
from totalvi.module.totalvi import TOTALVI
from totalvi.posterior.noise import CellNoise


@torch.no_grad()
def latent_representation(
    module: TOTALVI,
    batches: Iterable[Minibatch],
    noise: CellNoise,
    *,
    give_mean: bool,
    n_samples: int,
) -> np.ndarray:
    """Return E[z] or one sample of z, (cells, n_latent).

    For the logistic normal, E[softmax(u)] is an average over ``n_samples`` samples.
    """
    exact = give_mean and module.latent_distribution == "normal"
    parts = []
    for batch in batches:
        posterior = module.encode(batch.x, batch.y, batch.context)
        if exact:
            parts.append(posterior.qz_m)
            continue
        total = torch.zeros_like(posterior.qz_m)
        n_drawn = n_samples if give_mean else 1
        for sample in range(n_drawn):
            normal = noise.normal("latent", sample, batch.keys, module.n_latent)
            total += module.transform_latent(module.latent_at(posterior, normal))
        parts.append(total / n_drawn)
    return torch.cat(parts).numpy()
