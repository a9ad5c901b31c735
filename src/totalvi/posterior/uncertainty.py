"""How sure the model is of each cell: of its latent state, and of the state of its proteins."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from totalvi.feed import Minibatch
from totalvi.module.totalvi import TOTALVI
from totalvi.posterior.draws import draws
from totalvi.posterior.noise import CellNoise


class CellUncertainty(NamedTuple):
    """Of each cell, (cells,).

    Parameters
    ----------
    latent_entropy
        Entropy of q(u | cell) in nats: ``sum_j log(2 pi e v_j) / 2``.
    latent_variance
        Mean of v_j over the latent dimensions.
    protein_entropy
        Entropy in nats of whether a protein is foreground, with its probability averaged over
        q(z | cell); the mean over proteins, between 0 and log 2.
    """

    latent_entropy: np.ndarray
    latent_variance: np.ndarray
    protein_entropy: np.ndarray


@torch.no_grad()
def cell_uncertainty(
    module: TOTALVI,
    batches: Iterable[Minibatch],
    noise: CellNoise,
    proteins: np.ndarray,
    *,
    n_samples: int,
    transform_batches: Sequence[int | None],
) -> CellUncertainty:
    """Return the uncertainty of each cell; ``proteins`` are the positions of those averaged over."""
    entropies, variances, protein_entropies = [], [], []
    for batch in batches:
        background = torch.zeros_like(batch.y)
        for draw in draws(module, batch, n_samples, noise, transform_batches):
            background += draw.background_probability()
        background /= n_samples * len(transform_batches)
        variance = draw.posterior.qz_v
        entropies.append(0.5 * (variance.log() + math.log(2 * math.pi * math.e)).sum(dim=1))
        variances.append(variance.mean(dim=1))
        protein_entropies.append(_binary_entropy(background[:, proteins]).mean(dim=1))
    return CellUncertainty(
        *(torch.cat(parts).cpu().numpy() for parts in (entropies, variances, protein_entropies))
    )


def _binary_entropy(probability: Tensor) -> Tensor:
    other = 1 - probability
    return -torch.xlogy(probability, probability) - torch.xlogy(other, other)
