"""Maps of the cells, such as a UMAP, coloured by a category or a value."""

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
from bokeh.models import ColorBar, ColumnDataSource, LinearColorMapper
from bokeh.palettes import Magma256, Viridis256
from bokeh.plotting import figure
from scipy.spatial.distance import cdist

from totalvi.figures.style import (
    INK,
    PALE,
    PROTEIN_SCALE,
    QUIET,
    CountScale,
    category_colors,
    new_figure,
    use_count_axis,
)

_MOST_COMPARED = 500  # cells of a category, to find where they are densest
_CELLS_ABOUT = 15  # a label
_MAP_PIXELS = np.array([340.0, 380.0])  # of a map, between those of wide and narrow screens
_LETTER, _LINE = 7.0, 18.0  # pixels of a label
VALUE_PALETTE = tuple(reversed(Magma256[20:246]))  # from pale (little) to dark (much)


def category_mapper(n_categories: int) -> LinearColorMapper:
    """Return a mapper of category codes, 0 to ``n_categories - 1``, to colours told apart.

    Codes are numbers rather than names, as those take a byte a cell.
    """
    return LinearColorMapper(
        palette=category_colors(n_categories), low=-0.5, high=n_categories - 0.5, nan_color=PALE
    )


def value_mapper(low: float, high: float) -> LinearColorMapper:
    """Return a mapper of values to a perceptual palette, pale at ``low`` and dark at ``high``."""
    return LinearColorMapper(palette=list(VALUE_PALETTE), low=low, high=high, nan_color=PALE)


def cell_map(
    source: ColumnDataSource,
    mapper: LinearColorMapper,
    *,
    height: int = 430,
    color: str = "color",
    **options: Any,
) -> figure:
    """Draw a dot for each cell.

    Parameters
    ----------
    source
        Of cells, with the columns ``umap_1``, ``umap_2`` and ``color``: numbers that ``mapper``
        colours.
    mapper
        From `category_mapper` or `value_mapper`.
    height, **options
        As in `totalvi.figures.style.new_figure`.

    Examples
    --------
    >>> source = ColumnDataSource({"umap_1": [0, 1], "umap_2": [0, 1], "color": [0, 1]})
    >>> len(cell_map(source, category_mapper(2)).renderers)
    1
    """
    drawn = new_figure(height=height, **options)
    drawn.scatter(
        "umap_1",
        "umap_2",
        source=source,
        size=point_size(len(source.data["umap_1"])),
        color={"field": color, "transform": mapper},
        line_color=None,
    )
    drawn.axis.ticker = []
    drawn.xaxis.axis_label, drawn.yaxis.axis_label = "UMAP 1", "UMAP 2"
    drawn.axis.axis_label_text_color = QUIET
    drawn.axis.axis_line_color = PALE
    return drawn


def point_size(n_cells: int) -> float:
    """Return the diameter in pixels of a dot, smaller the more cells share the map."""
    return float(np.clip(260 / np.sqrt(max(n_cells, 1)), 1.5, 9.0))


def add_color_bar(
    drawn: figure, mapper: LinearColorMapper, scale: CountScale | None = None
) -> ColorBar:
    """Put a colour bar below a map, labelled in counts when its values are of a ``scale``."""
    bar = ColorBar(
        color_mapper=mapper,
        height=10,
        width=220,
        location="center",
        orientation="horizontal",
        padding=4,
        bar_line_color=None,
        major_label_text_color=INK,
        major_label_text_font_size="11px",
        major_tick_line_color="white",
    )
    if scale is not None:
        bar.ticker = scale.ticker()
        bar.major_label_overrides = scale.ticks(fine=True)
    drawn.add_layout(bar, "below")
    return bar


def add_labels(drawn: figure, source: ColumnDataSource) -> None:
    """Write the ``text`` of each row of ``source`` at its ``x`` and ``y``."""
    drawn.text(
        "x",
        "y",
        text="text",
        source=source,
        text_align="center",
        text_baseline="middle",
        text_font_size="12px",
        text_font_style="bold",
        text_color=INK,
        background_fill_color="white",
        background_fill_alpha=0.7,
        padding=2,
        border_radius=3,
        name="labels",
    )


def label_places(
    points: np.ndarray, codes: np.ndarray, names: Sequence[str]
) -> dict[str, list[Any]]:
    """Return a label for each category: its name at the cell about which its cells are densest.

    That is the cell with the smallest circle around it that holds a quarter of them.

    Parameters
    ----------
    points
        Shape (n_cells, 2).
    codes
        Category of each cell; negative: none.
    names
        Of the categories; those without cells get no label.
    """
    places: dict[str, list[Any]] = {"x": [], "y": [], "text": []}
    for code, name in enumerate(names):
        members = points[codes == code]
        if not len(members):
            continue
        some = members[:: len(members) // _MOST_COMPARED + 1]
        quarter = len(some) // 4
        x, y = some[np.partition(cdist(some, some), quarter, axis=1)[:, quarter].argmin()]
        for key, value in zip(("x", "y", "text"), (float(x), float(y), str(name)), strict=True):
            places[key].append(value)
    return places


def clear_label_places(
    points: np.ndarray, codes: np.ndarray, names: Sequence[str]
) -> dict[str, list[Any]]:
    """Return those labels of `label_places` that name the cells about them and hide none larger.

    Parameters
    ----------
    points, codes, names
        As there; categories may lie within others.
    """
    found = label_places(points, codes, names)
    left, right = points[:, 0].min(), points[:, 0].max()
    sizes = {name: int((codes == code).sum()) for code, name in enumerate(names)}
    across, up = np.ptp(points, axis=0) / _MAP_PIXELS + 1e-9  # of a pixel
    kept: dict[str, list[Any]] = {"x": [], "y": [], "text": []}
    for x, y, text in sorted(zip(*found.values(), strict=True), key=lambda label: -sizes[label[2]]):
        distance = np.linalg.norm(points - (x, y), axis=1)
        near = np.argsort(distance, kind="stable")[:_CELLS_ABOUT]
        half = min(_LETTER * len(text) / 2 * across, (right - left) / 2)
        x = float(np.clip(x, left + half, right - half))  # whole at the edge of the map
        is_hidden = any(
            abs(x - other_x) < _LETTER * (len(text) + len(other)) / 2 * across
            and abs(y - other_y) < _LINE * up
            for other_x, other_y, other in zip(*kept.values(), strict=True)
        )
        if not is_hidden and (codes[near] == names.index(text)).mean() >= 0.5:
            for key, value in zip(kept, (x, y, text), strict=True):
                kept[key].append(value)
    return kept


def add_density(drawn: figure, points: np.ndarray, n_bins: int = 200) -> None:
    """Put a grey image of where all cells lie behind the dots, which may be a sample of them.

    Parameters
    ----------
    points
        Of all cells, shape (n_cells, 2).
    """
    counts, x_edges, y_edges = np.histogram2d(points[:, 0], points[:, 1], bins=n_bins)
    shade = np.log1p(counts.T)
    image = np.round(255 * shade / max(shade.max(), 1e-9)).astype(np.uint8)
    greys = ["#FFFFFF00", *(f"#{level:02X}{level:02X}{level:02X}" for level in range(238, 160, -2))]
    drawn.image(
        [image],
        x=x_edges[0],
        y=y_edges[0],
        dw=x_edges[-1] - x_edges[0],
        dh=y_edges[-1] - y_edges[0],
        color_mapper=LinearColorMapper(palette=greys, low=0, high=255),
        level="image",
        name="density",
    )


def category_legend(names: Sequence[str], counts: Sequence[int] | np.ndarray) -> str:
    """Return an HTML list of the colours of `category_mapper`, each with its name and cells.

    Examples
    --------
    >>> "&lt;b&gt;" in category_legend(["<b>"], [7])
    True
    """
    entries = (
        f'<li><span class="swatch" style="background:{color}"></span>'
        f"{escape(str(name))} <small>({count:,})</small></li>"
        for name, count, color in zip(names, counts, category_colors(len(names)), strict=True)
    )
    return f'<ul class="legend">{"".join(entries)}</ul>'


def density_mapper() -> LinearColorMapper:
    """Return a mapper of `point_density`, 0 to 1: dark where cells are few, bright where many."""
    # The brightest of viridis is lost on white.
    return LinearColorMapper(palette=list(Viridis256[:236]), low=0.0, high=1.0)


def point_density(
    x: np.ndarray, y: np.ndarray, weights: np.ndarray | None = None, n_bins: int = 80
) -> np.ndarray:
    """Return how crowded each cell's place is, relative to the most crowded one.

    Parameters
    ----------
    x, y
        Places on the axes, not counts; a cell with NaN has density 0.
    weights
        How many cells each stands for; None: one.
    n_bins
        Bins of each axis.

    Returns
    -------
    numpy.ndarray
        float32 in [0, 1], on the scale of log1p of cells in a bin smoothed with its neighbours.

    Examples
    --------
    >>> place = np.array([0, 0, 0, 9.0])
    >>> [round(float(value), 1) for value in point_density(place, place)]
    [1.0, 1.0, 1.0, 0.4]
    """
    density = np.zeros(len(x), dtype=np.float32)
    known = np.isfinite(x) & np.isfinite(y)
    if not known.any():
        return density
    counts, x_edges, y_edges = np.histogram2d(
        x[known], y[known], bins=n_bins, weights=None if weights is None else weights[known]
    )
    padded = np.pad(counts, 1)
    for axis in (0, 1):
        padded = (np.roll(padded, 1, axis) + 2 * padded + np.roll(padded, -1, axis)) / 4
    smooth = np.log1p(padded[1:-1, 1:-1])
    column = np.clip(np.searchsorted(x_edges, x[known], side="right") - 1, 0, n_bins - 1)
    row = np.clip(np.searchsorted(y_edges, y[known], side="right") - 1, 0, n_bins - 1)
    density[known] = smooth[column, row] / smooth[column, row].max()
    return density


def biaxial(
    source: ColumnDataSource, *, n_cells: int, x_label: str = "", y_label: str = ""
) -> figure:
    """Draw one protein against another.

    Parameters
    ----------
    source
        Of cells, with the columns ``x`` and ``y``, places on the axes, and ``density``, as of
        `point_density`.
    n_cells
        How many there will be, which decides the size of the dots.
    x_label, y_label
        Names of the proteins.
    """
    drawn = new_figure(height=420, x_label=x_label, y_label=y_label)
    drawn.scatter(
        "x",
        "y",
        source=source,
        size=point_size(n_cells),
        color={"field": "density", "transform": density_mapper()},
        line_color=None,
    )
    use_count_axis(drawn, "x", PROTEIN_SCALE)
    use_count_axis(drawn, "y", PROTEIN_SCALE)
    return drawn
