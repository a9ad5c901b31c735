"""Cells of any file open without a model: raw and transformed values, and sentences about the rest."""

from pathlib import Path

import numpy as np
import pytest
from anndata import AnnData
from bokeh.document import Document
from mudata import MuData

from totalvi.errors import OutputError, ReadError
from totalvi.explorer.app import Explorer
from totalvi.explorer.gated_results import gate_columns, write_gated
from totalvi.explorer.gates import Gating
from totalvi.explorer.run_cells import FileCells, RunCells, open_cells
from totalvi.explorer.workspace import open_workspace


@pytest.fixture(params=["h5mu", "h5ad"])
def path(request: pytest.FixtureRequest, blood: MuData, blood_file: Path, tmp_path: Path) -> Path:
    if request.param == "h5mu":
        return blood_file
    adata = blood["rna"].copy()
    adata.obs["donor"] = blood.obs["donor"]
    adata.obsm["protein_expression"] = blood["prot"].to_df()
    adata.obsm["X_umap"] = np.random.default_rng(0).normal(size=(adata.n_obs, 2))
    adata.write_h5ad(tmp_path / "cells.h5ad")
    return tmp_path / "cells.h5ad"


def test_values_are_raw_or_follow_from_the_counts(path: Path, blood: MuData) -> None:
    cells = open_cells(path)
    assert isinstance(cells, FileCells)
    raw = blood["prot"].to_df()
    assert list(cells.protein_names) == list(raw.columns)
    np.testing.assert_array_equal(
        cells.values("protein_raw", "CD4_TotalSeqB"), raw["CD4_TotalSeqB"]
    )
    logs = np.log1p(raw)
    clr = logs.sub(logs.mean(axis=1), axis=0)["CD4_TotalSeqB"]
    np.testing.assert_allclose(cells.values("protein_clr", "CD4_TotalSeqB"), clr, atol=1e-5)
    genes = blood["rna"].to_df()
    total = np.maximum(genes.sum(axis=1), 1)
    np.testing.assert_allclose(
        cells.values("gene_log", "CD8A"), np.log1p(1e4 * genes["CD8A"] / total), rtol=1e-5
    )
    assert "protein_denoised" not in cells.kinds
    with pytest.raises(ReadError, match="which a model computes"):
        cells.values("protein_denoised", "CD4_TotalSeqB")
    assert cells.sample_columns[0] == "donor"
    assert cells.has_usual_sample


def test_the_page_opens_and_says_what_needs_a_model(path: Path) -> None:
    workspace = open_workspace(path)
    page = Explorer(Document(), workspace)
    assert "need a model" in page.differences.said.text
    page.plots.cards[0].choose(page.plots.cards[0].choice._replace(x="CD3", y="CD19"))
    page.plots.cards[0].set_axes(workspace.cells)
    page.add_gate(page.plots[0], "rectangle", ((0, 0), (9, 0), (9, 9), (0, 9)))
    page.show_probability()
    workspace.executor.submit(lambda: None).result()
    for callback in page.document.session_callbacks:
        callback.callback()
    assert "without a model" in page.panel.status.text
    assert list(gate_columns(workspace.cells, page.history.now).columns) == [
        "gate", "in_gate Gate 1",
    ]  # fmt: skip
    with pytest.raises(OutputError, match="take the gates as CSV"):
        write_gated(workspace.cells, Gating(), path.with_name("gated.h5mu"))
    page.save()
    assert workspace.gates_path.name == f"{path.stem}.gates.json"
    assert open_workspace(path).saved == page.history.now
    workspace.gates_path.unlink()
    workspace.executor.shutdown()


def test_the_map_of_a_file_is_found(path: Path) -> None:
    cells = open_cells(path)
    assert (cells.umap is not None) == (path.suffix == ".h5ad")
    if cells.umap is None:
        with pytest.raises(ReadError, match="no map"):
            cells.values("umap", "1")


def test_folders_are_runs_and_what_is_missing_is_said(folder: Path, tmp_path: Path) -> None:
    assert isinstance(open_cells(folder), RunCells)
    with pytest.raises(ReadError, match="holds no results"):
        open_cells(tmp_path / "nothing")
    AnnData(np.ones((3, 2), dtype=np.float32)).write_h5ad(tmp_path / "rna.h5ad")
    with pytest.raises(Exception, match="protein"):
        open_cells(tmp_path / "rna.h5ad")
