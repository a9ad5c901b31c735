"""The widgets around the plots: what they show, and the tree of gates with its buttons."""

import base64
import binascii
from collections.abc import Callable, Mapping, Sequence

from bokeh.layouts import column, row
from bokeh.models import (
    AutocompleteInput,
    Button,
    ColorBar,
    ColumnDataSource,
    CustomJS,
    DataTable,
    Div,
    FileInput,
    LayoutDOM,
    LinearColorMapper,
    RadioButtonGroup,
    Select,
    StringFormatter,
    TableColumn,
    TextInput,
)

from totalvi.errors import DataError
from totalvi.explorer.compare import redrawn_with_its_source
from totalvi.explorer.gates import SCALES, Count, Gating, Kind
from totalvi.explorer.plot import CellPlot
from totalvi.explorer.run_cells import Coloring

ALL_CELLS = "All cells"
_INDENT, _BRANCH = "\u2003", "\u2514 "
_DOWNLOAD = """
const [name, type, text] = cb_obj.tags;
if (text === undefined) return;
const link = document.createElement("a");
link.href = URL.createObjectURL(new Blob([text], {type}));
link.download = name;
link.click();
URL.revokeObjectURL(link.href);
"""
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
LEGEND_STYLE = """
ul.legend { list-style: none; display: flex; flex-wrap: wrap; gap: 2px 14px; margin: 0; padding: 0; }
.swatch { display: inline-block; width: 11px; height: 11px; border-radius: 50%; margin-right: 5px; }
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


class GatePanel:
    """Widgets around the tree of gates; `GatePanel.on` names what each does.

    Parameters
    ----------
    on
        What to call for "select" (with a name or None), "rename" (with the new name), "load" (with
        a file in base64), and "inside", "delete", "undo", "redo", "save", "reload",
        "restore", "csv", "json" and "h5mu".
    """

    def __init__(self, on: Mapping[str, Callable[..., None]]) -> None:
        self._setting = False
        self._names: list[str | None] = [None]
        self._rows = ColumnDataSource(
            {"gate": [], "cells": [], "of_parent": [], "of_all": []}, name="tree"
        )
        right = StringFormatter(text_align="right")
        self.table = redrawn_with_its_source(
            DataTable(
                source=self._rows,
                columns=[
                    TableColumn(field="gate", title="Gate", width=112, sortable=False),
                    TableColumn(
                        field="cells", title="Cells", width=58, formatter=right, sortable=False
                    ),
                    TableColumn(
                        field="of_parent",
                        title="% parent",
                        width=58,
                        formatter=right,
                        sortable=False,
                    ),
                    TableColumn(
                        field="of_all", title="% all", width=48, formatter=right, sortable=False
                    ),
                ],
                index_position=None,
                sizing_mode="stretch_width",
                height=210,
                row_height=26,
                reorderable=False,
                name="gate_tree",
            )
        )
        self.name = TextInput(
            placeholder="Type a name, press Enter", title="Name of the gate",
            sizing_mode="stretch_width", name="gate_name",
        )  # fmt: skip
        self.status = Div(
            text="", sizing_mode="stretch_width", name="status", css_classes=["status"]
        )
        self.buttons = {
            what: Button(label=label, name=f"button_{what}", sizing_mode="stretch_width")
            for what, label in (
                ("inside", "Show only its cells"),
                ("delete", "Delete"),
                ("undo", "Undo"),
                ("redo", "Redo"),
                ("save", "Save"),
                ("reload", "Reload saved"),
                ("restore", "Restore unsaved"),
                ("csv", "CSV"),
                ("json", "JSON"),
                ("h5mu", "h5mu"),
            )
        }
        self._file = FileInput(
            accept=".json", title="Gates of another run (.json)", name="gate_file"
        )
        self._download = Div(text="", visible=False, name="download")
        self._download.js_on_change("tags", CustomJS(code=_DOWNLOAD))
        for what, button in self.buttons.items():
            button.on_click(on[what])
        self.name.on_change("value", lambda _attr, _old, new: self._renamed(new, on["rename"]))
        self._rows.selected.on_change(
            "indices", lambda _a, _o, new: self._chosen(new, on["select"])
        )
        self._file.on_change("value", lambda _a, _o, new: on["load"](new) if new else None)

    def layout(self) -> LayoutDOM:
        """Return the widgets, arranged."""
        b = self.buttons
        return column(
            self.table,
            row(b["undo"], b["redo"], sizing_mode="stretch_width"),
            self.name,
            row(b["inside"], b["delete"], sizing_mode="stretch_width"),
            row(b["save"], b["reload"], sizing_mode="stretch_width"),
            b["restore"],
            Div(text="Export the gate of each cell (CSV, h5mu) or the gates (JSON)"),
            row(b["csv"], b["json"], b["h5mu"], sizing_mode="stretch_width"),
            self._file,
            self.status,
            self._download,
            sizing_mode="stretch_width",
            name="gates",
        )

    def show(
        self, gating: Gating, counts: Mapping[str, Count], n_cells: int, selected: str | None
    ) -> None:
        """Show a hierarchy with its counts, and which gate is selected."""
        walked = list(gating.walk())
        self._names = [None, *(gate.name for _, gate in walked)]
        found = [counts[gate.name] for _, gate in walked]
        self._setting = True
        self._rows.data = {
            "gate": [
                ALL_CELLS,
                *(_INDENT * depth + _BRANCH + gate.name for depth, gate in walked),
            ],
            "cells": [f"{n_cells:,}", *(f"{count.cells:,}" for count in found)],
            "of_parent": ["", *(_percent(count.percent_of_parent) for count in found)],
            "of_all": ["100", *(_percent(count.percent_of_all) for count in found)],
        }
        self._rows.selected.indices = [self._names.index(selected)]
        self.name.value = selected or ""
        self.name.disabled = selected is None
        self.buttons["delete"].disabled = selected is None
        self._setting = False

    def download(self, name: str, kind: str, text: str) -> None:
        """Let the browser download a text as a file."""
        self._download.tags = [name, kind, text]
        self._download.tags = []

    def _renamed(self, name: str, rename: Callable[[str], None]) -> None:
        if not self._setting:
            rename(name.strip())

    def _chosen(self, rows: list[int], select: Callable[[str | None], None]) -> None:
        if not self._setting and rows and rows[0] < len(self._names):
            select(self._names[rows[0]])


def decoded(encoded: str) -> str:
    """Return the text of a file that the browser sent, in base64."""
    try:
        return base64.b64decode(encoded, validate=True).decode("utf-8")
    except (binascii.Error, UnicodeDecodeError) as error:
        raise DataError("The file is no text; give a file of gates.") from error


def _percent(value: float) -> str:
    return "\u2013" if value != value else f"{value:.2f}" if value < 10 else f"{value:.1f}"
