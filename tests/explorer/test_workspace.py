"""Gates go to JSON and back, and nothing else comes back."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from totalvi.errors import FormatError
from totalvi.explorer.axes import KINDS, SCALES, Axis
from totalvi.explorer.gate_files import gates_from_text, gates_to_json, read_gates
from totalvi.explorer.gates import PARTS, SHAPES, Adjusted, Gate, Gating, Operand, members
from totalvi.explorer.gatingml import to_gating_ml
from totalvi.explorer.gatingml_reader import from_gating_ml
from totalvi.explorer.run_cells import RunCells

characters = st.characters(categories=("L", "N", "P", "S"), exclude_characters="/")
names = st.text(characters, min_size=1, max_size=20)
axes = st.builds(Axis, st.sampled_from(KINDS), names, st.sampled_from(SCALES))
numbers = st.floats(-1e6, 1e6)


@st.composite
def gatings(draw: st.DrawFn) -> Gating:
    gates: list[Gate] = []
    for name in draw(st.lists(names, max_size=5, unique=True)):
        parent = draw(st.sampled_from([None, *(gate.name for gate in gates)]))
        shape = draw(st.sampled_from(SHAPES if gates else SHAPES[:-1]))
        if shape == "boolean":
            others = draw(st.lists(st.sampled_from(gates), min_size=1, max_size=3))
            operands = tuple(Operand(gate.name, draw(st.booleans())) for gate in others)
            operator = draw(st.sampled_from(["and", "or"]))
            gates.append(Gate(name, (), (), parent, shape, "", operator, operands))
            continue
        corners = ((0.0, 0.0), (1.0, 2.0), *draw(st.lists(st.tuples(numbers, numbers), min_size=1)))
        on = (draw(axes), draw(axes))
        if shape == "range":
            on, corners = on[:1], ((1.0,), (draw(st.floats(2, 9)),))
        if shape == "ellipse":
            corners = ((0.0, 0.0), (1.0, 0.0), (0.5, draw(st.floats(1, 9))))
        if shape == "quadrant":
            corners = corners[:1]
        part = draw(st.sampled_from(PARTS)) if shape == "quadrant" else ""
        other = tuple(tuple(value + 1 for value in corner) for corner in corners)
        by_sample = draw(st.sampled_from([(), (Adjusted("donor", "d 1", other),)]))
        gates.append(Gate(name, on, corners, parent, shape, part, by_sample=by_sample))
    return Gating(tuple(gates))


@given(gatings())
@settings(max_examples=50, deadline=None)
def test_there_and_back(gating: Gating) -> None:
    assert gates_from_text(gates_to_json(gating)) == gating


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
        lambda file: file.update(version=3),
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
        _in_gate("part", "++"),
        _in_gate("operator", "and"),
        _in_gate("operands", [{"gate": "a", "complement": 1}]),
        _in_gate("by_sample", [{"column": "donor", "sample": "d", "vertices": []}]),
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
    gates_from_text(json.dumps(saved))
    change(saved)
    with pytest.raises(FormatError, match="cannot be used"):
        gates_from_text(json.dumps(saved))


@pytest.mark.parametrize("text", ["", "[]", "3", "{", "[" * 100_000, '{"format": NaN}'])
def test_what_is_no_file_of_gates_is_refused(text: str) -> None:
    with pytest.raises(FormatError):
        gates_from_text(text)


def test_files_of_the_first_version_are_read(saved: dict) -> None:
    expected = gates_from_text(json.dumps(saved))
    saved["version"] = 1
    for gate in saved["gates"]:
        for field in ("part", "operator", "operands", "by_sample"):
            del gate[field]
    assert gates_from_text(json.dumps(saved)) == expected


def test_files_are_read(tmp_path: Path, saved: dict) -> None:
    (tmp_path / "gates.json").write_text(json.dumps(saved))
    assert read_gates(tmp_path / "gates.json").names == ("a", "b")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FormatError, match="no text"):
        read_gates(tmp_path / "binary")


TABLE = """gate,parent,kind,feature,low,high
T,,protein_raw,CD3,9,
T,,protein_denoised,CD3,,30
sure,T,protein_foreground,CD3,0.5,
three,T,protein_raw,CD3,5,20
three,T,protein_clr,CD3,-1,
three,T,umap,1,,0
"""


def test_a_table_of_thresholds_makes_gates_of_the_same_cells(folder: Path) -> None:
    gating = gates_from_text(TABLE)
    with RunCells(folder) as cells:
        inside = members(gating, cells.inside, cells.n_cells)
        raw, denoised, foreground, clr = (
            cells.values(f"protein_{kind}", "CD3")
            for kind in ("raw", "denoised", "foreground", "clr")
        )
        t = (raw >= 9) & (denoised < 30)
        np.testing.assert_array_equal(inside["T"], t)
        np.testing.assert_array_equal(inside["sure"], t & (foreground >= 0.5))
        three = t & (raw >= 5) & (raw < 20) & (clr >= -1) & (cells.umap[:, 0] < 0)
        np.testing.assert_array_equal(inside["three"], three)
        assert 0 < three.sum() < t.sum() < 60
    assert [gate.shape for gate in gating.gates] == [
        "rectangle", "range", "range", "range", "range", "boolean",
    ]  # fmt: skip
    assert gates_from_text(gates_to_json(gating)) == gating
    assert members(from_gating_ml(to_gating_ml(gating)), cells.inside, 60)["three"].sum() > 0


@pytest.mark.parametrize(
    ("old", "new"),
    [("low", "lowest"), ("sure,T", "sure,B"), ("T,,protein_raw", "T,x,protein_raw"),
     ("0.5", "half"), ("protein_clr", "protein_dsb"), ("5,20", "20,20")],
)  # fmt: skip
def test_a_table_that_is_none_is_refused(old: str, new: str) -> None:
    with pytest.raises(FormatError, match="cannot be used"):
        gates_from_text(TABLE.replace(old, new))
