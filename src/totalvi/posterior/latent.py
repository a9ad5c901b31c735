"""The latent cell state and the library size."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from totalvi.feed import Minibatch
from totalvi.module.encoder import CellPosterior
from totalvi.module.totalvi import TOTALVI
from totalvi.posterior.noise import CellNoise


class LatentDistribution(NamedTuple):
    """q(u | cell) = N(mean, diag(variance)) of each cell, each (cells, n_latent) float32.

    u is the latent state z itself, or for the logistic normal what z is the softmax of.
    """

    mean: np.ndarray
    variance: np.ndarray


@torch.no_grad()
def latent_mean(
    module: TOTALVI, batches: Iterable[Minibatch], noise: CellNoise, *, n_samples: int
) -> np.ndarray:
    """Return E[z], (cells, n_latent).

    For the logistic normal, E[softmax(u)] is an average over ``n_samples`` samples.
    """
    parts = []
    for batch in batches:
        posterior = module.encode(batch.x, batch.y, batch.context)
        if module.latent_distribution == "normal":
            parts.append(posterior.qz_m)
            continue
        total = torch.zeros_like(posterior.qz_m)
        for z in _samples(module, batch, posterior, noise, n_samples):
            total += z
        parts.append(total / n_samples)
    return torch.cat(parts).cpu().numpy()


@torch.no_grad()
def latent_samples(
    module: TOTALVI, batches: Iterable[Minibatch], noise: CellNoise, *, n_samples: int
) -> np.ndarray:
    """Return samples of z, (n_samples, cells, n_latent)."""
    parts = []
    for batch in batches:
        posterior = module.encode(batch.x, batch.y, batch.context)
        parts.append(torch.stack(list(_samples(module, batch, posterior, noise, n_samples))))
    return torch.cat(parts, dim=1).cpu().numpy()


@torch.no_grad()
def latent_distribution(module: TOTALVI, batches: Iterable[Minibatch]) -> LatentDistribution:
    """Return the mean and variance of q(u | cell)."""
    posteriors = [module.encode(batch.x, batch.y, batch.context) for batch in batches]
    return LatentDistribution(
        torch.cat([posterior.qz_m for posterior in posteriors]).cpu().numpy(),
        torch.cat([posterior.qz_v for posterior in posteriors]).cpu().numpy(),
    )


@torch.no_grad()
def library_mean(module: TOTALVI, batches: Iterable[Minibatch]) -> np.ndarray:
    """Return the posterior mean exp(m + v / 2) of each library size, or the known one, (cells, 1)."""
    parts = [
        module.library_mean(module.encode(batch.x, batch.y, batch.context), batch.context)
        for batch in batches
    ]
    return torch.cat(parts).cpu().numpy()


@torch.no_grad()
def library_samples(
    module: TOTALVI, batches: Iterable[Minibatch], noise: CellNoise, *, n_samples: int
) -> np.ndarray:
    """Return samples of the library size, (n_samples, cells, 1); all the same where it is known."""
    parts = []
    for batch in batches:
        posterior = module.encode(batch.x, batch.y, batch.context)
        samples = [
            module.library_at(
                posterior,
                batch.context,
                noise.normal("library", sample, batch.keys, 1).to(batch.y.device),
            )[0]
            for sample in range(n_samples)
        ]
        parts.append(torch.stack(samples))
    return torch.cat(parts, dim=1).cpu().numpy()


def _samples(
    module: TOTALVI, batch: Minibatch, posterior: CellPosterior, noise: CellNoise, n_samples: int
) -> Iterator[Tensor]:
    for sample in range(n_samples):
        normal = noise.normal("latent", sample, batch.keys, module.n_latent)
        yield module.transform_latent(module.latent_at(posterior, normal.to(batch.y.device)))
