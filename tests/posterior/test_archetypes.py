"""Archetypes are the module's decoding of the corners."""

from typing import Any

import numpy as np
import pytest
import torch

from counts import N_GENES, N_PROTEINS, described, question
from totalvi.data.cells import CiteData
from totalvi.fit.batches import minibatch
from totalvi.nn.v06 import TOTALVI
from totalvi.posterior.aggregated_posterior import archetype_expression, distinct_contexts, z_scores


def module(**options: Any) -> TOTALVI:
    generator = torch.Generator().manual_seed(0)
    return TOTALVI(
        N_GENES, N_PROTEINS, 2, n_hidden=16, n_latent=4, library="observed",
        background_scale="softplus", generator=generator, **options,
    ).eval()  # fmt: skip


def ask(
    data: CiteData, network: TOTALVI, cells: np.ndarray, batch_size: int = 3, **given: Any
) -> tuple[np.ndarray, np.ndarray]:
    arguments = {"codes": (None,), "continuous": None, "background": False}
    arguments |= {"measured": np.ones((2, N_PROTEINS), dtype=bool)} | given
    rows, shares = distinct_contexts(data, cells)
    return archetype_expression(
        question(data, network, rows, batch_size=batch_size, transform_batch=arguments["codes"]),
        shares,
        arguments["measured"],
        np.ones(2, dtype=bool),
        arguments["continuous"],
        include_protein_background=arguments["background"],
    )


def decoded_one_by_one(
    data: CiteData, network: TOTALVI, cells: np.ndarray, code: int | None, background: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Every cell's context at every corner; the background by sampling."""
    batch = minibatch(data, network, cells)
    context = batch.context.in_batch(code)
    rna, protein = [], []
    noise = torch.randn(4000, 1, 1, generator=torch.Generator().manual_seed(1))
    for k in range(4):
        z = torch.zeros(len(cells), 4)
        z[:, k] = 1
        with torch.no_grad():
            decoded = network.decode(z, context)
        rna.append(torch.softmax(decoded.gene_logit, dim=1).mean(dim=0).detach())
        beta = (decoded.background_mean + decoded.background_scale * noise).exp().mean(dim=0)
        pi = torch.sigmoid(decoded.background_logit)
        value = (1 - pi) * beta * decoded.foreground_factor + (pi * beta if background else 0)
        protein.append(value.mean(dim=0))
    return torch.stack(rna).numpy(), torch.stack(protein).numpy()


@pytest.mark.parametrize("code", [None, 0, 1])
@pytest.mark.parametrize("background", [False, True])
def test_corners_are_decoded_in_the_contexts_of_the_cells(
    code: int | None, background: bool
) -> None:
    data = described(categorical_covariate_keys=("sex", "lane"))
    network = module(n_categories_per_covariate=[2, 3])
    cells = np.arange(10, 80)
    ours = ask(data, network, cells, codes=(code,), background=background)
    expected = decoded_one_by_one(data, network, cells, code, background)
    np.testing.assert_allclose(ours[0], expected[0], rtol=1e-4)
    np.testing.assert_allclose(ours[1], expected[1], rtol=0.2)
    np.testing.assert_allclose(ours[0].sum(axis=1), 1, rtol=1e-5)


def test_several_batches_are_averaged() -> None:
    data, network, cells = described(), module(), np.arange(30)
    both = [ask(data, network, cells, codes=(code,)) for code in (0, 1)]
    ours = ask(data, network, cells, codes=(0, 1))
    for i in (0, 1):
        np.testing.assert_allclose(ours[i], (both[0][i] + both[1][i]) / 2, rtol=1e-5)


def test_distinct_contexts_count_every_cell() -> None:
    data = described(categorical_covariate_keys=("sex",))
    cells = np.arange(5, 100)
    rows, shares = distinct_contexts(data, cells)
    assert data.categorical is not None
    columns = np.column_stack([data.batch, data.categorical])
    for row, share in zip(rows, shares, strict=True):
        assert row in cells
        assert share == pytest.approx((columns[cells] == columns[row]).all(axis=1).mean())
    assert shares.sum() == pytest.approx(1)


def test_continuous_covariates_are_those_given() -> None:
    data = described(continuous_covariate_keys=("age",))
    network = module(n_continuous_covariates=1)
    values = [
        ask(data, network, np.arange(30), continuous=np.array([age], np.float32))[0]
        for age in (-2.0, 2.0)
    ]
    assert not np.allclose(*values, rtol=1e-2)


def test_z_scores() -> None:
    values = np.random.default_rng(0).gamma(1, size=(5, 4))
    values[:, 2] = 0.1
    scores = z_scores(values)
    assert np.array_equal(scores[:, 2], np.zeros(5))
    np.testing.assert_allclose(scores.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(scores.std(axis=0), [1, 1, 0, 1])


def test_batches_that_did_not_measure_a_protein_do_not_count_in_it() -> None:
    data, network, cells = described(), module(), np.arange(40)
    measured = np.ones((2, N_PROTEINS), dtype=bool)
    measured[1, 2] = measured[:, 3] = False
    rna, protein = ask(data, network, cells, measured=measured)
    rna_of_all, of_all = ask(data, network, cells)
    _, of_first = ask(data, network, cells, codes=(0,))
    np.testing.assert_array_equal(rna, rna_of_all)
    np.testing.assert_allclose(protein[:, 2], of_first[:, 2], rtol=1e-5)
    assert np.isnan(protein[:, 3]).all()
    np.testing.assert_allclose(np.delete(protein, [2, 3], 1), np.delete(of_all, [2, 3], 1))
    assert np.isnan(z_scores(protein)[:, 3]).all()
