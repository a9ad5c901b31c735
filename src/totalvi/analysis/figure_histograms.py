"""Histograms of raw against denoised protein counts, one panel for each protein."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from totalvi.analysis.figure_style import (
    count_ticks,
    panel_grid,
    short_names,
    title,
)
from totalvi.view.figures.style import BACKGROUND, FOREGROUND, INK, QUIET, WARNING

N_BINS = 45


def protein_histograms(
    raw: np.ndarray,
    denoised: np.ndarray,
    foreground_probability: np.ndarray,
    names: Sequence[str],
    warnings: Sequence[str],
) -> Figure:
    """Draw each protein's raw counts, split by the model, and its denoised foreground part.

    The raw counts of cells whose foreground probability is above one half are stacked on those of
    the other cells; a line shows the denoised counts of the former. The axis is log1p.

    Parameters
    ----------
    raw
        Counts, shape (n_cells, n_proteins), NaN where a protein was not measured; such cells are
        left out of its panel.
    denoised, foreground_probability
        What the model says, of the same shape.
    names
        Names of the proteins; at most 24 stay readable
        (see :func:`totalvi.analysis.figure_style.page_slices`).
    warnings
        For each protein a few words when its antibody failed to separate, else an empty string.
    """
    figure, panels = panel_grid(len(names), width=1.9, height=1.15, gap=(0.2, 0.62), bottom=0.6)
    for protein, (axes, name) in enumerate(zip(panels, short_names(names), strict=True)):
        measured = ~np.isnan(raw[:, protein])
        foreground = foreground_probability[measured, protein] > 0.5
        _panel(axes, raw[measured, protein], denoised[measured, protein], foreground)
        color = WARNING if warnings[protein] else INK
        text = "\n".join(filter(None, [warnings[protein], _share(foreground)]))
        pad = 22 if warnings[protein] else 13
        axes.set_title(name, fontsize=9, fontweight="bold", color=color, pad=pad)
        axes.annotate(
            text,
            (0.5, 1.0),
            (0, 4),
            "axes fraction",
            textcoords="offset points",
            ha="center",
            fontsize=6.5,
            color=color,
        )
    title(figure, "Protein counts: raw, and what the model takes for foreground")
    figure.legend(
        handles=[
            Patch(color=BACKGROUND, label="raw, background cells"),
            Patch(color=FOREGROUND, alpha=0.75, label="raw, foreground cells"),
            Line2D([], [], color=INK, linewidth=1.3, label="denoised, foreground cells"),
        ],
        loc="lower left",
        ncols=3,
        frameon=False,
        fontsize=8,
    )
    return figure


def _share(foreground: np.ndarray) -> str:
    """Say how many cells are foreground; a decimal only where rounding would say none or all."""
    if not foreground.size:
        return "no cells"
    percent = 100 * foreground.mean()
    return f"{percent:.{1 if 0 < percent < 1 or 99 < percent < 100 else 0}f} % foreground"


def _panel(axes: Axes, raw: np.ndarray, denoised: np.ndarray, foreground: np.ndarray) -> None:
    tops = [np.percentile(values, 99.9) for values in (raw, denoised) if values.size]
    edges = count_bin_edges(max([9.0, *tops]))
    background_part, foreground_part = (
        _cells_per_width(raw[kind], edges) for kind in (~foreground, foreground)
    )
    axes.stairs(background_part, edges, fill=True, color=BACKGROUND, linewidth=0)
    axes.stairs(
        background_part + foreground_part,
        edges,
        baseline=background_part,
        fill=True,
        color=FOREGROUND,
        alpha=0.75,
        linewidth=0,
    )
    smooth_edges = np.linspace(edges[0], edges[-1], 31)
    axes.stairs(_cells_per_width(denoised[foreground], smooth_edges), smooth_edges, color=INK)
    places, labels = count_ticks(0.0, edges[-1])
    axes.set_xticks(places, labels)
    # One line of marks: matplotlib's minor ticks would take most of the drawing time.
    between = np.log1p([digit * 10.0**power for power in range(5) for digit in range(1, 10)])
    axes.plot(between, np.zeros(between.size), "|", color=QUIET, markersize=3, markeredgewidth=0.5)
    axes.set_yticks([])
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(0, None)
    axes.tick_params(labelsize=7, length=2, pad=1.5, colors=INK)
    axes.spines[["top", "left", "right"]].set_visible(False)
    axes.spines["bottom"].set_color(QUIET)


def count_bin_edges(highest: float) -> np.ndarray:
    """Return bin edges on the log1p axis that lie between integers: each bin can hold a count.

    Low counts get one bin each; from where integers lie closer than the wanted bin width, bins
    have that width.

    Examples
    --------
    >>> [round(float(edge), 2) for edge in np.expm1(count_bin_edges(3))]
    [-0.5, 0.5, 1.5, 2.5, 3.5]
    """
    wanted = np.linspace(0.0, np.log1p(highest + 0.5), N_BINS + 1)
    between = np.unique(np.floor(np.expm1(wanted[1:]) + 1e-9) + 0.5)
    return np.log1p(np.concatenate([[-0.5], between]))


def _cells_per_width(counts: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Return cells per unit of the log1p axis, so that bins of unequal width compare.

    Counts above the last edge are put into the last bin.
    """
    n_cells, _ = np.histogram(np.minimum(np.log1p(counts), edges[-1]), edges)
    return n_cells / np.diff(edges)
