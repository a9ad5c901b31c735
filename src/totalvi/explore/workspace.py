"""What all pages of an explorer share."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from totalvi.explore.compare import Comparer
from totalvi.explore.data import RunCells
from totalvi.explore.gates import Gating, members
from totalvi.explore.gates_file import gates_to_json, read_gates
from totalvi.explore.history import History

GATES_FILE, UNSAVED_FILE = "gates.json", "gates_unsaved.json"


@dataclass
class Workspace:
    """The cells, the gates, and who compares them, on one thread in the background."""

    cells: RunCells
    history: History
    comparer: Comparer = field(init=False)
    executor: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))

    def __post_init__(self) -> None:
        self.comparer = Comparer(self.cells)

    @property
    def gates_path(self) -> Path:
        """Where gates are saved."""
        return self.cells.folder / GATES_FILE

    def keep_unsaved(self) -> Path | None:
        """Write gates that were not saved beside those that were; None: there are none."""
        if self.history.is_saved:
            return None
        path = self.cells.folder / UNSAVED_FILE
        path.write_text(gates_to_json(self.history.now), encoding="utf-8")
        return path


def open_workspace(folder: str | Path, gates: str | Path | None = None) -> Workspace:
    """Open what `totalvi run` wrote, with gates of a file, or else those saved in the folder.

    Raises
    ------
    ReadError
        When the folder does not hold the results of a run, or lacks what the gates are drawn on.
    FormatError
        When the file of gates cannot be used.
    """
    cells = RunCells(folder)
    if gates is None and (cells.folder / GATES_FILE).exists():
        gates = cells.folder / GATES_FILE
    gating = Gating() if gates is None else read_gates(gates)
    members(gating, cells.inside, cells.n_cells)  # all that they need is there
    return Workspace(cells, History(gating))
