"""Opening a run's folder and serving it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bokeh.document import Document

from totalvi.explore.app import GATES_FILE, Explorer, Workspace
from totalvi.explore.data import RunCells
from totalvi.explore.gates import Gating, members
from totalvi.explore.gates_file import read_gates
from totalvi.explore.history import History
from totalvi.explore.server import ExplorerServer


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


@contextmanager
def serving(workspace: Workspace, port: int | None = None) -> Iterator[ExplorerServer]:
    """Give a server of the explorer, whose `run` serves until it is interrupted."""
    server = ExplorerServer(lambda document: _fill(document, workspace), port)
    # What fails here fails at the first comparison again, which says so on the page.
    workspace.executor.submit(workspace.comparer.warm_up)
    try:
        yield server
    finally:
        workspace.executor.shutdown(wait=False, cancel_futures=True)


def _fill(document: Document, workspace: Workspace) -> None:
    Explorer(document, workspace)
