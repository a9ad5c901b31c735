"""The page of the explorer: its reactions when a gate is drawn, selected, saved or compared."""

from collections.abc import Callable
from concurrent.futures import Future
from functools import partial, wraps
from html import escape
from importlib.resources import files

from bokeh.core.templates import get_env
from bokeh.document import Document
from bokeh.models import Div, LinearColorMapper

from totalvi.errors import OutputError, TotalviError
from totalvi.explorer.compare import Compared, ComparePanel, other_cells
from totalvi.explorer.gates import Axis, Gate, Gating, Scale, Shape, counts, members
from totalvi.explorer.panels import (
    ALL_CELLS,
    DENSITY,
    LEFT_MAP,
    LEGEND_STYLE,
    QUANTITIES,
    GatePanel,
    ViewPanel,
    decoded,
    show_scale,
)
from totalvi.explorer.plot import CellPlot, Corners
from totalvi.explorer.run_cells import (
    Coloring,
    color_cells,
    color_choices,
    gate_columns,
    without_formulas,
    write_gated,
)
from totalvi.explorer.workspace import Workspace, gates_from_json, gates_to_json, read_gates
from totalvi.figures.cell_maps import VALUE_PALETTE, add_color_bar

GATED_FILE = "results_gated.h5mu"
_REDRAW_AFTER_MS = 60


def _template() -> str:
    page = files("totalvi.explorer") / "page" / "explorer.html"
    return page.read_text(encoding="utf-8")


def _told(action: Callable[..., None]) -> Callable[..., None]:
    """Show errors of an action on the page."""

    @wraps(action)
    def tried(self: "Explorer", *arguments: object) -> None:
        try:
            action(self, *arguments)
        except (TotalviError, OSError) as error:
            self.say(str(error), problem=True)
            self.refresh()

    return tried


class Explorer:
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
        self._is_replacing = False  # what another page has saved
        self.shown: str | None = None  # the gate whose cells are shown
        self.selected: str | None = None  # the gate that is compared
        self._asked = 0  # comparisons, of which only the last is shown
        self._redraws: dict[str, object] = {}
        self._choices = color_choices(self.cells)
        self.plots = [
            CellPlot(side, self.gate_drawn, self._window_moved) for side in ("left", "right")
        ]
        self.mapper = LinearColorMapper(palette=list(VALUE_PALETTE), low=0.0, high=1.0)
        self.color_bar = add_color_bar(self.plots[0].figure, self.mapper)
        self.legend = Div(
            text="", name="legend", sizing_mode="stretch_width", stylesheets=[LEGEND_STYLE]
        )
        self.view = ViewPanel(
            list(self.cells.protein_names),
            list(self._choices),
            [word for word, kind in QUANTITIES.items() if kind in self.cells.kinds],
            self.plots,
            on_axes=self._axes_chosen,
            on_colors=self._colors_chosen,
            on_shown=self._shown_chosen,
        )
        self.panel = GatePanel(
            {
                "select": self.select, "rename": self.rename, "load": self.load,
                "inside": self.show_inside, "delete": self.delete, "undo": self.undo,
                "redo": self.redo, "save": self.save, "reload": self.reload,
                "restore": self.restore,
                "csv": self.download_csv, "json": self.download_json, "h5mu": self.write_h5mu,
            }
        )  # fmt: skip
        self.differences = ComparePanel(self.compare, self._feature_chosen)
        self._is_open = True
        document.on_session_destroyed(self._closed)
        self._lay_out()
        self._set_axes()
        self._set_colors()
        self.refresh()
        if workspace.unsaved(self.history):
            self.say("Gates of another visit were not saved: Restore unsaved shows them.")

    def _lay_out(self) -> None:
        document, plots = self.document, self.plots
        for root in (
            self.panel.layout(), self.view.layout(), plots[0].figure, plots[1].figure, self.legend,
            self.differences.controls, self.differences.volcano, self.differences.table,
        ):  # fmt: skip
            document.add_root(root)
        document.title = f"{self.cells.folder.resolve().name} - totalvi explorer"
        document.template = get_env().from_string(_template())
        document.template_variables["run_name"] = self.cells.folder.resolve().name
        document.template_variables["n_cells"] = self.cells.n_cells

    def _closed(self, _session_context: object) -> None:
        self._is_open = False
        self._asked += 1  # nobody waits for what is being compared

    @_told
    def gate_drawn(self, plot: CellPlot, shape: Shape, corners: Corners) -> None:
        """Add a gate inside of the cells shown, and compare its cells."""
        gating = self.history.now
        gate = Gate(gating.free_name(), plot.axes, corners, self.shown, shape)
        self._change(gating.add(gate), gate.name)

    @_told
    def select(self, name: str | None) -> None:
        """Mark the cells of a gate, and compare them."""
        self.selected = name
        self.refresh()
        self.compare()

    @_told
    def rename(self, name: str) -> None:
        """Rename the selected gate."""
        if self.selected is not None and name != self.selected:
            old = self.selected
            renamed = self.history.now.rename(old, name)
            self.shown = name if self.shown == old else self.shown
            self._change(renamed, name)

    @_told
    def delete(self) -> None:
        """Delete the selected gate and those inside of it."""
        if self.selected is not None:
            parent = self.history.now[self.selected].parent
            self._change(self.history.now.remove(self.selected), parent)

    @_told
    def undo(self) -> None:
        """Go back one change."""
        self.history.undo()
        self._changed()

    @_told
    def redo(self) -> None:
        """Redo the last undone change."""
        self.history.redo()
        self._changed()

    @_told
    def show_inside(self) -> None:
        """Show only the cells of the selected gate, so that the next gate goes inside."""
        self.shown = self.selected
        self.refresh()

    def _change(self, gating: Gating, selected: str | None) -> None:
        self.history.change(gating)
        self.selected = selected
        self._changed()

    def _changed(self) -> None:
        self.say("" if self.history.is_saved else "Not saved yet.")
        self.refresh()
        self.compare()

    @_told
    def save(self) -> None:
        """Write the gates into the run's folder."""
        if self.workspace.saved != self.history.saved and not self._is_replacing:
            self._is_replacing = True
            raise OutputError(
                "Another page has saved its gates: Reload saved shows them, and Save replaces them."
            )
        self.workspace.save(self.history)
        self._is_replacing = False
        self.say(f"Saved in {self.workspace.gates_path}.")
        self.refresh()

    @_told
    def reload(self) -> None:
        """Go back to the gates in the run's folder."""
        self._take(read_gates(self.workspace.gates_path))
        self.history.mark_saved()
        self.workspace.saved = self.history.now
        self._is_replacing = False
        self.refresh()
        self.say("Reloaded what was saved.")

    @_told
    def restore(self) -> None:
        """Restore the unsaved gates of another visit."""
        self._take(self.workspace.unsaved(self.history)[0])
        self.say("Restored what was not saved; Undo brings back the gates before.")

    @_told
    def load(self, encoded: str) -> None:
        """Load gates from a file, such as one of another run; its bytes are in base64."""
        self._take(gates_from_json(decoded(encoded)))
        self.say("Loaded the gates of the file; Undo brings back those before.")

    def _take(self, gating: Gating) -> None:
        members(gating, self.cells.inside, self.cells.n_cells)  # all that they need is there
        self._change(gating, None)

    @_told
    def download_csv(self) -> None:
        """Let the browser download the gates of each cell as CSV."""
        table = without_formulas(gate_columns(self.cells, self.history.now))
        self.panel.download("gates.csv", "text/csv", table.to_csv())

    @_told
    def download_json(self) -> None:
        """Let the browser download the gates as JSON."""
        self.panel.download("gates.json", "application/json", gates_to_json(self.history.now))

    @_told
    def write_h5mu(self) -> None:
        """Write a copy of the results with the gates of each cell, beside them."""
        self.say("Writing the file ...")
        output = self.cells.folder / GATED_FILE
        write = partial(write_gated, self.cells, self.history.now, output, overwrite=True)
        self._in_background(write, lambda path: self.say(f"Written: {path}"))

    def refresh(self) -> None:
        """Show the gates as they are, in the tree and on the plots."""
        gating = self.history.now
        self.shown = self.shown if self.shown in gating.names else None
        self.selected = self.selected if self.selected in gating.names else None
        self._inside = members(gating, self.cells.inside, self.cells.n_cells)
        self._counts = counts(gating, self._inside)
        self.panel.show(gating, self._counts, self.cells.n_cells, self.selected)
        self.panel.buttons["undo"].disabled = not self.history.can_undo
        self.panel.buttons["redo"].disabled = not self.history.can_redo
        self.panel.buttons["save"].disabled = self.history.is_saved
        self.panel.buttons["reload"].disabled = not self.workspace.gates_path.exists()
        self.panel.buttons["restore"].visible = bool(self.workspace.unsaved(self.history))
        self.view.offer(gating.names, self.shown)
        self.differences.offer([name for name in gating.names if name != self.selected])
        for plot in self.plots:
            self._draw(plot)

    def _draw(self, plot: CellPlot) -> None:
        gating = self.history.now
        here = [g for g in gating.gates if g.parent == self.shown and g.axes == plot.axes]
        labels = [f"{g.name}  {self._counts[g.name].percent_of_parent:.1f} %" for g in here]
        plot.outline(here, labels, self.selected)
        outlined = self.selected in [gate.name for gate in here]
        dimmed = None if self.selected is None or outlined else ~self._inside[self.selected]
        colors = self._colors
        if colors is None:
            colors = plot.density_colors
        plot.draw(colors, None if self.shown is None else self._inside[self.shown], dimmed)

    def _window_moved(self, plot: CellPlot) -> None:
        """Draw once the window rests: every step of a zoom sets four numbers."""
        name = plot.figure.name
        if name in self._redraws:
            self.document.remove_timeout_callback(self._redraws[name])

        def redraw() -> None:
            del self._redraws[name]
            self._draw(plot)

        self._redraws[name] = self.document.add_timeout_callback(redraw, _REDRAW_AFTER_MS)

    def _set_axes(self) -> None:
        view = self.view
        kind, raw = QUANTITIES[view.quantity.value], QUANTITIES["raw counts"]
        words = {kind: view.quantity.value, raw: "raw counts"}
        for plot, shown_kind in zip(self.plots, (raw, kind), strict=True):
            if plot is self.plots[0] and view.left.value == LEFT_MAP:
                axes, labels = (Axis("umap", "1"), Axis("umap", "2")), ["UMAP 1", "UMAP 2"]
            else:
                scale: Scale = "linear" if shown_kind == "protein_foreground" else view.scale.value
                axes = (
                    Axis(shown_kind, view.x.value, scale),
                    Axis(shown_kind, view.y.value, scale),
                )
                labels = [f"{axis.name}, {words[shown_kind]}" for axis in axes]
            if plot.axes != axes or not len(plot.places[0]):
                first, second = (self.cells.places(a.kind, a.name, a.scale) for a in axes)
                plot.set_axes(axes, (first, second), labels)

    def _set_colors(self) -> None:
        if self.view.color.value == DENSITY:
            self._colors = None
            self.color_bar.visible = False
            self.legend.text = "Coloured by how many cells lie there."
            return
        kind, name = self._choices[self.view.color.value]
        found: Coloring = color_cells(self.cells, kind, name)
        self._colors = found.colors
        by_value = not found.legend
        self.legend.text = found.legend or f"Coloured by {escape(self.view.color.value)}."
        self.color_bar.visible = by_value
        if by_value:
            show_scale(found, self.mapper, self.color_bar)

    @_told
    def _axes_chosen(self) -> None:
        if self.view.x.value and self.view.y.value:
            self._set_axes()
            self.refresh()

    @_told
    def _colors_chosen(self) -> None:
        if self.view.color.value in (*self._choices, DENSITY):
            self._set_colors()
            self.refresh()

    @_told
    def _shown_chosen(self) -> None:
        value = self.view.shown.value
        self.shown = None if value == ALL_CELLS else value
        self.refresh()

    @_told
    def _feature_chosen(self, modality: str, name: str) -> None:
        kind = "protein_denoised" if modality != "rna" else "gene_denoised"
        if kind not in self.cells.kinds:  # of a run on disk
            kind = "gene_raw"
        label = next(
            (text for text, choice in self._choices.items() if choice == (kind, name)), None
        )
        if label is not None:
            self.view.color.value = label

    @_told
    def compare(self) -> None:
        """Compare the cells of the selected gate with those chosen, in the background."""
        self._asked += 1
        panel, name = self.differences, self.selected
        if name is None:
            panel.clear("Draw or choose a gate.")
            return
        first = self._inside[name]
        other = panel.other.value
        second = other_cells(other, first, self._inside, self.history.now[name].parent)
        shared = other in self._inside and bool((self._inside[other] & first).any())
        left_out = " (without the cells of both)" if shared else ""
        panel.say(f"Comparing {escape(name)} with {escape(other)} ...")
        asked = self._asked

        def ask() -> Compared | None:
            return self.workspace.comparer.compare(first, second) if asked == self._asked else None

        def answer(found: Compared | None) -> None:
            if found is not None and asked == self._asked:
                panel.show(found)
                groups = f"<b>{escape(name)}</b> and {escape(other)}{left_out}"
                panel.say(f"{groups}: {found.sentence()}", explain=True)

        self._in_background(ask, answer, panel.said)

    def _in_background(
        self, work: Callable[[], object], then: Callable[..., None], where: Div | None = None
    ) -> None:
        def finished(future: Future[object]) -> None:
            def show() -> None:
                try:
                    then(future.result())
                except (TotalviError, ValueError, OSError) as error:
                    (where or self.panel.status).text = escape(str(error))

            if self._is_open:
                self.document.add_next_tick_callback(show)

        self.workspace.executor.submit(work).add_done_callback(finished)

    def say(self, text: str, *, problem: bool = False) -> None:
        """Show a sentence below the gates."""
        color = "#C43C00" if problem else "#5b616a"
        self.panel.status.text = f'<span style="color:{color}">{escape(text)}</span>'
