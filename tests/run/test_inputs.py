"""What is read is the same whether the counts stay on disk or not."""

import warnings

import anndata
import mudata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import totalvi
from totalvi.data.columns import Columns
from totalvi.data.counts import lies_on_disk
from totalvi.data.io.modalities import Rows
from totalvi.data.io.read import ReadOptions
from totalvi.errors import DataError, OutputError, ReadError
from totalvi.run.commands import train_model
from totalvi.run.convert import convert_counts
from totalvi.run.inputs import open_input, read_input
from totalvi.run.prepare import prepare, prepare_on_disk
from totalvi.run.run import run

TAGS, CONTROL, OTHERS = ["Hashtag_1", "Hashtag_2"], ["IgG1_isotype_ctrl"], ["unmapped", "total"]
KINDS = ["cells.h5mu", "cells.zarr", "features.h5ad", "typed.h5ad", "obsm.h5ad"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Files of the same cells: 5 proteins, hashtags, a control, and rows of no antibody."""
    folder = tmp_path_factory.mktemp("inputs")
    cells = totalvi.simulate(n_cells=200, n_genes=40, n_proteins=5, seed=1, store_truth=False)
    rng = np.random.default_rng(0)
    tags = np.zeros((200, 2))
    tags[np.arange(200), rng.integers(0, 2, 200)] = 1 + rng.poisson(80, 200)
    others = [rng.poisson(2, (200, 1)), rng.poisson(5, (200, 1))]
    counts = np.hstack([np.asarray(cells["prot"].X), tags, *others])
    counts = np.hstack([counts, counts.sum(axis=1, keepdims=True)]).astype(np.float32)
    names = [*cells["prot"].var_names, *TAGS, *CONTROL, *OTHERS]
    rna = anndata.AnnData(
        sparse.csr_matrix(cells["rna"].X),
        obs=pd.DataFrame(index=cells.obs_names),
        var=pd.DataFrame(index=cells["rna"].var_names),
    )
    proteins = anndata.AnnData(counts, obs=rna.obs, var=pd.DataFrame(index=names))
    proteins.layers["half"] = counts / 2
    both = mudata.MuData({"rna": rna.copy(), "prot": proteins})
    both.write(folder / "cells.h5mu")
    both.write_zarr(folder / "cells.zarr")
    for file, of_tags in (("features", "Antibody Capture"), ("typed", "Multiplexing Capture")):
        types = ["Gene Expression"] * rna.n_vars + ["Antibody Capture"] * len(names)
        var = pd.DataFrame({"feature_types": types}, index=[*rna.var_names, *names])
        var.loc[TAGS, "feature_types"] = of_tags
        stacked = sparse.csr_matrix(np.hstack([rna.X.toarray(), counts]))
        anndata.AnnData(stacked, obs=rna.obs, var=var).write(folder / f"{file}.h5ad")
    rna.obsm["protein_expression"] = pd.DataFrame(counts, index=rna.obs_names, columns=names)
    rna.write(folder / "obsm.h5ad")
    return folder


def on_disk(path, store, options=None):
    data, keys, rows = open_input(path, Columns(), options or ReadOptions())
    findings = prepare_on_disk(data, keys, store, rows=rows)
    return mudata.read_zarr(store), findings, data


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_set_apart_is_that_in_memory(folder, tmp_path, kind):
    expected = prepare(*read_input(folder / kind, Columns(), ReadOptions())).mdata
    found, findings, data = on_disk(folder / kind, tmp_path / "store.zarr")
    rna = data["rna"] if isinstance(data, mudata.MuData) else data
    assert lies_on_disk(rna.X)
    assert list(expected.mod) == ["rna", "prot", "hto", "isotype"]
    for name, adata in expected.mod.items():
        assert found[name].var_names.equals(adata.var_names)
        values = (sparse.csr_matrix(part.X).toarray() for part in (found[name], adata))
        np.testing.assert_array_equal(*values)
    assert list(found["no_antibody"].var_names) == OTHERS
    assert "rows_apart" in {finding.code for finding in findings}


def test_the_options_say_what_is_set_apart(folder, tmp_path):
    path = folder / "cells.h5mu"
    options = ReadOptions(hashtags=["protein_0"], leave_out="^unm")
    found, _, data = on_disk(path, tmp_path / "store.zarr", options)
    assert lies_on_disk(data["rna"].X)
    assert list(found["hto"].var_names) == ["protein_0"]
    assert list(found["no_antibody"].var_names) == ["unmapped"]
    with pytest.raises(ReadError, match="matches no antibody"):
        on_disk(path, tmp_path / "second.zarr", ReadOptions(hashtags="CD99"))
    for options in (ReadOptions(hashtags="protein_1"), ReadOptions(leave_out="protein_1")):
        with pytest.raises(ReadError, match="for these already"):
            on_disk(tmp_path / "store.zarr", tmp_path / "second.zarr", options)


def test_nothing_more_is_set_apart_from_data_in_memory(folder):
    options = ReadOptions(hashtags=[], controls=CONTROL)
    data, _, rows = open_input(folder / "cells.h5mu", Columns(), options)
    assert rows == Rows((), (), ())
    assert set(TAGS) <= set(data["prot"].var_names)


def typed(folder, names, types, counts):
    """An .h5ad of 3 genes and of features of some types."""
    genes = ["CD3E", "CD4", "LYZ"]
    matrix = np.hstack([np.random.default_rng(1).poisson(2.0, (60, 3)) + 1, counts])
    var = pd.DataFrame({"feature_types": ["Gene Expression"] * 3 + types}, index=genes + names)
    obs = pd.DataFrame({"batch": ["a"] * 30 + ["b"] * 30}, index=[f"cell_{i}" for i in range(60)])
    with warnings.catch_warnings(action="ignore"):
        adata = anndata.AnnData(sparse.csr_matrix(matrix.astype(np.float32)), obs=obs, var=var)
    adata.write_h5ad(folder / "typed.h5ad")
    return folder / "typed.h5ad"


@pytest.mark.filterwarnings("ignore:.*names are not unique")
@pytest.mark.parametrize("unmeasured", [None, "zeros"])
def test_hashtags_by_type_and_by_name_come_together(tmp_path, unmeasured):
    rng = np.random.default_rng(2)
    tags = np.zeros((60, 4))
    tags[np.arange(60), np.arange(60) % 4] = 90
    tags[:30, 3] = 0  # not used in the first batch, and measured all the same
    counts = np.hstack([rng.poisson(9.0, (60, 2)) + 1, tags])
    names = ["protein_0", "protein_1", "Hashtag_1", "Hashtag_2", "CMO301", "CMO302"]
    types = ["Antibody Capture"] * 4 + ["Multiplexing Capture"] * 2
    path = typed(tmp_path, names, types, counts)
    keys = Columns(batch_key="batch")
    data, found_keys, rows = open_input(path, keys, ReadOptions(), unmeasured)
    prepare_on_disk(data, found_keys, tmp_path / "store.zarr", rows=rows)
    found = mudata.read_zarr(tmp_path / "store.zarr")
    expected = prepare(*read_input(path, keys, ReadOptions(), unmeasured)).mdata
    assert set(found["hto"].var_names) == set(expected["hto"].var_names) == set(names[2:])
    for name in names[2:]:
        values = (part["hto"][:, name].X for part in (found, expected))
        values = [sparse.csr_matrix(value).toarray() for value in values]
        np.testing.assert_array_equal(*values)
    assert list(found["prot"].var_names) == names[:2]


@pytest.mark.filterwarnings("ignore:.*names are not unique")
def test_a_hashtag_with_the_name_of_an_antibody_takes_nothing_away(tmp_path):
    counts = np.random.default_rng(3).poisson(9.0, (60, 4)) + 1
    names = ["CD298", "protein_1", "CD298", "CMO302"]
    types = ["Antibody Capture"] * 2 + ["Multiplexing Capture"] * 2
    found, _, _ = on_disk(typed(tmp_path, names, types, counts), tmp_path / "store.zarr")
    assert list(found["prot"].var_names) == ["CD298", "protein_1"]
    np.testing.assert_array_equal(found["prot"].X, counts[:, :2])
    assert list(found["hto"].var_names) == ["CD298", "CMO302"]


def test_hashtags_alone_are_no_proteins(tmp_path):
    cells = totalvi.simulate(60, 30, 2, seed=1, store_truth=False)
    cells["prot"].var_names = ["Hashtag_1", "Hashtag_2"]
    cells.write(tmp_path / "cells.h5mu")
    for write in (on_disk, convert_counts):
        with pytest.raises(DataError, match="no proteins at all, only hashtags"):
            write(tmp_path / "cells.h5mu", tmp_path / "store.zarr")


def test_a_second_modality_of_hashtags_is_refused(folder, tmp_path):
    convert_counts(folder / "cells.h5mu", tmp_path / "cells.zarr")
    with pytest.raises(ReadError, match='has a modality "hto"'):
        open_input(tmp_path / "cells.zarr", Columns(), ReadOptions(hashtags=["protein_0"]))


@pytest.mark.parametrize("kind", KINDS)
def test_a_converted_store_has_them_apart(folder, tmp_path, kind):
    store = tmp_path / "converted.zarr"
    convert_counts(folder / kind, store)
    with pytest.raises(OutputError):
        convert_counts(folder / kind, store)
    found = mudata.read_zarr(store)
    assert list(found["hto"].var_names) == TAGS
    assert list(found["no_antibody"].var_names) == OTHERS
    assert list(found["prot"].var_names) == [f"protein_{i}" for i in range(5)] + CONTROL
    if kind.startswith("cells"):
        half = np.asarray(found["prot"].layers["half"])
        np.testing.assert_allclose(half, found["prot"].X / 2)


def slashed(folder):
    """Cells whose annotation has slashes in its names, wherever a name is."""
    cells = totalvi.simulate(60, 30, 4, 2, seed=1, store_truth=False)
    rna = anndata.AnnData(cells["rna"].X, obs=cells.obs.rename(columns={"batch": "donor/id"}))
    rna.var_names = cells["rna"].var_names
    rna.var["a/b"] = 1.0
    rna.obs["site/of/origin"] = np.where(np.arange(60) < 30, "x", "y")
    rna.obsm["protein_expression"] = cells["prot"].to_df().rename(columns={"protein_0": "CD66a/c"})
    rna.obsm["others"] = pd.DataFrame({"c/d": np.arange(60.0)}, index=rna.obs_names)
    rna.write_h5ad(folder / "slashed.h5ad")
    return folder / "slashed.h5ad"


@pytest.mark.filterwarnings("ignore:Forward slashes")
def test_names_with_a_slash_have_none_in_a_store(tmp_path):
    path = slashed(tmp_path)
    keys = {"batch_key": "donor/id", "labels_key": "site/of/origin"}
    made = run(path, tmp_path / "out", on_disk=True, max_epochs=1, hierarchy="none", **keys)
    assert made.record["arguments"]["batch_key"] == "donor/id"
    assert any('"donor/id" is "donor_id"' in note for note in made.record["notes"])
    results = mudata.read_zarr(made.folder / "results.zarr")
    assert {"donor_id", "site_of_origin"} <= set(results.obs)
    assert "CD66a/c" in results["prot"].var_names
    assert list(results["rna"].obsm["others"]) == ["c_d"]
    trained = train_model(
        path, tmp_path / "a.totalvi", Columns(**keys), ReadOptions(), on_disk=True, max_epochs=1
    )
    assert trained.model.schema.batch_names == ("batch_0", "batch_1")


@pytest.mark.filterwarnings("ignore:Forward slashes")
def test_two_names_that_would_be_one_are_refused(tmp_path):
    path = slashed(tmp_path)
    adata = anndata.read_h5ad(path)
    adata.obs["donor_id"] = 1
    adata.write_h5ad(path)
    with pytest.raises(DataError, match='"donor/id", "donor_id" would have one name'):
        convert_counts(path, tmp_path / "cells.zarr")


def test_proteins_of_one_name_are_told_apart_on_disk_too(tmp_path):
    cells = totalvi.simulate(60, 30, 4, seed=1, store_truth=False)
    rna = anndata.AnnData(cells["rna"].X, var=pd.DataFrame(index=cells["rna"].var_names))
    rna.obsm["protein_expression"] = np.asarray(cells["prot"].X)
    rna.uns["protein_names"] = ["CD3", "CD45", "CD45", "CD4"]
    rna.write_h5ad(tmp_path / "cells.h5ad")
    found, findings, _ = on_disk(tmp_path / "cells.h5ad", tmp_path / "store.zarr")
    assert list(found["prot"].var_names) == ["CD3", "CD45", "CD45-1", "CD4"]
    assert "feature_renamed" in {finding.code for finding in findings}


def test_a_store_without_raw_lacks_nothing(folder, tmp_path):
    adata = anndata.read_h5ad(folder / "features.h5ad")
    adata.write_zarr(tmp_path / "cells.zarr")
    _, findings, _ = on_disk(tmp_path / "cells.zarr", tmp_path / "store.zarr")
    assert "unread" not in {finding.code for finding in findings}
