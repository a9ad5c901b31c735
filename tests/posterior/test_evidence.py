"""The evidence lower bound by cell is minus the terms at the same samples."""

import numpy as np
import pytest
import torch

from counts import SMALL, described
from totalvi.feed import minibatch, minibatches
from totalvi.module.totalvi import TOTALVI
from totalvi.posterior.evidence import elbo_by_cell
from totalvi.posterior.noise import CellNoise


def ask(network: TOTALVI, cells: np.ndarray, seed: int, batch_size: int = 10) -> np.ndarray:
    batches = minibatches(described(), network, cells, batch_size)
    return elbo_by_cell(network, batches, CellNoise(seed))


@pytest.mark.parametrize("library", ["observed", "latent"])
def test_elbo_is_minus_the_terms_of_forward(library: str) -> None:
    """With the posterior's noise gone, forward and the query look at the same point."""
    network = TOTALVI(30, 6, 2, library=library, background_scale="softplus", **SMALL).eval()  # type: ignore[arg-type]
    heads = [network.encoder.z_head] + (
        [network.encoder.library_head] if library == "latent" else []
    )
    with torch.no_grad():
        for head in heads:
            head.log_variance.weight.zero_()
            head.log_variance.bias.fill_(-60)
        network.decoder.background_scale_head.weight.zero_()
        network.decoder.background_scale_head.bias.fill_(-60)
    data, cells = described(), np.array([7, 3, 99])
    batch = minibatch(data, network, cells)
    with torch.no_grad():
        terms = network.elbo(
            batch.x, batch.y, batch.context, batch.library_log_mean, batch.library_log_variance
        )
    expected = -sum(term.numpy() for term in terms)
    np.testing.assert_allclose(ask(network, cells, 0), expected, rtol=0.02)


def test_seeds_and_subsets() -> None:
    network, cells = TOTALVI(30, 6, 2, library="observed", **SMALL).eval(), np.arange(40)
    whole = ask(network, cells, 0)
    assert np.array_equal(whole, ask(network, cells, 0))
    assert not np.array_equal(whole, ask(network, cells, 1))
    np.testing.assert_allclose(ask(network, cells[7:9], 0, 2), whole[7:9], rtol=1e-4)
