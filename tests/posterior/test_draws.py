"""Draws are the module's own encoding and decoding at noise that belongs to the cells."""

import numpy as np
import pytest
import torch

from counts import N_GENES, N_PROTEINS, SMALL, described
from totalvi.fit.batches import minibatch
from totalvi.nn.v06 import TOTALVI
from totalvi.posterior.draws import draws
from totalvi.posterior.noise import CellNoise


@pytest.mark.parametrize("library", ["observed", "latent"])
def test_many_draws_have_the_posterior_of_the_module(library: str) -> None:
    generator = torch.Generator().manual_seed(0)
    network = TOTALVI(
        N_GENES,
        N_PROTEINS,
        2,
        library=library,
        generator=generator,
        **SMALL,  # type: ignore[arg-type]
    ).eval()
    batch = minibatch(described(), network, np.arange(5))
    with torch.no_grad():
        posterior = network.encode(batch.x, batch.y, batch.context)
        samples = list(draws(network, batch, 3000, CellNoise(0)))
    u = torch.stack([draw.untran_z for draw in samples])
    torch.testing.assert_close(u.mean(0), posterior.qz_m, atol=0.1, rtol=0)
    torch.testing.assert_close(u.var(0), posterior.qz_v, atol=0.02, rtol=0.12)
    if library == "latent":
        assert posterior.ql_m is not None
        logs = torch.stack([draw.library_size.log() for draw in samples])
        assert posterior.ql_v is not None
        error = (posterior.ql_v / len(samples)).sqrt()
        assert ((logs.mean(0) - posterior.ql_m).abs() < 5 * error).all()
    else:
        assert all(
            torch.equal(d.library_size[:, 0], batch.x.sum_by_cell(batch.x.counts))
            for d in samples[:3]
        )
    background = torch.stack(
        [d.proteins.log_background - d.decoded.background_mean for d in samples]
    )
    scale = torch.stack([d.decoded.background_scale for d in samples])
    assert abs(float((background / scale).std()) - 1) < 0.02
