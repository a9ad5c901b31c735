"""The plots of a page together: which are open, colours, backgating, and the gate being dragged."""

from collections.abc import Callable, Mapping
from functools import partial
from html import escape
from typing import NamedTuple

import numpy as np
from bokeh.document import Document
from bokeh.models import Div, LayoutDOM, LinearColorMapper

from totalvi.explorer.axes import AxisChoices
from totalvi.explorer.coloring import (
    LEGEND_STYLE,
    Coloring,
    color_cells,
    color_choices,
    color_values,
)
from totalvi.explorer.gate_shapes import dragged, inside_polygon, reached, shown_on
from totalvi.explorer.gates import Count, Gate, Gating, Point, Vertices
from totalvi.explorer.panels import DENSITY, ViewPanel, show_scale
from totalvi.explorer.plot import HANDLE_REACH, CellPlot, Events
from totalvi.explorer.plot_cards import (
    MOST_PLOTS,
    Choice,
    PlotCard,
    Shown,
    backgating_choices,
    start_choices,
)
from totalvi.explorer.run_cells import Cells
from totalvi.figures.cell_maps import VALUE_PALETTE, add_color_bar

_REDRAW_AFTER_MS = 60


class Grabbed(NamedTuple):
    """A gate that the mouse holds: its vertices before, the handle (None: the whole), and where."""

    gate: Gate
    vertices: Vertices
    handle: int | None
    start: Point


class Plots:
    """All plots of a page, and the widgets that concern all of them.

    Parameters
    ----------
    cells
        That they show.
    choices
        Of their axes.
    events
        Of each plot.
    on_change
        Is called with what to do when another view was chosen, and draws all again.
    """

    def __init__(
        self,
        cells: Cells,
        choices: AxisChoices,
        events: Events,
        on_change: Callable[[Callable[[], None]], None],
    ) -> None:
        self.cells, self.choices = cells, choices
        self._redraws: dict[str, object] = {}
        self._before: list[Choice] | None = None  # backgating
        self._grabbed: Grabbed | None = None
        self._shown: Shown | None = None
        self._colors: np.ndarray | None = None
        self._colorings = color_choices(cells, choices.tidy)
        self.cards = [
            PlotCard(
                number, choices, events,
                on_axes=lambda card: on_change(partial(card.set_axes, cells)),
                on_cells=lambda _card: on_change(lambda: None),
                on_close=lambda card: on_change(partial(self._close, card)),
            )
            for number in range(1, MOST_PLOTS + 1)
        ]  # fmt: skip
        self.mapper = LinearColorMapper(palette=list(VALUE_PALETTE), low=0.0, high=1.0)
        self.color_bar = add_color_bar(self.cards[0].plot.figure, self.mapper)
        self.legend = Div(
            text="", name="legend", sizing_mode="stretch_width", stylesheets=[LEGEND_STYLE]
        )
        self.view = ViewPanel(
            list(self._colorings),
            cells.sample_columns,
            cells.has_usual_sample,
            [card.plot for card in self.cards],
            on_colors=lambda: on_change(self._set_colors),
            on_samples=lambda: on_change(self._set_samples),
            on_shape=lambda: on_change(lambda: None),
            on_more=lambda: on_change(self._open_one_more),
        )
        self._show_choices(start_choices(cells, choices))
        self._set_samples()
        self._set_colors()

    def roots(self) -> list[LayoutDOM]:
        """Return what goes on the page."""
        return [self.view.layout(), *(card.root for card in self.cards), self.legend]

    @property
    def other_names(self) -> list[tuple[str, list[str]]]:
        """What else people type for each axis or colour of a protein."""
        others = self.choices.others
        return [*others.items()] + [
            (label, others[self.choices.tidy[name]])
            for label, (kind, name) in self._colorings.items()
            if kind.startswith("protein")
        ]

    @property
    def is_backgating(self) -> bool:
        """Whether the steps of a gate's hierarchy are shown."""
        return self._before is not None

    @property
    def open_cards(self) -> list[PlotCard]:
        """The plots that are on the page."""
        return [card for card in self.cards if card.is_open]

    def __getitem__(self, number: int) -> CellPlot:
        return self.cards[number].plot

    def card_of(self, plot: CellPlot) -> PlotCard:
        """Return the card of a plot."""
        return next(card for card in self.cards if card.plot is plot)

    def show(
        self,
        gating: Gating,
        inside: Mapping[str | None, np.ndarray],
        counts: Mapping[str, Count],
        selected: str | None,
    ) -> None:
        """Draw all plots."""
        view = self.view
        self._shown = Shown(
            gating, inside, counts, selected, view.chosen_sample, view.sample_column, self._colors,
            self.is_backgating, view.shape == "edit",
        )  # fmt: skip
        for card in self.open_cards:
            card.offer(gating.populations)
            card.draw(self._shown, self.cells)

    def outline(self, plot: CellPlot, gating: Gating) -> None:
        """Outline gates while one of them is dragged, before anything is counted."""
        if self._shown is not None:
            self.card_of(plot).outline(self._shown, gating)

    def _show_choices(self, wanted: list[Choice]) -> None:
        for number, card in enumerate(self.cards):
            if number < len(wanted):
                card.choose(wanted[number])
                card.open()
                card.set_axes(self.cells)
            else:
                card.root.visible = False

    def _close(self, card: PlotCard) -> None:
        if len(self.open_cards) > 1:
            self._show_choices([other.choice for other in self.open_cards if other is not card])

    def _open_one_more(self) -> None:
        now = [card.choice for card in self.open_cards]
        self._show_choices([*now, now[-1]][:MOST_PLOTS])

    def show_inside(self, name: str | None) -> None:
        """Show only the cells of a gate on all plots."""
        for card in self.cards:
            card.shown = name

    def renamed(self, old: str, new: str) -> None:
        """Follow the new name of a gate."""
        for card in self.cards:
            card.shown = new if card.shown == old else card.shown

    def backgate(self, gating: Gating, name: str | None) -> None:
        """Show each step of a gate's hierarchy, or go back to the plots before."""
        if self._before is not None:
            self._show_choices(self._before)
            self._before = None
        elif name is not None:
            now = [card.choice for card in self.open_cards]
            steps = backgating_choices(gating, name, self.choices, now)
            if steps:
                self._show_choices(steps)
                self._before = now

    def gate_at(self, plot: CellPlot, place: Point) -> str | None:
        """Return the gate under the mouse: the selected one or its condition, or the smallest."""
        found = [
            name
            for name, drawn in plot.gates.items()
            if inside_polygon(np.array([place[0]]), np.array([place[1]]), drawn.outline.tolist())[0]
        ]
        found = [name for name in found if name in plot.highlighted] or found
        sizes = {name: np.ptp(plot.gates[name].outline, axis=0).prod() for name in found}
        return min(found, key=sizes.__getitem__, default=None)

    def grab(self, plot: CellPlot, place: Point, gating: Gating) -> str | None:
        """Take hold of a highlighted gate by a handle, or of the gate under the mouse; name it."""
        self._grabbed = None
        across, up = plot.units_of_pixel
        reach = HANDLE_REACH * across, HANDLE_REACH * up
        handles = {name: reached(plot.gates[name], place, reach) for name in plot.highlighted}
        name = next((name for name, at in handles.items() if at is not None), None)
        handle = handles.get(name or "")
        name = self.gate_at(plot, place) if name is None else name
        if name is None:
            return None
        gate = gating[name]
        vertices = gate.vertices_of(self.view.chosen_sample)
        self._grabbed = Grabbed(gate, vertices, handle, place)
        return name

    def drag(self, plot: CellPlot, place: Point) -> tuple[str, Vertices] | None:
        """Return the gate that the mouse holds, and its vertices; None: it holds none."""
        held = self._grabbed
        if held is None or not shown_on(held.gate, plot.axes):
            return None
        way = place[0] - held.start[0], place[1] - held.start[1]
        vertices = dragged(held.gate, held.vertices, plot.axes, held.handle, way)
        return held.gate.name, vertices

    def release(self) -> None:
        """Let go of the gate."""
        self._grabbed = None

    def window_moved(self, document: Document, plot: CellPlot) -> None:
        """Draw once the window rests: every step of a zoom sets four numbers."""
        name, card = plot.figure.name, self.card_of(plot)
        if name in self._redraws:
            document.remove_timeout_callback(self._redraws[name])

        def redraw() -> None:
            del self._redraws[name]
            if self._shown is not None and card.is_open:
                card.draw(self._shown, self.cells)

        self._redraws[name] = document.add_timeout_callback(redraw, _REDRAW_AFTER_MS)

    def _set_samples(self) -> None:
        column = self.view.sample_column
        self.view.offer_samples([] if column is None else self.cells.samples(column).names)

    def _set_colors(self) -> None:
        chosen = self.view.color.value
        if chosen == DENSITY:
            self._colors = None
            self.color_bar.visible = False
            self.legend.text = "Coloured by how many cells lie there."
        elif chosen in self._colorings:
            found = color_cells(self.cells, *self._colorings[chosen])
            self._color(found, f"Coloured by {escape(chosen)}.")

    def _color(self, found: Coloring, words: str) -> None:
        self._colors = found.colors
        by_value = not found.legend
        self.legend.text = found.legend or words
        self.color_bar.visible = by_value
        if by_value:
            show_scale(found, self.mapper, self.color_bar)

    def color_by_probability(self, name: str, probability: np.ndarray) -> None:
        """Colour the cells by the probability of a gate."""
        words = f"Coloured by the probability that a cell lies in {escape(name)}."
        self._color(color_values(probability, 0.0, 1.0, None), words)

    def color_by_feature(self, modality: str, name: str) -> None:
        """Colour the cells by a gene ("rna") or protein, denoised if there are such values."""
        family = "gene" if modality == "rna" else "protein"
        for kind in (f"{family}_denoised", f"{family}_raw"):
            for label, choice in self._colorings.items():
                if choice == (kind, name):
                    self.view.color.value = label
                    return
