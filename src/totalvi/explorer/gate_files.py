"""Files of gates: JSON in the terms of Gating-ML 2.0, with vertices on the transformed scales.

The files may come from anywhere, so all of their content is checked.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from totalvi.errors import DataError, FormatError
from totalvi.explorer.axes import COFACTOR, Axis, Scale
from totalvi.explorer.gates import MOST_GATES, Adjusted, Gate, Gating, Operand, Point, Vertices
from totalvi.explorer.gatingml_reader import from_gating_ml

FORMAT, VERSION = "totalvi gates", 2
LARGEST_FILE_BYTES = 20_000_000
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
    """Return the hierarchy that `gates_to_json` wrote, or that a Gating-ML 2.0 document holds.

    Parameters
    ----------
    where
        Name of the text in errors.

    Raises
    ------
    FormatError
        When the text is no such JSON or XML, whole and consistent.
    """
    if text.lstrip("\ufeff \t\r\n").startswith("<"):
        return from_gating_ml(text, where)
    try:
        return _gating(json.loads(text, parse_constant=_refuse_constant))
    except (ValueError, DataError, RecursionError) as error:
        raise FormatError(f"{where} cannot be used: {error} Save the gates again.") from error


def read_gates(path: str | Path) -> Gating:
    """Read a hierarchy of gates from a file of JSON or Gating-ML 2.0.

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


def _refuse_constant(name: str) -> None:
    raise ValueError(f"it holds {name}, which is no number.")


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
        raise ValueError(f"it holds {len(gates):,} gates, of at most {MOST_GATES:,}.")
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
