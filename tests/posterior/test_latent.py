"""The latent representation is the module's posterior, minibatch by minibatch."""

from typing import Any

import numpy as np
import pytest
import torch

from counts import SMALL, described, question
from totalvi.data.cells import CiteData
from totalvi.fit.batches import minibatch
from totalvi.nn.v06 import TOTALVI
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
    asked = question(data, network, cells, batch_size=batch_size, n_samples=2000)
    return asked.gather("latent", lambda batch: latent_mean(asked, batch))


def library_sizes(
    data: CiteData, network: TOTALVI, cells: np.ndarray, **given: Any
) -> tuple[np.ndarray, np.ndarray]:
    asked = question(data, network, cells, **given)
    return (
        asked.gather("library", lambda batch: library_mean(asked, batch)),
        asked.gather("library", lambda batch: library_samples(asked, batch), axis=1),
    )


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
        asked = question(data, network, cells, seed, batch_size=50, n_samples=3)
        return asked.gather("latent", lambda batch: latent_samples(asked, batch), axis=1)

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
    asked = question(data, network, cells, batch_size=5, n_samples=2)
    samples = asked.gather("latent", lambda batch: latent_samples(asked, batch), axis=1)
    np.testing.assert_allclose(samples.sum(axis=2), 1, rtol=1e-5)


@pytest.mark.parametrize("distribution", ["normal", "ln"])
def test_the_distribution_is_that_of_u(data: CiteData, distribution: str) -> None:
    network, cells = module(distribution), np.arange(5, 70)
    ours = latent_distribution(question(data, network, cells, batch_size=13))
    for part, expected in zip(ours, posterior(data, network), strict=True):
        np.testing.assert_allclose(part, expected[cells], rtol=1e-4, atol=1e-5)


def test_library_size_is_log_normal_about_its_mean(data: CiteData) -> None:
    generator = torch.Generator().manual_seed(0)
    network = TOTALVI(30, 6, 2, library="latent", generator=generator, **SMALL).eval()
    cells = np.arange(40)
    mean, samples = library_sizes(data, network, cells, batch_size=13, n_samples=4000)
    assert samples.shape == (4000, 40, 1)
    with torch.no_grad():
        batch = minibatch(data, network, cells)
        q = network.encode(batch.x, batch.y, batch.context)
    assert q.ql_m is not None
    assert q.ql_v is not None
    np.testing.assert_allclose(mean, torch.exp(q.ql_m + q.ql_v / 2), rtol=1e-4)
    logs = np.log(samples)
    np.testing.assert_allclose(logs.mean(axis=0), q.ql_m, atol=0.1)
    np.testing.assert_allclose(logs.var(axis=0), q.ql_v, rtol=0.12)


def test_a_known_library_size_is_returned_as_it_is(data: CiteData) -> None:
    network, cells = module(), np.array([4, 90])
    mean, samples = library_sizes(data, network, cells, batch_size=1, n_samples=2)
    assert np.array_equal(mean[:, 0], data.library_size[cells])
    assert np.array_equal(samples[1], mean)
