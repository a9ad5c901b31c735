"""Uncertainty by cell against scipy's entropies."""

import numpy as np
import torch
from scipy import stats

from counts import N_PROTEINS, SMALL, described, question
from totalvi.fit.batches import minibatch
from totalvi.nn.v06 import TOTALVI
from totalvi.posterior.latent import CellUncertainty, cell_uncertainty

CELLS = np.arange(30)
ALL = np.arange(N_PROTEINS)


def ask(
    network: TOTALVI, proteins: np.ndarray = ALL, n_samples: int = 20, batch_size: int = 13
) -> CellUncertainty:
    asked = question(described(), network, CELLS, batch_size=batch_size, n_samples=n_samples)
    return cell_uncertainty(asked, proteins)


def test_latent_uncertainty_is_that_of_the_normal() -> None:
    network = TOTALVI(30, N_PROTEINS, 2, library="observed", **SMALL).eval()
    batch = minibatch(described(), network, CELLS)
    with torch.no_grad():
        variance = network.encode(batch.x, batch.y, batch.context).qz_v.numpy()
    ours = ask(network, n_samples=1)
    expected = [stats.multivariate_normal(cov=np.diag(v)).entropy() for v in variance]
    np.testing.assert_allclose(ours.latent_entropy, expected, rtol=1e-4)
    np.testing.assert_allclose(ours.latent_variance, variance.mean(axis=1), rtol=1e-5)


def test_protein_entropy_is_that_of_the_mean_probability() -> None:
    network = TOTALVI(30, N_PROTEINS, 2, library="observed", **SMALL).eval()
    batch = minibatch(described(), network, CELLS)
    with torch.no_grad():
        mixing = network.inference(batch.x, batch.y, batch.context.batch, n_samples=2000)["py_"][
            "mixing"
        ]
    mean = torch.sigmoid(mixing).mean(dim=0).numpy()
    expected = stats.bernoulli.entropy(mean)
    np.testing.assert_allclose(
        ask(network, n_samples=300).protein_entropy, expected.mean(axis=1), atol=0.02
    )
    one = ask(network, np.array([2]), n_samples=300)
    np.testing.assert_allclose(one.protein_entropy, expected[:, 2], atol=0.05)


def test_protein_entropy_from_certain_to_unknown() -> None:
    network = TOTALVI(30, N_PROTEINS, 2, library="observed", **SMALL).eval()
    head = network.decoder.background_logit_head
    with torch.no_grad():
        head.weight.zero_()
        for logit, entropy in ((0.0, np.log(2)), (200.0, 0.0), (-200.0, 0.0)):
            head.bias.fill_(logit)
            if head.covariate_weight is not None:
                head.covariate_weight.zero_()
            np.testing.assert_allclose(ask(network).protein_entropy, entropy, atol=1e-6)
