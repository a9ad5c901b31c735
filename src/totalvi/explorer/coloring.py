"""Colours of the cells, by annotation, features or where most cells lie."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd

from totalvi.explorer.axes import COUNTS, WORDS, Kind
from totalvi.explorer.drawn_cells import mapped, rgba
from totalvi.explorer.run_cells import Cells
from totalvi.figures.cell_maps import VALUE_PALETTE, category_legend
from totalvi.figures.style import BACKGROUND, PROTEIN_SCALE, RNA_SCALE, CountScale, category_colors
from totalvi.run.folder import CLUSTER_COLUMN

_MOST_CATEGORIES = 60  # in the legend
_TOP_PERCENTILE = 99.5  # of values, which takes the darkest colour
LEGEND_STYLE = """
ul.legend { list-style: none; display: flex; flex-wrap: wrap; gap: 2px 14px; margin: 0; padding: 0; }
.swatch { display: inline-block; width: 11px; height: 11px; border-radius: 50%; margin-right: 5px; }
"""


class Coloring(NamedTuple):
    """Colours of all cells.

    Parameters
    ----------
    colors
        uint32 (N,); see `totalvi.explorer.drawn_cells.rgba`.
    legend
        HTML of the categories; empty for values.
    low, high
        Places on the scale of the palest and the darkest colour; NaN for categories.
    scale
        On which values are; None: linear.
    """

    colors: np.ndarray
    legend: str
    low: float
    high: float
    scale: CountScale | None


def color_choices(cells: Cells, tidy: Mapping[str, str]) -> dict[str, tuple[Kind, str]]:
    """Return the choices to colour cells by, with their labels: annotation, proteins, genes, controls.

    Parameters
    ----------
    tidy
        Short name of each protein.
    """
    choices: dict[str, tuple[Kind, str]] = {}
    for column in sorted(map(str, cells.obs), key=lambda name: name != CLUSTER_COLUMN):
        choices[f"{column} ({WORDS['obs']})"] = ("obs", column)
    for kind, word in WORDS.items():
        if kind == "gene_log" and "gene_denoised" in cells.kinds:
            continue  # there are many genes
        if kind in cells.kinds:
            names = cells.names_of(kind)
            choices |= {f"{tidy.get(name, name)} ({word})": (kind, name) for name in names}
    return choices


def color_cells(cells: Cells, kind: Kind, name: str) -> Coloring:
    """Return the colours of all cells by an annotation or a feature."""
    if kind == "obs" and not is_number(cells.obs[name]):
        return _by_category(cells.obs[name])
    scale = None
    if kind in ("protein_denoised", "protein_raw", "isotype_raw"):
        scale = PROTEIN_SCALE
    elif kind in COUNTS:
        scale = RNA_SCALE
    values = cells.values(kind, name)
    places = values if scale is None else scale.forward(values)
    known = places[np.isfinite(places)]
    high = 1.0
    if kind != "protein_foreground" and known.size:
        high = float(np.percentile(known, _TOP_PERCENTILE)) or float(known.max()) or 1.0
    low = 0.0
    if kind in ("obs", "protein_clr") and known.size:
        low = min(float(np.percentile(known, 100 - _TOP_PERCENTILE)), 0.0)
    return color_values(places, low, max(high, low + 1e-9), scale)


def color_values(places: np.ndarray, low: float, high: float, scale: CountScale | None) -> Coloring:
    """Return the colours of values that lie between two places of a scale."""
    return Coloring(mapped(places, low, high, list(VALUE_PALETTE)), "", low, high, scale)


def is_number(column: pd.Series) -> bool:
    """Return whether a column of ``obs`` holds numbers."""
    return pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)


def _by_category(column: pd.Series) -> Coloring:
    categories = column.astype("category").cat
    codes = categories.codes.to_numpy()
    names = list(map(str, categories.categories))
    palette = rgba([*category_colors(len(names)), BACKGROUND])
    cells_of = np.bincount(codes[codes >= 0], minlength=len(names))
    legend = category_legend(names[:_MOST_CATEGORIES], cells_of[:_MOST_CATEGORIES])
    return Coloring(palette[codes], legend, float("nan"), float("nan"), None)
