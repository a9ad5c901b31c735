"""What queries answer of proteins that the panel of a cell lacks."""

import warnings
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import torch

import totalvi
from totalvi.errors import DataWarning

LACKING = slice(4, 6)  # proteins that the second batch did not measure
ASKED: dict[str, Any] = {"n_samples": 3, "seed": 2, "progress": False}
QUERIES = ("get_protein_foreground_probability", "get_protein_background_mean")


@pytest.fixture(scope="module")
def model() -> totalvi.Model:
    mdata = totalvi.simulate(90, 40, 6, n_batches=3, seed=1)
    mdata["prot"].X[(mdata.obs["batch"] == "batch_1").to_numpy(), LACKING] = np.nan
    model = totalvi.Model(mdata, batch_key="batch", n_hidden=16, n_latent=4)
    model.train(max_epochs=5, progress=False)
    return model


@pytest.fixture(scope="module")
def lacking(model: totalvi.Model) -> np.ndarray:
    batch = model._training_data().annotation.obs()["batch"].to_numpy() == "batch_1"
    lacking = np.zeros((len(batch), 6), dtype=bool)
    lacking[batch, LACKING] = True
    return lacking


def answers(model: totalvi.Model, **asked: Any) -> dict[str, np.ndarray]:
    """Each protein quantity (cells, proteins), without warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        rna, protein = model.get_normalized_expression(return_numpy=True, **ASKED, **asked)
        found = {"rna": rna, "denoised": protein}
        for name in QUERIES:
            found[name] = getattr(model, name)(return_numpy=True, **ASKED, **asked)
    return found


def test_what_a_panel_lacks_is_nan_and_nothing_else(
    model: totalvi.Model, lacking: np.ndarray
) -> None:
    found, imputed = answers(model), answers(model, unmeasured="impute")
    np.testing.assert_array_equal(found.pop("rna"), imputed["rna"])
    for name, values in found.items():
        assert np.array_equal(np.isnan(values), lacking)
        assert np.isfinite(imputed[name]).all()
        np.testing.assert_array_equal(values[~lacking], imputed[name][~lacking])


def test_imputed_values_are_the_means_of_impute_proteins(
    model: totalvi.Model, lacking: np.ndarray
) -> None:
    asked = {"include_protein_background": True, "given_counts": False, "return_numpy": True}
    _, protein = model.get_normalized_expression(unmeasured="impute", **ASKED, **asked)
    mean = model.impute_proteins(**ASKED, calibrated=False, own_level=False).mean.to_numpy()
    np.testing.assert_allclose(protein[lacking], mean[lacking], rtol=1e-5)


def test_proteins_are_averaged_over_the_batches_that_measured_them(
    model: totalvi.Model, lacking: np.ndarray
) -> None:
    each = [answers(model, transform_batch=f"batch_{i}", unmeasured="impute") for i in range(3)]
    both = answers(model, transform_batch=["batch_0", "batch_1"], unmeasured="impute")
    all_three = answers(model, transform_batch=[f"batch_{i}" for i in range(3)])
    for name in ("denoised", *QUERIES):
        first, second, third = (answer[name] for answer in each)
        assert np.isnan(second[:, LACKING]).all()
        expected = np.hstack([(first + second)[:, :4] / 2, first[:, LACKING]])
        np.testing.assert_allclose(both[name], expected, rtol=1e-5)
        rest = (first + third)[:, LACKING] / 2
        expected = np.hstack([(first + second + third)[:, :4] / 3, rest])
        np.testing.assert_allclose(all_three[name], np.where(lacking, np.nan, expected), rtol=1e-5)
    rna = sum(answer["rna"] for answer in each) / 3
    np.testing.assert_allclose(all_three["rna"], rna, rtol=1e-5)


def test_samples_have_the_same_means(model: totalvi.Model) -> None:
    asked = {"unmeasured": "impute", "given_counts": False, **ASKED}
    for name in QUERIES:
        samples = getattr(model, name)(return_mean=False, **(asked | {"n_samples": 400}))
        assert samples.shape == (400, 90, 6)
        mean = getattr(model, name)(return_numpy=True, **(asked | {"n_samples": 400}))
        np.testing.assert_allclose(samples.mean(axis=(0, 1)), mean.mean(axis=0), rtol=0.05)


@pytest.mark.parametrize("unmeasured", ["nan", "impute"])
def test_the_proteins_of_a_cell_are_scaled_to_sum_to_one(
    model: totalvi.Model, lacking: np.ndarray, unmeasured: str
) -> None:
    values = answers_scaled(model, unmeasured=unmeasured)
    assert np.array_equal(np.isnan(values), lacking & (unmeasured == "nan"))
    np.testing.assert_allclose(np.nansum(values, axis=1), 1, rtol=1e-5)


def answers_scaled(model: totalvi.Model, **asked: Any) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        protein: np.ndarray = model.get_normalized_expression(
            gene_list=[], scale_protein=True, return_numpy=True, **ASKED, **asked
        )[1]
    return protein


def test_one_warning_says_what_is_nan(model: totalvi.Model) -> None:
    said = 'Protein "protein_4" and 1 more are NaN in 30 of 90 cells, which lack them; unmeasured='
    distributed = ("get_likelihood_parameters", "posterior_predictive_sample")
    for name in ("get_normalized_expression", *QUERIES, "get_denoised_counts", *distributed):
        with pytest.warns(DataWarning, match=said) as caught:
            getattr(model, name)(progress=False)
        assert len(caught) == 1
        assert caught[0].filename == __file__
    with pytest.warns(DataWarning, match="give transform_batch batches that measured it"):
        model.get_protein_background_mean(
            protein_list=["protein_4"], transform_batch="batch_1", unmeasured="impute"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.get_protein_background_mean(protein_list=["protein_0"])
        model.get_normalized_expression(protein_list=[])
        model.get_protein_background_mean(indices=[0, 1])
        model.get_protein_background_mean(unmeasured="impute")
        model.get_cell_uncertainty(n_samples=1)
    with pytest.raises(ValueError, match="unmeasured"):
        model.get_protein_background_mean(unmeasured="zero")  # type: ignore[call-overload]


def test_the_entropy_is_that_of_the_measured_proteins(
    model: totalvi.Model, lacking: np.ndarray
) -> None:
    p = torch.from_numpy(answers(model)[QUERIES[0]].astype(np.float64))
    entropy = torch.distributions.Bernoulli(probs=p.nan_to_num(nan=0.5)).entropy().numpy()
    found = model.get_cell_uncertainty(**ASKED)["protein_entropy"]
    expected = np.nanmean(np.where(lacking, np.nan, entropy), axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    lone = model.get_cell_uncertainty(protein_list=["protein_4"], **ASKED)["protein_entropy"]
    assert np.array_equal(lone.isna(), lacking[:, 4])


def test_stores_and_denoised_counts_hold_nan_too(
    model: totalvi.Model, lacking: np.ndarray, tmp_path: Path
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        counts = model.get_denoised_counts().toarray()
        store = model.get_normalized_expression(gene_list=[], out=tmp_path / "out", **ASKED)
    assert np.array_equal(np.isnan(counts), lacking)
    protein = anndata.read_zarr(store / "protein").X
    np.testing.assert_array_equal(protein, answers(model)["denoised"])


def test_a_query_with_rna_alone_has_no_measured_protein(model: totalvi.Model) -> None:
    cells = totalvi.simulate(20, 40, 6, n_batches=3, seed=1)["rna"].copy()
    query = model.map_query(cells)
    found, imputed = answers(query), answers(query, unmeasured="impute")
    for name in ("denoised", *QUERIES):
        assert np.isnan(found[name]).all()
        assert np.isfinite(imputed[name]).all()


PARAMETERS = ("protein_background_mean", "protein_foreground_mean", "protein_mixing")


def distributions(model: totalvi.Model, **asked: Any) -> dict[str, np.ndarray]:
    """Parameters of the counts, and counts drawn with them, (samples,) cells by features."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        found: dict[str, np.ndarray] = model.get_likelihood_parameters(
            return_numpy=True, **ASKED, **asked
        )
        drawn = model.posterior_predictive_sample(**ASKED, **asked)
    found["counts"] = np.stack(drawn.protein)
    found["rna counts"] = np.stack([counts.toarray() for counts in drawn.rna])
    return found


def test_distributions_of_what_a_panel_lacks_are_nan_and_nothing_else(
    model: totalvi.Model, lacking: np.ndarray
) -> None:
    found, imputed = distributions(model), distributions(model, unmeasured="impute")
    for name, values in found.items():
        absent = np.broadcast_to(lacking, values.shape) if values.shape[-2:] == (90, 6) else False
        assert np.array_equal(np.isnan(values), np.broadcast_to(absent, values.shape)), name
        assert np.isfinite(imputed[name]).all()
        np.testing.assert_array_equal(values[~np.isnan(values)], imputed[name][~np.isnan(values)])
    assert (imputed["counts"] == np.round(imputed["counts"])).all()


def test_imputed_parameters_are_those_of_the_batches_that_measured_the_protein(
    model: totalvi.Model, lacking: np.ndarray
) -> None:
    imputed = distributions(model, unmeasured="impute")
    first, second, third = (
        distributions(model, unmeasured="impute", transform_batch=f"batch_{i}") for i in range(3)
    )
    for name in PARAMETERS:
        assert np.isnan(second[name][:, LACKING]).all()
        expected = (first[name] + third[name])[lacking] / 2
        np.testing.assert_allclose(imputed[name][lacking], expected, rtol=1e-5)


def test_each_imputed_count_is_of_a_batch_that_measured_the_protein(
    model: totalvi.Model, lacking: np.ndarray
) -> None:
    imputed = distributions(model, unmeasured="impute")["counts"][:, lacking]
    first, third = (
        distributions(model, unmeasured="impute", transform_batch=name)["counts"][:, lacking]
        for name in ("batch_0", "batch_2")
    )
    of_first, of_third = imputed == first, imputed == third
    assert (of_first | of_third).all()
    differ = first != third
    assert 0.2 < of_first[differ].mean() < 0.8
    cells = np.nonzero(lacking)[0]
    both = pd.DataFrame({"cell": cells[differ[0]], "first": of_first[0][differ[0]]})
    assert (both.groupby("cell")["first"].nunique() == 1).all()  # the batch is the cell's


def test_distributions_of_a_query_with_rna_alone(model: totalvi.Model) -> None:
    query = model.map_query(totalvi.simulate(20, 40, 6, n_batches=3, seed=1)["rna"].copy())
    found, imputed = distributions(query), distributions(query, unmeasured="impute")
    for name in (*PARAMETERS, "counts"):
        assert np.isnan(found[name]).all()
        assert np.isfinite(imputed[name]).all()


@pytest.mark.parametrize("kind", ["spearman", "pearson"])
def test_cells_that_lack_a_protein_have_no_part_in_its_correlations(
    model: totalvi.Model, lacking: np.ndarray, kind: str
) -> None:
    asked = {"n_samples": 2, "correlation_type": kind, "progress": False}
    every = model.get_feature_correlation_matrix(**asked)
    measuring = np.flatnonzero(~lacking.any(axis=1))
    some = model.get_feature_correlation_matrix(indices=measuring, **asked)
    names = [("protein", f"protein_{i}") for i in (4, 5)]
    pair = every.loc[names[0], names[1]], some.loc[names[0], names[1]]
    assert pair[0] == pytest.approx(pair[1], abs=1e-5)
    nowhere = model.get_feature_correlation_matrix(indices=lacking.any(axis=1), **asked)
    assert nowhere.loc[names].isna().all(axis=None)
    assert nowhere.drop(index=names, columns=names).notna().all(axis=None)
    elsewhere = model.get_feature_correlation_matrix(transform_batch="batch_1", **asked)
    assert elsewhere.loc[names].isna().all(axis=None)


def test_pairs_of_what_a_panel_lacks(model: totalvi.Model, lacking: np.ndarray) -> None:
    pairs = [("protein_4", "gene_3"), ("protein_0", "gene_3")]
    columns = ["raw", "denoised", "raw_log_pearson", "denoised_log_pearson"]
    asked = {"pairs": pairs, "n_samples": 2, "progress": False}
    every = model.get_gene_protein_pairs(**asked)[columns]
    measuring = model.get_gene_protein_pairs(indices=np.flatnonzero(~lacking.any(axis=1)), **asked)[
        columns
    ]
    np.testing.assert_allclose(every.iloc[0], measuring.iloc[0], atol=1e-5)
    nowhere = model.get_gene_protein_pairs(indices=lacking.any(axis=1), **asked)[columns]
    assert nowhere.iloc[0].isna().all()
    assert nowhere.iloc[1].notna().all()
