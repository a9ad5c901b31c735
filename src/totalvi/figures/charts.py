"""Charts of the report: observed against predicted, bars, tiles, losses, volcano, histograms."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from bokeh.models import ColumnDataSource, FactorRange, HoverTool, LinearColorMapper
from bokeh.plotting import figure

from totalvi.figures.cell_maps import add_color_bar, value_mapper
from totalvi.figures.style import (
    BACKGROUND,
    FOREGROUND,
    INK,
    PROTEIN_SCALE,
    QUIET,
    WARNING,
    CountScale,
    category_colors,
    new_figure,
    use_count_axis,
    use_ticks,
)

N_BINS = 45
SMOOTH_BINS = 30


def agreement(
    source: ColumnDataSource,
    *,
    label: str,
    scale: CountScale | None,
    high: float,
) -> figure:
    """Draw a dot for each feature, and the line on which both axes agree.

    Parameters
    ----------
    source
        Of features, with the columns ``observed`` and ``predicted``, places on the axes; ``kind``,
        0 a gene and 1 a protein; and ``name``.
    label
        What is compared, for the axes.
    scale
        Of both axes; None: linear.
    high
        Where the line ends.
    """
    drawn = new_figure(
        height=300, x_label=f"observed {label}", y_label=f"predicted {label}", tools="save"
    )
    drawn.line([0, high], [0, high], color=QUIET, line_dash="dashed")
    mapper = LinearColorMapper(palette=[BACKGROUND, WARNING], low=-0.5, high=1.5)
    dots = drawn.scatter(
        "observed",
        "predicted",
        source=source,
        size=6,
        color={"field": "kind", "transform": mapper},
        line_color=None,
        alpha=0.8,
    )
    drawn.add_tools(HoverTool(renderers=[dots], tooltips=[("feature", "@name")]))
    if scale is not None:
        use_count_axis(drawn, "x", scale)
        use_count_axis(drawn, "y", scale)
    return drawn


def composition(
    counts: np.ndarray, groups: Sequence[str], parts: Sequence[str], *, x_label: str, y_label: str
) -> figure:
    """Draw a bar for each group, divided by the parts of its cells.

    Parameters
    ----------
    counts
        Cells, shape (groups, parts).
    groups, parts
        Names, unique; parts have the colours of `totalvi.figures.cell_maps.category_legend`.
    """
    drawn = new_figure(
        height=22 * len(groups) + 90,
        x_label=x_label,
        y_label=y_label,
        tools="save",
        y_range=FactorRange(*map(str, reversed(groups))),
    )
    percent = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    ends = percent.cumsum(axis=1)
    for place, (part, color) in enumerate(zip(parts, category_colors(len(parts)), strict=True)):
        bars = drawn.hbar(
            y="group",
            left="left",
            right="right",
            height=0.75,
            source={
                "group": list(map(str, groups)),
                "left": ends[:, place] - percent[:, place],
                "right": ends[:, place],
                "percent": percent[:, place],
                "part": [str(part)] * len(groups),
            },
            color=color,
        )
        tips = [("", "@part"), ("of cells", "@percent{0.0} %")]
        drawn.add_tools(HoverTool(renderers=[bars], tooltips=tips))
    drawn.x_range.start, drawn.x_range.end = 0, 100
    return drawn


def heat_map(
    values: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    low: float,
    high: float,
    value_name: str,
) -> figure:
    """Draw a tile for each row and column, the first row on top.

    Parameters
    ----------
    values
        Shape (rows, columns); NaN is grey.
    rows, columns
        Names, unique on each axis.
    low, high
        Ends of the colours.
    value_name
        Name of the values, shown at the pointer.
    """
    mapper = value_mapper(low, high)
    drawn = new_figure(
        height=16 * len(rows) + 110,
        tools="save",
        x_range=FactorRange(*map(str, columns)),
        y_range=FactorRange(*map(str, reversed(rows))),
        x_axis_location="above",
    )
    tiles = drawn.rect(
        "column",
        "row",
        width=1,
        height=1,
        source={
            "column": [str(column) for _ in rows for column in columns],
            "row": [str(row) for row in rows for _ in columns],
            "value": values.ravel(),
        },
        fill_color={"field": "value", "transform": mapper},
        line_color="white",
        line_width=0.5,
    )
    tips = [("", "@row, @column"), (value_name, "@value{0.00}")]
    drawn.add_tools(HoverTool(renderers=[tiles], tooltips=tips))
    drawn.axis.major_tick_line_color = None
    drawn.axis.axis_line_color = None
    drawn.axis.major_label_text_font_size = "11px"
    if len(columns) > 12 or max(map(len, map(str, columns)), default=0) > 4:
        drawn.xaxis.major_label_orientation = 1.1
    add_color_bar(drawn, mapper)
    return drawn


CURVES = {
    "train_loss": ("training", QUIET, "dashed"),
    "validation_loss": ("held-out cells", FOREGROUND, "solid"),
}


def training_curves(history: pd.DataFrame, best_epoch: int) -> figure:
    """Draw training and held-out loss per cell over the epochs; the kept epoch is marked.

    Parameters
    ----------
    history
        Indexed by epoch, with the column ``train_loss`` and, where there is one,
        ``validation_loss``.
    best_epoch
        The epoch whose weights were kept.
    """
    drawn = new_figure(height=300, x_label="epoch", y_label="loss per cell (nats)", tools="save")
    drawn_columns = [column for column in CURVES if column in history]
    for column in drawn_columns:
        label, color, dash = CURVES[column]
        known = history[column].dropna()
        drawn.line(
            known.index, known, color=color, line_width=2, line_dash=dash, legend_label=label
        )
    lowest = float(history[drawn_columns[-1]][best_epoch])
    drawn.scatter(
        [best_epoch], [lowest], size=9, color=WARNING, legend_label=f"kept: epoch {best_epoch}"
    )
    # The first epochs lie far above and would flatten the rest.
    settled = history[drawn_columns].iloc[len(history) // 10 :].to_numpy()
    low, high = np.nanmin(settled), np.nanmax(settled)
    margin = 0.06 * (high - low) or 1.0
    drawn.y_range.start, drawn.y_range.end = low - margin, high + margin
    drawn.legend.border_line_color = None
    drawn.legend.background_fill_alpha = 0.8
    return drawn


def volcano(
    source: ColumnDataSource,
    *,
    x: str = "x",
    y: str = "y",
    kind: str = "kind",
    name: str = "name",
    x_label: str = "log2 fold change",
    y_label: str = "",
    height: int = 380,
) -> figure:
    """Draw a dot for each feature.

    Parameters
    ----------
    source
        One row a feature, with the columns ``x``; ``y``; ``kind``: 0 not called, 1 a gene, 2 a protein
        that is; and ``name``.
    """
    drawn = new_figure(height=height, x_label=x_label, y_label=y_label)
    mapper = LinearColorMapper(palette=[BACKGROUND, FOREGROUND, WARNING], low=-0.5, high=2.5)
    dots = drawn.scatter(
        x,
        y,
        source=source,
        size=7,
        alpha=0.75,
        color={"field": kind, "transform": mapper},
        line_color=None,
        selection_line_color=INK,
        nonselection_fill_alpha=0.3,
        name="features",
    )
    tips = [("feature", f"@{{{name}}}"), ("log2 fold change", f"@{{{x}}}{{0.00}}")]
    drawn.add_tools(HoverTool(renderers=[dots], tooltips=tips))
    drawn.xgrid.grid_line_color = drawn.ygrid.grid_line_color = "#EEF0F2"
    return drawn


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
        Estimates of the model, (n_cells,).
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
