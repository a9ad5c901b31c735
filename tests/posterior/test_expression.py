"""Denoised expression against what the module decodes, sample by sample."""

from typing import Any

import numpy as np
import pytest
import torch

from counts import N_GENES, N_PROTEINS, SMALL, denoised, described, question
from totalvi.data.cells import CiteData
from totalvi.nn.v06 import TOTALVI
from totalvi.posterior.draws import Draw, ProteinScale
from totalvi.posterior.expression import protein_means

GENES, PROTEINS = np.arange(N_GENES), np.arange(N_PROTEINS)
CELLS = np.arange(0, 120, 2)
FEATURES_AND_LIBRARY = ("genes", "proteins", "library_size")


@pytest.fixture(scope="module")
def data() -> CiteData:
    return described()


def module(**options: Any) -> TOTALVI:
    generator = torch.Generator().manual_seed(0)
    arguments = {"library": "observed", "background_scale": "softplus", **SMALL, **options}
    return TOTALVI(N_GENES, N_PROTEINS, 2, generator=generator, **arguments).eval()


def without_spread(network: TOTALVI) -> None:
    """Give the background of a latent state a standard deviation of nearly nothing."""
    with torch.no_grad():
        for parameter in network.decoder.background_scale_head.parameters():
            parameter.zero_()
        network.decoder.background_scale_head.bias.fill_(-60)


def ask(
    data: CiteData,
    network: TOTALVI,
    cells: np.ndarray = CELLS,
    return_mean: bool = True,
    batch_size: int = 1000,
    n_samples: int = 1,
    transform_batch: tuple[int | None, ...] = (None,),
    **given: Any,
) -> tuple[np.ndarray, np.ndarray]:
    wanted = {name: given.pop(name) for name in FEATURES_AND_LIBRARY if name in given}
    asked = question(
        data, network, cells, 5,
        batch_size=batch_size, n_samples=n_samples, transform_batch=transform_batch,
    )  # fmt: skip
    return denoised(asked, return_mean=return_mean, scale=ProteinScale(**given), **wanted)


def averages(data: CiteData, network: TOTALVI, n_samples: int, code: int | None) -> dict[str, Any]:
    """Posterior means from the module's own `inference`."""
    x, y = torch.tensor(data.rna.rows(CELLS).toarray()), torch.tensor(data.protein.rows(CELLS))
    with torch.no_grad():
        outputs = network.inference(
            x, y, torch.tensor(data.batch[CELLS]), n_samples=n_samples, transform_batch=code
        )
    py_ = outputs["py_"]
    background = torch.sigmoid(py_["mixing"])
    means = {
        "rna": outputs["px_"]["scale"],
        "foreground": (1 - background) * py_["rate_fore"],
        "background": background * py_["rate_back"],
        "probability": 1 - background,
    }
    return {name: value.mean(dim=0).numpy() for name, value in means.items()}


@pytest.mark.parametrize("code", [None, 0, 1])
def test_posterior_means_are_those_of_the_module(data: CiteData, code: int | None) -> None:
    network = module()
    expected = averages(data, network, 300, code)
    query: dict[str, Any] = {"n_samples": 300, "transform_batch": (code,)}
    rna, protein = ask(data, network, **query)
    np.testing.assert_allclose(rna, expected["rna"], rtol=0.3, atol=1e-4)
    assert np.abs(np.log(protein / expected["foreground"])).mean() < 0.1
    _, both = ask(data, network, **query, include_background=True)
    total = expected["foreground"] + expected["background"]
    assert np.abs(np.log(both / total)).mean() < 0.1


def test_batches_are_averaged(data: CiteData) -> None:
    network = module()
    both = averages(data, network, 400, 0)["rna"] + averages(data, network, 400, 1)["rna"]
    rna, _ = ask(data, network, n_samples=400, transform_batch=(0, 1))
    np.testing.assert_allclose(rna, both / 2, rtol=0.25, atol=1e-4)


@pytest.mark.parametrize("codes", [(None,), (0,), (0, 1), (1, 0, 1)])
@pytest.mark.parametrize("return_mean", [True, False])
def test_library_size_multiplies_exactly_once(
    data: CiteData, codes: tuple[int | None, ...], return_mean: bool
) -> None:
    network = module()
    query: dict[str, Any] = {
        "transform_batch": codes,
        "n_samples": 3,
        "return_mean": return_mean,
    }
    rna, protein = ask(data, network, **query)
    np.testing.assert_allclose(rna.sum(axis=-1), 1, rtol=1e-5)
    scaled, same = ask(data, network, **query, library_size=1e4)
    np.testing.assert_allclose(scaled, rna * 1e4, rtol=1e-5)
    assert np.array_equal(same, protein)
    latent, _ = ask(data, network, **query, library_size="latent")
    np.testing.assert_allclose(
        latent.sum(axis=-1), np.broadcast_to(data.library_size[CELLS], latent.shape[:-1]), rtol=1e-4
    )


@pytest.mark.parametrize("codes", [(None,), (0, 1)])
@pytest.mark.parametrize("mixing", [False, True])
def test_samples_average_to_the_mean(
    data: CiteData, codes: tuple[int | None, ...], mixing: bool
) -> None:
    query: dict[str, Any] = {
        "transform_batch": codes,
        "n_samples": 4,
        "sample_mixing": mixing,
        "include_background": True,
    }
    network = module()
    without_spread(network)
    means = ask(data, network, **query)
    samples = ask(data, network, **query, return_mean=False)
    for mean, sample, width in zip(means, samples, (N_GENES, N_PROTEINS), strict=True):
        assert sample.shape == (4, len(CELLS), width)
        assert not np.array_equal(sample[0], sample[1])
        np.testing.assert_allclose(sample.mean(axis=0), mean, rtol=1e-4, atol=1e-7)


def test_means_take_the_background_at_its_expectation(data: CiteData) -> None:
    network = module()
    with torch.no_grad():  # one latent state a cell, so that only the background varies
        network.encoder.z_head.log_variance.bias.fill_(-30)
        network.encoder.z_head.log_variance.weight.zero_()
    few = ask(data, network, include_background=True)[1]
    many = ask(data, network, n_samples=4000, include_background=True, return_mean=False)[1]
    error = many.std(axis=0) / np.sqrt(len(many))
    assert (np.abs(many.mean(axis=0) - few) < 6 * error + 0.02 * few).all()


def test_background_adds_pi_beta(data: CiteData) -> None:
    network = module()
    without = ask(data, network, n_samples=2)[1]
    both = ask(data, network, n_samples=2, include_background=True)[1]
    assert (both > without).all()
    with torch.no_grad():  # no foreground at all: what is left is the background mean
        network.decoder.background_logit_head.bias.fill_(300)
    assert (ask(data, network)[1] == 0).all()
    _, background = ask(data, network, include_background=True)
    assert (background > 0).all()


def test_scaled_proteins_sum_to_one(data: CiteData) -> None:
    protein = ask(data, module(), sum_to_one=True, n_samples=3)[1]
    np.testing.assert_allclose(protein.sum(axis=1), 1, rtol=1e-5)


def test_chosen_features_are_columns_of_all(data: CiteData) -> None:
    genes, proteins = np.array([7, 2, 2]), np.array([4])
    rna, protein = ask(data, module(), n_samples=2, sum_to_one=True)
    some_rna, some_protein = ask(
        data, module(), n_samples=2, sum_to_one=True, genes=genes, proteins=proteins
    )
    np.testing.assert_allclose(some_rna, rna[:, genes], rtol=1e-6)
    np.testing.assert_allclose(some_protein, protein[:, proteins], rtol=1e-6)


def test_neither_minibatch_size_nor_subset_changes_a_cell(data: CiteData) -> None:
    network = module()
    whole = ask(data, network, n_samples=3, sample_mixing=True)
    few = ask(data, network, n_samples=3, sample_mixing=True, batch_size=7)
    some = ask(data, network, CELLS[11:20], n_samples=3, sample_mixing=True)
    for every, by_few, part in zip(whole, few, some, strict=True):
        np.testing.assert_allclose(by_few, every, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(part, every[11:20], rtol=1e-4, atol=1e-6)


def test_decoding_into_the_own_batch_changes_nothing(data: CiteData) -> None:
    network = module()
    for code in (0, 1):
        cells = np.flatnonzero(data.batch == code)
        own, same = (
            ask(data, network, cells, n_samples=2, transform_batch=codes)
            for codes in ((None,), (code,))
        )
        assert all(np.array_equal(a, b) for a, b in zip(own, same, strict=True))


def test_without_genes_proteins_are_the_same(data: CiteData) -> None:
    rna, protein = ask(data, module(), n_samples=2, genes=np.arange(0))
    assert rna.shape == (len(CELLS), 0)
    np.testing.assert_allclose(protein, ask(data, module(), n_samples=2)[1], rtol=1e-6)


@pytest.mark.parametrize("codes", [(None,), (0, 1)])
def test_foreground_probability(data: CiteData, codes: tuple[int | None, ...]) -> None:
    network = module()

    def probability(seed: int, proteins: np.ndarray = PROTEINS) -> np.ndarray:
        asked = question(
            data, network, CELLS, seed, batch_size=31, n_samples=100, transform_batch=codes
        )
        return asked.gather(
            "probability",
            lambda batch: protein_means(asked, batch, Draw.foreground_probability, proteins),
        )

    ours = probability(0)
    assert ours.shape == (len(CELLS), N_PROTEINS)
    assert ((ours > 0) & (ours < 1)).all()
    expected = np.mean([averages(data, network, 400, c)["probability"] for c in codes], axis=0)
    np.testing.assert_allclose(ours, expected, atol=0.08)
    assert np.array_equal(ours, probability(0))
    assert not np.array_equal(ours, probability(1))
    assert np.array_equal(probability(0, np.array([3])), ours[:, [3]])


def test_a_latent_library_size_is_sampled(data: CiteData) -> None:
    network = module(library="latent")
    latent, _ = ask(data, network, library_size="latent", n_samples=300)
    x, y = torch.tensor(data.rna.rows(CELLS).toarray()), torch.tensor(data.protein.rows(CELLS))
    mean = network.sample_from_posterior_l(x, y, torch.tensor(data.batch[CELLS])).detach().numpy()
    np.testing.assert_allclose(latent.sum(axis=1), mean[:, 0], rtol=0.5)
