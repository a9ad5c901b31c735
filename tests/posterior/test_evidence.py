"""The evidence lower bound by cell is minus the sum of forward's terms."""

import numpy as np
import pytest
import torch

from counts import SMALL, described
from totalvi.module.totalvi import TOTALVI
from totalvi.posterior.evidence import elbo_by_cell


@pytest.mark.parametrize("library", ["observed", "latent"])
def test_elbo_is_minus_the_terms(library: str) -> None:
    data = described()
    network = TOTALVI(30, 6, 2, library=library, **SMALL).eval()  # type: ignore[arg-type]
    cells = np.array([7, 3, 99])

    def generator() -> torch.Generator:
        return torch.Generator().manual_seed(2)

    ours = elbo_by_cell(network, data, cells, batch_size=10, generator=generator())
    x, y = torch.tensor(data.rna[cells].toarray()), torch.tensor(data.protein[cells])
    batch = data.batch[cells]
    prior = (
        torch.tensor(np.array(values)[batch][:, None]).float()
        for values in (data.schema.library_log_mean, data.schema.library_log_variance)
    )
    with torch.no_grad():
        terms = network(x, y, *prior, torch.tensor(batch), generator=generator())
    np.testing.assert_allclose(ours, -sum(term.numpy() for term in terms), rtol=1e-4)
    assert ours.shape == (3,)
