"""Histograms hold every cell once, split as the model says."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import same_color

from totalvi.figures.png_style import count_bin_edges, protein_histograms
from totalvi.figures.style import WARNING


@given(st.floats(1, 1e5))
def test_bins_lie_between_integers_and_each_holds_one(highest: float) -> None:
    edges = np.expm1(count_bin_edges(highest))
    np.testing.assert_allclose(edges % 1, 0.5, atol=1e-6)
    assert (np.diff(edges) > 0.999).all()
    assert edges[0] == pytest.approx(-0.5)
    assert edges[-1] >= np.floor(highest)


def test_bars_hold_the_measured_cells_of_each_kind() -> None:
    rng = np.random.default_rng(0)
    raw = rng.poisson([[5.0, 200.0]], (300, 2)).astype(float)
    raw[:40, 1] = np.nan
    probability = (raw > [[5.0, 200.0]]) * 0.9
    figure = protein_histograms(raw, raw, probability, ["CD3", "CD4"], ["", "does not separate"])
    for protein, axes in enumerate(figure.axes):
        background, foreground, denoised = axes.patches
        kept = ~np.isnan(raw[:, protein])
        is_foreground = kept & (probability[:, protein] > 0.5)
        for steps, expected in (
            (background, kept & ~is_foreground),
            (foreground, is_foreground),
            (denoised, is_foreground),
        ):
            heights, edges, baseline = steps.get_data()
            base = np.zeros_like(heights) if baseline is None else baseline
            assert ((heights - base) * np.diff(edges)).sum() == pytest.approx(expected.sum())
    good, bad = (axes.texts[0] for axes in figure.axes)
    assert "% foreground" in good.get_text()
    assert "does not separate" in bad.get_text()
    assert same_color(bad.get_color(), WARNING)
    assert not same_color(good.get_color(), WARNING)


def test_proteins_without_cells_of_a_kind_are_drawn() -> None:
    raw = np.zeros((20, 3))
    raw[:, 2] = np.nan
    probability = np.tile([0.0, 1.0, 0.5], (20, 1))
    figure = protein_histograms(raw, raw * 0, probability, ["a", "b", "c"], [""] * 3)
    figure.canvas.draw()
    said = [axes.texts[0].get_text() for axes in figure.axes]
    assert said == ["0 % foreground", "100 % foreground", "no cells"]


def test_texts_do_not_overlap() -> None:
    raw = np.random.default_rng(0).poisson(20.0, (400, 6)).astype(float)
    probability = np.ones_like(raw)
    probability[:1, ::2] = 0
    warnings = ["control with foreground", "", "does not separate"] * 2
    names = [f"IgG{i}_control" for i in range(6)]
    figure = protein_histograms(raw, raw, probability, names, warnings)
    figure.canvas.draw()
    boxes = [
        text.get_window_extent() for axes in figure.axes for text in (axes.title, axes.texts[0])
    ]
    boxes += [axes.get_window_extent() for axes in figure.axes]
    boxes.append(figure._suptitle.get_window_extent())
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))
    assert "99.8 % foreground" in figure.axes[0].texts[0].get_text()
