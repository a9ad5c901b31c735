"""The page of the explorer: its reactions when a gate is drawn, changed, selected or compared."""

from collections.abc import Callable
from functools import partial
from html import escape
from importlib.resources import files
from typing import Any

import numpy as np
from bokeh.core.templates import get_env
from bokeh.document import Document

from totalvi.explorer.axes import AxisChoices
from totalvi.explorer.coloring import is_number
from totalvi.explorer.compare import CONDITIONS, ComparePanel, other_cells
from totalvi.explorer.filing import GatePage, told
from totalvi.explorer.gate_shapes import shape_of_box, shape_of_lasso
from totalvi.explorer.gates import PARTS, Gate, Operand, Point, Shape, Vertices, counts, members
from totalvi.explorer.panels import GatePanel
from totalvi.explorer.plot import CellPlot, Events, Stage
from totalvi.explorer.plots import Plots
from totalvi.explorer.populations import PopulationPanel, population_table
from totalvi.explorer.workspace import Workspace


def _template() -> str:
    page = files("totalvi.explorer") / "page" / "explorer.html"
    return page.read_text(encoding="utf-8")


class Explorer(GatePage):
    """The page of one visit.

    Parameters
    ----------
    document
        Empty; gets the page.
    workspace
        Of the server.
    """

    def __init__(self, document: Document, workspace: Workspace) -> None:
        self.document, self.workspace = document, workspace
        self.cells, self.history = workspace.cells, workspace.visit()
        self.selected: str | None = None  # the gate that is compared
        self._asked = 0  # comparisons, of which only the last is shown
        numbers = [c for c in map(str, self.cells.obs) if is_number(self.cells.obs[c])]
        self.choices = AxisChoices(
            list(map(str, self.cells.protein_names)), list(map(str, self.cells.gene_names)), numbers,
            self.cells.kinds, self.cells.umap is not None, list(map(str, self.cells.control_names)),
        )  # fmt: skip
        events = Events(self.gate_drawn, self.tapped, self.dragged, self._window_moved)
        self.plots = Plots(self.cells, self.choices, events, self._views_chosen)
        self.panel = GatePanel(
            {
                "select": self.select, "rename": self.rename, "load": self.load,
                "inside": self.show_inside, "backgate": self.backgate, "delete": self.delete,
                "probability": self.show_probability, "combine": self.combine,
                "undo": self.undo, "redo": self.redo, "save": self.save, "reload": self.reload,
                "restore": self.restore, "propose": self.propose,
                "csv": self.download_csv, "json": self.download_json,
                "h5mu": self.write_h5mu, "xml": self.download_gating_ml, "fcs": self.write_fcs,
            },
            has_model=self.cells.model_path is not None and self.cells.model_path.exists(),
        )  # fmt: skip
        self.populations = PopulationPanel(self.download_populations)
        values = {column: self.cells.samples(column).names for column in self.cells.sample_columns}
        self.differences = ComparePanel(
            self.compare, self._feature_chosen, values, self.choices.tidy
        )
        document.on_session_destroyed(self._closed)
        self._lay_out()
        self.refresh()
        self.compare()
        if workspace.unsaved(self.history):
            self.say("Gates of another visit were not saved: Restore unsaved shows them.")

    def _lay_out(self) -> None:
        document = self.document
        for root in (
            self.panel.layout(), *self.plots.roots(), self.populations.layout(),
            self.populations.plot_layout(), self.differences.controls, self.differences.volcano,
            self.differences.table,
        ):  # fmt: skip
            document.add_root(root)
        name = self.cells.prefix.removesuffix(".") or self.cells.folder.resolve().name
        document.title = f"{name} - totalvi explorer"
        document.template = get_env().from_string(_template())
        document.template_variables["run_name"] = name
        document.template_variables["n_cells"] = self.cells.n_cells
        document.template_variables["cards"] = [card.root.name for card in self.plots.cards]
        document.template_variables["other_names"] = self.plots.other_names
        document.template_variables["note"] = self.cells.note

    def _closed(self, _session_context: object) -> None:
        self._is_open = False
        self._asked += 1  # nobody waits for what is being compared

    def gate_drawn(self, plot: CellPlot, geometry: dict[str, Any]) -> None:
        """Add the gate that the mouse drew, in the coordinates of the plot."""
        shape: Any = self.plots.view.shape
        if geometry["type"] == "poly":
            found = shape_of_lasso(geometry["x"], geometry["y"])
            if found is not None:
                self.add_gate(plot, *found)
            return
        shape = "range" if len(plot.axes) == 1 else shape
        shape = shape if shape in ("ellipse", "range") else "rectangle"
        left, right = sorted((float(geometry["x0"]), float(geometry["x1"])))
        bottom, top = sorted((float(geometry["y0"]), float(geometry["y1"])))
        if left < right and (bottom < top or shape == "range"):  # else a mere click
            self.add_gate(plot, shape, shape_of_box(shape, left, bottom, right, top))

    @told
    def add_gate(self, plot: CellPlot, shape: Shape, vertices: Vertices) -> None:
        """Add a gate inside of the cells that a plot shows, and compare its cells."""
        name, parent = self.history.now.free_name(), self.plots.card_of(plot).shown
        axes = plot.axes[:1] if shape == "range" else plot.axes
        self._change(self.history.now.add(Gate(name, axes, vertices, parent, shape)), name)

    @told
    def tapped(self, plot: CellPlot, place: Point) -> None:
        """Add four quadrants about a place, or select the gate there that is to be edited."""
        shape, gating = self.plots.view.shape, self.history.now
        if shape == "edit":
            name = self.plots.gate_at(plot, place)
            name = gating.wholes.get(name or "", name)
            if name is not None and name != self.selected:
                self.select(name)
        elif shape == "quadrants" and len(plot.axes) == 2:
            parent = self.plots.card_of(plot).shown
            words = [self.choices.label(axis).replace("/", "|") for axis in plot.axes]
            gates = []
            for part in PARTS:
                name = " ".join(f"{word}{side}" for word, side in zip(words, part, strict=True))
                name = gating.free_name(name) if name in gating.names else name
                gates.append(Gate(name, plot.axes, (place,), parent, "quadrant", part))
            self._change(gating.add(*gates), gates[-1].name)

    @told
    def dragged(self, plot: CellPlot, stage: Stage, place: Point) -> None:
        """Move the gate under the mouse, or reshape the selected one by a handle."""
        if self.plots.view.shape != "edit":
            return
        gating = self.history.now
        if stage == "start":
            grabbed = self.plots.grab(plot, place, gating)
            grabbed = gating.wholes.get(grabbed or "", grabbed)
            if grabbed is not None and grabbed != self.selected:
                self.selected = grabbed
                self.refresh()
            return
        moved = self.plots.drag(plot, place)
        if moved is None or moved[0] not in gating.names:
            return
        changed = gating.place(*moved, self.plots.view.chosen_sample)
        if stage == "on":
            self.plots.outline(plot, changed)
            return
        self.plots.release()
        self._change(changed, self.selected)

    @told
    def combine(self, how: str, other: str | None) -> None:
        """Add a Boolean gate of the selected gate and another one."""
        name, gating = self.selected, self.history.now
        if name is None:
            return
        first = Operand(name, complement=how == "not it")
        if how == "not it":
            operands: tuple[Operand, ...] = (first,)
            words = f"not {name}"
        else:
            operands = (first, Operand(other or name, complement=how == "and not"))
            words = f"{name} {how} {other}"
        words = words if words not in gating.names else gating.free_name(words)
        shared = gating[name].parent
        if how != "not it" and other is not None and gating[other].parent != shared:
            shared = None
        operator = "or" if how == "or" else "and"
        gate = Gate(words, (), (), shared, "boolean", operator=operator, operands=operands)
        self._change(gating.add(gate), words)

    @told
    def select(self, name: str | None) -> None:
        """Mark the cells of a gate, and compare them."""
        self.selected = name
        self.refresh()
        self.compare()

    @told
    def rename(self, name: str) -> None:
        """Rename the selected gate."""
        if self.selected is not None and name != self.selected:
            old = self.selected
            renamed = self.history.now.rename(old, name)
            self.plots.renamed(old, name)
            self._change(renamed, name)

    @told
    def delete(self) -> None:
        """Delete the selected gate and those inside of it."""
        if self.selected is not None:
            parent = self.history.now[self.selected].parent
            self._change(self.history.now.remove(self.selected), parent)

    @told
    def show_inside(self) -> None:
        """Show only the cells of the selected gate on all plots, so that the next gate goes inside."""
        self.plots.show_inside(self.selected)
        self.refresh()

    @told
    def backgate(self) -> None:
        """Show each step of the selected gate's hierarchy with its cells, or the usual plots again."""
        self.plots.backgate(self.history.now, self.selected)
        self.refresh()

    @told
    def show_probability(self) -> None:
        """Colour the cells by the probability that each lies in the selected gate."""
        name, gating = self.selected, self.history.now
        if name is None:
            return
        self.say(f"Computing the probability of {name} for each cell ...")

        def shown(probability: np.ndarray) -> None:
            self.plots.color_by_probability(name, probability)
            self.refresh()
            unsure = int(((probability > 0.1) & (probability < 0.9)).sum())
            self.say(
                f"Expected cells in {name}: {np.nansum(probability):,.1f}; "
                f"{unsure:,} cells have a probability between 0.1 and 0.9."
            )

        self._in_background(lambda: self.workspace.probability(gating, name), shown)

    def refresh(self) -> None:
        """Show the gates as they are, in the tree and on the plots."""
        gating, cells = self.history.now, self.cells
        self.selected = self.selected if self.selected in gating.names else None
        self._inside = members(gating, cells.inside, cells.n_cells)
        column, sample = self.plots.view.sample_column, self.plots.view.chosen_sample
        counted = self._inside
        if sample is not None:
            of_sample = cells.of_sample(*sample)
            counted = {name: mask & of_sample for name, mask in counted.items()}
        self._counts = counts(gating, counted)
        n_cells = int(counted[None].sum())
        self.panel.show(gating, self._counts, n_cells, self.selected)
        is_backgating = self.plots.is_backgating
        self.panel.buttons["backgate"].label = "Usual plots" if is_backgating else "Backgate"
        self.panel.buttons["backgate"].disabled = self.selected is None and not is_backgating
        self.panel.buttons["undo"].disabled = not self.history.can_undo
        self.panel.buttons["redo"].disabled = not self.history.can_redo
        self.panel.buttons["save"].disabled = self.history.is_saved
        self.panel.buttons["reload"].disabled = not self.workspace.gates_path.exists()
        self.panel.buttons["restore"].visible = bool(self.workspace.unsaved(self.history))
        self.panel.buttons["propose"].visible = self.workspace.proposed_path.exists()
        self.differences.offer([n for n in gating.populations if n != self.selected])
        samples = None if column is None else cells.samples(column)
        self.populations.show(population_table(gating, self._inside, samples))
        self.plots.show(gating, self._inside, self._counts, self.selected)

    def _window_moved(self, plot: CellPlot) -> None:
        self.plots.window_moved(self.document, plot)

    @told
    def _views_chosen(self, change: Callable[[], None]) -> None:
        change()
        self.refresh()

    @told
    def _feature_chosen(self, modality: str, name: str) -> None:
        self.plots.color_by_feature(modality, name)

    @told
    def compare(self) -> None:
        """Compare the cells of the selected gate with those chosen, in the background."""
        self._asked += 1
        panel, name = self.differences, self.selected
        if self.cells.model_path is None:
            panel.clear("Differences need a model: open the results of <code>totalvi run</code>.")
            return
        if name is None:
            panel.clear("Draw or choose a gate.")
            return
        first = self._inside[name]
        other = panel.other.value
        panel.say(f"Comparing {escape(name)} with {escape(other)} ...")
        if other == CONDITIONS:
            panel.clear(panel.said.text)  # what was shown is another comparison
            design, parent = panel.design, self._inside[self.history.now[name].parent]
            ask = partial(self.workspace.comparer.compare_conditions, first, parent, design)
            self._ask(ask, f"<b>{escape(name)}</b>, {escape(design.condition_key)}")
            return
        second = other_cells(other, first, self._inside, self.history.now[name].parent)
        shared = other in self._inside and bool((self._inside[other] & first).any())
        left_out = " (without the cells of both)" if shared else ""
        self._ask(
            partial(self.workspace.comparer.compare, first, second),
            f"<b>{escape(name)}</b> and {escape(other)}{left_out}",
        )

    def _ask(self, question: Callable[[], Any], groups: str) -> None:
        """Ask the model in the background, unless another question has been asked by then."""
        asked, panel = self._asked, self.differences

        def ask() -> object:
            return question() if asked == self._asked else None

        def answer(found: Any) -> None:
            if found is not None and asked == self._asked:
                panel.show(found)
                panel.say(f"{groups}: {escape(found.sentence())}", explain=True)

        self._in_background(ask, answer, panel.said)
