"""State that all pages of an explorer share: cells, comparisons, gates of each visit and their files.

The files hold gates as JSON in the terms of Gating-ML 2.0: dimensions with a transformation, and
vertices on the transformed scale. They may come from anywhere, so all of their content is checked.
"""

import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path
from typing import Any

from totalvi.atomic import write_file
from totalvi.errors import DataError, FormatError, TotalviError
from totalvi.explorer.compare import Comparer
from totalvi.explorer.gates import COFACTOR, MOST_GATES, Axis, Gate, Gating, Scale, members
from totalvi.explorer.run_cells import RunCells

GATES_FILE, UNSAVED_FILE = "gates.json", "gates_unsaved.json"
FORMAT, VERSION = "totalvi gates", 1
LARGEST_FILE_BYTES = 20_000_000
TRANSFORMATIONS: dict[Scale, dict[str, Any]] = {
    "linear": {"type": "linear"},
    "asinh": {"type": "asinh", "cofactor": COFACTOR},
    "log": {"type": "log10", "offset": 1.0},
}


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
    """

    cells: RunCells
    saved: Gating
    histories: list[History] = field(default_factory=list)
    taken_up: dict[Path, bytes] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    comparer: Comparer = field(init=False)
    executor: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))

    def __post_init__(self) -> None:
        self.comparer = Comparer(self.cells)

    @property
    def gates_path(self) -> Path:
        """Where gates are saved."""
        return self.cells.folder / GATES_FILE

    def visit(self) -> History:
        """Begin the history of a visit."""
        self.histories.append(History(self.saved))
        return self.histories[-1]

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
        folder, unsaved = self.cells.folder, self.unsaved()
        places = (_unsaved_path(folder, number) for number in count())
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


def open_workspace(folder: str | Path, gates: str | Path | None = None) -> Workspace:
    """Open the results of `totalvi run`, with gates of a file or those saved in the folder.

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
    saved = Gating() if gates is None else read_gates(gates)
    workspace = Workspace(cells, saved)
    members(saved, cells.inside, cells.n_cells)  # all that they need is there
    for path in reversed(_unsaved_paths(cells.folder)):
        _take_up_unsaved(workspace, path)
    return workspace


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


def _unsaved_path(folder: Path, number: int) -> Path:
    name = Path(UNSAVED_FILE)
    return folder / (f"{name.stem}_{number + 1}{name.suffix}" if number else name)


def _unsaved_paths(folder: Path) -> list[Path]:
    """Return the files of gates that were not saved, those of the last visit first."""
    name = Path(UNSAVED_FILE)
    by_number = {}
    for path in folder.glob(f"{name.stem}*{name.suffix}"):
        number = path.stem.removeprefix(name.stem).removeprefix("_") or "1"
        if number.isdecimal() and path == _unsaved_path(folder, int(number) - 1):
            by_number[int(number)] = path
    return [by_number[number] for number in sorted(by_number)]


def gates_to_json(gating: Gating) -> str:
    """Return a hierarchy of gates as JSON text."""
    return json.dumps(
        {
            "format": FORMAT,
            "version": VERSION,
            "gates": [
                {
                    "id": gate.name,
                    "parent_id": gate.parent,
                    "shape": gate.shape,
                    "dimensions": [
                        {
                            "kind": axis.kind,
                            "name": axis.name,
                            "transformation": TRANSFORMATIONS[axis.scale],
                        }
                        for axis in gate.axes
                    ],
                    "vertices": [list(corner) for corner in gate.vertices],
                }
                for gate in gating.gates
            ],
        },
        indent=1,
        ensure_ascii=False,
        allow_nan=False,
    )


def gates_from_json(text: str, where: str = "the file of gates") -> Gating:
    """Return the hierarchy that `gates_to_json` wrote.

    Parameters
    ----------
    where
        Name of the text in errors.

    Raises
    ------
    FormatError
        When the text is not such JSON, whole and consistent.
    """
    try:
        return _gating(json.loads(text, parse_constant=_refuse_constant))
    except (ValueError, DataError, RecursionError) as error:
        raise FormatError(f"{where} cannot be used: {error} Save the gates again.") from error


def read_gates(path: str | Path) -> Gating:
    """Read a hierarchy of gates from a JSON file.

    Raises
    ------
    FormatError
        When it is not one.
    """
    path = Path(path)
    if path.stat().st_size > LARGEST_FILE_BYTES:
        raise FormatError(
            f"{path} is too large for a file of gates; give one saved by the explorer."
        )
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(f"{path} is no text; give a file of gates.") from error
    return gates_from_json(text, str(path))


def _refuse_constant(name: str) -> None:
    raise ValueError(f"it holds {name}, which is no number.")


def _gating(found: Any) -> Gating:
    found = _fields(found, ("format", "version", "gates"), "the file")
    if found["format"] != FORMAT:
        raise ValueError(f'its format is not "{FORMAT}".')
    if found["version"] != VERSION or isinstance(found["version"], bool):
        raise ValueError(
            f"its version is {found['version']!r}, and this totalvi knows {VERSION}; update totalvi."
        )
    gates = _listed(found["gates"], "gates")
    if len(gates) > MOST_GATES:
        raise ValueError(f"it holds {len(gates):,} gates, of at most {MOST_GATES:,}.")
    return Gating(tuple(map(_gate, gates)))


def _gate(found: Any) -> Gate:
    found = _fields(found, ("id", "parent_id", "shape", "dimensions", "vertices"), "a gate")
    dimensions = _listed(found["dimensions"], "dimensions")
    if len(dimensions) != 2:
        raise ValueError(f"a gate has {len(dimensions)} dimensions, not 2.")
    first, second = map(_axis, dimensions)
    vertices = tuple(map(_vertex, _listed(found["vertices"], "vertices")))
    parent = None if found["parent_id"] is None else _text(found["parent_id"], "parent_id")
    return Gate(
        _text(found["id"], "id"),
        (first, second),
        vertices,
        parent,
        _text(found["shape"], "shape"),  # type: ignore[arg-type]  # Gate checks it
    )


def _axis(found: Any) -> Axis:
    found = _fields(found, ("kind", "name", "transformation"), "a dimension")
    for scale, transformation in TRANSFORMATIONS.items():
        if found["transformation"] == transformation:
            kind = _text(found["kind"], "kind")
            return Axis(kind, _text(found["name"], "name"), scale)  # type: ignore[arg-type]  # likewise
    raise ValueError("a dimension has a transformation that is not known.")


def _vertex(found: Any) -> tuple[float, float]:
    numbers = _listed(found, "a vertex")
    if len(numbers) != 2 or not all(type(number) in (int, float) for number in numbers):
        raise ValueError("a vertex is not two numbers.")
    try:
        return float(numbers[0]), float(numbers[1])
    except OverflowError as error:
        raise ValueError("a vertex is too large a number.") from error


def _fields(found: Any, names: tuple[str, ...], what: str) -> Mapping[str, Any]:
    if not isinstance(found, dict) or found.keys() != set(names):
        raise ValueError(f"{what} does not have just the fields {', '.join(names)}.")
    return found


def _listed(found: Any, what: str) -> list[Any]:
    if not isinstance(found, list):
        raise ValueError(f"{what} is no list.")
    return found


def _text(found: Any, what: str) -> str:
    if not isinstance(found, str):
        raise ValueError(f"{what} is no text.")
    return found
