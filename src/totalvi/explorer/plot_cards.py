"""The plots of the page, each with its choices of axes, values and cells, and how they are drawn."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from bokeh.layouts import column, row
from bokeh.models import Button

from totalvi.explorer.axes import (
    FAR,
    HISTOGRAM,
    MAP,
    MEASURED,
    SCALES,
    Axis,
    AxisChoices,
    Scale,
    start_pairs,
)
from totalvi.explorer.gate_shapes import shown_on
from totalvi.explorer.gates import Count, Gate, Gating
from totalvi.explorer.panels import ALL_CELLS, search_input, select_input
from totalvi.explorer.plot import CellPlot, Events, Style
from totalvi.explorer.run_cells import Cells, Groups

MOST_PLOTS = 6
_START_PLOTS = 4
STYLES: tuple[Style, ...] = ("dots", "contours")
_CARD = {
    "background": "#fff",
    "border": "1px solid #dfe2e6",
    "border-radius": "8px",
    "padding": "8px",
}


class Shown(NamedTuple):
    """What all plots show.

    Parameters
    ----------
    gating
        The hierarchy.
    inside, counts
        From `totalvi.explorer.gates.members` and `counts`.
    selected
        The selected gate.
    sample
        The sample that is shown, a column of ``obs`` and its value; None: all.
    sample_column
        By which histograms are parted.
    colors
        Of all cells; None: by density.
    is_backgating
        Whether the selected gate's cells stand out, on each step of its hierarchy.
    is_editing
        Whether the selected gate has handles.
    """

    gating: Gating
    inside: Mapping[str | None, np.ndarray]
    counts: Mapping[str, Count]
    selected: str | None
    sample: tuple[str, str] | None
    sample_column: str | None
    colors: np.ndarray | None
    is_backgating: bool
    is_editing: bool


class Choice(NamedTuple):
    """What a plot shows: labels of axes, values, scale, style, and the gate whose cells it shows."""

    x: str
    y: str
    values: str
    scale: Scale
    style: str
    shown: str | None


class PlotCard:
    """A plot with the widgets above it.

    Parameters
    ----------
    number
        From 1.
    choices
        What there is to put on axes.
    events
        Of the plot.
    on_axes, on_cells, on_close
        Are called with this card when other axes or cells were chosen, or its plot was closed.
    """

    def __init__(
        self,
        number: int,
        choices: AxisChoices,
        events: Events,
        *,
        on_axes: Callable[["PlotCard"], None],
        on_cells: Callable[["PlotCard"], None],
        on_close: Callable[["PlotCard"], None],
    ) -> None:
        self._choices, self._setting = choices, False
        self.plot = CellPlot(f"plot_{number}", events)
        self.shown: str | None = None
        labels = choices.labels
        self.x = search_input("Across", [], labels[0], f"x_{number}", 120)
        self.y = search_input("Up", [], labels[min(1, len(labels) - 1)], f"y_{number}", 120)
        self.values = select_input("Values", choices.values, f"values_{number}", 112)
        self.scale = select_input("Scale", SCALES, f"scale_{number}", 72)
        self.scale.value = "asinh"
        self.style = select_input("Drawn as", STYLES, f"style_{number}", 102)
        self.cells = select_input("Cells", [ALL_CELLS], f"cells_{number}", 118)
        self.close = Button(label="Close", name=f"close_{number}", width=56, align="end")
        for widget in (self.x, self.y, self.values, self.scale):
            widget.on_change("value", lambda _a, _o, _n: self._changed(on_axes))
        self.style.on_change("value", lambda _a, _o, _n: self._changed(on_axes))
        self.cells.on_change("value", lambda _a, _o, _n: self._changed(on_cells))
        self.close.on_click(lambda: on_close(self))
        top = row(
            self.cells, self.x, self.y, self.values, self.scale, self.style, self.close,
            sizing_mode="stretch_width",
        )  # fmt: skip
        top.styles = {"flex-wrap": "wrap"}
        self.root = column(
            top, self.plot.figure, sizing_mode="stretch_width", name=f"card_{number}",
            visible=False, styles=_CARD,
        )  # fmt: skip

    def _changed(self, then: Callable[["PlotCard"], None]) -> None:
        if not self._setting and self.x.value and self.y.value:
            self.shown = None if self.cells.value == ALL_CELLS else self.cells.value
            then(self)

    @property
    def is_open(self) -> bool:
        """Whether the plot is on the page."""
        return bool(self.root.visible)

    def open(self) -> None:
        """Put the plot on the page."""
        if not self.x.completions:  # thousands of genes are sent for plots that are seen only
            self.x.completions = self._choices.labels
            self.y.completions = [HISTOGRAM, *self._choices.labels]
        self.root.visible = True

    @property
    def choice(self) -> Choice:
        """What the plot shows."""
        x, y, values = self.x.value, self.y.value, self.values.value
        return Choice(x, y, values, self.scale.value, self.style.value, self.shown)

    def choose(self, choice: Choice) -> None:
        """Show something else, without calling anybody."""
        self._setting = True
        self.x.value, self.y.value = choice.x, choice.y
        self.values.value, self.scale.value, self.style.value = choice[2:5]
        self.shown = choice.shown
        self._setting = False

    def offer(self, gates: Sequence[str]) -> None:
        """Offer all cells and those of each gate."""
        self._setting = True
        self.shown = self.shown if self.shown in gates else None
        self.cells.options = [ALL_CELLS, *gates]
        self.cells.value = ALL_CELLS if self.shown is None else self.shown
        self._setting = False

    def set_axes(self, cells: Cells) -> None:
        """Show the cells on the chosen axes."""
        chosen = self.choice
        labels = [chosen.x] if chosen.y == HISTOGRAM else [chosen.x, chosen.y]
        axes = tuple(self._choices.axis(label, chosen.values, chosen.scale) for label in labels)
        self.plot.style = "contours" if chosen.style == "contours" else "dots"
        full = [self._choices.full_name(label) for label in (chosen.x, chosen.y)]
        self.x.description, self.y.description = (f"In the data: {f}" if f else None for f in full)
        if self.plot.axes != axes:
            places = tuple(cells.places(axis.kind, axis.name, axis.scale) for axis in axes)
            self.plot.set_axes(axes, places, [self._choices.title(axis) for axis in axes])

    def outline(self, shown: Shown, gating: Gating | None = None) -> list[str]:
        """Outline the gates inside of the cells shown; return their names.

        Parameters
        ----------
        gating
            To outline in place of that shown, such as while a gate is dragged.
        """
        gating = gating or shown.gating
        inside = [
            gate
            for gate in gating.gates
            if gate.parent == self.shown and shown_on(gate, self.plot.axes)
        ]
        of: Sequence[str | None] = [shown.selected] if shown.selected else []
        if shown.is_backgating and shown.selected in gating.names:
            of = gating.path(str(shown.selected))
        conditions = {g.place: g for g in inside if gating.wholes.get(g.name, "") in of}
        gates = [g for g in inside if g.name not in gating.wholes] + list(conditions.values())
        labels = [
            f"{self._words(g, gating)}  {shown.counts[g.name].percent_of_parent:.1f} %"
            for g in gates
        ]
        differs = ["" if shown.sample else gating.differs(g.name) for g in gates]
        highlighted = {
            shown.selected,
            *(g.name for g in conditions.values() if gating.wholes[g.name] == shown.selected),
        }
        self.plot.outline(
            gates, labels, highlighted, shown.sample, with_handles=shown.is_editing, differs=differs
        )
        return [gate.name for gate in gates]

    def _words(self, gate: Gate, gating: Gating) -> str:
        """Return the name of a gate, or of a condition the levels that it asks for, as "CD3+ CD19-"."""
        if gate.name not in gating.wholes:
            return gate.name
        ends = np.sort(np.array(gate.vertices), axis=0)
        return " ".join(
            self._choices.label(axis) + _level(low, high, axis.scale)
            for axis, low, high in zip(gate.axes, ends[0], ends[-1], strict=True)
        )

    def draw(self, shown: Shown, cells: Cells) -> None:
        """Draw gates and cells."""
        outlined = self.outline(shown)
        here = None if self.shown is None else shown.inside[self.shown]
        if shown.sample is not None:
            of_sample = cells.of_sample(*shown.sample)
            here = of_sample if here is None else here & of_sample
        dimmed = None
        if shown.selected is not None and (shown.is_backgating or shown.selected not in outlined):
            dimmed = ~shown.inside[shown.selected]
        self.plot.draw(shown.colors, here, dimmed, _groups(shown, cells))


def _level(low: float, high: float, scale: Scale) -> str:
    """Return "+" of a range that is open above, "-" of one open below, "mid" of one between."""
    if high >= FAR[scale]:
        return "+"
    return "-" if low <= -FAR[scale] else " mid"


def _groups(shown: Shown, cells: Cells) -> Groups | None:
    if shown.is_backgating and shown.selected is not None:
        return Groups(shown.inside[shown.selected].astype(int), ["other cells", shown.selected])
    if shown.sample_column is None or shown.sample is not None:
        return None
    return cells.samples(shown.sample_column)


def start_choices(cells: Cells, choices: AxisChoices) -> list[Choice]:
    """Return what the plots show at first: the map, and pairs of markers of lineages.

    Proteins start as they were measured, where there are counts: denoised values of the cells without a
    protein lie on the edge of the plot, where nobody sees how many they are.
    """
    names = list(map(str, cells.protein_names))
    raw = cells.protein.rows(
        np.linspace(0, cells.n_cells - 1, min(2000, cells.n_cells)).astype(int)
    )
    spread = np.array([_spread(column) for column in raw.T])
    values = MEASURED if MEASURED in choices.values else choices.values[0]
    found = [Choice(*MAP, values, "asinh", "dots", None)] if MAP[0] in choices.labels else []
    for pair in start_pairs(names, spread):
        x, y = (choices.tidy[name] for name in pair)
        found.append(Choice(x, y, values, "asinh", "dots", None))
    return found[:_START_PLOTS]


def _spread(counts: np.ndarray) -> float:
    known = counts[np.isfinite(counts)]
    return float(np.std(np.arcsinh(known / 5))) if known.size else float("nan")


def backgating_choices(
    gating: Gating, name: str, choices: AxisChoices, now: Sequence[Choice]
) -> list[Choice]:
    """Return what plots show of a gate's way down the hierarchy: each step with the cells around it."""
    steps = []
    for step in gating.path(name):
        gate = gating[step]
        of = gate.axes or dict.fromkeys(a for part in gating.conditions(step) for a in part.axes)
        if of:
            steps.append(_choice_of(tuple(of)[:2], gate.parent, choices, now[0]))
    return steps[-MOST_PLOTS:]


def _choice_of(
    axes: tuple[Axis, ...], parent: str | None, choices: AxisChoices, usual: Choice
) -> Choice:
    labels = [choices.label(axis) for axis in axes]
    # On the scale "asinh", counts of genes are on "log" all the same.
    counted = min(axes, key=lambda axis: ("asinh", "log", "linear").index(axis.scale))
    values = _values_of(axes, choices) or usual.values
    x, y = labels if len(labels) == 2 else (labels[0], HISTOGRAM)
    return Choice(x, y, values, counted.scale, "dots", parent)


def _values_of(axes: Sequence[Axis], choices: AxisChoices) -> str | None:
    for values in choices.values:
        for axis in axes:
            if axis.kind not in ("umap", "obs", "isotype_raw") and (
                choices.axis(choices.label(axis), values, axis.scale).kind == axis.kind
            ):
                return values
    return None
