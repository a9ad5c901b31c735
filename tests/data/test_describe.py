"""Counts and annotation as arrays: aligned by name, coded, standardised, never the user's own."""

import json
from typing import Any

import mudata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from mudata import MuData
from scipy import sparse

from counts import N_GENES, N_PROTEINS, annotated
from totalvi.data.cells import CiteData, Schema
from totalvi.data.columns import Columns
from totalvi.data.describe import describe
from totalvi.errors import DataError

EVERY_KEY: dict[str, Any] = {
    "batch_key": "batch",
    "panel_key": "lane",
    "labels_key": "cell_type",
    "size_factor_key": "size_factor",
    "categorical_covariate_keys": ("sex", "lane"),
    "continuous_covariate_keys": ("age",),
}


def reordered(mdata: MuData, genes: np.ndarray, proteins: np.ndarray) -> MuData:
    with mudata.set_options(pull_on_update=False):
        copy = MuData(
            {"rna": mdata["rna"][:, genes].copy(), "prot": mdata["prot"][:, proteins].copy()}
        )
    copy.obs = mdata.obs.copy()
    return copy


def dense(data: CiteData) -> np.ndarray:
    return data.rna.read().toarray()


def test_counts_and_codes_are_those_of_the_input() -> None:
    mdata = annotated()
    data = describe(mdata, Columns(**EVERY_KEY))
    schema = data.schema
    assert np.array_equal(dense(data), mdata["rna"].X.toarray())
    assert np.array_equal(data.protein.read(), mdata["prot"].X)
    assert schema.gene_names == tuple(mdata["rna"].var_names)
    assert schema.protein_names == tuple(mdata["prot"].var_names)
    assert list(data.cell_names) == list(mdata.obs_names)
    assert data.n_cells == 120
    assert data.categorical is not None
    assert data.label is not None
    for codes, names, key in (
        (data.batch, schema.batch_names, "batch"),
        (data.panel, schema.panel_names, "lane"),
        (data.label, schema.label_names, "cell_type"),
        (data.categorical[:, 0], schema.covariate_categories[0], "sex"),
        (data.categorical[:, 1], schema.covariate_categories[1], "lane"),
    ):
        assert [names[code] for code in codes] == list(mdata.obs[key].astype(str))
    np.testing.assert_allclose(data.library_size, mdata.obs["size_factor"], rtol=1e-6)


def test_without_keys_there_is_one_batch_which_is_the_panel() -> None:
    data = describe(annotated(), Columns())
    assert (data.batch == 0).all()
    assert (data.panel == 0).all()
    assert len(data.schema.batch_names) == 1
    assert data.schema.panel_names == data.schema.label_names == ()
    assert data.label is None
    assert data.categorical is None
    assert data.continuous is None
    np.testing.assert_array_equal(
        data.library_size, np.asarray(data.rna.read().sum(axis=1)).ravel()
    )


def test_an_anndata_gives_the_same() -> None:
    mdata = annotated()
    adata = AnnData(mdata["rna"].X.copy(), obs=mdata.obs.copy())
    adata.obsm["adt"] = pd.DataFrame(
        mdata["prot"].X, index=mdata.obs_names, columns=mdata["prot"].var_names
    )
    expected = describe(mdata, Columns(batch_key="batch"))
    data = describe(adata, Columns(batch_key="batch", protein_expression_obsm_key="adt"))
    assert np.array_equal(dense(data), dense(expected))
    assert np.array_equal(data.protein.read(), expected.protein.read())
    assert data.schema.protein_names == expected.schema.protein_names


def test_features_are_aligned_by_name() -> None:
    mdata = annotated()
    keys = Columns(batch_key="batch")
    expected = describe(mdata, keys)
    rng = np.random.default_rng(0)
    shuffled = reordered(mdata, rng.permutation(N_GENES), rng.permutation(N_PROTEINS))
    data = describe(shuffled, keys, expected.schema)
    assert np.array_equal(dense(data), dense(expected))
    assert np.array_equal(data.protein.read(), expected.protein.read())
    assert data.schema == expected.schema

    few = describe(reordered(mdata, np.arange(20), np.arange(4)), keys).schema
    subset = describe(mdata, keys, few)  # more features than the model knows
    assert np.array_equal(dense(subset), dense(expected)[:, :20])
    assert np.array_equal(subset.protein.read(), expected.protein.read()[:, :4])
    np.testing.assert_array_equal(subset.library_size, dense(subset).sum(axis=1))


@pytest.mark.parametrize(
    ("genes", "proteins", "message"),
    [
        (np.arange(1, N_GENES), np.arange(N_PROTEINS), 'modality "rna" lacks 1 of the 30 genes'),
        (np.arange(N_GENES), np.arange(2, N_PROTEINS), 'modality "prot" lacks 2 of the 6 proteins'),
    ],
)
def test_missing_features_are_named(genes: np.ndarray, proteins: np.ndarray, message: str) -> None:
    mdata = annotated()
    schema = describe(mdata, Columns()).schema
    with pytest.raises(DataError, match=message):
        describe(reordered(mdata, genes, proteins), Columns(), schema)


@pytest.mark.parametrize("key", ["batch", "lane", "cell_type", "sex"])
def test_unknown_categories_are_named_with_the_near_misses(key: str) -> None:
    mdata = annotated()
    schema = describe(mdata, Columns(**EVERY_KEY)).schema
    known = str(mdata.obs[key].iloc[0])
    mdata.obs[key] = mdata.obs[key].astype(str).replace(known, known + "x")
    with pytest.raises(DataError, match=f'{key}"\\] holds "{known}x".*{known}'):
        describe(mdata, schema.columns, schema)


@pytest.mark.parametrize("keep", ["first batch", "one cell"])
def test_fewer_categories_keep_their_codes(keep: str) -> None:
    mdata = annotated()
    data = describe(mdata, Columns(**EVERY_KEY))
    cells = np.flatnonzero(data.batch == 1) if keep == "first batch" else np.array([17])
    subset = describe(mdata[cells].copy(), data.schema.columns, data.schema)
    np.testing.assert_array_equal(subset.protein.read(), data.protein.rows(cells))
    for name in ("batch", "panel", "label", "categorical", "continuous", "library_size"):
        np.testing.assert_array_equal(getattr(subset, name), getattr(data, name)[cells])


@pytest.mark.parametrize("values", [[0, 1], [0.0, 1.0], [True, False], pd.Categorical(["b", "a"])])
def test_codes_of_any_kind_of_category(values: Any) -> None:
    mdata = annotated()
    mdata.obs["batch"] = pd.Series(values).iloc[np.arange(120) % 2].array
    keys = Columns(batch_key="batch")
    data = describe(mdata, keys)
    assert [data.schema.batch_names[c] for c in data.batch] == list(mdata.obs["batch"].astype(str))
    again = describe(mdata, keys, data.schema)
    assert np.array_equal(again.batch, data.batch)


def test_unmeasured_proteins_are_told_by_panel_and_hold_zero() -> None:
    mdata = annotated(n_unmeasured=2)
    expected = ~np.isnan(mdata["prot"].X)
    data = describe(mdata, Columns(batch_key="batch"))
    assert np.array_equal(np.array(data.schema.panel_measured)[data.panel], expected)
    assert not np.array(data.schema.panel_measured).all()
    assert (data.protein.read()[~expected] == 0).all()
    assert np.array_equal(data.protein.read()[expected], mdata["prot"].X[expected])


def test_new_values_of_what_a_panel_did_not_measure_do_not_count() -> None:
    mdata = annotated(n_unmeasured=2)
    data = describe(mdata, Columns(batch_key="batch"))
    mdata["prot"].X = np.nan_to_num(mdata["prot"].X, nan=99.0)
    again = describe(mdata, data.schema.columns, data.schema)
    assert np.array_equal(again.protein.read(), data.protein.read())


def test_new_data_that_lack_what_their_panel_measured_are_refused() -> None:
    mdata = annotated()
    schema = describe(mdata, Columns(batch_key="batch")).schema
    mdata["prot"].X[(mdata.obs["batch"] == mdata.obs["batch"].iloc[0]).to_numpy(), 3] = np.nan
    name = mdata["prot"].var_names[3]
    with pytest.raises(DataError, match=f'no value for protein "{name}" in cell "'):
        describe(mdata, schema.columns, schema)


def test_the_input_is_never_written_to_nor_shared() -> None:
    mdata = annotated(n_unmeasured=1)
    mdata["rna"].X.data[0] = 0  # an explicit zero
    rna, protein = mdata["rna"].X.copy(), mdata["prot"].X.copy()
    obs = mdata.obs.copy()
    data = describe(mdata, Columns(**(EVERY_KEY | {"panel_key": None})))
    assert not np.shares_memory(data.rna.read().data, mdata["rna"].X.data)
    assert not np.shares_memory(data.protein.read(), mdata["prot"].X)
    data.rna.read().data[:] = 7
    data.protein.read()[:] = 7
    assert np.array_equal(mdata["rna"].X.data, rna.data)
    assert np.array_equal(mdata["rna"].X.indices, rna.indices)
    np.testing.assert_array_equal(mdata["prot"].X, protein)
    pd.testing.assert_frame_equal(mdata.obs, obs)


def test_explicit_zeros_are_dropped() -> None:
    mdata = annotated()
    counts = mdata["rna"].X.toarray()
    stored = sparse.csr_matrix(np.ones_like(counts))
    stored.data[:] = counts.ravel()  # every zero is stored
    mdata["rna"].X = stored
    data = describe(mdata, Columns())
    assert data.rna.read().nnz == (counts > 0).sum()
    assert np.array_equal(dense(data), counts)


def test_continuous_covariates_are_standardised_by_the_training_data() -> None:
    mdata = annotated()
    data = describe(mdata, Columns(continuous_covariate_keys=("age", "size_factor")))
    assert data.continuous is not None
    np.testing.assert_allclose(data.continuous.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(data.continuous.std(axis=0), 1, rtol=1e-5)
    some = mdata[:3].copy()
    some.obs["age"] = 61.0
    again = describe(some, data.schema.columns, data.schema)
    assert again.continuous is not None
    age = mdata.obs["age"]
    expected = (61 - age.mean()) / age.std(ddof=0)
    np.testing.assert_allclose(again.continuous[:, 0], expected, rtol=1e-5)


def test_library_prior_by_batch() -> None:
    data = describe(annotated(), Columns(batch_key="batch"))
    totals = np.asarray(data.rna.read().sum(axis=1)).ravel()
    for code in range(2):
        logs = np.log(totals[data.batch == code])
        assert data.schema.library_log_mean[code] == pytest.approx(logs.mean(), rel=1e-5)
        assert data.schema.library_log_variance[code] == pytest.approx(logs.var(), rel=1e-4)


@pytest.mark.parametrize(
    "keys", [{}, EVERY_KEY, {"batch_key": "batch"}], ids=["none", "all", "batch"]
)
def test_schema_round_trip_through_json(keys: dict[str, Any]) -> None:
    schema = describe(annotated(n_unmeasured=0), Columns(**keys)).schema
    assert Schema.from_dict(json.loads(json.dumps(schema.to_dict()))) == schema


def test_wrong_data_are_refused() -> None:
    mdata = annotated()
    mdata["rna"].X.data[0] = -1
    with pytest.raises(DataError, match="negative"):
        describe(mdata, Columns())
    with pytest.raises(DataError, match='did you mean "batch"'):
        describe(annotated(), Columns(batch_key="bacth"))
    with pytest.raises(DataError, match="only 4 cells"):
        describe(annotated()[:4].copy(), Columns())
