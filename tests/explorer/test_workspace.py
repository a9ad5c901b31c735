"""Gates go to JSON and back, and nothing else comes back."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from totalvi.errors import FormatError
from totalvi.explorer.gates import KINDS, SCALES, SHAPES, Axis, Gate, Gating
from totalvi.explorer.workspace import gates_from_json, gates_to_json, read_gates

characters = st.characters(categories=("L", "N", "P", "S"), exclude_characters="/")
names = st.text(characters, min_size=1, max_size=20)
axes = st.builds(Axis, st.sampled_from(KINDS), names, st.sampled_from(SCALES))
numbers = st.floats(-1e6, 1e6)


@st.composite
def gatings(draw: st.DrawFn) -> Gating:
    gates: list[Gate] = []
    for name in draw(st.lists(names, max_size=5, unique=True)):
        parent = draw(st.sampled_from([None, *(gate.name for gate in gates)]))
        corners = [(0.0, 0.0), (1.0, 2.0), *draw(st.lists(st.tuples(numbers, numbers), min_size=1))]
        shape = draw(st.sampled_from(SHAPES))
        gates.append(Gate(name, (draw(axes), draw(axes)), tuple(corners), parent, shape))
    return Gating(tuple(gates))


@given(gatings())
@settings(max_examples=50, deadline=None)
def test_there_and_back(gating: Gating) -> None:
    assert gates_from_json(gates_to_json(gating)) == gating


@pytest.fixture
def saved() -> dict[str, Any]:
    plot = (Axis("protein_denoised", "CD3", "asinh"), Axis("umap", "2"))
    corners = ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0))
    gating = Gating((Gate("a", plot, corners), Gate("b", plot, corners, "a")))
    return json.loads(gates_to_json(gating))


def _in_gate(name: str, value: Any) -> Callable[[dict], Any]:
    return lambda file: file["gates"][1].update({name: value})


@pytest.mark.parametrize(
    "change",
    [
        lambda file: file.update(format="other"),
        lambda file: file.update(version=2),
        lambda file: file.update(version=True),
        lambda file: file.update(more=1),
        lambda file: file.pop("gates"),
        lambda file: file.update(gates={}),
        lambda file: file["gates"].append(file["gates"][0]),
        lambda file: file["gates"].reverse(),
        lambda file: file["gates"].append("gate"),
        _in_gate("id", 3),
        _in_gate("id", ""),
        _in_gate("parent_id", "b"),
        _in_gate("parent_id", []),
        _in_gate("shape", "circle"),
        _in_gate("shape", None),
        _in_gate("dimensions", []),
        _in_gate("vertices", [[0, 0], [1, 1], [0, True]]),
        _in_gate("vertices", [[0, 0], [1, 1], [0, "1"]]),
        _in_gate("vertices", [[0, 0], [1, 1], [0, 10**400]]),
        _in_gate("vertices", [[0, 0], [1, 1], [0, float("nan")]]),
        _in_gate("vertices", [[0, 0], [1, 1]]),
        lambda file: file["gates"][0]["dimensions"][0].update(kind="secret"),
        lambda file: file["gates"][0]["dimensions"][0].update(name=1),
        lambda file: file["gates"][0]["dimensions"][0]["transformation"].update(cofactor=150),
        lambda file: file["gates"][0]["dimensions"][0].update(transformation=["asinh"]),
    ],
)
def test_anything_else_is_refused(saved: dict, change: Callable[[dict], Any]) -> None:
    gates_from_json(json.dumps(saved))
    change(saved)
    with pytest.raises(FormatError, match="cannot be used"):
        gates_from_json(json.dumps(saved))


@pytest.mark.parametrize("text", ["", "[]", "3", "{", "[" * 100_000, '{"format": NaN}'])
def test_what_is_no_file_of_gates_is_refused(text: str) -> None:
    with pytest.raises(FormatError):
        gates_from_json(text)


def test_files_are_read(tmp_path: Path, saved: dict) -> None:
    (tmp_path / "gates.json").write_text(json.dumps(saved))
    assert read_gates(tmp_path / "gates.json").names == ("a", "b")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FormatError, match="no text"):
        read_gates(tmp_path / "binary")
