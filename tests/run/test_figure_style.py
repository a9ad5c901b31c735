"""Colours, count axes, pages and the writing of PNG files."""

from itertools import combinations
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_rgb

from totalvi.figures.png_style import (
    PANELS_PER_PAGE,
    count_ticks,
    new_figure,
    page_slices,
    panel_grid,
    save,
    short_names,
)
from totalvi.figures.style import PALETTE, category_colors

# Machado, Oliveira and Fernandes 2009, severity 1; on linear RGB.
VISION = {
    "normal": np.eye(3),
    "deuteranopia": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
    "protanopia": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
}


def lab(colors: list[str], vision: np.ndarray) -> np.ndarray:
    rgb = np.array([to_rgb(color) for color in colors])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    linear = np.clip(linear @ vision.T, 0, 1)
    to_xyz = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    xyz = linear @ to_xyz.T / [0.9505, 1.0, 1.089]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack(
        [116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1
    )


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize(("n_colors", "least"), [(20, 15), (40, 9)])
def test_colors_differ_in_every_vision(vision: str, n_colors: int, least: float) -> None:
    places = lab(category_colors(n_colors), VISION[vision])
    nearest = min(np.linalg.norm(a - b) for a, b in combinations(places, 2))
    assert nearest > least  # CIELAB; about 2 is just noticeable


def test_colors_start_again_when_used_up() -> None:
    assert category_colors(len(PALETTE) + 1)[-1] == PALETTE[0]


@given(st.integers(0, 500))
def test_pages_hold_each_panel_once(n_panels: int) -> None:
    pages = page_slices(n_panels)
    assert [i for page in pages for i in range(n_panels)[page]] == list(range(n_panels))
    sizes = [page.stop - page.start for page in pages]
    assert not sizes or (max(sizes) <= PANELS_PER_PAGE and max(sizes) - min(sizes) <= 1)
    assert len(pages) == -(-n_panels // PANELS_PER_PAGE)


@given(st.floats(0, 12), st.floats(0.01, 12))
def test_ticks_lie_on_the_axis_in_order(low: float, length: float) -> None:
    places, labels = count_ticks(low, low + length)
    assert len(places) == len(labels) >= 1
    assert (np.diff(places) > 0).all()
    counts = [int(label.replace("k", "000")) for label in labels]
    assert np.expm1(places) == pytest.approx(counts, abs=1000 if "k" in labels[-1] else 1e-6)


def test_short_names_keep_what_differs() -> None:
    assert short_names(["CD3_TotalSeqB", "CD4_TotalSeqC"]) == ["CD3_TotalSeqB", "CD4_TotalSeqC"]
    assert short_names(["CD3_A"]) == ["CD3_A"]
    assert short_names(["_A", "B_A"]) == ["_A", "B_A"]


@pytest.mark.parametrize("n_panels", [1, 2, 7, 24])
def test_panels_do_not_overlap_and_lie_inside(n_panels: int) -> None:
    figure, panels = panel_grid(n_panels, 1.9, 1.2, gap=(0.3, 0.5), bottom=0.6)
    assert len(panels) == n_panels
    boxes = [axes.get_position() for axes in panels]
    assert all(b.x0 >= 0 and b.y0 >= 0 and b.x1 <= 1 and b.y1 <= 1 for b in boxes)
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))
    assert panels[0].get_position().width * figure.get_figwidth() == pytest.approx(1.9)


def test_png_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figure = new_figure(2, 1)
    save(figure, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert matplotlib.image.imread(tmp_path / "a.png").shape[:2] == (150, 300)

    def fail(file: Path, **_: object) -> None:
        Path(file).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(figure, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        save(figure, tmp_path / "b.png")
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
