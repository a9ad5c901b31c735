"""Colours of cells, and the annotations and features by which they can be coloured."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from bokeh.layouts import row
from bokeh.models import (
    AutocompleteInput,
    ColorBar,
    CustomJS,
    LayoutDOM,
    LinearColorMapper,
    RadioButtonGroup,
    Select,
)

from totalvi.figures.cell_maps import VALUE_PALETTE, category_legend
from totalvi.figures.style import BACKGROUND, PROTEIN_SCALE, RNA_SCALE, CountScale, category_colors
from totalvi.run.folder import CLUSTER_COLUMN
from totalvi.view.explorer.gate_panel import ALL_CELLS
from totalvi.view.explorer.gates import SCALES, Kind
from totalvi.view.explorer.plot import CellPlot, mapped, rgba
from totalvi.view.explorer.run_cells import RunCells

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
        uint32 (N,); see `totalvi.view.explorer.plot.rgba`.
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
    """Return the choices to colour cells by, with their labels: annotation, proteins, genes."""
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


DENSITY = "density of cells"
LEFT_MAP, LEFT_RAW = "Map (UMAP)", "Raw counts"
QUANTITIES: dict[str, Kind] = {
    "denoised": "protein_denoised",
    "raw counts": "protein_raw",
    "foreground probability": "protein_foreground",
}
SHAPES = ("Move", "Rectangle", "Polygon", "Lasso")
_CHOOSE_TOOL = """
tools.forEach((some, i) => some.forEach((tool) => { tool.active = i === cb_obj.active; }));
wheels.forEach((wheel) => { wheel.active = cb_obj.active === 0; });
"""


def show_scale(coloring: Coloring, mapper: LinearColorMapper, color_bar: ColorBar) -> None:
    """Set the colour bar to the range of the values that cells are coloured by."""
    mapper.high = coloring.high
    if coloring.scale is None:
        color_bar.ticker, color_bar.major_label_overrides = "auto", {}
    else:
        color_bar.ticker = coloring.scale.ticker()
        color_bar.major_label_overrides = coloring.scale.ticks()


class ViewPanel:
    """Widgets above the plots.

    Parameters
    ----------
    on_axes, on_colors, on_shown
        Are called when other axes, colours or cells were chosen.
    """

    def __init__(
        self,
        proteins: Sequence[str],
        colors: Sequence[str],
        quantities: Sequence[str],
        plots: Sequence[CellPlot],
        *,
        on_axes: Callable[[], None],
        on_colors: Callable[[], None],
        on_shown: Callable[[], None],
    ) -> None:
        self._setting = False
        self.shape = RadioButtonGroup(labels=list(SHAPES), active=1, name="shape", align="end")
        tools = [[plot.tools[shape.lower()] for plot in plots] for shape in SHAPES]
        self.shape.js_on_change(
            "active",
            CustomJS(
                args={"tools": tools, "wheels": [plot.wheel for plot in plots]},
                code=_CHOOSE_TOOL,
            ),
        )
        self.shown = _select("Cells shown and gated", [ALL_CELLS], "shown", 190)
        self.x, self.y = (
            _search(
                f"{axis} protein", proteins, proteins[min(i, len(proteins) - 1)], f"{axis}_protein"
            )
            for i, axis in enumerate(("Horizontal", "Vertical"))
        )
        self.quantity = _select("Values", quantities, "quantity", 130)
        self.scale = _select("Scale", SCALES, "scale", 90)
        self.scale.value = "asinh"
        self.left = _select("Left plot", [LEFT_MAP, LEFT_RAW], "left_plot", 120)
        self.color = _search(
            "Colour by (type to search)", [*colors, DENSITY], colors[0], "color", 250
        )
        for widget in (self.x, self.y, self.quantity, self.scale, self.left):
            widget.on_change("value", lambda _attr, _old, _new: on_axes())
        self.color.on_change("value", lambda _attr, _old, _new: on_colors())
        self.shown.on_change(
            "value", lambda _attr, _old, _new: None if self._setting else on_shown()
        )

    def layout(self) -> LayoutDOM:
        """Return the widgets in a row that wraps."""
        arranged = row(
            self.shape, self.shown, self.left, self.x, self.y, self.quantity, self.scale, self.color,
            sizing_mode="stretch_width", name="view",
        )  # fmt: skip
        arranged.styles = {"flex-wrap": "wrap"}
        return arranged

    def offer(self, gates: Sequence[str], shown: str | None) -> None:
        """Offer all cells and those of each gate."""
        self._setting = True
        self.shown.options = [ALL_CELLS, *gates]
        self.shown.value = ALL_CELLS if shown is None else shown
        self._setting = False


def _select(title: str, options: Sequence[str], name: str, width: int) -> Select:
    return Select(title=title, options=list(options), value=options[0], name=name, width=width)


def _search(
    title: str, options: Sequence[str], value: str, name: str, width: int = 140
) -> AutocompleteInput:
    return AutocompleteInput(
        title=title,
        completions=list(options),
        value=value,
        name=name,
        width=width,
        min_characters=1,
        max_completions=30,
        case_sensitive=False,
        search_strategy="includes",
        restrict=True,
    )


LEGEND_STYLE = """
ul.legend { list-style: none; display: flex; flex-wrap: wrap; gap: 2px 14px; margin: 0; padding: 0; }
.swatch { display: inline-block; width: 11px; height: 11px; border-radius: 50%; margin-right: 5px; }
"""
