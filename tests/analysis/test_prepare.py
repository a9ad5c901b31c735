"""From what was read to the cells and genes of the fit."""

from pathlib import Path

import anndata
import mudata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from totalvi.analysis.prepare import ReadOptions, prepare, read_input
from totalvi.data.cite import Keys
from totalvi.data.simulate import simulate
from totalvi.errors import DataError

# Of mudata, about a default that its next version changes.
pytestmark = pytest.mark.filterwarnings("ignore:From 0.4:FutureWarning")


@pytest.fixture
def data() -> mudata.MuData:
    return simulate(n_cells=80, n_genes=60, n_proteins=10, n_batches=2, seed=1)


def dense(counts: object) -> np.ndarray:
    return counts.toarray() if sparse.issparse(counts) else np.asarray(counts)


def test_counts_and_annotation_come_through(data: mudata.MuData) -> None:
    data["rna"].X[:, 7] = 0
    before = dense(data["rna"].X).copy()
    found = prepare(data, Keys(batch_key="batch"))
    kept = [gene for gene in data["rna"].var_names if gene in found.mdata["rna"].var_names]
    assert kept == found.mdata["rna"].var_names.tolist()
    assert data["rna"].var_names[7] not in kept
    np.testing.assert_array_equal(dense(found.mdata["rna"].X), dense(data["rna"][:, kept].X))
    np.testing.assert_array_equal(found.mdata["prot"].X, data["prot"].X)
    assert found.mdata["prot"].var["control"].sum() == data["prot"].var["control"].sum() > 0
    assert found.mdata.obs["cell_type"].tolist() == data.obs["cell_type"].tolist()
    assert found.mdata["rna"].X.dtype == found.mdata["prot"].X.dtype == np.float32
    (note,) = [f.message for f in found.findings if f.code == "genes_left_out"]
    assert note.startswith("left out: 1 ")
    np.testing.assert_array_equal(dense(data["rna"].X), before)


def test_variable_genes_are_selected_above_the_limit(data: mudata.MuData) -> None:
    found = prepare(data, Keys(), n_genes=20)
    assert found.mdata["rna"].n_vars == 20
    assert any(f.code == "genes_selected" for f in found.findings)
    assert prepare(data, Keys(), n_genes=60).mdata["rna"].n_vars <= 60
    assert not any(f.code == "genes_selected" for f in prepare(data, Keys(), n_genes=60).findings)


def test_cells_without_rna_are_left_out_with_a_warning_or_refused(data: mudata.MuData) -> None:
    rna = data["rna"].X.tolil()
    rna[3] = 0
    data["rna"].X = rna.tocsr()
    with pytest.raises(DataError, match="no RNA count"):
        prepare(data, Keys(), drop_empty_cells=False)
    found = prepare(data, Keys())
    assert found.mdata.obs_names.tolist() == data.obs_names.delete(3).tolist()
    messages = [f.message for f in found.findings if f.severity == "warning"]
    assert any(message.startswith("left out: 1 without any RNA count") for message in messages)


def test_cells_with_an_unmeasured_panel_or_nan_are_not_dropped(data: mudata.MuData) -> None:
    data["prot"].X[np.asarray(data.obs["batch"] == "batch_1")] = np.nan
    keys = Keys(batch_key="batch")
    assert prepare(data, keys).mdata.n_obs == 80
    rna = data["rna"].X.tolil()
    rna[3] = 0
    rna[3, 0] = np.nan
    data["rna"].X = rna.tocsr()
    with pytest.raises(DataError, match="NaN"):
        prepare(data, keys)


def test_only_empty_cells_are_refused(data: mudata.MuData) -> None:
    data["rna"].X = data["rna"].X * 0
    with pytest.raises(DataError, match="no cell has any RNA"):
        prepare(data, Keys())


def test_hashtags_come_through_with_the_kept_cells(data: mudata.MuData) -> None:
    tags = anndata.AnnData(np.eye(80, dtype=np.float32), obs=pd.DataFrame(index=data.obs_names))
    rna = data["rna"].X.tolil()
    rna[3] = 0
    data["rna"].X = rna.tocsr()
    with mudata.set_options(pull_on_update=False):
        more = mudata.MuData({**data.mod, "hto": tags})
    found = prepare(more, Keys()).mdata
    assert found["hto"].obs_names.equals(found.obs_names)
    np.testing.assert_array_equal(found["hto"].X, np.delete(np.eye(80), 3, axis=0))


def test_paths_are_read_and_objects_taken_as_they_are(data: mudata.MuData, tmp_path: Path) -> None:
    keys = Keys(protein_expression_obsm_key="antibodies")
    assert read_input(data, keys, ReadOptions()) == (data, keys)
    cells = data["rna"].copy()
    cells.obsm["antibodies"] = pd.DataFrame(
        data["prot"].X, index=cells.obs_names, columns=data["prot"].var_names
    )
    cells.write(tmp_path / "cells.h5ad")
    found, where = read_input(tmp_path / "cells.h5ad", keys, ReadOptions())
    assert where.protein_expression_obsm_key is None
    np.testing.assert_array_equal(dense(prepare(found, where).mdata["prot"].X), data["prot"].X)
    in_memory = prepare(cells, keys).mdata
    np.testing.assert_array_equal(dense(in_memory["prot"].X), data["prot"].X)
