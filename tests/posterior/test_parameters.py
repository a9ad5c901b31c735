"""Likelihood parameters are posterior means of what the module decodes."""

from typing import Any

import numpy as np
import pytest
import torch

from counts import N_GENES, N_PROTEINS, SMALL, described, question
from totalvi.data.cells import CiteData
from totalvi.nn.v06 import TOTALVI
from totalvi.posterior.draws import Draw
from totalvi.posterior.expression import protein_means
from totalvi.posterior.predictive import mean_parameters

GENES, PROTEINS = np.arange(N_GENES), np.arange(N_PROTEINS)
CELLS = np.arange(0, 120, 4)
N_SAMPLES = 300


@pytest.fixture(scope="module")
def data() -> CiteData:
    return described()


def module(**options: Any) -> TOTALVI:
    generator = torch.Generator().manual_seed(0)
    arguments = {"library": "observed", "background_scale": "softplus", **SMALL, **options}
    return TOTALVI(N_GENES, N_PROTEINS, 2, generator=generator, **arguments).eval()


def inferred(data: CiteData, network: TOTALVI, code: int | None = None) -> dict[str, Any]:
    x, y = torch.tensor(data.rna.rows(CELLS).toarray()), torch.tensor(data.protein.rows(CELLS))
    with torch.no_grad():
        return network.inference(
            x,
            y,
            torch.tensor(data.batch[CELLS]),
            n_samples=N_SAMPLES,
            transform_batch=code,
            generator=torch.Generator().manual_seed(1),
        )


def test_means_are_those_of_the_module(data: CiteData) -> None:
    network = module(reconstruction_loss_gene="zinb", protein_efficiency=True)
    assert network.log_efficiency is not None
    with torch.no_grad():
        network.log_efficiency[1] = np.log(6.0)
    outputs = inferred(data, network)
    px_, py_ = outputs["px_"], outputs["py_"]
    expected = {
        "mean": px_["rate"],
        "dropout": px_["dropout"].sigmoid(),
        "protein_background_mean": py_["rate_back"] * py_["efficiency"],
        "protein_foreground_mean": py_["rate_fore"] * py_["efficiency"],
        "protein_mixing": py_["mixing"].sigmoid(),
    }
    genes = np.array([5, 0, 17])
    asked = question(data, network, CELLS, batch_size=11, n_samples=N_SAMPLES)
    with asked.minibatches("parameters") as batches:
        parts = [mean_parameters(asked, batch, genes, PROTEINS) for batch in batches]
    assert len(parts) > 1
    ours = {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}
    assert set(ours) == set(expected)
    for name, samples in expected.items():
        mean, error = samples.mean(dim=0).numpy(), samples.std(dim=0).numpy() / N_SAMPLES**0.5
        if name in ("mean", "dropout"):
            mean, error = mean[:, genes], error[:, genes]
        distance = np.abs(ours[name] - mean) / (error * 2**0.5 + 1e-6)
        assert distance.max() < 6, name


@pytest.mark.parametrize("codes", [(None,), (0,), (0, 1)])
def test_background_is_free_of_efficiency(data: CiteData, codes: tuple[int | None, ...]) -> None:
    network = module(protein_efficiency=True)
    assert network.log_efficiency is not None
    with torch.no_grad():
        network.log_efficiency.fill_(3.0)
    asked = question(
        data, network, CELLS, batch_size=11, n_samples=N_SAMPLES, transform_batch=codes
    )
    background = asked.gather(
        "background",
        lambda batch: protein_means(asked, batch, Draw.background_mean, PROTEINS[[4, 1]]),
    )
    samples = torch.stack(
        [inferred(data, network, code)["py_"]["rate_back"][..., [4, 1]] for code in codes]
    ).mean(dim=0)
    error = samples.std(dim=0).numpy() * (2 / N_SAMPLES) ** 0.5
    assert (np.abs(background - samples.mean(dim=0).numpy()) < 6 * error * len(codes)).all()
