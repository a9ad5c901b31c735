"""Maps of cells and training curves: what is drawn is what was given."""

from itertools import combinations

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgba
from matplotlib.text import Text

from totalvi.figures.png_figures import (
    MOST_DOTS,
    separate_boxes,
    training_curves,
    umap_by_category,
    umap_by_protein,
)
from totalvi.figures.png_style import protein_histograms
from totalvi.figures.style import category_colors

rng = np.random.default_rng(0)
UMAP = rng.normal(size=(200, 2))


def history(n_epochs: int) -> pd.DataFrame:
    epoch = np.arange(n_epochs)
    return pd.DataFrame(
        {
            "train_loss": 100 + 50 / (epoch + 1),
            "validation_loss": 105 + 40 / (epoch + 1),
            "kl_weight": np.minimum(1.0, (epoch + 1) / 10),
        },
        index=pd.RangeIndex(n_epochs, name="epoch"),
    )


def test_each_cell_is_drawn_in_the_color_of_its_category() -> None:
    categories = pd.Categorical(
        rng.choice(["b", "a", "c"], 200), categories=["c", "b", "a", "none"]
    )
    figure = umap_by_category(UMAP, categories, name="batch")
    (points,) = figure.axes[0].collections
    order = [int(np.flatnonzero((place == UMAP).all(axis=1))[0]) for place in points.get_offsets()]
    assert sorted(order) == list(range(200))
    expected = [to_rgba(category_colors(3)[["c", "b", "a"].index(categories[i])]) for i in order]
    np.testing.assert_allclose(points.get_facecolors(), expected)
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == [f"{name} ({(categories == name).sum()})" for name in "cba"]


@pytest.mark.parametrize("n_categories", [1, 6, 39, 60])
def test_labels_on_the_map_do_not_overlap(n_categories: int) -> None:
    categories = pd.Categorical.from_codes(
        np.arange(200) % n_categories, [f"cell type {i}" for i in range(n_categories)]
    )
    figure = umap_by_category(UMAP, categories, name="cell type")
    figure.draw_without_rendering()
    texts = figure.axes[0].texts
    assert len(texts) == n_categories
    boxes = [text.get_window_extent() for text in texts]
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))
    legend = figure.axes[0].get_legend().get_window_extent()
    assert legend.x1 <= figure.bbox.x1
    assert legend.y0 >= figure.bbox.y0


def test_high_values_are_drawn_on_top_and_clipped() -> None:
    denoised = np.stack([rng.gamma(1.0, 100.0, 200), np.zeros(200)], axis=1)
    denoised[7, 0] = 1e6
    figure = umap_by_protein(UMAP, denoised, ["CD3_B", "CD4_B"])
    maps = [axes for axes in figure.axes if axes.get_title()]
    assert [axes.get_title() for axes in maps] == ["CD3", "CD4"]
    first, second = (axes.collections[0] for axes in maps)
    assert (np.diff(first.get_array()) >= 0).all()
    assert tuple(first.get_offsets()[-1]) == tuple(UMAP[7])
    assert first.get_clim()[1] < np.log1p(1e6)
    assert second.get_clim() == pytest.approx((0.0, np.log1p(10)))


@pytest.mark.parametrize(("n_epochs", "best"), [(1, 0), (2, 1), (50, 40)])
def test_the_kept_epoch_is_marked(n_epochs: int, best: int) -> None:
    losses = history(n_epochs)
    top = training_curves(losses, best).axes[0]
    marked = top.lines[-1]
    assert marked.get_xydata().tolist() == [[best, losses["validation_loss"][best]]]
    low, high = top.get_ylim()
    assert low < losses["train_loss"].min()
    assert losses["validation_loss"][best] < high


def test_no_global_setting_is_changed() -> None:
    before = dict(matplotlib.rcParams)
    umap_by_category(UMAP, np.arange(200) % 3, name="cluster")
    umap_by_protein(UMAP, np.abs(UMAP), ["CD3", "CD4"])
    training_curves(history(5), 4)
    assert dict(matplotlib.rcParams) == before


def test_boxes_are_separated_and_free_ones_stay() -> None:
    centers = np.concatenate([np.zeros((12, 2)), [[500.0, 500.0]]])
    sizes = np.tile([30.0, 10.0], (13, 1))
    placed = separate_boxes(centers, sizes)
    for i, j in combinations(range(13), 2):
        assert (np.abs(placed[i] - placed[j]) >= (sizes[i] + sizes[j]) / 2 - 1e-6).any()
    assert placed[-1].tolist() == [500.0, 500.0]
    np.testing.assert_allclose(placed[:12].mean(axis=0), 0.0, atol=1e-9)


def test_dollars_in_names_are_no_mathematics() -> None:
    """Between two of them a name would be typeset, and what is no formula could not be drawn."""
    names = ["$_$", r"a $\frac$ b"]
    categories = pd.Categorical(rng.choice(names, 200))
    values = rng.gamma(2, 9, (200, 2))
    drawn = [
        umap_by_category(UMAP, categories, name=names[0]),
        umap_by_protein(UMAP, values, names),
        protein_histograms(values, values, np.full((200, 2), 0.9), names, ["", ""]),
    ]
    for figure in drawn:
        figure.draw_without_rendering()
        texts = [text.get_text() for text in figure.findobj(Text)]
        assert any(r"\$" in text for text in texts)
        assert not [text for text in texts if "$" in text.replace(r"\$", "")]


def test_maps_of_very_many_cells_are_images_with_the_highest_on_top() -> None:
    places = np.random.default_rng(5).normal(size=(MOST_DOTS + 1, 2))
    places[7] = places[11] = [0.5, 0.5]
    denoised = np.random.default_rng(6).gamma(1.0, 100.0, (len(places), 1))
    denoised[7], denoised[11] = 1e6, 1.0
    (axes, *_) = (axes for axes in umap_by_protein(places, denoised, ["CD3"]).axes)
    (image,) = axes.images
    left, right, bottom, top = image.get_extent()
    shown = image.get_array()
    column = int((0.5 - left) / (right - left) * shown.shape[1])
    row = int((0.5 - bottom) / (top - bottom) * shown.shape[0])
    assert shown[row, column] == pytest.approx(np.log1p(1e6))
    assert shown.mask.mean() > 0.1  # nothing is drawn where no cell is
    figure = umap_by_protein(places, denoised, ["CD3"])
    figure.draw_without_rendering()
