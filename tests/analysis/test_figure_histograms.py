"""Histograms hold every cell once, split as the model says."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import same_color

from totalvi.analysis.figure_histograms import count_bin_edges, protein_histograms
from totalvi.analysis.figure_style import WARNING


@given(st.floats(1, 1e5), st.integers(2, 60))
def test_bins_lie_between_integers_and_each_holds_one(highest: float, n_bins: int) -> None:
    edges = np.expm1(count_bin_edges(highest, n_bins))
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
    assert [axes.texts[0].get_text()[:5] for axes in figure.axes] == ["0.0 %", "100.0", "0.0 %"]
