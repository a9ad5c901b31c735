"""What all figures share: colours, count axes, panel grids, and writing a PNG."""

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

from totalvi.view.figures.style import INK

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
    """Write ``figure`` as a PNG with 150 dots per inch; ``path`` appears whole or not at all."""
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
    r"""Return text that matplotlib takes for no formula.

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
