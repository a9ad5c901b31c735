"""State that all pages of an explorer share: cells, comparisons, gates of each visit, and files."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path

import numpy as np

from totalvi.atomic import write_file
from totalvi.data.minified_cells import is_minified
from totalvi.errors import TotalviError
from totalvi.explorer.comparer import Comparer
from totalvi.explorer.gate_files import gates_to_json, read_gates
from totalvi.explorer.gates import Gating, members
from totalvi.explorer.membership import gate_probability
from totalvi.explorer.run_cells import Cells, open_cells
from totalvi.run.folder import PROPOSED_GATES
from totalvi.run.inputs import AS_IS, Reading

GATES_FILE, UNSAVED_FILE = "gates.json", "gates_unsaved.json"


class History:
    """The current hierarchy of gates, with earlier and undone ones.

    Parameters
    ----------
    gating
        To start from.

    Attributes
    ----------
    now
        The hierarchy as it is.
    saved
        As it was saved last.

    Examples
    --------
    >>> history = History(Gating())
    >>> history.undo()
    False
    """

    def __init__(self, gating: Gating) -> None:
        self.now = gating
        self.saved = gating
        self._past: list[Gating] = []
        self._future: list[Gating] = []

    def change(self, gating: Gating) -> None:
        """Change to another hierarchy."""
        if gating != self.now:
            self._past.append(self.now)
            self._future.clear()
            self.now = gating

    def undo(self) -> bool:
        """Go back one change, if there is one."""
        return self._step(self._past, self._future)

    def redo(self) -> bool:
        """Redo one undone change, if there is one."""
        return self._step(self._future, self._past)

    def _step(self, source: list[Gating], target: list[Gating]) -> bool:
        if not source:
            return False
        target.append(self.now)
        self.now = source.pop()
        return True

    @property
    def can_undo(self) -> bool:
        """Whether there is a change to undo."""
        return bool(self._past)

    @property
    def can_redo(self) -> bool:
        """Whether there is an undone change to redo."""
        return bool(self._future)

    @property
    def is_saved(self) -> bool:
        """Whether the current hierarchy is the one that was saved last."""
        return self.now == self.saved

    def mark_saved(self) -> None:
        """Record that the current hierarchy was saved."""
        self.saved = self.now

    def has_been(self, gating: Gating) -> bool:
        """Return whether a hierarchy is the current, an earlier or an undone one."""
        return gating in (self.now, *self._past, *self._future)


@dataclass
class Workspace:
    """The cells, the gates of each visit, and the comparer, on one background thread.

    Parameters
    ----------
    cells
        Of the run.
    saved
        The gates that were saved last, which a visit starts with.
    histories
        Of all visits, the first one first; before them those of earlier servers that were not saved.
    taken_up
        Files of gates that were not saved which this server read or wrote, with what they hold; others
        belong to other servers.
    notes
        About files of gates that were not saved and cannot be shown.
    probabilities
        Of each cell to lie in a gate, by the gate with all that it needs.
    """

    cells: Cells
    saved: Gating
    histories: list[History] = field(default_factory=list)
    taken_up: dict[Path, bytes] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    probabilities: dict[Gating, np.ndarray] = field(default_factory=dict)
    comparer: Comparer = field(init=False)
    executor: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))

    def __post_init__(self) -> None:
        self.comparer = Comparer(self.cells)

    @property
    def gates_path(self) -> Path:
        """Where gates are saved."""
        return self.cells.folder / f"{self.cells.prefix}{GATES_FILE}"

    @property
    def proposed_path(self) -> Path:
        """Where gates are that a program proposes, as `gate_files.gates_of_table` reads them."""
        return self.cells.folder / f"{self.cells.prefix}{PROPOSED_GATES}"

    def visit(self) -> History:
        """Begin the history of a visit."""
        self.histories.append(History(self.saved))
        return self.histories[-1]

    def probability(self, gating: Gating, name: str) -> np.ndarray:
        """Return the probability of each cell to lie in a gate, (N,), which is kept.

        Raises
        ------
        ReadError
            When there is no model of the cells.
        """
        needed = gating.needed(name)
        if needed not in self.probabilities:
            model = self.comparer.model
            self.probabilities[needed] = gate_probability(self.cells, model, needed, name)
        return self.probabilities[needed]

    def save(self, history: History) -> None:
        """Write the gates of a visit into the run's folder, completely or not at all."""
        write_file(self.gates_path, gates_to_json(history.now).encode())
        history.mark_saved()
        self.saved = history.now

    def unsaved(self, visitor: History | None = None) -> list[Gating]:
        """Return the gates of visits that were not saved, and that no later visit took over.

        Parameters
        ----------
        visitor
            A visit whose own gates, and those that it took over, are left out.
        """
        found: list[Gating] = []
        for number, history in reversed(list(enumerate(self.histories))):
            others = [*self.histories[number + 1 :], *([] if visitor is None else [visitor])]
            is_lost = not history.is_saved and history.now not in (self.saved, *found)
            if is_lost and not any(other.has_been(history.now) for other in others):
                found.append(history.now)
        return found

    def keep_unsaved(self) -> list[Path]:
        """Write gates that were not saved beside those that were, the last ones first."""
        unsaved = self.unsaved()
        places = (_unsaved_path(self.cells, number) for number in count())
        free = (path for path in places if self._is_own(path) or not os.path.lexists(path))
        kept = dict(zip(islice(free, len(unsaved)), unsaved, strict=True))
        for path in self.taken_up:
            if path not in kept and self._is_own(path):  # its gates are saved, or in another file
                path.unlink()
        self.taken_up = {path: gates_to_json(gating).encode() for path, gating in kept.items()}
        for path, content in self.taken_up.items():
            write_file(path, content)
        return list(kept)

    def _is_own(self, path: Path) -> bool:
        """Return whether a file is as this server read or wrote it, and no other has changed it."""
        return path in self.taken_up and path.is_file() and path.read_bytes() == self.taken_up[path]


def open_workspace(
    folder: str | Path, gates: str | Path | None = None, reading: Reading = AS_IS
) -> Workspace:
    """Open the results of `totalvi run` or a file of counts, with gates of a file or those saved.

    Raises
    ------
    ReadError
        When the folder does not hold the results of a run, or lacks what the gates are drawn on.
    FormatError
        When the file of gates cannot be used.
    """
    cells = _open(Path(folder), reading)
    workspace = Workspace(cells, Gating())
    if gates is None and workspace.gates_path.exists():
        gates = workspace.gates_path
    if gates is not None:
        workspace.saved = saved = read_gates(gates)
        members(saved, cells.inside, cells.n_cells)  # all that they need is there
    for path in reversed(_unsaved_paths(cells)):
        _take_up_unsaved(workspace, path)
    return workspace


def _open(path: Path, reading: Reading) -> Cells:
    """Open what is to be gated; a reference needs torch, for which others need not wait."""
    if is_minified(path):
        from totalvi.explorer.reference_cells import ReferenceCells

        return ReferenceCells(path)
    return open_cells(path, reading)


def _take_up_unsaved(workspace: Workspace, path: Path) -> None:
    """Begin with the gates of a file that an earlier server left, or note why not."""
    cells = workspace.cells
    try:
        content, gating = path.read_bytes(), read_gates(path)
        members(gating, cells.inside, cells.n_cells)  # all that they need is there
    except (TotalviError, OSError) as error:
        workspace.notes.append(f"{path} is left as it is, since its gates cannot be shown: {error}")
        return
    workspace.visit().change(gating)
    workspace.taken_up[path] = content


def _unsaved_path(cells: Cells, number: int) -> Path:
    name = Path(f"{cells.prefix}{UNSAVED_FILE}")
    return cells.folder / (f"{name.stem}_{number + 1}{name.suffix}" if number else name)


def _unsaved_paths(cells: Cells) -> list[Path]:
    """Return the files of gates that were not saved, those of the last visit first."""
    name = Path(f"{cells.prefix}{UNSAVED_FILE}")
    by_number = {}
    for path in cells.folder.glob("*" + name.suffix):
        if not path.stem.startswith(name.stem):
            continue
        number = path.stem.removeprefix(name.stem).removeprefix("_") or "1"
        if number.isdecimal() and path == _unsaved_path(cells, int(number) - 1):
            by_number[int(number)] = path
    return [by_number[number] for number in sorted(by_number)]
