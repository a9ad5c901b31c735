"""What a page does with its gates as a whole: undo, save, load, export; and how it tells."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial, wraps
from html import escape

from bokeh.document import Document
from bokeh.models import Div

from totalvi.errors import OutputError, TotalviError
from totalvi.explorer.fcs import write_exchange
from totalvi.explorer.gate_files import gates_from_text, gates_to_json, read_gates
from totalvi.explorer.gated_results import gate_columns, without_formulas, write_gated
from totalvi.explorer.gates import Gating, members
from totalvi.explorer.gatingml import to_gating_ml
from totalvi.explorer.panels import GatePanel, decoded
from totalvi.explorer.plots import Plots
from totalvi.explorer.populations import PopulationPanel
from totalvi.explorer.workspace import History, Workspace

GATED_FILE, EXCHANGE_FOLDER = "results_gated.h5mu", "fcs"


def told(action: Callable[..., None]) -> Callable[..., None]:
    """Show errors of an action on the page."""

    @wraps(action)
    def tried(self: "GatePage", *arguments: object) -> None:
        try:
            action(self, *arguments)
        except (TotalviError, OSError) as error:
            self.say(str(error), problem=True)
            self.refresh()

    return tried


class GatePage(ABC):
    """A page with a hierarchy of gates; `Explorer` has its plots and comparisons.

    Attributes
    ----------
    document
        Of Bokeh.
    workspace
        Of the server.
    history
        The gates of this visit.
    selected
        Name of the selected gate.
    plots, panel, populations
        Of the page.
    """

    document: Document
    workspace: Workspace
    history: History
    selected: str | None
    plots: Plots
    panel: GatePanel
    populations: PopulationPanel
    _is_open = True
    _is_replacing = False  # what another page has saved

    @abstractmethod
    def refresh(self) -> None:
        """Show the gates as they are."""

    @abstractmethod
    def compare(self) -> None:
        """Compare the cells of the selected gate."""

    def _change(self, gating: Gating, selected: str | None) -> None:
        self.history.change(gating)
        self.selected = selected
        self._changed()

    def _changed(self) -> None:
        self.say("" if self.history.is_saved else "Not saved yet.")
        self.refresh()
        self.compare()

    @told
    def undo(self) -> None:
        """Go back one change."""
        self.history.undo()
        self._changed()

    @told
    def redo(self) -> None:
        """Redo the last undone change."""
        self.history.redo()
        self._changed()

    @told
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

    @told
    def reload(self) -> None:
        """Go back to the gates in the run's folder."""
        self._take(read_gates(self.workspace.gates_path))
        self.history.mark_saved()
        self.workspace.saved = self.history.now
        self._is_replacing = False
        self.refresh()
        self.say("Reloaded what was saved.")

    @told
    def propose(self) -> None:
        """Add the gates that a program has proposed, which are then edited like any others."""
        self._take(self.history.now.with_others(read_gates(self.workspace.proposed_path)))
        self.say("The proposed gates were added; edit them. Undo takes them away.")

    @told
    def restore(self) -> None:
        """Restore the unsaved gates of another visit."""
        self._take(self.workspace.unsaved(self.history)[0])
        self.say("Restored what was not saved; Undo brings back the gates before.")

    @told
    def load(self, encoded: str) -> None:
        """Load gates from a file, such as one of another run; its bytes are in base64."""
        self._take(gates_from_text(decoded(encoded)))
        self.say("Loaded the gates of the file; Undo brings back those before.")

    def _take(self, gating: Gating) -> None:
        members(
            gating, self.workspace.cells.inside, self.workspace.cells.n_cells
        )  # all that they need is there
        self._change(gating, None)

    @told
    def download_csv(self) -> None:
        """Let the browser download the gates of each cell as CSV."""
        table = gate_columns(self.workspace.cells, self.history.now, self.workspace.probabilities)
        self.panel.download("gates.csv", "text/csv", without_formulas(table).to_csv())

    @told
    def download_json(self) -> None:
        """Let the browser download the gates as JSON."""
        self.panel.download("gates.json", "application/json", gates_to_json(self.history.now))

    @told
    def download_gating_ml(self) -> None:
        """Let the browser download the gates as Gating-ML 2.0."""
        text = to_gating_ml(self.history.now, self.plots.view.chosen_sample)
        self.panel.download("gates.xml", "application/xml", text)

    @told
    def download_populations(self) -> None:
        """Let the browser download the table of populations by sample as CSV."""
        self.panel.download("populations.csv", "text/csv", self.populations.to_csv())

    @told
    def write_h5mu(self) -> None:
        """Write a copy of the results with the gates of each cell, beside them."""
        self.say("Writing the file ...")
        output = self.workspace.cells.folder / f"{self.workspace.cells.prefix}{GATED_FILE}"
        write = partial(
            write_gated, self.workspace.cells, self.history.now, output, self.workspace.probabilities,
            overwrite=True,
        )  # fmt: skip
        self._in_background(write, lambda path: self.say(f"Written: {path}"))

    @told
    def write_fcs(self) -> None:
        """Write FCS files with all channels, one for each sample, and the gates as Gating-ML."""
        self.say("Writing FCS files ...")
        output = self.workspace.cells.folder / f"{self.workspace.cells.prefix}{EXCHANGE_FOLDER}"
        column = self.plots.view.sample_column
        write = partial(write_exchange, self.workspace.cells, self.history.now, output, column)
        self._in_background(
            write, lambda paths: self.say(f"Written: {len(paths)} files in {output}")
        )

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
