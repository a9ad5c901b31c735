"""Biaxial protein plots: one protein against another, each cell a dot coloured by density."""

from typing import Any

import numpy as np
from bokeh.models import CDSView, ColumnDataSource, LinearColorMapper
from bokeh.palettes import Viridis256
from bokeh.plotting import figure

from totalvi.pictures.colors import PALE
from totalvi.pictures.frame import TOOLS, new_figure, use_count_axis
from totalvi.pictures.maps import point_size
from totalvi.pictures.scale import PROTEIN_SCALE, CountScale


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
    source: ColumnDataSource,
    mapper: LinearColorMapper | None = None,
    *,
    x: str = "x",
    y: str = "y",
    color: str = "density",
    x_label: str = "",
    y_label: str = "",
    view: CDSView | None = None,
    n_cells: int | None = None,
    scale: CountScale = PROTEIN_SCALE,
    title: str = "",
    height: int = 420,
    tools: str = TOOLS,
    active_drag: str | None = None,
    **options: Any,
) -> figure:
    """Draw one protein against another.

    Parameters
    ----------
    source
        Of cells, with the columns ``x`` and ``y``, places on the axes (``scale.forward(counts)``),
        and ``color``.
    mapper
        Colours ``color``; None: as `point_density`.
    x_label, y_label
        Names of the proteins.
    view
        Which cells to draw; None: all.
    n_cells
        How many there are, which decides the size of the dots; None: as many as in ``source``.
    scale
        Of both axes.
    title, height, tools, active_drag, **options
        As in `totalvi.pictures.frame.new_figure`.
    """
    drawn = new_figure(
        title,
        height=height,
        x_label=x_label,
        y_label=y_label,
        tools=tools,
        active_drag=active_drag,
        **options,
    )
    drawn.scatter(
        x,
        y,
        source=source,
        size=point_size(len(source.data.get(x, ())) if n_cells is None else n_cells),
        color={"field": color, "transform": mapper or density_mapper()},
        line_color=None,
        nonselection_fill_color=PALE,
        nonselection_fill_alpha=0.4,
        name="cells",
        view=CDSView() if view is None else view,
    )
    use_count_axis(drawn, "x", scale)
    use_count_axis(drawn, "y", scale)
    return drawn
