"""`totalvi impute`: files in, imputed proteins out."""

import json
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from mudata import MuData
from scipy import sparse

import totalvi
from totalvi.cli.main import execute
from totalvi.errors import DataError, OutputError
from totalvi.run.impute import impute
from totalvi.run.imputed import LEVEL_NOTE, NOT_TOLD, level_notes, unreliable_warnings

# Of mudata, about a default that its next version changes.
pytestmark = pytest.mark.filterwarnings("ignore:From 0.4:FutureWarning")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A reference with proteins and donors, and a query of RNA alone with an annotation."""
    folder = tmp_path_factory.mktemp("inputs")
    mdata = totalvi.simulate(n_cells=160, n_genes=40, n_proteins=4, store_truth=False, seed=1)
    mdata["prot"].var_names = ["CD3", "CD4", "CD19", "PD-1"]
    mdata.obs = pd.DataFrame({"donor": ["a", "b"] * 80}, index=mdata.obs_names)
    mdata.write(folder / "reference.h5mu")
    rna = totalvi.simulate(n_cells=60, n_genes=40, n_proteins=4, store_truth=False, seed=2)["rna"]
    rna.obs = pd.DataFrame({"type": ["x", "y", "z"] * 20}, index=rna.obs_names)
    rna.write(folder / "query.h5ad")
    return folder / "reference.h5mu", folder / "query.h5ad"


def test_one_command(
    inputs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    given = [*map(str, inputs), "-o", str(output), "--epochs", "3", "--samples", "20"]
    assert execute(["impute", *given]) == 0
    printed = capsys.readouterr().out
    assert "4 proteins imputed in 60 cells from 160 cells and 40 genes" in printed
    assert "reference, used: 40 genes" in printed
    assert "and 4 proteins" in printed
    assert "query, used: 40 genes" in printed
    adata = anndata.read_h5ad(output / "imputed.h5ad")
    query = anndata.read_h5ad(inputs[1])
    assert list(adata.obs_names) == list(query.obs_names)
    assert list(adata.obs["type"]) == list(query.obs["type"])
    assert {"sd", "log1p", "lower", "upper", "foreground_probability"} == set(adata.layers)
    foreground = adata.layers["foreground_probability"]
    assert ((foreground > 0) & (foreground < 1)).all()
    assert np.isfinite(adata.X).all()
    assert (adata.layers["sd"] > 0).all()
    correlations = {"pearson", "pearson_lower", "within_pearson", "within_pearson_lower"}
    of_each = {"model_pearson", "ridge_pearson", "neighbours_pearson", "model_is_best"}
    own = {"n_cells", "rmse", "coverage", "reliable", *correlations}
    assert own | of_each == set(adata.var.columns)
    mean = pd.read_csv(output / "tables" / "mean.csv.gz", index_col=0)
    np.testing.assert_allclose(mean, adata.to_df(), rtol=1e-3)
    record = json.loads((output / "run.json").read_text())
    assert len(record["input_sha256"]) == 2
    assert LEVEL_NOTE in record["notes"]
    assert pd.read_csv(output / "tables" / "levels.csv")["level"].isna().all()
    assert record["warnings"][-1:] == unreliable_warnings(adata.var)
    names = pd.read_csv(output / "tables" / "antibodies.csv")
    assert set(names["harmonised"]) == set(adata.var_names) == {"CD3", "CD4", "CD19", "CD279"}
    model = totalvi.Model.load(output / "model.totalvi")
    assert model.schema.batch_names == ("reference", "query")
    assert execute(["impute", *given]) == 2
    assert "not empty" in capsys.readouterr().err


def test_the_cells_of_the_query_are_named(inputs: tuple[Path, Path], tmp_path: Path) -> None:
    output, hierarchy = tmp_path / "out", tmp_path / "gates.txt"
    hierarchy.write_text("T: CD3+\nCD4 T: T > CD4+\n", encoding="utf-8")
    impute(*inputs, output, batch_key="donor", max_epochs=2, n_samples=20)
    assert execute(["gate", str(output), "--hierarchy", str(hierarchy)]) == 0
    table = pd.read_csv(output / "tables" / "memberships.csv.gz", index_col="cell")
    assert table.index.tolist() == anndata.read_h5ad(output / "imputed.h5ad").obs_names.tolist()
    assert table[["T", "CD4 T"]].apply(lambda column: column.between(0, 1)).all(axis=None)
    assert (table["CD4 T"] <= table["T"]).all()
    gate_by_type = ["gate", str(output), "--hierarchy", str(hierarchy), "--sample", "type"]
    assert execute(gate_by_type) == 0
    by_type = pd.read_csv(output / "tables" / "population_samples.csv")
    assert set(by_type["sample"]) == set(anndata.read_h5ad(inputs[1]).obs["type"])


def test_cells_of_the_reference_may_lack_a_modality(
    inputs: tuple[Path, Path], tmp_path: Path
) -> None:
    """The query has RNA, and is mapped on a fit of a mosaic."""
    reference = totalvi.read(inputs[0])
    rna, protein = reference["rna"][:130].copy(), reference["prot"][40:].copy()
    mosaic = MuData({"rna": rna, "prot": protein})
    mosaic.write(tmp_path / "mosaic.h5mu")
    given = {"max_epochs": 2, "n_samples": 20, "mosaic": True}
    result = impute(tmp_path / "mosaic.h5mu", inputs[1], tmp_path / "out", **given)
    assert result.record["reference_cells"] == 160
    assert np.isfinite(anndata.read_h5ad(result.folder / "imputed.h5ad").X).all()


def test_batches_within_the_reference(inputs: tuple[Path, Path], tmp_path: Path) -> None:
    result = impute(*inputs, tmp_path / "out", batch_key="donor", max_epochs=2, n_samples=20)
    model = totalvi.Model.load(result.folder / "model.totalvi")
    assert model.schema.batch_names == ("reference:a", "reference:b", "query")
    assert model.schema.panel_names == ("reference", "query")
    assert result.record["reference_cells"] == 160


def test_a_query_with_another_panel_gets_what_it_lacks(
    inputs: tuple[Path, Path], tmp_path: Path
) -> None:
    reference = totalvi.read(inputs[0])
    query = totalvi.simulate(n_cells=50, n_genes=40, n_proteins=4, store_truth=False, seed=3)
    protein = query["prot"].copy()
    protein.var_names = ["CD19_TotalSeqB", "CD4", "CD3", "CD8"]
    query = MuData({"rna": query["rna"], "prot": protein})
    result = impute(reference, query, tmp_path / "out", max_epochs=2, n_samples=20)
    adata = anndata.read_h5ad(result.folder / "imputed.h5ad")
    assert list(adata.var_names) == ["CD279"]
    level = pd.read_csv(result.folder / "tables" / "levels.csv").iloc[0]
    assert level["n_proteins"] == 3
    assert level["lower"] <= level["level"] <= level["upper"]
    notes = result.record["notes"]
    assert any('of "query" are at its own level' in note for note in notes)
    assert 'imputed in the query: 1 of 5 proteins, "CD279".' in notes
    said = 'left out, as the reference did not measure them: 1 of 5 proteins, "CD8a".'
    assert said in notes
    assert not any("to be imputed there" in note for note in notes)
    kept = adata.uns["totalvi"]["levels"]
    assert kept["level"].tolist() == pytest.approx([level["level"]], rel=1e-3)


def test_notes_say_of_which_batches_the_level_is_known() -> None:
    rows = [("query:a", "r"), ("query:a", "s"), ("query:b", "r"), ("query:c", "r")]
    table = pd.DataFrame(
        {"level": [0.2, 0.8, 3.0, np.nan], "lower": [0.1, 0.4, 2.0, np.nan]},
        index=pd.MultiIndex.from_tuples(rows, names=["batch", "decoded"]),
    ).assign(upper=lambda found: 2 * found["level"], n_proteins=[3, 3, 5, 1])
    assert level_notes(table) == [
        'imputed counts of "query:a" are at its own level, 0.4 (0.2 to 0.8), of "query:b" 3 (2 to 6) '
        "times what is expected of the reference.",
        f'of "query:c", {LEVEL_NOTE}',
    ]
    itself = pd.MultiIndex.from_tuples([("query:a", "query:a")], names=table.index.names)
    over_itself = pd.DataFrame(1.0, itself, table.columns).assign(n_proteins=0)
    assert level_notes(pd.concat([table, over_itself])) == level_notes(table)
    assert level_notes(over_itself) == [LEVEL_NOTE]
    assert level_notes(table.iloc[3:]) == [LEVEL_NOTE] == level_notes(table.iloc[:0])


def test_isotype_controls_are_imputed_when_asked(
    inputs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reference = totalvi.read(inputs[0])
    reference["prot"].var_names = ["CD3", "CD4", "CD19", "IgG1 isotype control"]
    reference["prot"].var["control"] = [False, False, False, True]
    reference.update()
    reference.write(tmp_path / "reference.h5mu")
    for options, n_proteins in (([], 3), (["--keep-isotypes"], 4)):
        given = [str(tmp_path / "reference.h5mu"), str(inputs[1]), "--epochs", "2"]
        output = tmp_path / f"out{n_proteins}"
        assert execute(["impute", *given, "-o", str(output), "--samples", "20", *options]) == 0
        assert f"{n_proteins} proteins imputed" in capsys.readouterr().out
        assert anndata.read_h5ad(output / "imputed.h5ad").n_vars == n_proteins


@pytest.mark.parametrize("named", ["query.csv", "query.h5ad", "query.h5mu"])
def test_rna_is_imputed_in_cells_with_proteins_alone(
    inputs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], named: str
) -> None:
    """A table or a file without types does not say that its features are antibodies."""
    proteins = totalvi.simulate(n_cells=50, n_genes=40, n_proteins=4, store_truth=False, seed=4)[
        "prot"
    ].copy()
    proteins.var_names = ["CD3_TotalSeqB", "CD4_TotalSeqB", "CD19_TotalSeqB", "PD-1_TotalSeqB"]
    proteins.var, proteins.obs = proteins.var[[]], proteins.obs[[]]
    query, output = tmp_path / named, tmp_path / "out"
    if named == "query.csv":
        proteins.to_df().to_csv(query)
    elif named == "query.h5ad":
        proteins.write(query)
    else:
        MuData({"prot": proteins}).write(query)
    given = [str(inputs[0]), str(query), "-o", str(output), "--epochs", "3", "--samples", "20"]
    assert execute(["impute", *given]) == 0
    printed = capsys.readouterr().out
    assert "40 genes imputed in 50 cells from 160 cells and 40 genes" in printed
    assert "query, used: 4 proteins" in printed
    assert ("are read as proteins" in printed) == (named != "query.h5mu")
    adata = anndata.read_h5ad(output / "imputed_rna.h5ad")
    assert list(adata.obs_names) == list(proteins.obs_names)
    assert {"log1p", "lower", "upper"} == set(adata.layers)
    assert (adata.layers["lower"] <= adata.layers["upper"]).all()
    assert np.isfinite(adata.X).all()
    assert {"pearson", "ridge_pearson", "coverage", "model_is_best"} <= set(adata.var.columns)
    assert not (output / "imputed.h5ad").exists()
    record = json.loads((output / "run.json").read_text())
    assert (record["proteins"], record["cells_without_rna"]) == (0, 50)
    reliability = pd.read_csv(output / "tables" / "rna_reliability.csv", index_col=0)
    np.testing.assert_allclose(reliability["rmse"], adata.var["rmse"], rtol=1e-3)


def test_cells_with_fewer_proteins_and_no_rna_get_both(
    inputs: tuple[Path, Path], tmp_path: Path
) -> None:
    query = totalvi.simulate(n_cells=50, n_genes=40, n_proteins=4, store_truth=False, seed=4)[
        "prot"
    ]
    query = query[:, :3].copy()
    query.var_names = ["CD3", "CD4", "CD19"]
    result = impute(
        inputs[0], MuData({"prot": query}), tmp_path / "out", max_epochs=2, n_samples=20
    )
    proteins = anndata.read_h5ad(result.folder / "imputed.h5ad")
    rna = anndata.read_h5ad(result.folder / "imputed_rna.h5ad")
    assert list(proteins.var_names) == ["CD279"]
    assert proteins.n_obs == rna.n_obs == 50
    assert rna.n_vars == 40


def test_rna_needs_cells_with_both(inputs: tuple[Path, Path], tmp_path: Path) -> None:
    reference, proteins = totalvi.read(inputs[0]), totalvi.read(inputs[0])["prot"]
    reference.obs["measured_modalities"] = ["rna", "prot"] * 80
    whole = sparse.csr_matrix(reference["rna"].X)
    reference["rna"].X = sparse.csr_matrix(whole.multiply([[1], [0]] * 80))
    counts = reference["prot"].to_df().to_numpy()
    reference["prot"].X = np.where([[True], [False]] * 80, np.nan, counts)
    with pytest.raises(DataError, match="no protein that cells of the reference have beside RNA"):
        impute(reference, MuData({"prot": proteins}), tmp_path / "out", max_epochs=1)
    others = totalvi.read(inputs[0])["prot"].copy()
    others.var_names = ["CD21", "CD22", "CD23", "CD24"]
    with pytest.raises(DataError, match="no protein that cells of the reference have beside RNA"):
        impute(inputs[0], MuData({"prot": others}), tmp_path / "out", max_epochs=1)


def test_too_few_cells_to_say_how_well_rna_is_predicted_is_a_warning(
    inputs: tuple[Path, Path], tmp_path: Path
) -> None:
    reference = totalvi.read(inputs[0])[:90].copy()
    query = MuData({"prot": totalvi.read(inputs[0])["prot"][90:].copy()})
    result = impute(reference, query, tmp_path / "out", max_epochs=1, n_samples=20)
    assert NOT_TOLD in result.record["warnings"]
    rna = anndata.read_h5ad(result.folder / "imputed_rna.h5ad")
    assert (rna.n_obs, rna.n_vars) == (70, 40)
    assert list(rna.var.columns) == []


def test_a_query_of_cells_with_rna_and_of_others_with_proteins_gets_both(
    inputs: tuple[Path, Path], tmp_path: Path
) -> None:
    whole = totalvi.simulate(n_cells=60, n_genes=40, n_proteins=4, store_truth=False, seed=5)
    is_rna = np.arange(60)[:, None] < 30
    query = whole.copy()
    query.obs["measured_modalities"] = ["rna"] * 30 + ["prot"] * 30
    query["rna"].X = sparse.csr_matrix(sparse.csr_matrix(whole["rna"].X).multiply(is_rna))
    query["prot"].X = np.where(is_rna, np.nan, whole["prot"].to_df().to_numpy())
    query["prot"].var_names = ["CD3", "CD4", "CD19", "CD279"]
    result = impute(inputs[0], query, tmp_path / "out", max_epochs=2, n_samples=20)
    of_rna = anndata.read_h5ad(result.folder / "imputed.h5ad")
    of_proteins = anndata.read_h5ad(result.folder / "imputed_rna.h5ad")
    assert list(of_rna.obs_names) == list(whole.obs_names[:30])
    assert of_rna.n_vars == 4
    assert list(of_proteins.obs_names) == list(whole.obs_names[30:])
    assert (result.record["proteins"], result.record["cells_without_rna"]) == (4, 30)


def test_names_that_are_antibodies_and_genes_alike_are_asked_about(
    inputs: tuple[Path, Path], tmp_path: Path
) -> None:
    reference, query = (totalvi.read(path) for path in inputs)
    named = ["CD4", "CD19", *reference["rna"].var_names[2:]]
    reference["rna"].var_names = named
    reference.update()
    both_ways = query["rna"][:, :2].copy()
    both_ways.var_names = ["CD4", "CD19"]
    with pytest.raises(DataError, match="as antibodies and as genes of the reference alike"):
        impute(reference, both_ways, tmp_path / "out", max_epochs=1)


def test_the_references_own_entry_of_obsm_is_used(
    inputs: tuple[Path, Path], tmp_path: Path
) -> None:
    mdata = totalvi.read(inputs[0])
    reference = mdata["rna"].copy()
    reference.obsm["ab"] = mdata["prot"].to_df()
    query = totalvi.read(inputs[1])["rna"].copy()
    result = impute(
        reference, query, tmp_path / "out", protein_expression_obsm_key="ab", max_epochs=1, n_samples=20
    )  # fmt: skip
    assert result.record["proteins"] == 4


def test_counts_of_proteins_alone_may_be_in_a_layer(
    inputs: tuple[Path, Path], tmp_path: Path
) -> None:
    reference = totalvi.read(inputs[0])
    query = reference["prot"][:40].copy()
    query.var = query.var[[]]
    query.layers["counts"] = query.X.copy()
    query.X = query.X * 0.37
    for part in reference.mod.values():
        part.layers["counts"] = part.X.copy()
    result = impute(
        reference, query, tmp_path / "out", rna_layer="counts", protein_layer="counts",
        max_epochs=1, n_samples=20,
    )  # fmt: skip
    assert result.record["cells_without_rna"] == 40


def test_nothing_to_impute_is_said_before_any_work(
    inputs: tuple[Path, Path], tmp_path: Path
) -> None:
    reference, query = (totalvi.read(path) for path in inputs)
    with pytest.raises(DataError, match="query has all proteins of the reference"):
        impute(reference, reference.copy(), tmp_path / "out")
    with pytest.raises(DataError, match="reference has no proteins; give it first"):
        impute(query, reference, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_interrupted_imputation_goes_on(
    inputs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = {"max_epochs": 2, "n_samples": 20}
    whole = impute(*inputs, tmp_path / "whole", **arguments)
    with monkeypatch.context() as patch:
        patch.setattr(totalvi.Model, "get_query_reliability", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            impute(*inputs, tmp_path / "out", **arguments)
    kept = tmp_path / "out.checkpoint"
    assert kept.exists()
    with pytest.raises(OutputError, match="interrupted"):
        impute(*inputs, tmp_path / "out", **arguments)
    with monkeypatch.context() as patch:
        patch.setattr("totalvi.fit.loop.Fit.epoch", _interrupted)  # all steps are done
        resumed = impute(*inputs, tmp_path / "out", resume=True, **arguments)
    assert not kept.exists()
    first, second = (anndata.read_h5ad(r.folder / "imputed.h5ad") for r in (whole, resumed))
    np.testing.assert_array_equal(first.X, second.X)
    with pytest.raises(OutputError, match="another max_epochs"):  # of the default number of epochs
        impute(*inputs, tmp_path / "out", resume=True, n_samples=20)
    again = impute(*inputs, tmp_path / "out", resume=True, **arguments)
    assert again.record["finished"] == resumed.record["finished"]
    assert again.files == resumed.files


def _interrupted(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_a_batch_that_neither_has_is_one_sentence(
    inputs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["impute", *map(str, inputs), "-o", str(tmp_path / "out"), "--batch", "doner"]
    assert execute(command) == 2
    printed = capsys.readouterr().err
    assert (
        "--batch doner is no column of obs of the reference or the query; did you mean" in printed
    )
    assert printed.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_guides_of_a_query_are_left_out_with_a_note(
    inputs: tuple[Path, Path], tmp_path: Path
) -> None:
    reference = totalvi.read(inputs[0])
    query = anndata.read_h5ad(inputs[1])
    query.var["feature_types"] = ["Gene Expression"] * 38 + ["CRISPR Guide Capture"] * 2
    result = impute(reference, query, tmp_path / "out", max_epochs=1, n_samples=20)
    assert result.record["genes"] == 38
    said = 'the query has "crispr_guide_capture" beside its RNA, which is left out.'
    assert said in result.record["notes"]
