"""Files of gates: JSON in the terms of Gating-ML 2.0, Gating-ML itself, and tables of thresholds.

The files may come from anywhere, so all of their content is checked.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from totalvi.errors import DataError, FormatError
from totalvi.explorer.axes import COFACTOR, COUNTS, FAR, Axis, Scale, to_scale
from totalvi.explorer.gate_shapes import box
from totalvi.explorer.gates import MOST_GATES, Adjusted, Gate, Gating, Operand, Point, Vertices
from totalvi.explorer.gatingml_reader import from_gating_ml

FORMAT, VERSION = "totalvi gates", 2
LARGEST_FILE_BYTES = 20_000_000
_TABLE = ("gate", "parent", "kind", "feature", "low", "high")
TRANSFORMATIONS: dict[Scale, dict[str, Any]] = {
    "linear": {"type": "linear"},
    "asinh": {"type": "asinh", "cofactor": COFACTOR},
    "log": {"type": "log10", "offset": 1.0},
}
_FIELDS_OF_VERSION = {
    1: ("id", "parent_id", "shape", "dimensions", "vertices"),
    2: (
        "id", "parent_id", "shape", "dimensions", "vertices",
        "part", "operator", "operands", "by_sample",
    ),
}  # fmt: skip


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
                    "part": gate.part,
                    "operator": gate.operator,
                    "operands": [operand._asdict() for operand in gate.operands],
                    "by_sample": [adjusted._asdict() for adjusted in gate.by_sample],
                }
                for gate in gating.gates
            ],
        },
        indent=1,
        ensure_ascii=False,
        allow_nan=False,
    )


def gates_from_text(text: str, where: str = "the file of gates") -> Gating:
    """Return the hierarchy of JSON (`gates_to_json`), Gating-ML 2.0, or a table (`gates_of_table`).

    Parameters
    ----------
    where
        Name of the text in errors.

    Raises
    ------
    FormatError
        When the text is none of these, whole and consistent.
    """
    if text.lstrip("\ufeff").startswith(("gate,", "gate\t")):
        try:
            return gates_of_table(pd.read_csv(StringIO(text), sep=None, engine="python", dtype=str))
        except (ValueError, DataError) as error:
            raise FormatError(f"{where} cannot be used: {error}") from error
    if text.lstrip("\ufeff \t\r\n").startswith("<"):
        return from_gating_ml(text, where)
    try:
        return _gating(json.loads(text, parse_constant=_refuse_constant))
    except (ValueError, DataError, RecursionError) as error:
        raise FormatError(f"{where} cannot be used: {error} Save the gates again.") from error


def read_gates(path: str | Path) -> Gating:
    """Read a hierarchy of gates from a file of JSON, Gating-ML 2.0, or a table of thresholds.

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
    return gates_from_text(text, str(path))


def gates_of_table(table: pd.DataFrame) -> Gating:
    """Return gates of thresholds, such as a program proposes for people to edit.

    Parameters
    ----------
    table
        A row for each condition: ``gate``, ``parent`` (empty: all cells), ``kind`` (such as
        "protein_foreground"; see :class:`totalvi.explorer.axes.Axis`), ``feature``, and the ends
        ``low`` and ``high`` in counts or probability (empty: open), of which ``low`` belongs to the
        gate. One condition makes a range, two a rectangle, and more a Boolean gate of ranges. Rows of
        the kind "or" name gates of the table, of which the cells are in at least one.

    Raises
    ------
    DataError
        When a column is missing, or a value is not what it should be.

    Examples
    --------
    >>> rows = [("T", "", "protein_raw", "CD3", 50, None), ("T", "", "protein_raw", "CD19", None, 20)]
    >>> columns = ["gate", "parent", "kind", "feature", "low", "high"]
    >>> gate = gates_of_table(pd.DataFrame(rows, columns=columns))["T"]
    >>> gate.shape, gate.axes[0].name, round(gate.vertices[0][0], 3)
    ('rectangle', 'CD3', 2.998)
    """
    missing = [column for column in _TABLE if column not in table]
    if missing:
        raise DataError(f"The table of gates lacks the columns {', '.join(missing)}; add them.")
    gates: list[Gate] = []
    for name, rows in table.groupby("gate", sort=False):
        parents = set(rows["parent"].fillna(""))
        if len(parents) > 1:
            raise DataError(
                f"Gate {name!r} has several parents, {', '.join(sorted(parents))}; give it one."
            )
        parent = str(parents.pop()) or None
        if (rows["kind"] == "or").all():
            either = tuple(Operand(str(part)) for part in rows["feature"])
            gates.append(Gate(str(name), (), (), parent, "boolean", operator="or", operands=either))
            continue
        ranges = [_condition(str(name), parent, row) for _, row in rows.iterrows()]
        axes = tuple(gate.axes[0] for gate in ranges)
        if len(ranges) == 1:
            gates.append(replace(ranges[0], name=str(name)))
        elif len(ranges) == 2:
            (left, right), (bottom, top) = ([end[0] for end in g.vertices] for g in ranges)
            corners = box(left, bottom, right, top)
            gates.append(Gate(str(name), axes, corners, parent, "rectangle"))
        else:
            operands = tuple(Operand(gate.name) for gate in ranges)
            both = Gate(str(name), (), (), parent, "boolean", operator="and", operands=operands)
            gates += [*ranges, both]
    return Gating(tuple(gates))


def _condition(name: str, parent: str | None, row: pd.Series) -> Gate:
    kind, feature = row["kind"], str(row["feature"])
    scale: Scale = "linear"
    if kind in COUNTS:
        scale = "log" if kind.startswith("gene") else "asinh"  # as plots show them
    ends = []
    for column, open_end in (("low", -FAR[scale]), ("high", FAR[scale])):
        is_open = pd.isna(row[column]) or str(row[column]).strip() == ""
        ends.append(open_end if is_open else float(to_scale(np.array(float(row[column])), scale)))
    label = f"{name}: {feature} {str(kind).rpartition('_')[2]}".replace("/", "|")
    return Gate(label, (Axis(kind, feature, scale),), ((ends[0],), (ends[1],)), parent, "range")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"it holds {name}, which is not a number.")


def _gating(found: Any) -> Gating:
    found = _fields(found, ("format", "version", "gates"), "the file")
    if found["format"] != FORMAT:
        raise ValueError(f'its format is not "{FORMAT}".')
    version = found["version"]
    if isinstance(version, bool) or version not in range(1, VERSION + 1):
        raise ValueError(
            f"its version is {version!r}, and this totalvi knows {VERSION}; update totalvi."
        )
    gates = _listed(found["gates"], "gates")
    if len(gates) > MOST_GATES:
        raise ValueError(f"it holds {len(gates):,} gates, but at most {MOST_GATES:,} are read.")
    names = _FIELDS_OF_VERSION[version]
    return Gating(tuple(_gate(_fields(gate, names, "a gate")) for gate in gates))


def _gate(found: Mapping[str, Any]) -> Gate:
    parent = None if found["parent_id"] is None else _text(found["parent_id"], "parent_id")
    return Gate(
        _text(found["id"], "id"),
        tuple(map(_axis, _listed(found["dimensions"], "dimensions"))),
        _vertices(found["vertices"]),
        parent,
        _text(found["shape"], "shape"),  # type: ignore[arg-type]  # Gate checks it
        _text(found.get("part", ""), "part"),
        _text(found.get("operator", ""), "operator"),
        tuple(map(_operand, _listed(found.get("operands", []), "operands"))),
        tuple(map(_adjusted, _listed(found.get("by_sample", []), "by_sample"))),
    )


def _operand(found: Any) -> Operand:
    found = _fields(found, Operand._fields, "an operand")
    if not isinstance(found["complement"], bool):
        raise ValueError("a complement is neither true nor false.")
    return Operand(_text(found["gate"], "gate"), found["complement"])


def _adjusted(found: Any) -> Adjusted:
    found = _fields(found, Adjusted._fields, "a gate of a sample")
    column, sample = _text(found["column"], "column"), _text(found["sample"], "sample")
    return Adjusted(column, sample, _vertices(found["vertices"]))


def _axis(found: Any) -> Axis:
    found = _fields(found, ("kind", "name", "transformation"), "a dimension")
    for scale, transformation in TRANSFORMATIONS.items():
        if found["transformation"] == transformation:
            kind = _text(found["kind"], "kind")
            return Axis(kind, _text(found["name"], "name"), scale)  # type: ignore[arg-type]  # likewise
    raise ValueError("a dimension has a transformation that is not known.")


def _vertices(found: Any) -> Vertices:
    return tuple(map(_vertex, _listed(found, "vertices")))


def _vertex(found: Any) -> Point:
    numbers = _listed(found, "a vertex")
    if len(numbers) not in (1, 2) or not all(type(number) in (int, float) for number in numbers):
        raise ValueError("a vertex is not one or two numbers.")
    try:
        return tuple(map(float, numbers))
    except OverflowError as error:
        raise ValueError("a vertex is too large a number.") from error


def _fields(found: Any, names: tuple[str, ...], what: str) -> Mapping[str, Any]:
    if not isinstance(found, dict) or found.keys() != set(names):
        raise ValueError(f"{what} does not have exactly the fields {', '.join(names)}.")
    return found


def _listed(found: Any, what: str) -> list[Any]:
    if not isinstance(found, list):
        raise ValueError(f"{what} is not a list.")
    return found


def _text(found: Any, what: str) -> str:
    if not isinstance(found, str):
        raise ValueError(f"{what} is no text.")
    return found
