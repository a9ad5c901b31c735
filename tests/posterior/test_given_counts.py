"""Values of proteins given their counts, against the posterior of each sample of the latent state."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from anndata import read_zarr

import totalvi
from counts import N_PROTEINS, SMALL, annotated
from totalvi.data.describe import Data
from totalvi.fit.batches import minibatch
from totalvi.nn.count_integrals import count_posterior
from totalvi.posterior.draws import draws

N_CELLS = 60
LACKING = 4  # position of a protein that the first lane did not measure
ASKED: dict[str, Any] = {"n_samples": 3, "seed": 2, "progress": False, "return_numpy": True}


def counts() -> Data:
    mdata = annotated(N_CELLS)
    mdata["prot"].X[(mdata.obs["lane"] == "1").to_numpy(), LACKING] = np.nan
    return mdata


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "efficiency"])
def model(request: pytest.FixtureRequest) -> totalvi.Model:
    model = totalvi.Model(
        counts(), batch_key="batch", panel_key="lane", protein_efficiency=request.param, **SMALL
    )
    model.train(max_epochs=5, accelerator="cpu", progress=False)
    if request.param:
        torch.nn.init.normal_(model.module.log_efficiency.data)
    return model


def lacking(model: totalvi.Model) -> np.ndarray:
    """What was not measured, and so is NaN, (cells, proteins)."""
    lacking = np.zeros((N_CELLS, N_PROTEINS), dtype=bool)
    lacking[(model._training_data().annotation.obs()["lane"] == "1").to_numpy(), LACKING] = True
    return lacking


def answers(model: totalvi.Model, **given: Any) -> dict[str, np.ndarray]:
    """Probability, background, and expression without and with the background."""
    asked = ASKED | given
    denoised = {
        name: model.get_normalized_expression(
            gene_list=[], include_protein_background=background, **asked
        )[1]
        for name, background in (("foreground", False), ("both", True))
    }
    return denoised | {
        "probability": model.get_protein_foreground_probability(**asked),
        "background": model.get_protein_background_mean(**asked),
    }


def by_sample(model: totalvi.Model, into: int | None) -> dict[str, np.ndarray]:
    """The same, (n_samples, cells, proteins), by formulas: the count's message into a batch."""
    network = model.module
    batch = minibatch(model._training_data(), network, np.arange(N_CELLS))
    found: dict[str, list[np.ndarray]] = {
        "foreground": [], "both": [], "probability": [], "background": [],
    }  # fmt: skip
    with torch.no_grad():
        for draw in draws(network, batch, ASKED["n_samples"], model._noise(ASKED["seed"])):
            own = draw.decoded
            z = network.transform_latent(draw.untran_z)
            given = count_posterior(
                batch.y, network.proteins(own, own.background_mean, batch.context),
                own.background_scale, network.measured(batch.context.panel), fast=False,
            )  # fmt: skip
            other = network.decode(z, batch.context.in_batch(into))
            odds = torch.exp(given.log_bayes_factor - other.background_logit)
            beta = torch.exp(other.background_mean + other.background_scale**2 / 2)
            probability = odds / (1 + odds)
            foreground = probability * beta * other.foreground_factor * given.foreground_rate
            background = (1 - probability) * beta * given.background_rate
            values = foreground, foreground + background, probability, beta * given.background
            for name, value in zip(found, values, strict=True):
                found[name].append(value.numpy())
    return {name: np.stack(value) for name, value in found.items()}


@pytest.mark.parametrize("into", [None, 0, 1])
def test_values_are_those_of_the_formulas(model: totalvi.Model, into: int | None) -> None:
    batch = None if into is None else f"batch_{into}"
    expected = by_sample(model, into)
    for of_formula in expected.values():
        of_formula[:, lacking(model)] = np.nan
    each = answers(model, transform_batch=batch, return_mean=False)
    mean = answers(model, transform_batch=batch)
    for name, of_formula in expected.items():
        np.testing.assert_allclose(each[name], of_formula, rtol=2e-4, atol=1e-6, err_msg=name)
        np.testing.assert_allclose(
            mean[name], of_formula.mean(axis=0), rtol=2e-4, atol=1e-6, err_msg=name
        )


def test_several_batches_are_averaged(model: totalvi.Model) -> None:
    both = answers(model, transform_batch=["batch_0", "batch_1"])
    first, second = (answers(model, transform_batch=f"batch_{i}") for i in range(2))
    for name, value in both.items():
        np.testing.assert_allclose(value, (first[name] + second[name]) / 2, rtol=1e-4)


def test_unmeasured_proteins_are_given_the_state_alone(model: totalvi.Model) -> None:
    given, without = (
        answers(model, unmeasured="impute", given_counts=counted) for counted in (True, False)
    )
    for name, value in given.items():
        lacked, measured = lacking(model), ~lacking(model)
        np.testing.assert_allclose(value[lacked], without[name][lacked], rtol=1e-4)
        assert (value[measured] != without[name][measured]).mean() > 0.5


def test_given_the_state_alone_values_are_those_of_the_decoder(model: totalvi.Model) -> None:
    network = model.module
    batch = minibatch(model._training_data(), network, np.arange(N_CELLS))
    with torch.no_grad():
        decoded = [
            draw.decoded
            for draw in draws(network, batch, ASKED["n_samples"], model._noise(ASKED["seed"]))
        ]
    beta = [torch.exp(d.background_mean + d.background_scale**2 / 2) for d in decoded]
    probability = [torch.sigmoid(-d.background_logit) for d in decoded]
    foreground = [
        p * b * d.foreground_factor for p, b, d in zip(probability, beta, decoded, strict=True)
    ]
    found = answers(model, given_counts=False)
    for name, samples in (
        ("probability", probability), ("background", beta), ("foreground", foreground),
    ):  # fmt: skip
        expected = torch.stack(samples).mean(0).numpy()
        expected[lacking(model)] = np.nan
        np.testing.assert_allclose(found[name], expected, rtol=1e-4)


def test_drawn_mixing_has_the_probability_given_the_count(model: totalvi.Model) -> None:
    asked = ASKED | {"n_samples": 300}
    drawn, expected = (
        model.get_normalized_expression(gene_list=[], sample_protein_mixing=mixing, **asked)[1]
        for mixing in (True, False)
    )
    each = model.get_normalized_expression(
        gene_list=[], sample_protein_mixing=True, return_mean=False, **asked
    )[1]
    error = each.std(axis=0) / np.sqrt(300)
    measured = ~lacking(model)
    assert (np.abs(drawn - expected) < 6 * error + 0.05 * expected)[measured].all()
    assert (each == 0).any(axis=0).mean() > 0.5


def test_scaled_proteins_sum_to_one(model: totalvi.Model) -> None:
    _, protein = model.get_normalized_expression(gene_list=[], scale_protein=True, **ASKED)
    np.testing.assert_allclose(np.nansum(protein, axis=1), 1, rtol=1e-5)


def test_rna_does_not_depend_on_it(model: totalvi.Model) -> None:
    given, without = (
        model.get_normalized_expression(given_counts=given, **ASKED)[0] for given in (True, False)
    )
    np.testing.assert_array_equal(given, without)


def test_uncertainty_is_of_the_probability_given_the_count(model: totalvi.Model) -> None:
    asked = {key: ASKED[key] for key in ("n_samples", "seed", "progress")}
    for given in (True, False):
        p = model.get_protein_foreground_probability(given_counts=given, **ASKED).astype(float)
        entropy = -np.nanmean(p * np.log(p + 1e-30) + (1 - p) * np.log1p(-p + 1e-30), axis=1)
        found = model.get_cell_uncertainty(given_counts=given, **asked)
        np.testing.assert_allclose(found["protein_entropy"], entropy, rtol=1e-3, atol=1e-5)


# ------------------------------------------------------------------- counts without background


def test_denoised_counts_are_counts_or_zero(model: totalvi.Model) -> None:
    data = model._training_data()
    y = np.where(
        data.protein.rows(np.arange(N_CELLS)) > 0, data.protein.rows(np.arange(N_CELLS)), 0
    )
    found = model.get_denoised_counts().toarray()
    assert found.shape == (N_CELLS, N_PROTEINS)
    measured = ~lacking(model)
    assert ((found == y) | (found == 0))[measured].all()
    assert 0 < (found > 0).sum() < (y > 0).sum()
    again = model.get_denoised_counts(seed=0).toarray()
    assert np.array_equal(found, again, equal_nan=True)
    other = model.get_denoised_counts(seed=1).toarray()
    assert not np.array_equal(found, other, equal_nan=True)
    assert np.array_equal(np.isnan(found), ~measured)


def test_denoised_counts_have_the_expected_mean(model: totalvi.Model) -> None:
    """A count y is kept with probability P, so its mean over draws is P y."""
    n = 300
    data = model._training_data()
    y = data.protein.rows(np.arange(N_CELLS))
    measured = ~lacking(model)
    probability = model.get_protein_foreground_probability(**(ASKED | {"n_samples": n}))
    kept = np.mean([model.get_denoised_counts(seed=s).toarray() for s in range(n)], axis=0)
    error = y * np.sqrt(probability * (1 - probability) / n)
    assert (np.abs(kept - probability * y) <= 6 * error + 0.03 * y)[measured].all()
    total = (probability * y)[measured].sum()
    assert kept[measured].sum() == pytest.approx(total, rel=0.02)


def test_denoised_counts_go_to_a_store(model: totalvi.Model, tmp_path: Any) -> None:
    names = list(model.schema.protein_names[1:4])
    path = model.get_denoised_counts(
        protein_list=names, out=tmp_path / "counts.zarr", batch_size=13
    )
    stored = read_zarr(path / "protein")
    expected = model.get_denoised_counts(protein_list=names)
    assert list(stored.var_names) == names
    assert list(stored.obs_names) == list(model._training_data().cell_names)
    assert stored.X.format == "csr"
    assert np.array_equal(stored.X.toarray(), expected.toarray(), equal_nan=True)


def test_a_background_of_any_width_has_a_mean_of_its_posterior(model: totalvi.Model) -> None:
    """Beyond a scale of 4 the posterior is that of 4, and so is the mean that it is a ratio to."""
    found = []
    for width in (5.0, 6.0):
        wide = copy.deepcopy(model)
        head = wide.module.decoder.background_scale_head
        with torch.no_grad():
            for part in head.parameters():
                part.zero_()
            head.bias.fill_(width)
        found.append(wide.get_protein_background_mean(**ASKED))
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5)
