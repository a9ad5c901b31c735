"""What a gate's cells are compared with, and that the model is asked for just these cells."""

from pathlib import Path

import mudata
import numpy as np
import pandas as pd
import pytest

from totalvi.errors import DataError
from totalvi.explorer.compare import CONDITIONS, ComparePanel, columns_of
from totalvi.explorer.comparer import SEED, Compared, Comparer, Design, _drawn
from totalvi.explorer.run_cells import RunCells


def test_the_model_is_asked_for_just_these_cells(run_folder: Path) -> None:
    from totalvi.model import Model

    mdata = mudata.read_h5mu(run_folder / "results.h5mu")
    first = np.arange(400) % 5 == 0
    second = np.arange(400) % 3 == 1
    second &= ~first
    with RunCells(run_folder) as cells:
        comparer = Comparer(cells)
        comparer.warm_up()
        found = comparer.compare(first, second)
        few = comparer.compare(first, second, most_cells=30)
        with pytest.raises(DataError, match="has no cells"):
            comparer.compare(first, np.zeros(400, dtype=bool))
    either = np.flatnonzero(first | second)
    expected = Model.load(run_folder / "model.totalvi").differential_expression(
        mdata[either].copy(), idx1=first[either], idx2=second[either], progress=False
    )
    pd.testing.assert_frame_equal(found.table, expected)
    assert (found.n_first, found.n_second, found.shares_batch) == (80, second.sum(), True)
    assert (few.n_first, few.n_first_used, few.n_second_used) == (80, 30, 30)
    assert "30 of 80" in few.sentence()


def test_cells_are_drawn_without_repeats_and_always_the_same() -> None:
    cells = np.arange(5, 1000)
    drawn = [_drawn(cells, 100, np.random.default_rng(SEED)) for _ in range(2)]
    np.testing.assert_array_equal(*drawn)
    assert len(np.unique(drawn[0])) == 100
    assert np.isin(drawn[0], cells).all()
    assert _drawn(cells, 995, np.random.default_rng(SEED)) is cells


def test_groups_without_a_common_batch_are_warned_of() -> None:
    found = Compared(pd.DataFrame(), 3, 4, 3, 4, shares_batch=False)
    assert found.sentence().startswith("Compared 3 cells with 4. They share no batch")


def table() -> pd.DataFrame:
    columns = {
        "modality": ["rna", "protein", "rna", "protein"],
        "is_de_fdr_0.05": [True, True, False, False],
        "bayes_factor": [40.0, 2.0, -50.0, np.nan],
        "lfc_median": [-3.0, 1.0, 0.1, np.nan],
        "proba_de": [1.0, 0.9, 0.0, np.nan],
        "raw_mean1": [1.0, 2.0, 3.0, np.nan],
        "raw_mean2": [8.0, 1.0, 3.0, np.nan],
    }
    return pd.DataFrame(columns, index=["CD3D", "CD3", "ACTB", "CD19"])


def test_what_is_shown_is_what_the_table_says() -> None:
    shown = columns_of(table(), {})
    assert shown["what"].tolist() == ["gene", "protein", "gene", "protein"]
    assert shown["kind"].tolist() == [1, 2, 0, 0]
    np.testing.assert_array_equal(shown["log_odds"], [12, 2, -12, np.nan])
    np.testing.assert_array_equal(shown["lfc"], table()["lfc_median"])


def test_the_table_is_searched_and_a_row_is_handed_on() -> None:
    chosen: list[tuple[str, str]] = []
    panel = ComparePanel(lambda: None, lambda *feature: chosen.append(feature), {}, {})
    panel.show(Compared(table(), 3, 4, 3, 4, True))
    assert panel.volcano.x_range.start <= -3 < 3 <= panel.volcano.x_range.end
    panel.search.value_input = " cd3"
    assert panel._found.booleans == [True, True, False, False]
    panel.source.selected.indices = [1]
    panel.source.selected.indices = [0]
    assert chosen == [("protein", "CD3"), ("rna", "CD3D")]


def test_conditions_are_compared_over_samples(run_folder: Path) -> None:
    from totalvi.model import Model

    design = Design("donor", "treatment", "drug", "none")
    inside = np.arange(400) % 4 > 0
    parent = np.arange(400) % 9 > 0
    with RunCells(run_folder) as cells:
        comparer = Comparer(cells)
        found = comparer.compare_conditions(inside & parent, parent, design)
        mdata = cells.counts_of(np.flatnonzero(inside & parent))
        expected = Model.load(run_folder / "model.totalvi").differential_expression(
            mdata, sample_key="donor", condition_key="treatment", group1="drug", group2="none",
            progress=False,
        )  # fmt: skip
        whole = comparer.compare_conditions(parent, parent, design)
        with pytest.raises(DataError, match="choose two columns"):
            comparer.compare_conditions(inside, parent, design._replace(condition_key="donor"))
        with pytest.raises(DataError, match="has no cells"):
            comparer.compare_conditions(np.zeros(400, dtype=bool), parent, design)
    pd.testing.assert_frame_equal(found.table, expected)
    assert whole.abundance is None
    share = found.abundance.loc["inside"]
    shares = [
        np.mean([(inside & parent & d).sum() / (parent & d).sum() for d in donors])
        for donors in (
            [np.arange(400) % 6 == k for k in (1, 3, 5)], [np.arange(400) % 6 == k for k in (0, 2, 4)]
        )
    ]  # fmt: skip
    np.testing.assert_allclose([share["share1"], share["share2"]], shares)
    sentence = found.sentence()
    assert sentence.startswith("Compared drug (3 samples) with none (3). Share of the parent: ")
    assert f"p = {share['p_value']:.2g}" in sentence
    shown = columns_of(found.table, {})
    np.testing.assert_array_equal(shown["proba"], found.table["p_adjusted"])
    is_gene = found.table["modality"] == "rna"
    np.testing.assert_allclose(
        shown["raw1"], found.table["scale1"] * np.where(is_gene, 1e4, 1), equal_nan=True
    )


def test_conditions_are_chosen_from_pairs() -> None:
    asked: list[Design] = []
    panel = ComparePanel(
        lambda: asked.append(panel.design), lambda *_: None,
        {"donor": ["d1", "d2", "d3"], "treatment": ["drug", "none"]}, {},
    )  # fmt: skip
    assert not panel.pair.visible
    panel.other.value = CONDITIONS
    assert panel.pair.visible
    assert asked == [Design("donor", "treatment", "none", "drug")]
    panel.pair.value = "1"
    assert asked[-1] == Design("donor", "treatment", "drug", "none")
    panel.condition.value = "donor"
    assert len(panel.pair.options) == 6
    panel.offer(["Gate 1"])
    assert panel.other.value == CONDITIONS
