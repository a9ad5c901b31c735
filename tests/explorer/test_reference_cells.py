"""The explorer shows a minified reference: labels, map and values given the state of a cell."""

from pathlib import Path

import numpy as np
import pytest

import totalvi
from counts import SMALL, annotated
from totalvi.errors import OutputError, ReadError
from totalvi.explorer.gated_results import write_gated
from totalvi.explorer.gates import Gating
from totalvi.explorer.plot_cards import start_choices
from totalvi.explorer.reference_cells import ReferenceCells
from totalvi.explorer.workspace import open_workspace


@pytest.fixture(scope="module")
def model() -> totalvi.Model:
    mdata = annotated(150)
    mdata.obsm["X_umap"] = np.random.default_rng(0).normal(size=(150, 2))
    model = totalvi.Model(mdata, batch_key="batch", **SMALL)
    model.train(max_epochs=1, accelerator="cpu")
    return model


@pytest.fixture(scope="module")
def path(model: totalvi.Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model.save(tmp_path_factory.mktemp("reference") / "blood.totalvi", minified=True)


def test_values_are_those_of_the_model_given_z(path: Path, model: totalvi.Model) -> None:
    cells = open_workspace(path).cells
    assert isinstance(cells, ReferenceCells)
    rna, protein = model.get_normalized_expression(
        given_counts=False, n_samples=10, library_size=1e4
    )
    foreground = model.get_protein_foreground_probability(given_counts=False, n_samples=10)
    name, gene = protein.columns[2], rna.columns[3]
    for kind, feature, expected in (
        ("protein_denoised", name, protein[name]),
        ("protein_foreground", name, foreground[name]),
        ("gene_denoised", gene, rna[gene]),
    ):
        np.testing.assert_allclose(cells.values(kind, feature), expected, rtol=5e-3, atol=1e-3)
    assert cells.umap is not None
    assert cells.values("umap", "1").shape == (150,)
    assert "umap_1" not in cells.obs
    assert "lane" in cells.sample_columns


def test_counts_are_refused_in_one_sentence(path: Path, tmp_path: Path) -> None:
    cells = ReferenceCells(path)
    for kind in ("protein_raw", "protein_clr", "gene_raw", "gene_log"):
        assert kind not in cells.kinds
        with pytest.raises(ReadError, match="keeps no counts"):
            cells.values(kind, str(cells.protein_names[0]))
    with pytest.raises(ReadError, match="keeps no counts"):
        cells.counts_of(np.arange(3))
    with pytest.raises(OutputError, match="take the gates as CSV"):
        write_gated(cells, Gating(), tmp_path / "gated.h5mu")
    assert "keeps no counts" in cells.note


def test_first_plots_need_no_counts(path: Path) -> None:
    from totalvi.explorer.axes import AxisChoices

    cells = ReferenceCells(path)
    choices = AxisChoices(
        list(cells.protein_names), list(cells.gene_names), [], cells.kinds, has_map=True
    )
    assert choices.values == ["denoised", "foreground"]
    started = start_choices(cells, choices)
    assert len(started) >= 2
    assert {choice.values for choice in started} == {"denoised"}  # there are no counts
