"""The latent cell state and the library size."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from totalvi.fit.batches import Minibatch
from totalvi.nn.encoder import CellPosterior
from totalvi.nn.v06 import TOTALVI
from totalvi.posterior.draws import CellNoise, draws


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
