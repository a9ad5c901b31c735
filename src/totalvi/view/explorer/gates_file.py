"""Gates as JSON, in the terms of Gating-ML 2.0: dimensions with a transformation, and vertices.

Numbers are on the transformed scale, as in Gating-ML. Files may come from anywhere, so all of their
content is checked.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from anndata.io import read_elem, write_elem

from totalvi.errors import DataError, FormatError, OutputError
from totalvi.run.folder import staged_file
from totalvi.view.explorer.gates import (
    COFACTOR,
    MOST_GATES,
    Axis,
    Gate,
    Gating,
    Scale,
    deepest,
    members,
)
from totalvi.view.explorer.run_cells import RunCells

FORMAT, VERSION = "totalvi gates", 1
LARGEST_FILE_BYTES = 20_000_000
TRANSFORMATIONS: dict[Scale, dict[str, Any]] = {
    "linear": {"type": "linear"},
    "asinh": {"type": "asinh", "cofactor": COFACTOR},
    "log": {"type": "log10", "offset": 1.0},
}


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


GATE = "gate"
PREFIX = "in_gate "


def gate_columns(cells: RunCells, gating: Gating) -> pd.DataFrame:
    """Return the gates of each cell.

    Returns
    -------
    pandas.DataFrame
        Indexed by cell: ``gate``, categorical, the path of the innermost gate, such as
        "T cells/CD4 T", or "" in none; and a boolean column ``in_gate NAME`` for each gate.
    """
    inside = members(gating, cells.inside, cells.n_cells)
    table = gate_table(gating, inside, cells.obs.index)
    return table.rename_axis("cell")


def without_formulas(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table for a CSV file, in which no spreadsheet reads a name of a gate as a formula.

    An apostrophe goes before names that begin with =, +, - or @.

    Examples
    --------
    >>> without_formulas(pd.DataFrame({"gate": ["=1+1", "CD4+", ""]}))["gate"].tolist()
    ["'=1+1", 'CD4+', '']
    """
    names = table[GATE].astype(str)
    return table.assign(**{GATE: names.where(~names.str.match("[=+@-]"), "'" + names)})


def gate_table(
    gating: Gating, inside: Mapping[str | None, np.ndarray], index: pd.Index
) -> pd.DataFrame:
    """Return the table of `gate_columns` from masks of `totalvi.view.explorer.gates.members`."""
    paths = ["", *("/".join(gating.path(gate.name)) for _, gate in gating.walk())]
    columns: dict[str, object] = {
        GATE: pd.Categorical(deepest(gating, inside), categories=list(dict.fromkeys(paths)))
    }
    columns |= {f"{PREFIX}{name}": inside[name] for name in gating.names}
    return pd.DataFrame(columns, index=index)


def write_gated(cells: RunCells, gating: Gating, output: Path, *, overwrite: bool = False) -> Path:
    """Write a copy of the run's `results.h5mu` with the gates of each cell in ``obs``.

    They are in ``obs`` of the MuData and of each modality, in place of those of an earlier export.

    Parameters
    ----------
    output
        A file ending in ``.h5mu``, other than `results.h5mu`.

    Raises
    ------
    OutputError
        When ``output`` exists and ``overwrite`` is False, or cannot be written; or of a run on disk.
    """
    if cells.on_disk:
        raise OutputError(
            f"{cells.results} is too large to be copied: take the gates of each cell as CSV."
        )
    table = gate_columns(cells, gating)
    with staged_file(output, suffix=".h5mu", overwrite=overwrite) as staged:
        shutil.copyfile(cells.results, staged)
        with h5py.File(staged, "r+") as file:
            for where in ("obs", *(f"mod/{modality}/obs" for modality in file["mod"])):
                _add_columns(file, where, table)
    return output


def _add_columns(file: h5py.File, where: str, table: pd.DataFrame) -> None:
    obs = read_elem(file[where])
    earlier = [name for name in obs if name == GATE or str(name).startswith(PREFIX)]
    obs = obs.drop(columns=earlier)
    if not obs.index.equals(table.index):
        table = table.reindex(obs.index)
    for name in table:
        obs[name] = table[name]
    write_elem(file, where, obs)
