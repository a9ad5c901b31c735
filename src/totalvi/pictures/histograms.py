"""Histograms of a protein's counts, split by the model into background and foreground."""

from typing import NamedTuple

import numpy as np
from bokeh.plotting import figure

from totalvi.pictures.colors import FOREGROUND
from totalvi.pictures.frame import new_figure, use_ticks
from totalvi.pictures.scale import PROTEIN_SCALE

N_BINS = 45
SMOOTH_BINS = 30


class HistogramParts(NamedTuple):
    """Histograms on a count axis; heights are cells per unit of the axis.

    Attributes
    ----------
    edges
        Places of the edges of the raw bins, (n + 1,).
    background, foreground
        Of the raw counts of background and of foreground cells, (n,).
    smooth_edges
        Places of the edges of the denoised bins, (m + 1,).
    denoised
        Of the denoised counts of foreground cells, (m,).
    """

    edges: np.ndarray
    background: np.ndarray
    foreground: np.ndarray
    smooth_edges: np.ndarray
    denoised: np.ndarray


def histogram_parts(
    raw: np.ndarray,
    denoised: np.ndarray,
    foreground_probability: np.ndarray,
    weights: np.ndarray | None = None,
) -> HistogramParts:
    """Count one protein's cells; foreground are those with a probability above one half.

    Parameters
    ----------
    raw
        Counts, (n_cells,), NaN where unmeasured; such cells are left out.
    denoised, foreground_probability
        What the model says, (n_cells,).
    weights
        How many cells each stands for, (n_cells,); None: one.
    """
    measured = ~np.isnan(raw)
    raw, denoised = raw[measured], denoised[measured]
    weights = np.ones(len(raw)) if weights is None else weights[measured]
    foreground = foreground_probability[measured] > 0.5
    tops = [np.percentile(values, 99.9) for values in (raw, denoised) if values.size]
    edges = bin_edges(max([9.0, *tops]))
    smooth_edges = np.linspace(edges[0], edges[-1], SMOOTH_BINS + 1)
    return HistogramParts(
        edges,
        _cells_per_width(PROTEIN_SCALE.forward(raw[~foreground]), edges, weights[~foreground]),
        _cells_per_width(PROTEIN_SCALE.forward(raw[foreground]), edges, weights[foreground]),
        smooth_edges,
        _cells_per_width(
            PROTEIN_SCALE.forward(denoised[foreground]), smooth_edges, weights[foreground]
        ),
    )


def bin_edges(highest: float) -> np.ndarray:
    """Return bin edges, as places on the axis, that lie between integers: any bin can hold a count.

    Low counts get one bin each; from where integers lie closer than the wanted bin width, bins
    have that width.

    Examples
    --------
    >>> PROTEIN_SCALE.inverse(bin_edges(3)).round(2).tolist()
    [-0.5, 0.5, 1.5, 2.5, 3.5]
    """
    wanted = np.linspace(0.0, PROTEIN_SCALE.forward(highest + 0.5), N_BINS + 1)
    between = np.unique(np.floor(PROTEIN_SCALE.inverse(wanted[1:]) + 1e-9) + 0.5)
    return PROTEIN_SCALE.forward(np.concatenate([[-0.5], between]))


def _cells_per_width(places: np.ndarray, edges: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return cells per unit of the axis; those beyond the last edge are put into the last bin."""
    n_cells, _ = np.histogram(np.minimum(places, edges[-1]), edges, weights=weights)
    return n_cells / np.diff(edges)


def count_histogram(counts: np.ndarray, x_label: str) -> figure:
    """Draw how many cells have how many counts."""
    drawn = new_figure(height=220, x_label=x_label, y_label="cells", tools="save")
    places = PROTEIN_SCALE.forward(counts)
    n_cells, edges = np.histogram(places, bins=N_BINS)
    drawn.quad(
        left=edges[:-1],
        right=edges[1:],
        bottom=0,
        top=n_cells,
        color=FOREGROUND,
        line_color="white",
    )
    ends = PROTEIN_SCALE.inverse(edges[[0, -1]])
    use_ticks(drawn, "x", PROTEIN_SCALE.close_ticks(float(ends[0]), float(ends[1])))
    drawn.y_range.start = 0
    return drawn
