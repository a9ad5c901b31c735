"""Figures of Bokeh: what is drawn is what was given."""

import numpy as np
import pandas as pd
import pytest
from bokeh.models import ColumnDataSource

from totalvi.figures.cell_maps import (
    category_mapper,
    clear_label_places,
    label_places,
    point_density,
    point_size,
)
from totalvi.figures.charts import heat_map, histogram_parts, training_curves
from totalvi.figures.style import PROTEIN_SCALE, RNA_SCALE, CountScale

rng = np.random.default_rng(0)


@pytest.mark.parametrize("scale", [PROTEIN_SCALE, RNA_SCALE])
def test_the_scale_goes_there_and_back(scale: CountScale) -> None:
    counts = np.array([0.0, 0.3, 1, 50, 1e6])
    np.testing.assert_allclose(scale.inverse(scale.forward(counts)), counts)
    ticks = scale.ticks(fine=True)
    assert list(ticks) == sorted(ticks)
    for place, label in ticks.items():
        count = float(label.replace("k", "e3").replace("M", "e6"))
        assert place == pytest.approx(float(scale.forward(count)))


def test_histograms_hold_every_measured_cell() -> None:
    raw = rng.poisson(np.where(np.arange(300) < 200, 4, 300), 300).astype(float)
    raw[:10] = np.nan
    probability = (np.arange(300) >= 200).astype(float)
    weights = rng.uniform(1, 3, 300)
    parts = histogram_parts(raw, raw, probability, weights=weights)
    width = np.diff(parts.edges)
    assert (parts.background * width).sum() == pytest.approx(weights[10:200].sum())
    assert (parts.foreground * width).sum() == pytest.approx(weights[200:].sum())
    assert (parts.denoised * np.diff(parts.smooth_edges)).sum() == pytest.approx(
        weights[200:].sum()
    )


def test_density_is_highest_where_cells_are_many() -> None:
    x, y = np.concatenate([rng.normal(0, 0.1, (900, 2)), rng.uniform(-5, 5, (100, 2))]).T
    density = point_density(x, y)
    assert density[:900].mean() > 3 * density[900:].mean()
    assert density.max() == 1
    heavy = point_density(x, y, weights=np.where(np.arange(1000) < 900, 1e-3, 100.0))
    assert heavy[900:].mean() > heavy[:900].mean()
    assert point_density(np.array([np.nan, 1.0]), np.array([1.0, 1.0])).tolist() == [0.0, 1.0]


def test_labels_lie_on_a_cell_of_their_category() -> None:
    points = rng.normal(size=(60, 2))
    codes = np.arange(60) % 3
    places = label_places(points, codes, ["a", "b", "c", "none"])
    assert places["text"] == ["a", "b", "c"]
    for code, x, y in zip(range(3), places["x"], places["y"], strict=True):
        assert [x, y] in points[codes == code].tolist()


def test_a_label_lies_where_most_of_its_cells_are() -> None:
    island = rng.normal(0, 0.1, (55, 2))
    scattered = rng.uniform(-5, 25, (30, 2))
    points = np.concatenate([island, scattered])
    (x,) = label_places(points, np.zeros(len(points), dtype=int), ["a"])["x"]
    assert abs(x) < 0.3


def test_labels_name_the_cells_about_them_and_hide_none() -> None:
    centres = ((0, 0), (10, 10), (10, 0), (10.3, 0))  # the last two are too near for both names
    sizes = (200, 30, 100, 60)
    islands = [rng.normal(at, 0.05, (n, 2)) for at, n in zip(centres, sizes, strict=True)]
    scattered = np.concatenate([one[:4] + 0.01 for one in islands])  # of no place of their own
    points = np.concatenate([*islands, scattered])
    codes = np.repeat(np.arange(5), (*sizes, len(scattered)))
    names = ["largest", "small", "larger neighbour", "smaller neighbour", "scattered"]
    found = clear_label_places(points, codes, names)
    assert found["text"] == ["largest", "larger neighbour", "small"]
    for x, y, text, at in zip(*found.values(), ((0, 0), (10, 0), (10, 10)), strict=True):
        assert abs(y - at[1]) < 0.3
        assert abs(x - at[0]) < 0.1 * len(text)  # at the edge, half as far as the name is long
        assert points[:, 0].min() < x < points[:, 0].max()


def test_dots_shrink_with_the_number_of_cells_within_bounds() -> None:
    assert [point_size(n) for n in (0, 1, 834)] == [9.0] * 3
    assert 9 > point_size(836) > point_size(5_000) > point_size(30_000) > 1.5
    assert point_size(30_100) == point_size(10**7) == 1.5


def test_codes_are_coloured_one_by_one() -> None:
    mapper = category_mapper(7)
    width = (mapper.high - mapper.low) / len(mapper.palette)
    assert [int((code - mapper.low) // width) for code in range(7)] == list(range(7))


def test_tiles_are_where_they_belong() -> None:
    values = np.arange(6.0).reshape(2, 3)
    drawn = heat_map(values, ["x", "y"], ["a", "b", "c"], low=0.0, high=5.0, value_name="share")
    source = drawn.renderers[0].data_source
    assert isinstance(source, ColumnDataSource)
    found = pd.DataFrame(source.data).pivot(index="row", columns="column", values="value")
    np.testing.assert_array_equal(found.to_numpy(), values)
    assert drawn.y_range.factors == ["y", "x"]


def test_the_kept_epoch_is_marked() -> None:
    history = pd.DataFrame({"train_loss": [9.0, 5, 4], "validation_loss": [9.0, 6, 7]})
    marked = training_curves(history, 1).renderers[-1].data_source.data
    assert (list(marked["x"]), list(marked["y"])) == ([1], [6.0])
