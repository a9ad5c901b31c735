"""How many cells of each sample are in each gate: a table, as CSV, and a plot."""

from collections.abc import Callable, Mapping, Sequence
from html import escape

import numpy as np
import pandas as pd
from bokeh.layouts import column, row
from bokeh.models import (
    Button,
    ColumnDataSource,
    DataTable,
    Div,
    FactorRange,
    HoverTool,
    LayoutDOM,
    Range1d,
    Select,
    StringFormatter,
    TableColumn,
)

from totalvi.explorer.coloring import LEGEND_STYLE
from totalvi.explorer.compare import redrawn_with_its_source
from totalvi.explorer.gates import Gating, percent
from totalvi.explorer.run_cells import Groups
from totalvi.figures.cell_maps import category_legend
from totalvi.figures.style import category_colors, new_figure
from totalvi.posterior.gates.memberships import percent_limits

ALL = "all cells"
SHOWN = {
    "% of parent": "percent_of_parent",
    "% of all": "percent_of_all",
    "cells": "cells",
}
_OF = {"parent": "percent_of_parent", "all": "percent_of_all"}  # what cells are counted in
_LEAST_HEIGHT, _MOST_HEIGHT = 230, 620  # of the table, in pixels; more rows scroll
_DOT = ("y", "x", "lower", "upper", "population", "sample", "color", "words")
_MOST_SHOWN = 40  # samples in the table on the page; the CSV has all


def population_table(
    gating: Gating, inside: Mapping[str | None, np.ndarray], samples: Groups | None
) -> pd.DataFrame:
    """Count the cells of each sample in each gate.

    Parameters
    ----------
    inside
        From `totalvi.explorer.gates.members`.
    samples
        Of the cells; None: all are of one.

    Returns
    -------
    pandas.DataFrame
        A row for each gate and sample: ``population``, the path of the gate; ``sample``; ``cells``;
        ``percent_of_parent``; ``percent_of_all``, of all cells of the sample; 95 % limits of both
        (``percent_of_parent_lower``, ...; `totalvi.posterior.gates.memberships.percent_limits`).

    Examples
    --------
    >>> every = {None: np.ones(3, dtype=bool)}
    >>> population_table(Gating(), every, Groups(np.array([0, 0, 1]), ["a", "b"]))["cells"].tolist()
    [2, 1]
    """
    if samples is None:
        codes, names = np.zeros(len(inside[None]), dtype=int), [ALL]
    else:
        codes, names = samples
    known = codes >= 0
    found = {
        name: np.bincount(codes[mask & known], minlength=len(names))
        for name, mask in inside.items()
    }
    rows = []
    for name in (None, *(gate.name for _, gate in gating.walk())):
        path = ALL if name is None else "/".join(gating.path(name))
        around = None if name is None else gating[name].parent
        for number, sample in enumerate(names):
            n, of, total = (int(found[which][number]) for which in (name, around, None))
            rows.append((path, sample, n, of, total, percent(n, of), percent(n, total)))
    columns = ["population", "sample", "cells", *_OF, *_OF.values()]
    table = pd.DataFrame(rows, columns=columns)
    for whole, name in _OF.items():
        lower, upper = percent_limits(table["cells"], table[whole])
        table[f"{name}_lower"], table[f"{name}_upper"] = lower, upper
    return table.drop(columns=list(_OF))


class PopulationPanel:
    """The table and plot of `population_table`.

    Parameters
    ----------
    on_csv
        Is called when the table is asked for as CSV.
    """

    def __init__(self, on_csv: Callable[[], None]) -> None:
        self._table = pd.DataFrame()
        self._columns: list[str] = []  # samples that have one
        self.value = Select(
            title="Shown",
            options=list(SHOWN),
            value="% of parent",
            name="population_value",
            width=130,
        )
        self.csv = Button(label="Table as CSV", name="button_populations", width=120, align="end")
        self.source = ColumnDataSource({"population": []}, name="populations_source")
        self.table = redrawn_with_its_source(
            DataTable(
                source=self.source, columns=[], index_position=None, reorderable=False,
                autosize_mode="none",  # many samples scroll
                sizing_mode="stretch_width", height=_LEAST_HEIGHT, name="populations_table",
            )
        )  # fmt: skip
        self._dots = ColumnDataSource({key: [] for key in _DOT})
        self.figure = new_figure(
            height=_LEAST_HEIGHT, tools="save", x_range=Range1d(0, 100), y_range=FactorRange("-")
        )
        self.legend = Div(
            text="", name="populations_legend", sizing_mode="stretch_width", visible=False,
            stylesheets=[LEGEND_STYLE],
        )  # fmt: skip
        self.figure.segment(
            "lower", "y", "upper", "y", source=self._dots, color="color", line_width=1.5, alpha=0.6,
            name="sample_limits",
        )  # fmt: skip
        dots = self.figure.scatter(
            "x", "y", source=self._dots, size=9, color="color", alpha=0.85, line_color="white",
            name="sample_dots",
        )  # fmt: skip
        tips = [("sample", "@sample"), ("population", "@population"), ("", "@words")]
        self.figure.add_tools(HoverTool(renderers=[dots], tooltips=tips))
        self.value.on_change("value", lambda _attr, _old, _new: self._show())
        self.csv.on_click(on_csv)

    def layout(self) -> LayoutDOM:
        """Return the widgets above the table."""
        controls = row(self.value, self.csv, sizing_mode="stretch_width")
        return column(controls, self.table, sizing_mode="stretch_width", name="populations")

    def plot_layout(self) -> LayoutDOM:
        """Return the plot below the names of the samples in their colours."""
        return column(
            self.legend, self.figure, sizing_mode="stretch_width", name="populations_plot"
        )

    def to_csv(self) -> str:
        """Return the table as CSV, in which no spreadsheet reads a name as a formula."""
        table = self._table.copy()
        for name in ("population", "sample"):
            text = table[name].astype(str)
            table[name] = text.where(~text.str.match("[=+@-]"), "'" + text)
        return table.to_csv(index=False)

    def show(self, table: pd.DataFrame) -> None:
        """Show a table of `population_table`."""
        self._table = table
        self._show()

    def _show(self) -> None:
        field = SHOWN[self.value.value]
        order = list(dict.fromkeys(self._table["population"]))
        samples = list(dict.fromkeys(self._table["sample"]))
        wide = self._table.pivot(index="population", columns="sample", values=field)
        wide = wide.reindex(index=order, columns=samples)
        shown = samples[:_MOST_SHOWN]
        data: dict[str, list[str]] = {
            "population": ["\u2003" * path.count("/") + _name(path) for path in order]
        }
        for number, sample in enumerate(shown):
            data[f"s{number}"] = [_text(value, field) for value in wide[sample]]
        if shown != self._columns:  # Bokeh looks through the whole page when they change
            self._columns = shown
            self.table.columns = _columns(shown)
        self.source.data = data
        self.table.height = min(max(_LEAST_HEIGHT, 26 * (len(order) + 2)), _MOST_HEIGHT)
        self._draw(field)

    def _draw(self, field: str) -> None:
        """Draw a dot for each population and sample, and its limits where it is a percentage."""
        gates = self._table[self._table["population"] != ALL]
        samples, populations = gates["sample"].unique(), gates["population"].map(_name).unique()
        self.figure.visible = bool(len(populations))
        self._dots.data = {key: [] for key in _DOT}
        self.figure.y_range.factors = [*populations[::-1]] or ["-"]
        self.figure.height = max(_LEAST_HEIGHT, 60 + _row_height(len(samples)) * len(populations))
        place = dict(zip(samples, np.linspace(0.3, -0.3, len(samples) + 2)[1:-1], strict=True))
        color = dict(zip(samples, category_colors(len(samples)), strict=True))
        gates = gates[np.isfinite(gates[field])]
        names = gates["population"].map(_name)
        limits = [gates.get(f"{field}_{end}", gates[field]).tolist() for end in ("lower", "upper")]
        words = [
            f"{_text(value, field)} {self.value.value}"
            + ("" if lower == upper else f" ({_text(lower, field)} to {_text(upper, field)})")
            for value, lower, upper in zip(gates[field], *limits, strict=True)
        ]
        self.legend.text = self._legend(list(samples))
        self.legend.visible = bool(len(populations)) and len(samples) > 1
        highest = max([1.0, *limits[1]])
        self.figure.x_range.update(start=-0.03 * highest, end=1.05 * highest)
        self.figure.xaxis[0].axis_label = self.value.value
        self._dots.data = {
            "y": [*zip(names, gates["sample"].map(place), strict=True)],
            "x": gates[field].astype(float).tolist(), "lower": limits[0], "upper": limits[1],
            "population": names.tolist(), "sample": gates["sample"].tolist(),
            "color": gates["sample"].map(color).tolist(), "words": words,
        }  # fmt: skip

    def _legend(self, samples: list[str]) -> str:
        cells = self._table[self._table["population"] == ALL].set_index("sample")["cells"]
        return category_legend(samples, cells.loc[samples].to_numpy())


def _row_height(n_samples: int) -> int:
    """Return the pixels of a population: more for more samples, up to as many as 20 take."""
    return max(24, min(5 * n_samples, 100))


def _columns(samples: Sequence[str]) -> list[TableColumn]:
    """Return the columns of the table, whose titles the browser reads as HTML."""
    right = StringFormatter(text_align="right")
    return [
        TableColumn(field="population", title="Population", width=150),
        *(
            TableColumn(field=f"s{number}", title=escape(sample), formatter=right, width=70)
            for number, sample in enumerate(samples)
        ),
    ]


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def _text(value: float, field: str) -> str:
    if not np.isfinite(value):
        return "\u2013"
    if field == "cells":
        return f"{int(value):,}"
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"
