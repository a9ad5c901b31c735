"""Likelihood parameters of a fitted model, by name."""

from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
from scipy import stats

from counts import N_GENES, N_PROTEINS, SMALL, annotated
from totalvi.errors import OutputError
from totalvi.model import Model

BY_GENE = {"mean": N_GENES}
BY_PROTEIN = dict.fromkeys(
    ("protein_background_mean", "protein_foreground_mean", "protein_mixing"), N_PROTEINS
)


def fitted(**options: Any) -> Model:
    model = Model(annotated(), batch_key="batch", **SMALL, **options)
    model.train(max_epochs=2, progress=False)
    return model


@pytest.fixture(scope="module")
def model() -> Model:
    return fitted(gene_likelihood="zinb", gene_dispersion="gene-batch")


def test_parameters_are_labelled_and_in_range(model: Model) -> None:
    parameters = model.get_likelihood_parameters(n_samples=3)
    cells = list(annotated().obs_names)
    for name, width in (BY_GENE | {"dropout": N_GENES} | BY_PROTEIN).items():
        assert parameters[name].shape == (120, width)
        assert list(parameters[name].index) == cells
    for name in ("dropout", "protein_mixing"):
        assert ((parameters[name] > 0) & (parameters[name] < 1)).all(axis=None)
    low, high = (parameters[f"protein_{part}_mean"] for part in ("background", "foreground"))
    assert (high >= low).all(axis=None)
    assert list(parameters["dispersions"].index) == ["batch_0", "batch_1"]
    assert list(parameters["protein_dispersions"].index) == ["all cells"]
    r = model.module.gene_log_r.detach().exp().numpy()
    np.testing.assert_allclose(parameters["dispersions"], r)


def test_without_zero_inflation_there_is_no_dropout() -> None:
    assert "dropout" not in fitted().get_likelihood_parameters()


def test_one_sample_has_the_library_size_in_its_mean(model: Model) -> None:
    mean = model.get_likelihood_parameters()["mean"]
    np.testing.assert_allclose(mean.sum(axis=1), annotated()["rna"].X.sum(axis=1).A1, rtol=1e-4)


def test_they_are_the_law_of_the_predictive_counts(model: Model) -> None:
    """One sample of the parameters and the counts of the same seed share z and b."""
    indices = np.flatnonzero(annotated().obs["batch"] == "batch_1")
    parameters = model.get_likelihood_parameters(indices=indices)
    counts = model.posterior_predictive_sample(indices=indices).protein.to_numpy()
    r = parameters["protein_dispersions"].to_numpy()
    low, high, pi = (parameters[name].to_numpy() for name in BY_PROTEIN)
    laws = [stats.nbinom(r, r / (r + mean)) for mean in (low, high)]

    def below(k: np.ndarray) -> np.ndarray:
        return pi * laws[0].cdf(k) + (1 - pi) * laws[1].cdf(k)

    v = np.random.default_rng(0).random(counts.shape)
    rank = below(counts - 1) + v * (below(counts) - below(counts - 1))
    assert stats.kstest(rank.ravel(), "uniform").pvalue > 1e-3


def test_chosen_features_and_cells(model: Model) -> None:
    whole = model.get_likelihood_parameters()
    some = model.get_likelihood_parameters(
        indices=[7, 3], gene_list=["gene_4"], protein_list=["protein_2", "protein_0"]
    )
    for name, table in some.items():
        expected = whole[name][table.columns]
        expected = expected if "dispersions" in name else expected.iloc[[7, 3]]
        np.testing.assert_allclose(table, expected, rtol=1e-4)
    no_genes = model.get_likelihood_parameters(gene_list=[])
    assert no_genes["mean"].shape == no_genes["dropout"].shape == (120, 0)
    with pytest.raises(ValueError, match=r"gene_list holds 'gene4'.*gene_4"):
        model.get_likelihood_parameters(gene_list=["gene4"])
    with pytest.raises(ValueError, match="protein_list holds 'x'"):
        model.get_protein_background_mean(protein_list=["x"])


def test_parameters_to_zarr(model: Model, tmp_path: Path) -> None:
    path = model.get_likelihood_parameters(out=tmp_path / "parameters.zarr")
    for name, table in model.get_likelihood_parameters().items():
        stored = anndata.read_zarr(path / name)
        assert list(stored.var_names) == list(table.columns)
        assert list(stored.obs_names) == list(table.index)
        assert np.array_equal(stored.X, table)
    with pytest.raises(OutputError, match="exists already"):
        model.get_protein_background_mean(out=path)


def test_background_mean(model: Model, tmp_path: Path) -> None:
    mean = model.get_protein_background_mean(n_samples=5)
    assert mean.shape == (120, N_PROTEINS)
    assert (mean > 0).all(axis=None)
    assert np.array_equal(model.get_protein_background_mean(n_samples=5, return_numpy=True), mean)
    sampled = model.get_likelihood_parameters(n_samples=300)["protein_background_mean"]
    given_state = model.get_protein_background_mean(n_samples=5, given_counts=False)
    np.testing.assert_allclose(given_state.mean(axis=0), sampled.mean(axis=0), rtol=0.05)
    first, second, both = (
        model.get_protein_background_mean(transform_batch=batches, n_samples=5)
        for batches in ("batch_0", "batch_1", ["batch_0", "batch_1"])
    )
    assert not np.allclose(first, second)
    np.testing.assert_allclose(both, (first + second) / 2, rtol=1e-5)
    path = model.get_protein_background_mean(n_samples=5, out=tmp_path / "background.zarr")
    assert np.array_equal(anndata.read_zarr(path / "protein").X, mean)
