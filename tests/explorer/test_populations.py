"""Counts of cells by gate and sample, and what the page shows of them."""

import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
from scipy.stats import beta

from totalvi.explorer.axes import Axis
from totalvi.explorer.gate_shapes import box
from totalvi.explorer.gates import Gate, Gating
from totalvi.explorer.populations import PopulationPanel, population_table
from totalvi.explorer.run_cells import FileCells, Groups

AXES = (Axis("umap", "1"), Axis("umap", "2"))
GATING = Gating((Gate("=T", AXES, box(0, 0, 1, 1)), Gate("CD4", AXES, box(0, 0, 1, 1), "=T")))


def table() -> tuple[pd.DataFrame, dict, np.ndarray]:
    rng = np.random.default_rng(0)
    code = rng.integers(-1, 3, 300)
    inside = {None: np.ones(300, dtype=bool), "=T": rng.random(300) < 0.6}
    inside["CD4"] = inside["=T"] & (rng.random(300) < 0.5)
    return population_table(GATING, inside, Groups(code, ["d1", "d2", "+d3"])), inside, code


def test_counts_are_those_of_a_cross_table() -> None:
    found, inside, code = table()
    for _, row in found.iterrows():
        name = {"all cells": None, "=T": "=T", "=T/CD4": "CD4"}[row["population"]]
        parent = {None: None, "=T": None, "CD4": "=T"}[name]
        cells = code == ["d1", "d2", "+d3"].index(row["sample"])
        assert row["cells"] == (inside[name] & cells).sum()
        assert row["percent_of_parent"] == 100 * row["cells"] / (inside[parent] & cells).sum()
        assert row["percent_of_all"] == 100 * row["cells"] / cells.sum()
        if parent is not None or name is not None:
            of = int((inside[parent] & cells).sum())
            limits = beta.ppf([0.025, 0.975], row["cells"] + 0.5, of - row["cells"] + 0.5)
            found_limits = row[["percent_of_parent_lower", "percent_of_parent_upper"]]
            np.testing.assert_allclose(found_limits.astype(float), 100 * limits)
    whole = population_table(GATING, inside, None)
    assert whole["cells"].tolist() == [300, inside["=T"].sum(), inside["CD4"].sum()]


def test_the_panel_shows_what_is_chosen() -> None:
    panel = PopulationPanel(lambda: None)
    found, *_ = table()
    panel.show(found)
    panel.value.value = "cells"
    column = found[found["sample"] == "d2"]["cells"]
    assert panel.source.data["s1"] == [str(n) for n in column]
    assert panel.source.data["population"] == ["all cells", "=T", "\u2003CD4"]
    assert len(panel._dots.data["x"]) == 6
    assert panel._dots.data["lower"] == panel._dots.data["x"]  # no limits of a number of cells
    dots = dict(zip(panel._dots.data["sample"], panel._dots.data["color"], strict=True))
    assert len(set(dots.values())) == 3
    for sample, color in dots.items():  # each is named in its colour
        assert f'background:{color}"></span>{sample} ' in panel.legend.text.replace("> ", ">")
    assert panel.legend.visible
    read = pd.read_csv(io.StringIO(panel.to_csv()))
    assert set(read["population"]) == {"all cells", "'=T", "'=T/CD4"}
    assert "'+d3" in set(read["sample"])
    panel.value.value = "% of all"
    drawn = pd.DataFrame(panel._dots.data)
    assert ((drawn["lower"] < drawn["x"]) & (drawn["x"] < drawn["upper"])).all()
    row = found[(found["population"] == "=T/CD4") & (found["sample"] == "d2")].iloc[0]
    dot = drawn[(drawn["population"] == "CD4") & (drawn["sample"] == "d2")].iloc[0]
    assert dot["upper"] == row["percent_of_all_upper"]
    assert "% of all (" in dot["words"]
    assert len({tuple(place) for place in drawn["y"]}) == 6  # samples lie beside each other
    panel.show(population_table(Gating(), {None: np.ones(3, dtype=bool)}, None))
    assert not panel.figure.visible
    assert not panel.legend.visible


def test_samples_of_cells_are_cached_codes(blood_file: Path) -> None:
    cells = FileCells(blood_file)
    cells.obs = pd.DataFrame({"donor": ["b", None, "a", "b"], "n": [0.5, 1, 2, 3]})
    assert cells.samples("donor").names == ["a", "b"]
    assert cells.samples("donor").code.tolist() == [1, -1, 0, 1]
    assert cells.samples("donor").code.dtype == np.intp  # int8 of pandas would overflow
    assert cells.of_sample("donor", "b").tolist() == [True, False, False, True]
    assert not cells.of_sample("donor", "c").any()
    assert SimpleNamespace(columns=cells.sample_columns) == SimpleNamespace(columns=["donor"])
