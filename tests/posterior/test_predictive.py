"""Counts drawn from the model follow the law whose parameters the module gives."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy import sparse, stats

from counts import N_GENES, N_PROTEINS, SMALL, described, parameters_of, question
from totalvi.data.cells import CiteData
from totalvi.fit.batches import minibatch
from totalvi.nn.v06 import TOTALVI
from totalvi.posterior.draws import draws
from totalvi.posterior.noise import CellNoise
from totalvi.posterior.predictive import predictive_counts

GENES, PROTEINS = np.arange(N_GENES), np.arange(N_PROTEINS)
CELLS = np.arange(0, 120, 3)


@pytest.fixture(scope="module")
def data() -> CiteData:
    return described()


def module(**options: Any) -> TOTALVI:
    generator = torch.Generator().manual_seed(0)
    arguments = {"library": "observed", "background_scale": "softplus", **SMALL, **options}
    network = TOTALVI(N_GENES, N_PROTEINS, 2, generator=generator, **arguments).eval()
    network.set_background_prior(np.full(N_PROTEINS, 2.0), np.ones(N_PROTEINS))
    return network


def ask(
    data: CiteData,
    network: TOTALVI,
    cells: np.ndarray = CELLS,
    genes: np.ndarray = GENES,
    proteins: np.ndarray = PROTEINS,
    batch_size: int = 1000,
    n_samples: int = 1,
    transform_batch: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    asked = question(
        data, network, cells, 5,
        batch_size=batch_size, n_samples=n_samples, transform_batch=(transform_batch,),
    )  # fmt: skip
    with asked.minibatches("counts") as batches:
        parts = [predictive_counts(asked, batch, genes, proteins) for batch in batches]
    assert all(isinstance(counts, sparse.csr_matrix) for rna, _ in parts for counts in rna)
    rna = [np.stack([counts.toarray() for counts in some]) for some, _ in parts]
    return np.concatenate(rna, axis=1), np.concatenate([some for _, some in parts], axis=1)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"library": "latent", "latent_distribution": "ln"},
        {"reconstruction_loss_gene": "zinb", "gene_dispersion": "gene-batch"},
        {"protein_efficiency": True, "protein_dispersion": "protein-batch"},
    ],
)
def test_counts_follow_the_law_of_each_draw(data: CiteData, options: dict[str, Any]) -> None:
    network = module(**options)
    if network.log_efficiency is not None:
        torch.nn.init.normal_(
            network.log_efficiency, std=2, generator=torch.Generator().manual_seed(0)
        )
    rna, protein = ask(data, network, n_samples=40)
    uniform = np.random.default_rng(0).random((2, *rna.shape))
    gene_ranks, protein_ranks = np.empty(rna.shape), np.empty(protein.shape)
    batch = minibatch(data, network, CELLS)
    with torch.no_grad():
        for draw in draws(network, batch, 40, CellNoise(5)):
            px_, py_ = map(to_numpy, parameters_of(network, draw))
            kept = 1 - 1 / (1 + np.exp(-px_["dropout"])) if "dropout" in px_ else 1.0
            law = nb(px_["rate"], px_["r"])
            counts = rna[draw.sample]
            below = np.where(counts > 0, 1 - kept * law.sf(counts - 1), 0)
            at_or_below = 1 - kept * law.sf(counts)
            gene_ranks[draw.sample] = below + uniform[0, draw.sample] * (at_or_below - below)
            factor, pi = py_.get("efficiency", 1.0), 1 / (1 + np.exp(-py_["mixing"]))
            below, at_or_below = (
                pi * nb(py_["rate_back"] * factor, py_["r"]).cdf(k)
                + (1 - pi) * nb(py_["rate_fore"] * factor, py_["r"]).cdf(k)
                for k in (protein[draw.sample] - 1, protein[draw.sample])
            )
            v = uniform[1, draw.sample, :, :N_PROTEINS]
            protein_ranks[draw.sample] = below + v * (at_or_below - below)
    for ranks in (gene_ranks, protein_ranks):
        assert stats.kstest(ranks.ravel(), "uniform").pvalue > 1e-3
    some = gene_ranks[:, :, :N_PROTEINS].ravel(), protein_ranks.ravel()
    assert abs(np.corrcoef(*some)[0, 1]) < 5 / np.sqrt(protein_ranks.size)


def to_numpy(parameters: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: value.detach().double().numpy() for name, value in parameters.items()}


def nb(mean: np.ndarray, r: np.ndarray) -> Any:
    return stats.nbinom(r, r / (r + mean))


@pytest.mark.parametrize("code", [None, 0, 1])
def test_efficiency_multiplies_protein_counts(data: CiteData, code: int | None) -> None:
    network = module(protein_efficiency=True)
    assert network.log_efficiency is not None
    query: dict[str, Any] = {"n_samples": 400, "transform_batch": code}
    rna, without = ask(data, network, **query)
    with torch.no_grad():
        network.log_efficiency[1] = np.log(8.0)
    same_rna, protein = ask(data, network, **query)
    assert np.array_equal(rna, same_rna)
    batch = data.batch[CELLS] if code is None else np.full(len(CELLS), code)
    assert np.array_equal(protein[:, batch == 0], without[:, batch == 0])
    if code != 0:
        assert 7 < protein[:, batch == 1].mean() / without[:, batch == 1].mean() < 9


@pytest.mark.parametrize("code", [None, 1])
def test_library_size_is_applied_once(data: CiteData, code: int | None) -> None:
    rna, _ = ask(data, module(), n_samples=300, transform_batch=code)
    totals = rna.sum(axis=2)
    error = totals.std(axis=0) / np.sqrt(300)
    assert (np.abs(totals.mean(axis=0) - data.library_size[CELLS]) < 5 * error).all()


def test_neither_subset_nor_minibatch_size_changes_a_count(data: CiteData) -> None:
    network = module(reconstruction_loss_gene="zinb")
    rna, protein = ask(data, network, n_samples=2)
    genes, proteins = np.array([9, 1, 4]), np.array([3])
    some = ask(data, network, CELLS[5:9], genes, proteins, n_samples=2)
    assert np.array_equal(some[0], rna[:, 5:9][:, :, genes])
    assert np.array_equal(some[1], protein[:, 5:9][:, :, proteins])
    few = ask(data, network, n_samples=2, batch_size=7)
    assert np.array_equal(few[0], rna)
    assert np.array_equal(few[1], protein)
    without_genes = ask(data, network, genes=np.arange(0), n_samples=2)
    assert without_genes[0].shape == (2, len(CELLS), 0)
    assert np.array_equal(without_genes[1], protein)


def test_own_batch_changes_nothing(data: CiteData) -> None:
    cells = np.flatnonzero(data.batch == 1)
    own, same = (ask(data, module(), cells, transform_batch=code) for code in (None, 1))
    assert all(np.array_equal(a, b) for a, b in zip(own, same, strict=True))
