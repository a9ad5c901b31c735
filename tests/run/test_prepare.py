"""From what was read to the cells and genes of the fit."""

from pathlib import Path

import anndata
import mudata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from totalvi.data.columns import Columns
from totalvi.data.io.read import ReadOptions
from totalvi.data.simulate import simulate
from totalvi.errors import DataError
from totalvi.run.inputs import read_input
from totalvi.run.prepare import prepare

# Of mudata, about a default that its next version changes.
pytestmark = pytest.mark.filterwarnings("ignore:From 0.4:FutureWarning")


@pytest.fixture
def data() -> mudata.MuData:
    return simulate(n_cells=80, n_genes=60, n_proteins=9, n_batches=2, seed=1)


def dense(counts: object) -> np.ndarray:
    return counts.toarray() if sparse.issparse(counts) else np.asarray(counts)


def test_counts_and_annotation_come_through() -> None:
    data = simulate(n_cells=80, n_genes=60, n_proteins=10, n_batches=2, seed=1)
    data["rna"].X[:, 7] = 0
    before = dense(data["rna"].X).copy()
    found = prepare(data, Columns(batch_key="batch"))
    kept = [gene for gene in data["rna"].var_names if gene in found.mdata["rna"].var_names]
    assert kept == found.mdata["rna"].var_names.tolist()
    assert data["rna"].var_names[7] not in kept
    np.testing.assert_array_equal(dense(found.mdata["rna"].X), dense(data["rna"][:, kept].X))
    control = data["prot"].var["control"].to_numpy()
    np.testing.assert_array_equal(found.mdata["prot"].X, data["prot"].X[:, ~control])
    np.testing.assert_array_equal(found.mdata["isotype"].X, data["prot"].X[:, control])
    assert control.sum() == 1
    kept_in = prepare(data, Columns(batch_key="batch", isotype_controls=())).mdata
    assert kept_in["prot"].n_vars == 10
    assert "isotype" not in kept_in.mod
    assert found.mdata.obs["cell_type"].tolist() == data.obs["cell_type"].tolist()
    assert found.mdata["rna"].X.dtype == found.mdata["prot"].X.dtype == np.float32
    (note,) = [f.message for f in found.findings if f.code == "genes_left_out"]
    assert note.startswith("left out: 1 ")
    np.testing.assert_array_equal(dense(data["rna"].X), before)


def test_variable_genes_are_selected_above_the_limit(data: mudata.MuData) -> None:
    found = prepare(data, Columns(), n_genes=20)
    assert found.mdata["rna"].n_vars == 20
    assert any(f.code == "genes_selected" for f in found.findings)
    assert prepare(data, Columns(), n_genes=60).mdata["rna"].n_vars <= 60
    assert not any(
        f.code == "genes_selected" for f in prepare(data, Columns(), n_genes=60).findings
    )


def test_cells_without_rna_are_left_out_with_a_warning_or_refused(data: mudata.MuData) -> None:
    rna = data["rna"].X.tolil()
    rna[3] = 0
    data["rna"].X = rna.tocsr()
    with pytest.raises(DataError, match="no RNA count"):
        prepare(data, Columns(), drop_empty_cells=False)
    found = prepare(data, Columns())
    assert found.mdata.obs_names.tolist() == data.obs_names.delete(3).tolist()
    messages = [f.message for f in found.findings if f.severity == "warning"]
    assert any(message.startswith("left out: 1 without any RNA count") for message in messages)


def test_cells_with_an_unmeasured_panel_or_nan_are_not_dropped(data: mudata.MuData) -> None:
    data["prot"].X[np.asarray(data.obs["batch"] == "batch_1")] = np.nan
    keys = Columns(batch_key="batch")
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
        prepare(data, Columns())


def test_hashtags_come_through_with_the_kept_cells(data: mudata.MuData) -> None:
    tags = anndata.AnnData(np.eye(80, dtype=np.float32), obs=pd.DataFrame(index=data.obs_names))
    rna = data["rna"].X.tolil()
    rna[3] = 0
    data["rna"].X = rna.tocsr()
    with mudata.set_options(pull_on_update=False):
        more = mudata.MuData({**data.mod, "hto": tags})
    found = prepare(more, Columns()).mdata
    assert found["hto"].obs_names.equals(found.obs_names)
    np.testing.assert_array_equal(found["hto"].X, np.delete(np.eye(80), 3, axis=0))


def test_cells_without_a_selected_gene_are_left_out(data: mudata.MuData) -> None:
    chosen = prepare(data, Columns(), n_genes=20).mdata["rna"].var_names
    rna = data["rna"].X.tolil()
    rna[3] = 0
    rna[3, np.flatnonzero(~data["rna"].var_names.isin(chosen))[0]] = 1
    data["rna"].X = rna.tocsr()
    found = prepare(data, Columns(), n_genes=20)
    assert found.mdata.obs_names.tolist() == data.obs_names.delete(3).tolist()
    np.testing.assert_array_equal(
        found.mdata["prot"].X, np.delete(np.asarray(data["prot"].X), 3, axis=0)
    )
    messages = [f.message for f in found.findings if f.severity == "warning"]
    assert "left out: 1 without a count of the selected genes, of 80 cells." in messages
    with pytest.raises(DataError, match="of the selected genes, such as"):
        prepare(data, Columns(), n_genes=20, drop_empty_cells=False)


@pytest.mark.parametrize("change", ["reversed", "more", "fewer", "others"])
def test_hashtags_are_matched_by_name(data: mudata.MuData, change: str) -> None:
    names = data.obs_names
    of_hashtags = {
        "reversed": names[::-1],
        "more": names.append(pd.Index(["extra"])),
        "fewer": names[:-1],
        "others": names[:-1].append(pd.Index(["extra"])),
    }[change]
    values = np.array([[hash(name) % 1000] for name in of_hashtags], dtype=np.float32)
    tags = anndata.AnnData(values, obs=pd.DataFrame(index=of_hashtags))
    with mudata.set_options(pull_on_update=False):
        more = mudata.MuData({**data.mod, "hto": tags})
    found = prepare(more, Columns())
    matched = change in ("reversed", "more")
    assert ("hto" in found.mdata.mod) == matched
    assert any(f.code == "hashtags_left_out" for f in found.findings) != matched
    assert found.mdata.obs_names.tolist() == names.tolist()
    if matched:
        assert found.mdata["hto"].obs_names.tolist() == names.tolist()
        assert found.mdata["hto"].X[:, 0].tolist() == [hash(name) % 1000 for name in names]


def test_controls_written_as_text_are_read(data: mudata.MuData) -> None:
    marks = data["prot"].var["control"].to_numpy()
    for written in (marks.astype(str), pd.Categorical(marks.astype(str)), marks.astype(int)):
        data["prot"].var["control"] = written
        found = prepare(data, Columns()).mdata["prot"].var["control"]
        assert found.dtype == bool
        assert found.tolist() == marks.tolist()
    data["prot"].var["control"] = ["maybe"] * 9
    with pytest.raises(DataError, match='is "maybe"'):
        prepare(data, Columns())


def test_paths_are_read_and_objects_taken_as_they_are(data: mudata.MuData, tmp_path: Path) -> None:
    keys = Columns(protein_expression_obsm_key="antibodies")
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


def test_annotation_of_features_comes_through(data: mudata.MuData) -> None:
    rna, protein = data["rna"], data["prot"]
    rna.X[:, 7] = 0
    for modality, kind in ((rna, "Gene Expression"), (protein, "antibody capture")):
        modality.var["gene_ids"] = [f"{kind[0]}{i}" for i in range(modality.n_vars)]
        modality.var["feature_types"] = kind
    both = anndata.concat([rna, protein], axis="var", join="outer", merge="first")
    both.var["control"] = both.var["control"].astype("boolean").fillna(False)
    separate = rna.copy()
    separate.obsm["antibodies"] = pd.DataFrame(protein.X, data.obs_names, protein.var_names)
    in_obsm = Columns(protein_expression_obsm_key="antibodies")
    for given, keys in ((data, Columns()), (both, Columns()), (separate, in_obsm)):
        found = prepare(given, keys).mdata
        genes = rna.var["gene_ids"].drop(rna.var_names[7])
        assert found["rna"].var["gene_ids"].to_dict().items() <= genes.to_dict().items()
        assert "G7" not in found["rna"].var["gene_ids"].tolist()
        assert found["rna"].n_vars > 40
        if given is not separate:
            pd.testing.assert_series_equal(
                found["prot"].var["gene_ids"], protein.var["gene_ids"], check_index_type=False
            )
            assert found["prot"].var["control"].tolist() == protein.var["control"].tolist()
        assert found["prot"].var_names.tolist() == protein.var_names.tolist()


def test_batches_without_a_say_are_a_warning(data: mudata.MuData) -> None:
    counts = dense(data["rna"].X)
    counts[40:] = 1
    data["rna"].X = sparse.csr_matrix(counts)
    data.obs["half"] = np.repeat(["good", "flat"], 40)
    found = prepare(data, Columns(batch_key="half"), n_genes=20)
    (warning,) = [f for f in found.findings if f.code == "batches_left_out"]
    assert warning.severity == "warning"
    assert "batch 'flat'" in warning.message


def test_renamed_features_are_noted(tmp_path: Path) -> None:
    cells = [f"ACGTACGTACGT-{i}" for i in range(12)]
    rng = np.random.default_rng(0)
    rna = pd.DataFrame(rng.poisson(3, (3, 12)), ["TBCE", "CD4", "TBCE"], cells)
    rna.to_csv(tmp_path / "rna.csv")
    protein = pd.DataFrame(rng.poisson(9, (2, 12)), ["CD4", "CD3"], cells)
    protein.to_csv(tmp_path / "protein.csv")
    options = ReadOptions(protein_path=tmp_path / "protein.csv")
    found = prepare(*read_input(tmp_path / "rna.csv", Columns(), options))
    (note,) = [f for f in found.findings if f.code == "feature_renamed"]
    assert (note.severity, note.message.split(",")[0]) == (
        "note",
        '1 feature was renamed in modality "rna"',
    )
    assert '"TBCE" to "TBCE-1"' in note.message
    assert found.mdata["rna"].var["name_in_file"].tolist() == ["TBCE", "CD4", "TBCE"]
