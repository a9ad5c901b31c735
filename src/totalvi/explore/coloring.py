"""What cells can be coloured by, and the colours."""

from typing import NamedTuple

import numpy as np
import pandas as pd

from totalvi.analysis.columns import CLUSTER_COLUMN
from totalvi.explore.data import RunCells
from totalvi.explore.gates import Kind
from totalvi.explore.raster import mapped, rgba
from totalvi.pictures.colors import BACKGROUND, category_colors
from totalvi.pictures.maps import VALUE_PALETTE, category_legend
from totalvi.pictures.scale import PROTEIN_SCALE, RNA_SCALE, CountScale

WORDS: dict[Kind, str] = {
    "protein_denoised": "protein, denoised",
    "protein_foreground": "protein, foreground probability",
    "protein_raw": "protein, raw counts",
    "gene_denoised": "gene, denoised",
    "gene_raw": "gene, raw counts",
    "obs": "annotation",
}
_MOST_CATEGORIES = 60  # in the legend
_TOP_PERCENTILE = 99.5  # of values, which takes the darkest colour


class Coloring(NamedTuple):
    """Colours of all cells.

    Parameters
    ----------
    colors
        uint32 (N,); see `totalvi.explore.raster.rgba`.
    legend
        HTML of the categories; empty for values.
    high
        Place on the scale of the darkest colour, the palest being 0; NaN for categories.
    scale
        On which values are; None: linear.
    """

    colors: np.ndarray
    legend: str
    high: float
    scale: CountScale | None


def color_choices(cells: RunCells) -> dict[str, tuple[Kind, str]]:
    """Return what cells can be coloured by, by its label: annotation, proteins, then genes."""
    choices: dict[str, tuple[Kind, str]] = {}
    for column in sorted(map(str, cells.obs), key=lambda name: name != CLUSTER_COLUMN):
        choices[f"{column} ({WORDS['obs']})"] = ("obs", column)
    for kind, word in WORDS.items():
        if kind in cells.kinds:
            names = cells.gene_names if kind.startswith("gene") else cells.protein_names
            choices |= {f"{name} ({word})": (kind, name) for name in names}
    return choices


def color_cells(cells: RunCells, kind: Kind, name: str) -> Coloring:
    """Return the colours of all cells by an annotation or a feature."""
    if kind == "obs" and not _is_number(cells.obs[name]):
        return _by_category(cells.obs[name])
    scale = None
    if kind in ("protein_denoised", "protein_raw"):
        scale = PROTEIN_SCALE
    elif kind.startswith("gene"):
        scale = RNA_SCALE
    values = cells.values(kind, name)
    places = values if scale is None else scale.forward(values)
    known = places[np.isfinite(places)]
    high = 1.0
    if kind != "protein_foreground" and known.size:
        high = float(np.percentile(known, _TOP_PERCENTILE)) or float(known.max()) or 1.0
    low = min(float(known.min()), 0.0) if kind == "obs" and known.size else 0.0
    return Coloring(
        mapped(places, low, max(high, low + 1e-9), list(VALUE_PALETTE)), "", high, scale
    )


def _is_number(column: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)


def _by_category(column: pd.Series) -> Coloring:
    categories = column.astype("category").cat
    codes = categories.codes.to_numpy()
    names = list(map(str, categories.categories))
    palette = rgba([*category_colors(len(names)), BACKGROUND])
    cells_of = np.bincount(codes[codes >= 0], minlength=len(names))
    legend = category_legend(names[:_MOST_CATEGORIES], cells_of[:_MOST_CATEGORIES])
    return Coloring(palette[codes], legend, float("nan"), None)
