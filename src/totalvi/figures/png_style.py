"""Shared parts of PNG figures: colours, count axes, panel grids, histograms, and writing."""

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Literal
from uuid import uuid4

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from totalvi.figures.style import BACKGROUND, FOREGROUND, INK, QUIET, WARNING

PANELS_PER_PAGE = 24
DOTS_PER_INCH = 150


def expression_colormap() -> Colormap:
    """Return the perceptual map for expression, from pale (nothing) to dark (much)."""
    return LinearSegmentedColormap.from_list(
        "expression", colormaps["magma_r"](np.linspace(0.04, 0.92, 256))
    )


def new_figure(width: float, height: float, layout: Literal["constrained"] | None = None) -> Figure:
    """Return an empty figure of ``width`` by ``height`` inches that needs no display."""
    figure = Figure(figsize=(width, height), layout=layout)
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write ``figure`` as a PNG with 150 dots per inch; ``path`` is complete or not written."""
    partial = path.with_name(f".{path.name}.{uuid4().hex[:8]}")
    try:
        figure.savefig(partial, dpi=DOTS_PER_INCH, format="png")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def page_slices(n_panels: int) -> list[slice]:
    """Divide panels into as few pages as hold at most 24 panels each, evenly filled.

    Examples
    --------
    >>> page_slices(50)
    [slice(0, 17, None), slice(17, 34, None), slice(34, 50, None)]
    """
    n_pages = math.ceil(n_panels / PANELS_PER_PAGE)
    size, n_longer = divmod(n_panels, max(n_pages, 1))
    starts = [page * size + min(page, n_longer) for page in range(n_pages + 1)]
    return [slice(start, stop) for start, stop in pairwise(starts)]


def panel_grid(
    n_panels: int, width: float, height: float, *, gap: tuple[float, float], bottom: float = 0.1
) -> tuple[Figure, list[Axes]]:
    """Return a figure with a grid of equal axes.

    Every place is given in inches, since to ask matplotlib for a layout takes longer than to draw.

    Parameters
    ----------
    n_panels
        Number of axes, filled row by row into about three columns for two rows.
    width, height
        Size of one axes.
    gap
        Space to the right of, and above, each axes.
    bottom
        Space below the lowest row.
    """
    n_columns = min(n_panels, math.ceil(math.sqrt(1.5 * n_panels)))
    n_rows = math.ceil(n_panels / n_columns)
    across, down = width + gap[0], height + gap[1]
    total = np.array([0.15 + max(n_columns * across, 5.4), 0.3 + n_rows * down + bottom])
    figure = new_figure(*total)
    panels = []
    for panel in range(n_panels):
        row, column = divmod(panel, n_columns)
        corner = np.array([0.15 + column * across, bottom + (n_rows - 1 - row) * down])
        panels.append(figure.add_axes((*(corner / total), *((width, height) / total))))
    return figure, panels


def title(figure: Figure, text: str) -> None:
    """Put a title at the top left of ``figure``."""
    left = 0.1 / figure.get_size_inches()[0]
    figure.suptitle(plain(text), x=left, ha="left", fontsize=11, fontweight="bold", color=INK)


def short_names(names: Sequence[str]) -> list[str]:
    """Leave out an ending such as ``_TotalSeqB`` that all protein names share; `plain`.

    Examples
    --------
    >>> short_names(["CD3_TotalSeqB", "CD4_TotalSeqB"])
    ['CD3', 'CD4']
    >>> short_names(["CD3", "CD13"])
    ['CD3', 'CD13']
    """
    stems, separators, endings = zip(*(name.rpartition("_") for name in names), strict=True)
    shared = len(set(endings)) == 1 and all(stems) and all(separators)
    return [plain(n) for n in (stems if shared and len(names) > 1 else names)]


def plain(text: str) -> str:
    r"""Return text that matplotlib does not read as a formula.

    Examples
    --------
    >>> plain("CD3 $_$")
    'CD3 \\$_\\$'
    """
    return text.replace("$", r"\$")


def count_ticks(low: float, high: float) -> tuple[list[float], list[str]]:
    """Return tick places on a log1p axis and their labels in counts.

    Parameters
    ----------
    low, high
        The ends of the axis, as log1p of counts.

    Examples
    --------
    >>> count_ticks(0.0, 7.0)[1]
    ['0', '10', '100', '1k']
    """
    inside = [0, *(10**power for power in range(7))]
    counts = [count for count in inside if low - 1e-9 <= np.log1p(count) <= high + 1e-9]
    if len(counts) > 3 and counts[:2] == [0, 1]:
        del counts[1]
    if len(counts) < 2:
        counts = sorted({round(float(np.expm1(low))), round(float(np.expm1(high)))})
    labels = [f"{count // 1000}k" if count >= 1000 else str(count) for count in counts]
    return [float(np.log1p(count)) for count in counts], labels


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
        Estimates of the model, of the same shape.
    names
        Names of the proteins; at most 24 stay readable
        (see :func:`totalvi.figures.png_style.page_slices`).
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
    edges: np.ndarray = np.log1p(np.concatenate([[-0.5], between]))
    return edges


def _cells_per_width(counts: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Return cells per unit of the log1p axis, so that bins of unequal width compare.

    Counts above the last edge are put into the last bin.
    """
    n_cells, _ = np.histogram(np.minimum(np.log1p(counts), edges[-1]), edges)
    return n_cells / np.diff(edges)
