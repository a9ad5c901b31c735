"""`totalvi convert --to cellxgene`: the file has the layout of the schema, and lists what it lacks."""

import shutil
from pathlib import Path

import anndata as ad
import h5py
import mudata
import numpy as np
import pandas as pd
import pytest
from anndata.io import read_elem, write_elem
from scipy import sparse

import totalvi
from totalvi.cli.main import execute
from totalvi.run.cellxgene import REQUIRED_OBS, write_cellxgene
from totalvi.run.run import run

pytestmark = pytest.mark.filterwarnings("ignore")
N_CELLS, N_GENES, N_MODELLED = 150, 90, 60
TERMS = {
    "assay_ontology_term_id": "EFO:0030080",
    "cell_type_ontology_term_id": "@term",
    "development_stage_ontology_term_id": "unknown",
    "disease_ontology_term_id": "PATO:0000461",
    "donor_id": "@batch",
    "is_primary_data": "True",
    "self_reported_ethnicity_ontology_term_id": "unknown",
    "sex_ontology_term_id": "unknown",
    "suspension_type": "cell",
    "tissue_ontology_term_id": "UBERON:0000178",
    "tissue_type": "tissue",
}


def ensembl(number: int) -> str:
    return f"ENSG{number:011d}"


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of fewer genes than the file has."""
    place = tmp_path_factory.mktemp("runs")
    data = totalvi.simulate(N_CELLS, N_GENES, 5, n_batches=2, seed=2)
    data["rna"].var["gene_ids"] = [f"{ensembl(i)}.7" for i in range(N_GENES)]
    term = np.where(np.arange(N_CELLS) % 2, "CL:0000084", "CL:0000236")
    data.obs = data.obs.assign(cell_type=[f"type {i % 3}" for i in range(N_CELLS)], term=term)
    data.write(place / "cells.h5mu")
    run(
        place / "cells.h5mu",
        place / "results",
        batch_key="batch",
        n_genes=N_MODELLED,
        max_epochs=2,
        hierarchy="none",
        progress=False,
    )
    return place / "results"


@pytest.fixture(scope="module")
def written(results: Path) -> ad.AnnData:
    path = results.parent / "blood.h5ad"
    made = write_cellxgene(results, path, obs=TERMS, title="Blood", organism="NCBITaxon:9606")
    assert made.path == path
    assert made.missing == []
    assert made.notes == ['renamed: obs["cell_type"] is now "author_cell_type".']
    return ad.read_h5ad(path)


def test_raw_counts_of_all_genes_are_under_their_ids(results: Path, written: ad.AnnData) -> None:
    given = mudata.read_h5mu(results.parent / "cells.h5mu")["rna"]
    assert written.shape == (N_CELLS, N_GENES)
    raw = written.raw
    assert list(raw.var_names) == list(written.var_names) == [ensembl(i) for i in range(N_GENES)]
    assert isinstance(raw.X, sparse.csr_matrix)
    assert isinstance(written.X, sparse.csr_matrix)
    assert raw.X.dtype == written.X.dtype == np.float32
    np.testing.assert_array_equal(raw.X.toarray(), given.X.toarray())
    counts = raw.X.toarray()
    expected = np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True))
    np.testing.assert_allclose(written.X.toarray(), expected, rtol=1e-5)
    assert list(written.var["gene_symbol"]) == list(given.var_names)
    assert not written.var["feature_is_filtered"].any()
    assert written.var["feature_is_filtered"].dtype == bool
    assert "feature_is_filtered" not in raw.var


def test_annotation_is_categories_and_nothing_reserved(written: ad.AnnData) -> None:
    assert set(TERMS) == set(REQUIRED_OBS)
    assert set(REQUIRED_OBS) <= set(written.obs)
    assert "cell_type" not in written.obs
    assert set(written.obs["author_cell_type"]) == {"type 0", "type 1", "type 2"}
    assert written.obs["is_primary_data"].dtype == bool
    assert written.obs["donor_id"].astype(str).equals(written.obs["batch"].astype(str))
    assert set(written.obs["cell_type_ontology_term_id"]) == {"CL:0000084", "CL:0000236"}
    kinds = [kind for name, kind in written.obs.dtypes.items() if name != "is_primary_data"]
    texts = [kind for kind in kinds if not pd.api.types.is_numeric_dtype(kind)]
    assert all(isinstance(kind, pd.CategoricalDtype) for kind in texts)
    assert written.uns["title"] == "Blood"
    assert written.uns["organism_ontology_term_id"] == "NCBITaxon:9606"
    assert written.uns["default_embedding"] == "X_umap"


def test_embeddings_and_proteins_are_those_of_the_results(
    results: Path, written: ad.AnnData
) -> None:
    whole = mudata.read_h5mu(results / "results.h5mu")
    for name in ("X_totalvi", "X_umap"):
        np.testing.assert_array_equal(written.obsm[name], whole.obsm[name])
    protein = whole["prot"]
    np.testing.assert_array_equal(written.obsm["protein_counts"], protein.X)
    np.testing.assert_array_equal(written.obsm["protein_denoised"], protein.layers["denoised"])
    assert list(written.uns["protein_names"]) == list(protein.var_names)
    assert all(isinstance(values, np.ndarray) for values in written.obsm.values())


def test_the_command_lists_what_is_missing(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "blood.h5ad"
    command = ["convert", str(results), "-o", str(path), "--to", "cellxgene"]
    assert execute([*command, "--obs", "donor_id=@batch", "--title", "Blood"]) == 0
    note, warning, last = capsys.readouterr().out.splitlines()
    assert note.startswith('note: renamed: obs["cell_type"]')
    assert 'obs["assay_ontology_term_id"]' in warning
    assert 'uns["organism_ontology_term_id"]' in warning
    assert "donor_id" not in warning
    assert 'uns["title"]' not in warning
    assert last == str(path)
    assert execute(command) == 2
    assert "--overwrite" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--obs", "donor_id"], "--obs donor_id has no value; give it as NAME=TEXT"),
        (["--obs", "donor_id=@lane"], "has no column 'lane', which donor_id is to be"),
        (["--obs", "tissue=blood"], "give tissue_ontology_term_id instead"),
        (["--obs", "is_primary_data=maybe"], "allowed are true, false"),
    ],
)
def test_wrong_columns_are_refused_and_nothing_is_written(
    results: Path,
    tmp_path: Path,
    more: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["convert", str(results), str(tmp_path / "a.h5ad"), "--to", "cellxgene", *more]
    assert execute(command) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def changed(results: Path, tmp_path: Path) -> Path:
    """A copy of the results to be changed."""
    folder = tmp_path / "results"
    folder.mkdir()
    shutil.copy(results / "results.h5mu", folder)
    return folder


def rewrite(folder: Path, place: str, change: object) -> None:
    with h5py.File(folder / "results.h5mu", "r+") as root:
        values = change(read_elem(root[place]))  # type: ignore[operator]
        write_elem(root, place, values)


def test_genes_without_ids_are_an_error_that_names_the_fix(changed: Path, tmp_path: Path) -> None:
    for place in ("mod/rna/var", "mod/rna/raw/var"):
        rewrite(changed, place, lambda table: table.drop(columns="gene_ids"))
    with pytest.raises(
        totalvi.errors.DataError, match=r'no Ensembl id for 90 genes.*var\["gene_ids"\]'
    ):
        write_cellxgene(changed, tmp_path / "a.h5ad")


def test_an_id_that_two_rows_have_is_an_error(changed: Path, tmp_path: Path) -> None:
    def same(table: pd.DataFrame) -> pd.DataFrame:
        return table.assign(gene_ids=[ensembl(max(i, 1)) for i in range(len(table))])

    rewrite(changed, "mod/rna/raw/var", same)
    with pytest.raises(totalvi.errors.DataError, match="1 Ensembl id twice"):
        write_cellxgene(changed, tmp_path / "a.h5ad")


def test_cells_without_rna_are_left_out(changed: Path, tmp_path: Path) -> None:
    def empty_first(counts: sparse.csr_matrix) -> sparse.csr_matrix:
        return sparse.vstack([sparse.csr_matrix((1, counts.shape[1])), counts[1:]], format="csr")

    rewrite(changed, "mod/rna/raw/X", empty_first)
    made = write_cellxgene(changed, tmp_path / "a.h5ad")
    assert "left out: 1 cell without RNA." in made.notes
    found, whole = ad.read_h5ad(made.path), mudata.read_h5mu(changed / "results.h5mu")
    assert list(found.obs_names) == list(whole.obs_names[1:])
    np.testing.assert_array_equal(found.obsm["X_umap"], whole.obsm["X_umap"][1:])


def test_genes_that_the_annotation_lacks_are_left_out(results: Path, tmp_path: Path) -> None:
    table = tmp_path / "genes.csv"
    table.write_text("".join(f"{ensembl(i)},gene {i},1\n" for i in range(0, N_GENES, 2)))
    made = write_cellxgene(results, tmp_path / "a.h5ad", known_genes=table)
    assert f"left out: 45 genes that {table} does not list." in made.notes
    found, whole = ad.read_h5ad(made.path), mudata.read_h5mu(results.parent / "cells.h5mu")["rna"]
    kept = [ensembl(i) for i in range(0, N_GENES, 2)]
    assert list(found.var_names) == list(found.raw.var_names) == kept
    np.testing.assert_array_equal(found.raw.X.toarray(), whole.X.toarray()[:, ::2])
    for wrong, message in {
        "a,b\n": "lists none of the genes",
        "": "is not a table of genes",
    }.items():
        table.write_text(wrong)
        with pytest.raises(totalvi.errors.DataError, match=message):
            write_cellxgene(results, tmp_path / "b.h5ad", known_genes=table)


def test_the_title_of_the_data_is_kept(changed: Path, tmp_path: Path) -> None:
    rewrite(changed, "uns", lambda uns: uns | {"title": "Blood of two donors"})
    made = write_cellxgene(changed, tmp_path / "a.h5ad")
    assert 'uns["title"]' not in made.missing
    assert ad.read_h5ad(made.path).uns["title"] == "Blood of two donors"


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(totalvi.errors.DataError, match=r"neither results\.h5mu nor results\.zarr"):
        write_cellxgene(tmp_path, tmp_path / "a.h5ad")


def test_a_renamed_column_takes_no_other_ones_name(changed: Path, tmp_path: Path) -> None:
    rewrite(changed, "obs", lambda obs: obs.assign(author_cell_type="mine"))
    made = write_cellxgene(changed, tmp_path / "cells.h5ad", obs=TERMS)
    assert 'renamed: obs["cell_type"] is now "author_author_cell_type".' in made.notes
    assert set(ad.read_h5ad(made.path).obs["author_cell_type"]) == {"mine"}


def test_required_columns_are_texts_of_all_cells(changed: Path, tmp_path: Path) -> None:
    donor = np.where(np.arange(N_CELLS) < 9, np.nan, 7.0)
    rewrite(changed, "obs", lambda obs: obs.assign(donor=donor))
    made = write_cellxgene(
        changed, tmp_path / "cells.h5ad", obs={**TERMS, "donor_id": "@donor"}, title="Blood",
        organism="NCBITaxon:9606",
    )  # fmt: skip
    assert made.missing == ['obs["donor_id"] of 9 cells']
    assert ad.read_h5ad(made.path).obs["donor_id"].cat.categories.tolist() == ["7.0"]


def test_results_without_other_genes_say_so(changed: Path, tmp_path: Path) -> None:
    with h5py.File(changed / "results.h5mu", "r+") as file:
        del file["mod/rna/raw"]
    made = write_cellxgene(changed, tmp_path / "cells.h5ad", obs=TERMS)
    assert any(
        note.startswith(f"raw.X has the {N_MODELLED} genes of the model") for note in made.notes
    )
