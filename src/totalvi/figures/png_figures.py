"""Figures of a fitted model, drawn from plain arrays: maps of the cells and training curves.

Each function returns a :class:`matplotlib.figure.Figure`; neither pyplot nor ``rcParams`` is used.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator

from totalvi.figures.png_style import (
    DOTS_PER_INCH,
    count_ticks,
    expression_colormap,
    new_figure,
    panel_grid,
    plain,
    short_names,
    title,
)
from totalvi.figures.style import FOREGROUND, INK, QUIET, WARNING, category_colors

SWEEPS = 200  # over all pairs of labels, to part them
MOST_DOTS = 20_000  # dots on a small map; drawing more takes long


def umap_by_category(
    umap: np.ndarray,
    categories: Sequence[Any] | pd.Series | pd.Categorical,
    *,
    name: str,
    label_on_map: bool = True,
) -> Figure:
    """Draw the cells coloured by a category such as cluster or batch.

    Labels on the map are moved apart where they would overlap.

    Parameters
    ----------
    umap
        Shape (n_cells, 2).
    categories
        One value for each cell; the order of a categorical's categories is kept. Cells without a
        value are "no value".
    name
        Name of the category, for the title.
    label_on_map
        Whether each category's name is also written in the middle of its cells; more than twelve
        long names are written as numbers that the legend explains.
    """
    grouped = pd.Categorical(categories).remove_unused_categories()
    names = [plain(str(category)) for category in grouped.categories]
    colors = category_colors(len(names))
    codes = np.where(grouped.codes < 0, len(names), grouped.codes)
    n_marked = len(names)
    if (grouped.codes < 0).any():
        names, colors = [*names, "no value"], [*colors, QUIET]
    marks = names
    if label_on_map and len(names) > 12 and max(map(len, names)) > 3:
        marks = [str(number) for number in range(1, len(names) + 1)]
    counts = np.bincount(codes, minlength=len(names))
    entries = [
        f"{name} ({count:,})" if mark == name else f"{mark}: {name} ({count:,})"
        for mark, name, count in zip(marks, names, counts, strict=True)
    ]
    n_columns = -(-len(names) // 24)
    columns = np.array_split(entries, n_columns)
    legend_width = sum(0.45 + 0.066 * max(map(len, column)) for column in columns)
    figure = new_figure(6.0 + legend_width, 6.0, layout="constrained")
    axes = figure.add_subplot(anchor="W")
    # Drawn in a random order, because otherwise the last category would hide the others.
    order = np.random.default_rng(0).permutation(len(umap))
    axes.scatter(
        umap[order, 0],
        umap[order, 1],
        s=_point_area(len(umap), inches=5.2),
        c=np.array(colors)[codes[order]],
        linewidths=0,
        rasterized=True,
    )
    _bare(axes)
    axes.legend(
        handles=[
            Line2D([], [], marker="o", linestyle="", markersize=6, markeredgewidth=0, color=color)
            for color in colors
        ],
        labels=entries,
        ncols=n_columns,
        loc="center left",
        bbox_to_anchor=(1.0, 0.5),
        frameon=False,
        fontsize=8,
        handletextpad=0.2,
        columnspacing=1.0,
        title=plain(f"{name} (cells)"),
        title_fontsize=8.5,
        alignment="left",
    )
    title(figure, f"{len(umap):,} cells by {name}")
    if label_on_map:
        centers = np.stack([_center(umap[codes == code]) for code in range(n_marked)])
        _place_labels(figure, axes, centers, marks[:n_marked])
    return figure


def umap_by_protein(umap: np.ndarray, denoised: np.ndarray, names: Sequence[str]) -> Figure:
    """Draw one small map of the cells for each protein, coloured by its denoised expression.

    Colours run on a log1p scale from the 1st to the 99.5th percentile of each protein, and over
    at least ten counts, so that a protein which no cell has stays pale.

    Parameters
    ----------
    umap
        Shape (n_cells, 2).
    denoised
        Denoised protein counts, shape (n_cells, n_proteins); at most 24 proteins stay readable
        (see :func:`totalvi.figures.png_style.page_slices`).
    names
        Names of the proteins.
    """
    figure, panels = panel_grid(len(names), width=1.8, height=1.8, gap=(0.5, 0.3))
    colormap = expression_colormap()
    for axes, name, counts in zip(panels, short_names(names), denoised.T, strict=True):
        values = np.log1p(counts)
        low, high = np.percentile(values, [1.0, 99.5])
        order = np.argsort(values, kind="stable")
        shown = {"cmap": colormap, "vmin": low, "vmax": max(high, low + np.log1p(10))}
        points = _cells(axes, umap[order], values[order], inches=1.8, **shown)
        _bare(axes, frame=False)
        axes.set_title(name, fontsize=9, color=INK, pad=2)
        bar = figure.colorbar(points, cax=axes.inset_axes((1.0, 0.22, 0.04, 0.56)))
        bar.outline.set_visible(False)
        places, labels = count_ticks(*points.get_clim())
        bar.set_ticks(places, labels=labels)
        bar.ax.tick_params(labelsize=6, length=1.5, width=0.5, pad=1, colors=INK)
    title(figure, "Denoised protein expression (counts, log scale)")
    return figure


def training_curves(history: pd.DataFrame, best_epoch: int) -> Figure:
    """Draw training and validation loss per cell and the KL weight over the epochs.

    Parameters
    ----------
    history
        Indexed by epoch, with columns ``train_loss`` and, where there are, ``validation_loss`` and
        ``kl_weight``.
    best_epoch
        The epoch whose weights were kept.
    """
    figure = new_figure(6.4, 4.4, layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    marker = "o" if len(history) == 1 else None
    curves = {"train_loss": ("training", QUIET), "validation_loss": ("validation", FOREGROUND)}
    drawn = [column for column in curves if column in history]
    for column in drawn:
        label, color = curves[column]
        known = history[column].dropna()
        top.plot(known.index, known, color=color, linewidth=1.6, marker=marker, label=label)
    lowest = history[drawn[-1]][best_epoch]
    top.axvline(best_epoch, color=WARNING, linewidth=0.8, linestyle=":")
    label = f"kept: epoch {best_epoch}, {lowest:,.1f}"
    top.plot(best_epoch, lowest, "o", color=WARNING, markersize=6, label=label)
    settled = history[drawn].iloc[len(history) // 10 :]
    margin = 0.06 * (settled.max().max() - settled.min().min()) or 1.0
    top.set_ylim(settled.min().min() - margin, settled.max().max() + margin)
    top.set_ylabel("loss per cell (nats)")
    top.legend(frameon=False, fontsize=9)
    if "kl_weight" in history:
        bottom.plot(history.index, history["kl_weight"], color=INK, linewidth=1.4, marker=marker)
    bottom.set_ylim(0, 1.08)
    bottom.set_ylabel("KL weight")
    bottom.set_xlabel("epoch")
    bottom.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in (top, bottom):
        axes.spines[["top", "right"]].set_visible(False)
    figure.align_ylabels()
    title(figure, "Training")
    return figure


def _cells(
    axes: Axes, umap: np.ndarray, values: np.ndarray, *, inches: float, **shown: Any
) -> ScalarMappable:
    """Draw the cells, each over those before it: as dots or, if these are but pixels, as an image."""
    if len(umap) <= MOST_DOTS:
        area = _point_area(len(umap), inches)
        return axes.scatter(
            umap[:, 0], umap[:, 1], s=area, c=values, linewidths=0, rasterized=True, **shown
        )
    low, high = umap.min(axis=0), umap.max(axis=0)
    margin = 0.03 * (high - low)
    low, high = low - margin, high + margin
    n_pixels = round(inches * DOTS_PER_INCH)
    share = (umap - low) / np.maximum(high - low, 1e-12)
    column, row = np.minimum((share * n_pixels).astype(np.int64), n_pixels - 1).T
    image = np.full((n_pixels, n_pixels), np.nan, dtype=np.float32)
    image[row, column] = values
    extent = (low[0], high[0], low[1], high[1])
    return axes.imshow(image, extent=extent, origin="lower", aspect="auto", **shown)


def _point_area(n_cells: int, inches: float) -> float:
    """Area of a point, in square points, for ``n_cells`` on a square map of this side."""
    return float(np.clip(1100 * inches**2 / n_cells, 0.012 * inches**2, 0.7 * inches**2))


def _bare(axes: Axes, frame: bool = True) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.margins(0.03)
    axes.set_box_aspect(1)
    axes.spines[:].set_visible(False)
    if frame:
        axes.spines[["left", "bottom"]].set_visible(True)
        axes.spines[["left", "bottom"]].set_color(QUIET)
        axes.set_xlabel("UMAP 1", fontsize=8, color=QUIET, loc="left")
        axes.set_ylabel("UMAP 2", fontsize=8, color=QUIET, loc="bottom")


def _center(points: np.ndarray) -> np.ndarray:
    """Return the point nearest to the median, which lies among the cells whatever their shape."""
    distance = np.linalg.norm(points - np.median(points, axis=0), axis=1)
    nearest: np.ndarray = points[distance.argmin()]
    return nearest


def _place_labels(figure: Figure, axes: Axes, centers: np.ndarray, names: Sequence[str]) -> None:
    """Write ``names`` at ``centers``, moved apart until no two overlap."""
    halo = [patheffects.withStroke(linewidth=2.5, foreground="white")]
    texts: list[Text] = [
        axes.text(
            x,
            y,
            name,
            fontsize=8,
            fontweight="bold",
            color=INK,
            ha="center",
            va="center",
            path_effects=halo,
        )
        for (x, y), name in zip(centers, names, strict=True)
    ]
    figure.draw_without_rendering()  # the layout is known only now
    figure.set_layout_engine("none")
    sizes = np.array([[box.width, box.height] for box in (t.get_window_extent() for t in texts)])
    places = separate_boxes(axes.transData.transform(centers), sizes * 1.05)
    for text, place in zip(texts, axes.transData.inverted().transform(places), strict=True):
        text.set_position(tuple(place))


def separate_boxes(centers: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Move boxes apart, each pair by as little as parts it, until none overlap (or `SWEEPS`).

    Parameters
    ----------
    centers, sizes
        Shape (n_boxes, 2), in one unit.

    Returns
    -------
    numpy.ndarray
        The moved centers, shape (n_boxes, 2).
    """
    placed = centers.astype(float)
    for _ in range(SWEEPS):
        moved = False
        for i, j in zip(*np.triu_indices(len(placed), k=1), strict=True):
            apart = placed[j] - placed[i]
            overlap = (sizes[i] + sizes[j]) / 2 - np.abs(apart)
            if (overlap > 1e-6).all():
                axis = int(overlap.argmin())
                step = (overlap[axis] / 2 + 1e-3) * (1.0 if apart[axis] >= 0 else -1.0)
                placed[i, axis] -= step
                placed[j, axis] += step
                moved = True
        if not moved:
            break
    return placed
