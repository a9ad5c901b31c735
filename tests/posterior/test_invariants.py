"""What holds for every query of every kind of model."""

import inspect
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from mudata import MuData
from scipy import sparse

import totalvi
import totalvi.posterior.predictive
from counts import SMALL, annotated
from totalvi.errors import NotTrainedError
from totalvi.posterior.aggregated_posterior import AggregatedPosterior

N_CELLS = 60
FAST: dict[str, Any] = {"max_epochs": 1, "accelerator": "cpu", "progress": False}
KINDS: dict[str, dict[str, Any]] = {
    "default": {},
    "latent library, zinb, logistic normal": {
        "library": "latent",
        "gene_likelihood": "zinb",
        "latent_distribution": "ln",
    },
    "covariates, panels, efficiencies, a dispersion a batch": {
        "panel_key": "lane",
        "categorical_covariate_keys": ["sex"],
        "continuous_covariate_keys": ["age"],
        "protein_efficiency": True,
        "gene_dispersion": "gene-batch",
        "protein_dispersion": "protein-batch",
    },
    "size factors, dispersions a label": {
        "size_factor_key": "size_factor",
        "labels_key": "cell_type",
        "gene_dispersion": "gene-label",
        "protein_dispersion": "protein-label",
    },
    "mosaic": {},
    "staining level": {"staining_level": True},
    "AnnData": {"protein_expression_obsm_key": "adt", "latent_distribution": "ln"},
}


class Query(NamedTuple):
    """How a query is put, and what kind of answer it gives."""

    arguments: dict[str, Any]
    by_cell: bool = True  # an answer a cell, the same whichever other cells are asked about
    sampled: bool = True  # depends on the seed
    cells: str | None = "indices"  # the argument that chooses cells


GATES = totalvi.parse_hierarchy("A: protein_0+\nB: A > protein_1+ or gene:gene_1+\nC: protein_2-")
QUERIES: dict[str, Query] = {
    "get_latent_representation": Query({"give_mean": False, "n_samples": 2}),
    "get_latent_library_size": Query({"give_mean": False}),
    "get_staining_level": Query({}, sampled=False),
    "get_cell_uncertainty": Query({"n_samples": 2}),
    "get_normalized_expression": Query({"n_samples": 2, "library_size": "latent"}),
    "get_protein_foreground_probability": Query({"n_samples": 2}),
    "get_denoised_counts": Query({}),
    "get_antibody_separation": Query({"n_samples": 2}, by_cell=False),
    "get_likelihood_parameters": Query({"n_samples": 2}),
    "get_protein_background_mean": Query({"n_samples": 2}),
    "posterior_predictive_sample": Query({"n_samples": 2}),
    "posterior_predictive_check": Query({"n_samples": 3}, by_cell=False),
    "get_feature_correlation_matrix": Query({"n_samples": 2}, by_cell=False),
    "get_gene_protein_pairs": Query(
        {"n_samples": 2, "pairs": [("protein_0", "gene_1")]}, by_cell=False
    ),
    "get_elbo": Query({"return_mean": False}),
    "get_reconstruction_error": Query({"return_mean": False}),
    "get_marginal_ll": Query({"return_mean": False, "n_mc_samples": 2}),
    "impute_proteins": Query({"n_samples": 2, "calibrated": False}),
    "get_imputation_reliability": Query(
        {"n_samples": 2, "indices": range(N_CELLS)}, by_cell=False, cells=None
    ),
    "impute_rna": Query({"n_samples": 2, "stacked": False, "calibrated": False}),
    "get_rna_reliability": Query(
        {"n_samples": 2, "indices": range(N_CELLS)}, by_cell=False, cells=None
    ),
    "gate": Query({"hierarchy": GATES, "n_samples": 2}),
    "get_archetypes": Query({}, by_cell=False, sampled=False),
    "get_aggregated_posterior": Query({}, by_cell=False, sampled=False),
    "differential_abundance": Query({"sample_key": "sex"}, by_cell=False, sampled=False),
    "differential_expression": Query(
        {"groupby": "cell_type", "n_samples": 1}, by_cell=False, cells=None
    ),
}
# sampled, but not in every kind of model: an observed library size is what it is
SEEDLESS = {("get_latent_library_size", kind) for kind in KINDS if "latent library" not in kind}
SEEDLESS |= {("gate", "mosaic")}  # no antibody separates the few cells that have proteins


def counts(kind: str) -> MuData | AnnData:
    """Counts with each kind of annotation; of panels, two lack a protein each."""
    mdata = annotated(N_CELLS)
    mdata["prot"].var_names = [f"protein_{i}" for i in range(mdata["prot"].n_vars)]
    mdata["rna"].var_names = [f"gene_{i}" for i in range(mdata["rna"].n_vars)]
    if "panels" in kind:
        lane = mdata.obs["lane"].to_numpy()
        mdata["prot"].X[lane == "1", 4] = np.nan
        mdata["prot"].X[lane == "2", 5] = np.nan
    if kind == "mosaic":
        modalities = np.resize(["both", "both", "rna", "prot"], N_CELLS)
        mdata.obs["measured_modalities"] = modalities
        mdata["prot"].X[modalities == "rna"] = np.nan
        mdata["rna"].X = sparse.csr_matrix(mdata["rna"].X.multiply((modalities != "prot")[:, None]))
    if kind != "AnnData":
        return mdata
    adata = AnnData(mdata["rna"].X.copy(), obs=mdata.obs.copy())
    adata.var_names = mdata["rna"].var_names
    adata.obsm["adt"] = mdata["prot"].to_df()
    return adata


class Fitted(NamedTuple):
    kind: str
    data: MuData | AnnData
    model: totalvi.Model


@pytest.fixture(scope="module", params=KINDS)
def fitted(request: pytest.FixtureRequest) -> Fitted:
    data = counts(request.param)
    model = totalvi.Model(data, **({"batch_key": "batch"} | SMALL | KINDS[request.param]))
    model.train(**FAST)
    return Fitted(request.param, data, model)


@pytest.fixture(params=QUERIES)
def name(request: pytest.FixtureRequest, fitted: Fitted) -> str:
    if request.param == "get_archetypes" and fitted.model.module.latent_distribution == "normal":
        pytest.skip("a normal latent space has no archetypes")
    if "_rna" in request.param and fitted.kind != "mosaic":
        pytest.skip("all cells have RNA")
    if request.param == "get_staining_level" and fitted.model.module.staining is None:
        pytest.skip("the model has no staining level")
    return request.param


def ask(model: totalvi.Model, name: str, *args: Any, **arguments: Any) -> list[np.ndarray]:
    """Put a query; the answer as a flat list of arrays of numbers, tables sorted by their rows."""
    given = dict(QUERIES[name].arguments) | arguments
    return list(numbers(getattr(model, name)(*args, **given)))


def numbers(answer: Any) -> Iterator[np.ndarray]:
    match answer:
        case pd.DataFrame() if "comparison" in answer:  # most likely first, which ties decide
            order = [answer["comparison"].astype(str), answer["modality"].astype(str), answer.index]
            yield from numbers(answer.iloc[np.lexsort(order)].select_dtypes("number"))
        case pd.Series() if isinstance(answer.dtype, pd.CategoricalDtype):
            yield answer.cat.codes.to_numpy(float)
        case pd.DataFrame() | pd.Series():
            values = answer.select_dtypes("number") if isinstance(answer, pd.DataFrame) else answer
            yield values.to_numpy(float)
        case sparse.csr_matrix():
            yield answer.toarray()
        case AggregatedPosterior():
            yield from (answer.mean, answer.variance)
        case dict():
            yield from (array for value in answer.values() for array in numbers(value))
        case pd.Index():
            return
        case tuple() | list():
            yield from (array for value in answer for array in numbers(value))
        case _:
            yield np.asarray(answer)


def same(first: list[np.ndarray], second: list[np.ndarray]) -> bool:
    return all(np.array_equal(a, b, equal_nan=True) for a, b in zip(first, second, strict=True))


def close(first: list[np.ndarray], second: list[np.ndarray]) -> None:
    for a, b in zip(first, second, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-4)


def of_cells(answer: list[np.ndarray], cells: np.ndarray) -> list[np.ndarray]:
    """The rows of cells; what has no row a cell (inverse dispersions) is left as it is."""
    parts = []
    for array in answer:
        axis = 1 if array.ndim == 3 or array.shape[0] != N_CELLS else 0
        by_cell = array.ndim > axis and array.shape[axis] == N_CELLS
        parts.append(array.take(cells, axis=axis) if by_cell else array)
    return parts


def public_queries() -> list[str]:
    bases = [
        base
        for base in totalvi.Model.__mro__
        if base.__module__.startswith(("totalvi.posterior", "totalvi.mapping"))
    ]
    return [name for base in bases for name in vars(base) if not name.startswith("_")]


def test_every_query_is_asked_here() -> None:
    properties = {"module", "schema", "seed", "is_trained", "split", "calibration_cells"}
    # what needs controls, more cells, or another model has tests of its own
    elsewhere = {
        "check_isotype_controls", "map_query", "transfer_labels", "get_unlikeness",
        "impute_query", "get_query_reliability", "get_map_coordinates", "find_doublets",
        "get_modality_information", "predict", "get_deciding_features",
    }  # fmt: skip
    assert set(public_queries()) - properties - elsewhere == set(QUERIES)


def test_the_answer_follows_the_seed(fitted: Fitted, name: str) -> None:
    first = ask(fitted.model, name)
    assert same(first, ask(fitted.model, name))
    if not QUERIES[name].sampled or (name, fitted.kind) in SEEDLESS:
        return
    assert same(ask(fitted.model, name, seed=1), ask(fitted.model, name, seed=1))
    assert not same(first, ask(fitted.model, name, seed=1))
    with pytest.raises(ValueError, match="seed is -1; allowed are whole numbers from 0"):
        ask(fitted.model, name, seed=-1)


def test_no_global_state_is_changed(fitted: Fitted, name: str) -> None:
    before = (torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate())  # noqa: NPY002
    threads = torch.get_num_threads()
    ask(fitted.model, name)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    assert random.getstate() == before[2]
    assert torch.get_num_threads() == threads


def test_minibatch_size_changes_nothing(fitted: Fitted, name: str) -> None:
    close(ask(fitted.model, name), ask(fitted.model, name, batch_size=7))


def test_some_cells_are_answered_as_among_all(fitted: Fitted, name: str) -> None:
    query = QUERIES[name]
    if query.cells is None:
        pytest.skip("chooses cells by group")
    mask = np.arange(N_CELLS) % 3 == 1
    cells = np.flatnonzero(mask)
    part = ask(fitted.model, name, indices=mask)
    assert same(part, ask(fitted.model, name, indices=cells))
    assert same(part, ask(fitted.model, name, indices=list(cells)))
    close(part, ask(fitted.model, name, fitted.data[cells].copy()))
    if query.by_cell:
        close(part, of_cells(ask(fitted.model, name), cells))
        turned = ask(fitted.model, name, indices=cells[::-1])
        close([*part], of_cells_reversed(turned, len(cells)))
    with pytest.raises(ValueError, match="indices holds positions from 60 to 60"):
        ask(fitted.model, name, indices=[N_CELLS])


def of_cells_reversed(answer: list[np.ndarray], n_cells: int) -> list[np.ndarray]:
    return [np.flip(a, 1 if a.ndim == 3 else 0) if n_cells in a.shape[:2] else a for a in answer]


def test_the_training_data_given_again(fitted: Fitted, name: str, tmp_path: Path) -> None:
    expected = ask(fitted.model, name)
    assert same(ask(fitted.model, name, fitted.data), expected)
    loaded = totalvi.Model.load(fitted.model.save(tmp_path / "m"))
    assert same(ask(loaded, name, fitted.data.copy()), expected)


def test_names_come_in_any_order(fitted: Fitted, name: str) -> None:
    """Features are found by name, wherever they stand in new data."""
    data = fitted.data.copy()
    if isinstance(data, MuData):
        shuffled = MuData({key: data[key][:, ::-1].copy() for key in ("prot", "rna")})
        shuffled.obs = data.obs.copy()
    else:
        shuffled = data[:, ::-1].copy()
        shuffled.obsm["adt"] = data.obsm["adt"].iloc[:, ::-1]
    close(ask(fitted.model, name, shuffled), ask(fitted.model, name))


def test_unknown_names_are_refused_with_near_misses(fitted: Fitted, name: str) -> None:
    method = inspect.signature(getattr(fitted.model, name)).parameters
    for argument, wrong, known in (
        ("gene_list", ["gene_1", "gene_l"], "gene_1"),
        ("protein_list", ["protien_3"], "protein_3"),
        ("transform_batch", "batch_O", "batch_0"),
    ):
        if argument in method:
            with pytest.raises(ValueError, match=rf'{argument} holds .*did you mean .*"{known}"'):
                ask(fitted.model, name, **{argument: wrong})


def test_chosen_features_are_answered_as_among_all(fitted: Fitted, name: str) -> None:
    method = inspect.signature(getattr(fitted.model, name)).parameters
    if "protein_list" not in method or name == "get_cell_uncertainty":
        pytest.skip("does not choose features, or averages over them")
    chosen = {"gene_list": ["gene_7", "gene_2"], "protein_list": ["protein_4", "protein_1"]}
    query = getattr(fitted.model, name)
    given = QUERIES[name].arguments
    part = query(**given, **{key: names for key, names in chosen.items() if key in method})
    whole = query(**given)
    if name == "posterior_predictive_check":
        part, whole = part.table, whole.table  # the rest averages over features
    if name == "get_denoised_counts":
        part = pd.DataFrame(part.toarray(), columns=chosen["protein_list"])
        whole = pd.DataFrame(whole.toarray(), columns=fitted.model.schema.protein_names)
    pairs = list(zip(frames(part), frames(whole), strict=True))
    assert pairs
    for ours, theirs in pairs:
        assert len(ours.columns) >= 2
        theirs = theirs.reindex_like(ours).astype(ours.dtypes)
        pd.testing.assert_frame_equal(ours, theirs, rtol=1e-3, atol=1e-5)


def frames(answer: Any) -> Iterator[pd.DataFrame]:
    """The tables of an answer."""
    if isinstance(answer, pd.DataFrame):
        yield answer
    elif isinstance(answer, totalvi.posterior.predictive.PredictiveSample):
        for rna in answer.rna:
            yield pd.DataFrame(rna.toarray(), answer.cell_names, answer.gene_names)
        yield from answer.protein
    elif isinstance(answer, dict | tuple):
        for part in answer.values() if isinstance(answer, dict) else answer:
            yield from frames(part)


def test_one_name_is_a_list_of_one(fitted: Fitted, name: str) -> None:
    method = inspect.signature(getattr(fitted.model, name)).parameters
    for argument, one in (("gene_list", "gene_3"), ("protein_list", "protein_4")):
        if argument in method:
            by_text, by_list = (ask(fitted.model, name, **{argument: w}) for w in (one, [one]))
            assert same(by_text, by_list)


def test_the_own_batch_is_no_counterfactual(fitted: Fitted, name: str) -> None:
    method = inspect.signature(getattr(fitted.model, name)).parameters
    always = ("impute_proteins", "get_imputation_reliability", "impute_rna", "get_rna_reliability")
    if "transform_batch" not in method or name in always:
        pytest.skip("does not decode into other batches, or never into the own one by default")
    own = np.flatnonzero((fitted.data.obs["batch"] == "batch_1").to_numpy())
    expected = ask(fitted.model, name, indices=own)
    assert same(ask(fitted.model, name, indices=own, transform_batch="batch_1"), expected)
    assert same(ask(fitted.model, name, indices=own, transform_batch=["batch_1"]), expected)
    other = ask(fitted.model, name, indices=own, transform_batch="batch_0")
    assert not same(other, expected)


def test_the_bar_shows_only_when_asked(
    fitted: Fitted, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    expected = ask(fitted.model, name)
    assert capfd.readouterr().err == ""
    assert same(ask(fitted.model, name, progress=True), expected)
    assert "cells" in capfd.readouterr().err


def test_numbers_in_place_of_unmeasured_proteins_reach_nothing(name: str, fitted: Fitted) -> None:
    if "panels" not in fitted.kind:
        pytest.skip("all proteins are measured")
    filled = fitted.data.copy()
    filled["prot"].X = np.nan_to_num(fitted.data["prot"].X, nan=5000.0)
    assert same(ask(fitted.model, name, filled), ask(fitted.model, name))


@pytest.mark.parametrize("name", QUERIES)
def test_a_model_without_a_fit_refuses(name: str) -> None:
    model = totalvi.Model(counts("default"), batch_key="batch", latent_distribution="ln", **SMALL)
    for failure, message in ((None, r"call model.train\(\) first"), ("loss", "fit failed.*loss")):
        model._failure = failure
        with pytest.raises(NotTrainedError, match=message):
            ask(model, name)


@pytest.mark.parametrize("name", QUERIES)
def test_documented_alike(name: str) -> None:
    """Arguments that queries share have one place and one default; the docstring names them all."""
    method = getattr(totalvi.Model, name)
    parameters = inspect.signature(method).parameters
    document = inspect.getdoc(method)
    assert document is not None
    for section in ("Parameters", "Returns", "Raises", "Examples"):
        assert f"\n{section}\n---" in document, section
    assert list(parameters)[:2] == ["self", "adata"]
    if QUERIES[name].cells is not None:
        assert list(parameters)[2] == "indices"
    assert list(parameters)[-1] == "progress"
    for argument, parameter in parameters.items():
        assert argument == "self" or argument in document
        if argument in DEFAULTS:
            assert parameter.default == DEFAULTS[argument]


DEFAULTS = {
    "adata": None,
    "indices": None,
    "transform_batch": None,
    "gene_list": None,
    "protein_list": None,
    "include_protein_background": False,
    "sample_protein_mixing": False,
    "given_counts": True,
    "scale_protein": False,
    "return_mean": True,
    "return_numpy": False,
    "out": None,
    "seed": 0,
    "progress": None,
}
