"""Contours enclose what they say, and histograms count each group."""

import numpy as np
from matplotlib.path import Path as Outline

from totalvi.explorer.drawn_cells import contour_lines, histograms


def test_contours_enclose_their_share_of_the_cells() -> None:
    x, y = np.random.default_rng(0).normal(size=(2, 50_000))
    lines = contour_lines(x, y, (-5, 5, -5, 5))
    shares = sorted(Outline(line).contains_points(np.c_[x, y]).mean() for line in lines)
    largest = [share for share in shares if share > 0.05]
    np.testing.assert_allclose(largest, [0.1, 0.25, 0.4, 0.55, 0.7, 0.85, 0.95], atol=0.03)
    assert contour_lines(x[:2], y[:2], (-5, 5, -5, 5)) == []
    assert contour_lines(np.full(9, np.nan), y[:9], (-5, 5, -5, 5)) == []


def test_histograms_have_the_mode_and_width_of_each_group() -> None:
    rng = np.random.default_rng(1)
    places = np.r_[rng.normal(0, 0.5, 20_000), rng.normal(2, 1, 5_000), np.nan, 99]
    group = np.r_[np.zeros(20_000), np.ones(5_000), 0, 1].astype(np.int8).astype(np.intp)
    along, heights = histograms(places, group, 3, -4, 6)
    assert heights.shape == (3, len(along))
    np.testing.assert_allclose(heights[:2].max(axis=1), 1)
    assert not heights[2].any()
    for row, mean, sd in zip(heights, (0, 2), (0.5, 1), strict=False):
        weights = row / row.sum()
        assert abs((weights * along).sum() - mean) < 0.05
        assert abs(np.sqrt((weights * (along - mean) ** 2).sum()) - sd) < 0.05


def test_groups_left_out_are_not_counted() -> None:
    _, heights = histograms(np.array([0.5, 0.5]), np.array([-1, -1]), 1, 0, 1)
    assert not heights.any()
