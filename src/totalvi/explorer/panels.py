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
    HTMLTemplateFormatter,
    LayoutDOM,
    LinearColorMapper,
    RadioButtonGroup,
    Select,
    StringFormatter,
    TableColumn,
    TextInput,
)

from totalvi.errors import DataError
from totalvi.explorer.coloring import Coloring
from totalvi.explorer.compare import redrawn_with_its_source
from totalvi.explorer.gates import Count, Gating
from totalvi.explorer.plot import CellPlot

ALL_CELLS = "All cells"
NO_SAMPLES, ALL_SAMPLES = "(none)", "all samples"
_INDENT, _BRANCH = "\u2003", "\u2514 "
_ROW_HEIGHT, _LEAST_ROWS, _MOST_ROWS = 26, 8, 24  # of the tree; more scroll
# A name that is cut ends with an ellipsis, and is whole under the pointer; "<%-" escapes it.
_WHOLE_NAME = """<% if (differs) { %><span title="<%- differs %>"
style="float: right; padding: 0 2px; color: #a63600">&ne;</span><% } %>
<span title="<%- path %>" style="display: block; overflow: hidden;
text-overflow: ellipsis"><%- value %></span>"""
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
SHAPES = ("Move", "Edit", "Rectangle", "Polygon", "Lasso", "Ellipse", "Range", "Quadrants")
_CHOOSE_TOOL = """
tools.forEach((some, i) => some.forEach((tool) => { tool.active = i === cb_obj.active; }));
wheels.forEach((wheel) => { wheel.active = cb_obj.active === 0; });
"""
_WRAPPED = ":host .bk-btn-group { display: flex; flex-wrap: wrap; }"


def show_scale(coloring: Coloring, mapper: LinearColorMapper, color_bar: ColorBar) -> None:
    """Set the colour bar to the range of the values that cells are coloured by."""
    mapper.update(low=coloring.low, high=coloring.high)
    if coloring.scale is None:
        color_bar.ticker, color_bar.major_label_overrides = "auto", {}
    else:
        color_bar.ticker = coloring.scale.ticker()
        color_bar.major_label_overrides = coloring.scale.ticks()


class ViewPanel:
    """Widgets above the plots.

    Parameters
    ----------
    colors, sample_columns
        What cells can be coloured by, and columns of ``obs`` that may hold samples.
    has_usual_sample
        Whether the first of these columns has a usual name of samples, and is chosen.
    on_colors, on_samples, on_shape, on_more
        Are called when other colours, samples or another shape were chosen, or one more plot.
    """

    def __init__(
        self,
        colors: Sequence[str],
        sample_columns: Sequence[str],
        has_usual_sample: bool,
        plots: Sequence[CellPlot],
        *,
        on_colors: Callable[[], None],
        on_samples: Callable[[], None],
        on_shape: Callable[[], None],
        on_more: Callable[[], None],
    ) -> None:
        self._setting = False
        self.shapes = RadioButtonGroup(
            labels=list(SHAPES), active=2, name="shape", align="end", stylesheets=[_WRAPPED]
        )
        tools = [
            [plot.tools[shape.lower()] for plot in plots if shape.lower() in plot.tools]
            for shape in SHAPES
        ]
        self.shapes.js_on_change(
            "active",
            CustomJS(
                args={"tools": tools, "wheels": [plot.wheel for plot in plots]},
                code=_CHOOSE_TOOL,
            ),
        )
        self.color = search_input(
            "Colour by (type to search)", [*colors, DENSITY], DENSITY, "color", 230
        )
        columns = [NO_SAMPLES, *sample_columns]
        self.samples = select_input("Samples", columns, "samples", 130)
        if has_usual_sample:
            self.samples.value = columns[1]
        self.sample = select_input("Gates of", [ALL_SAMPLES], "sample", 130)
        self.more = Button(label="One more plot", name="button_more", width=120, align="end")
        self.shapes.on_change("active", lambda _attr, _old, _new: on_shape())
        self.color.on_change("value", lambda _attr, _old, _new: on_colors())
        for widget in (self.samples, self.sample):
            widget.on_change(
                "value", lambda _attr, _old, _new: None if self._setting else on_samples()
            )
        self.more.on_click(on_more)

    @property
    def shape(self) -> str:
        """The shape that the mouse draws, or "move", "edit" or "quadrants"."""
        return SHAPES[self.shapes.active].lower()

    @property
    def sample_column(self) -> str | None:
        """The column of ``obs`` that holds samples, if one is chosen."""
        return None if self.samples.value == NO_SAMPLES else str(self.samples.value)

    @property
    def chosen_sample(self) -> tuple[str, str] | None:
        """The sample whose cells and gates are shown: a column and its value; None: all."""
        column, sample = self.sample_column, self.sample.value
        return None if column is None or sample == ALL_SAMPLES else (column, str(sample))

    def layout(self) -> LayoutDOM:
        """Return the widgets in a row that wraps."""
        arranged = row(
            self.shapes, self.samples, self.sample, self.color, self.more,
            sizing_mode="stretch_width", name="view",
        )  # fmt: skip
        arranged.styles = {"flex-wrap": "wrap"}
        return arranged

    def offer_samples(self, samples: Sequence[str]) -> None:
        """Offer these samples, besides all."""
        self._setting = True
        if self.sample.value not in samples:
            self.sample.value = ALL_SAMPLES
        self.sample.options = [ALL_SAMPLES, *samples]
        self._setting = False


def select_input(title: str, options: Sequence[str], name: str, width: int) -> Select:
    """Return a list to choose from, with the first chosen."""
    return Select(title=title, options=list(options), value=options[0], name=name, width=width)


def search_input(
    title: str, options: Sequence[str], value: str, name: str, width: int = 140
) -> AutocompleteInput:
    """Return a field that completes part of a name."""
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


BUTTONS = {
    "inside": "Show only its cells",
    "backgate": "Backgate",
    "probability": "Probability",
    "delete": "Delete",
    "combine": "Combine",
    "undo": "Undo",
    "redo": "Redo",
    "save": "Save",
    "reload": "Reload saved",
    "restore": "Restore unsaved",
    "propose": "Proposed gates",
    "csv": "CSV",
    "json": "JSON",
    "h5mu": "h5mu",
    "xml": "Gating-ML",
    "fcs": "FCS files",
}
NO_MODEL = "A probability needs a model: open the results of totalvi run."
COMBINATIONS = ("and", "and not", "or", "not it")


class GatePanel:
    """Widgets around the tree of gates; `GatePanel.on` names what each does.

    Parameters
    ----------
    on
        What to call for "select" (with a name or None), "rename" (with the new name), "load" (with
        a file in base64), "combine" (with how, and the other gate), and each button.
    has_model
        Of the cells, which probabilities need.
    """

    def __init__(self, on: Mapping[str, Callable[..., None]], has_model: bool) -> None:
        self._setting, self._has_model = False, has_model
        self._names: list[str | None] = [None]
        self._rows = ColumnDataSource(
            {"gate": [], "path": [], "differs": [], "cells": [], "of_parent": [], "of_all": []},
            name="tree",
        )
        right = StringFormatter(text_align="right")
        self.table = redrawn_with_its_source(
            DataTable(
                source=self._rows,
                columns=[
                    TableColumn(
                        field="gate",
                        title="Gate",
                        width=150,
                        sortable=False,
                        formatter=HTMLTemplateFormatter(template=_WHOLE_NAME),
                    ),
                    *(
                        TableColumn(
                            field=field, title=title, width=width, formatter=right, sortable=False
                        )
                        for field, title, width in (
                            ("cells", "Cells", 52),
                            ("of_parent", "% parent", 64),
                            ("of_all", "% all", 46),
                        )
                    ),
                ],
                index_position=None,
                sizing_mode="stretch_width",
                height=_ROW_HEIGHT * _LEAST_ROWS,
                row_height=_ROW_HEIGHT,
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
            for what, label in BUTTONS.items()
        }
        if not has_model:
            self.buttons["probability"].label = "Probability (no model)"
            self.buttons["probability"].html_attributes = {"title": NO_MODEL}
        self.how = select_input("Combine it", COMBINATIONS, "combine_how", 92)
        self.other = Select(
            title="with", options=[], name="combine_with", sizing_mode="stretch_width", min_width=90
        )
        self._file = FileInput(
            accept=".json,.xml,.csv,.tsv",
            title="Load gates (JSON, Gating-ML, table)",
            name="gate_file",
        )
        self._download = Div(text="", visible=False, name="download")
        self._download.js_on_change("tags", CustomJS(code=_DOWNLOAD))
        for what, button in self.buttons.items():
            if what != "combine":
                button.on_click(on[what])
        self.buttons["combine"].on_click(lambda: on["combine"](self.how.value, self.other.value))
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
            row(b["inside"], b["backgate"], sizing_mode="stretch_width"),
            row(b["probability"], b["delete"], sizing_mode="stretch_width"),
            row(self.how, self.other, sizing_mode="stretch_width"),
            b["combine"],
            row(b["save"], b["reload"], sizing_mode="stretch_width"),
            b["restore"],
            b["propose"],
            Div(
                text="Export the gate of each cell (CSV, h5mu), the gates (JSON, Gating-ML), or both "
                "with all channels for FlowJo (FCS)"
            ),
            row(b["csv"], b["json"], b["h5mu"], sizing_mode="stretch_width"),
            row(b["xml"], b["fcs"], sizing_mode="stretch_width"),
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
            "path": [ALL_CELLS, *(" > ".join(gating.path(gate.name)) for _, gate in walked)],
            "differs": ["", *(gating.differs(gate.name) for _, gate in walked)],
            "cells": [f"{n_cells:,}", *(f"{count.cells:,}" for count in found)],
            "of_parent": ["", *(_percent(count.percent_of_parent) for count in found)],
            "of_all": ["100", *(_percent(count.percent_of_all) for count in found)],
        }
        n_rows = min(max(len(walked) + 2, _LEAST_ROWS), _MOST_ROWS)  # the titles, and all cells
        self.table.height = _ROW_HEIGHT * n_rows
        self._rows.selected.indices = [self._names.index(selected)]
        self.name.value = selected or ""
        self.name.disabled = selected is None
        for what in ("delete", "probability", "combine"):
            self.buttons[what].disabled = selected is None
        if not self._has_model:
            self.buttons["probability"].disabled = True
        others = [gate.name for _, gate in walked if gate.name != selected]
        self.other.options = others
        if self.other.value not in others:
            self.other.value = others[0] if others else None
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
