"""The latent representation is the module's posterior, minibatch by minibatch."""

from typing import Any

import numpy as np
import pytest
import torch

from counts import SMALL, described
from totalvi.data.cells import CiteData
from totalvi.fit.batches import minibatches
from totalvi.nn.v06 import TOTALVI
from totalvi.posterior.draws import CellNoise
from totalvi.posterior.latent import (
    latent_distribution,
    latent_mean,
    latent_samples,
    library_mean,
    library_samples,
)


@pytest.fixture(scope="module")
def data() -> CiteData:
    return described()


def module(distribution: Any = "normal") -> TOTALVI:
    generator = torch.Generator().manual_seed(0)
    return TOTALVI(
        30, 6, 2, latent_distribution=distribution, library="observed", generator=generator, **SMALL
    ).eval()


def ask(data: CiteData, network: TOTALVI, cells: np.ndarray, batch_size: int = 50) -> np.ndarray:
    batches = minibatches(data, network, cells, batch_size)
    return latent_mean(network, batches, CellNoise(0), n_samples=2000)


def posterior(data: CiteData, network: TOTALVI) -> tuple[np.ndarray, np.ndarray]:
    x, y = torch.tensor(data.rna.read().toarray()), torch.tensor(data.protein.read())
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

    def samples(seed: int, cells: np.ndarray = cells) -> np.ndarray:
        batches = minibatches(data, network, cells, 50)
        return latent_samples(network, batches, CellNoise(seed), n_samples=3)

    three, same, other = samples(0), samples(0), samples(1)
    assert np.array_equal(three, same)
    assert not np.array_equal(three, other)
    np.testing.assert_allclose(samples(0, cells[30:33]), three[:, 30:33], rtol=1e-4, atol=1e-5)
    mean, variance = posterior(data, network)
    standard = (three - mean) / np.sqrt(variance)
    assert np.abs(standard.mean(axis=(1, 2))).max() < 0.2
    assert standard.std() == pytest.approx(1, abs=0.1)
    assert abs(np.corrcoef(standard[0].ravel(), standard[1].ravel())[0, 1]) < 0.15


def test_logistic_normal_samples_lie_in_the_simplex(data: CiteData) -> None:
    network, cells = module("ln"), np.arange(9)
    batches = minibatches(data, network, cells, 5)
    samples = latent_samples(network, batches, CellNoise(0), n_samples=2)
    np.testing.assert_allclose(samples.sum(axis=2), 1, rtol=1e-5)


@pytest.mark.parametrize("distribution", ["normal", "ln"])
def test_the_distribution_is_that_of_u(data: CiteData, distribution: str) -> None:
    network, cells = module(distribution), np.arange(5, 70)
    ours = latent_distribution(network, minibatches(data, network, cells, 13))
    for part, expected in zip(ours, posterior(data, network), strict=True):
        np.testing.assert_allclose(part, expected[cells], rtol=1e-4, atol=1e-5)


def test_library_size_is_log_normal_about_its_mean(data: CiteData) -> None:
    generator = torch.Generator().manual_seed(0)
    network = TOTALVI(30, 6, 2, library="latent", generator=generator, **SMALL).eval()
    cells = np.arange(40)
    mean = library_mean(network, minibatches(data, network, cells, 13))
    batches = minibatches(data, network, cells, 40)
    samples = library_samples(network, batches, CellNoise(0), n_samples=4000)
    assert samples.shape == (4000, 40, 1)
    with torch.no_grad():
        (batch,) = minibatches(data, network, cells, 40)
        q = network.encode(batch.x, batch.y, batch.context)
    assert q.ql_m is not None
    assert q.ql_v is not None
    np.testing.assert_allclose(mean, torch.exp(q.ql_m + q.ql_v / 2), rtol=1e-4)
    logs = np.log(samples)
    np.testing.assert_allclose(logs.mean(axis=0), q.ql_m, atol=0.1)
    np.testing.assert_allclose(logs.var(axis=0), q.ql_v, rtol=0.12)


def test_a_known_library_size_is_returned_as_it_is(data: CiteData) -> None:
    network, cells = module(), np.array([4, 90])
    mean = library_mean(network, minibatches(data, network, cells, 1))
    assert np.array_equal(mean[:, 0], data.library_size[cells])
    batches = minibatches(data, network, cells, 1)
    samples = library_samples(network, batches, CellNoise(0), n_samples=2)
    assert np.array_equal(samples[1], mean)
