"""The latent representation is the module's posterior, minibatch by minibatch."""

from typing import Any

import numpy as np
import pytest
import torch

from counts import SMALL, described
from totalvi.data.cite import CiteData
from totalvi.feed import minibatches
from totalvi.module.totalvi import TOTALVI
from totalvi.posterior.latent import latent_representation
from totalvi.posterior.noise import CellNoise


@pytest.fixture(scope="module")
def data() -> CiteData:
    return described()


def module(distribution: Any = "normal") -> TOTALVI:
    generator = torch.Generator().manual_seed(0)
    return TOTALVI(
        30, 6, 2, latent_distribution=distribution, library="observed", generator=generator, **SMALL
    ).eval()


def ask(
    data: CiteData, network: TOTALVI, cells: np.ndarray, seed: int = 0, **options: Any
) -> np.ndarray:
    arguments = {"give_mean": True, "n_samples": 2000} | options
    batches = minibatches(data, network, cells, arguments.pop("batch_size", 50))
    return latent_representation(network, batches, CellNoise(seed), **arguments)


def posterior(data: CiteData, network: TOTALVI) -> tuple[np.ndarray, np.ndarray]:
    x, y = torch.tensor(data.rna.toarray()), torch.tensor(data.protein)
    with torch.no_grad():
        outputs = network.inference(x, y, torch.tensor(data.batch))
    return outputs["qz_m"].numpy(), outputs["qz_v"].numpy()


def test_normal_mean_is_exact_and_independent_of_batch_size_and_order(data: CiteData) -> None:
    network = module()
    cells = np.random.default_rng(0).permutation(data.n_cells)[:77]
    expected = posterior(data, network)[0][cells]
    for batch_size in (3, 50, 1000):
        ours = ask(data, network, cells, batch_size=batch_size)
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)
    assert ours.dtype == np.float32


def test_logistic_normal_mean_lies_in_the_simplex(data: CiteData) -> None:
    network, cells = module("ln"), np.arange(40)
    ours = ask(data, network, cells)
    np.testing.assert_allclose(ours.sum(axis=1), 1, rtol=1e-5)
    mean, variance = (part[cells] for part in posterior(data, network))
    u = mean + np.sqrt(variance) * np.random.default_rng(0).normal(size=(4000, *mean.shape))
    z = np.exp(u) / np.exp(u).sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(ours, z.mean(axis=0), atol=0.03)


def test_samples_follow_seed_and_posterior(data: CiteData) -> None:
    network, cells = module(), np.arange(data.n_cells)
    one, same, other = (ask(data, network, cells, seed, give_mean=False) for seed in (0, 0, 1))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
    mean, variance = posterior(data, network)
    standard = (one - mean) / np.sqrt(variance)
    assert abs(standard.mean()) < 0.2
    assert standard.std() == pytest.approx(1, abs=0.15)
