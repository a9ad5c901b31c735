"""Biaxial protein plots: one protein against another, each cell a dot coloured by density."""

import numpy as np
from bokeh.models import ColumnDataSource, LinearColorMapper
from bokeh.palettes import Viridis256
from bokeh.plotting import figure

from totalvi.pictures.frame import new_figure, use_count_axis
from totalvi.pictures.maps import point_size
from totalvi.pictures.scale import PROTEIN_SCALE


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
