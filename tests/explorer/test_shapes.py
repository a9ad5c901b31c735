"""Shapes of gates: which cells they hold, what is drawn of them, and what the mouse does to them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from totalvi.errors import DataError
from totalvi.explorer.axes import Axis
from totalvi.explorer.gate_shapes import (
    box,
    contains,
    dragged,
    draw_gate,
    inside_polygon,
    reached,
    shown_on,
)
from totalvi.explorer.gates import PARTS, Adjusted, Gate, Gating, Operand, members

AXES = (Axis("protein_raw", "CD3"), Axis("protein_raw", "CD19"))
WINDOW = (-4.0, 4.0, -4.0, 4.0)
number = st.floats(-3, 3).map(lambda x: round(x, 2))
points = st.tuples(number, number)


@st.composite
def drawable(draw: st.DrawFn) -> Gate:
    shape = draw(st.sampled_from(["rectangle", "polygon", "ellipse", "range", "quadrant"]))
    x, y, wide, high = (draw(st.floats(low, 2)) for low in (-3, -3, 0.3, 0.3))
    if shape == "ellipse":
        turn = draw(st.floats(-1, 1))
        ends = ((x + wide, y + turn * high), (x - turn * wide, y + high))
        return Gate("g", AXES, ((x, y), *ends), shape="ellipse")
    if shape == "range":
        along = draw(st.sampled_from(AXES))
        return Gate("g", (along,), ((x,), (x + wide,)), shape="range")
    if shape == "quadrant":
        return Gate("g", AXES, ((x, y),), shape="quadrant", part=draw(st.sampled_from(PARTS)))
    return Gate("g", AXES, box(x, y, x + wide, y + high), shape=shape)


@given(drawable(), st.integers(0, 2**32 - 1))
@settings(max_examples=80, deadline=None)
def test_what_is_drawn_is_what_is_inside(gate: Gate, seed: int) -> None:
    cloud = np.random.default_rng(seed).uniform(-4, 4, (2, 500))
    drawn = draw_gate(gate, AXES, WINDOW)
    places = [cloud[AXES.index(axis)] for axis in gate.axes]
    found = contains(gate, gate.vertices, places)
    seen = inside_polygon(*cloud, drawn.outline.tolist())
    tolerance = 0.03 if gate.shape == "ellipse" else 0.0  # drawn with 72 sides
    assert (found != seen).mean() <= tolerance


@given(drawable(), points)
@settings(max_examples=60, deadline=None)
def test_a_moved_gate_holds_the_moved_cells(gate: Gate, way: tuple[float, float]) -> None:
    cloud = np.random.default_rng(0).uniform(-4, 4, (2, 300))
    moved = dragged(gate, gate.vertices, AXES, None, way)
    there = [cloud[AXES.index(axis)] for axis in gate.axes]
    before = [cloud[AXES.index(axis)] - way[AXES.index(axis)] for axis in gate.axes]
    agree = contains(gate, moved, there) == contains(gate, gate.vertices, before)
    assert agree.mean() > 0.99  # rounding at the border


@given(drawable(), points, st.data())
@settings(max_examples=60, deadline=None)
def test_a_dragged_handle_is_where_the_mouse_is(
    gate: Gate, way: tuple[float, float], data: st.DataObject
) -> None:
    handles = draw_gate(gate, AXES, WINDOW).handles
    handle = data.draw(st.integers(0, len(handles) - 1))
    moved = dragged(gate, gate.vertices, AXES, handle, way)
    after = np.array(moved)[handle]
    expected = np.array(gate.vertices)[handle] + [way[AXES.index(axis)] for axis in gate.axes]
    np.testing.assert_allclose(after, expected)
    if gate.shape == "rectangle":
        assert len({x for x, _ in moved}) <= 2
        assert len({y for _, y in moved}) <= 2


def test_ellipses_hold_what_their_matrix_says() -> None:
    rng = np.random.default_rng(1)
    centre, half = np.array([0.4, -1.0]), np.array([[2.0, 0.3], [-0.5, 0.8]])  # columns: diameters
    gate = Gate("e", AXES, (tuple(centre), *map(tuple, (centre + half.T))), shape="ellipse")
    cloud = rng.normal(0, 2, (2, 4000))
    away = cloud - centre[:, None]
    distance = np.einsum("in,ij,jn->n", away, np.linalg.inv(half @ half.T), away)
    np.testing.assert_array_equal(contains(gate, gate.vertices, cloud), distance <= 1)


def test_quadrants_part_the_cells_and_share_their_centre() -> None:
    cloud = np.random.default_rng(2).integers(-3, 4, (2, 500)).astype(float)
    cross = tuple(Gate(part, AXES, ((0.0, 1.0),), None, "quadrant", part) for part in PARTS)
    other = Gate("other", AXES, ((0.0, 1.0),), "++", "quadrant", "++")
    gating = Gating((*cross, other))
    inside = [contains(gate, gate.vertices, cloud) for gate in cross]
    np.testing.assert_array_equal(np.sum(inside, axis=0), 1)
    np.testing.assert_array_equal(inside[3], (cloud[0] >= 0) & (cloud[1] >= 1))
    moved = gating.place("-+", ((2.0, 2.0),))
    assert [gate.vertices for gate in moved.gates] == [((2.0, 2.0),)] * 4 + [((0.0, 1.0),)]


def test_unmeasured_cells_are_in_no_gate() -> None:
    nan = np.array([np.nan])
    for gate in (
        Gate("r", AXES[:1], ((-9.0,), (9.0,)), shape="range"),
        Gate("q", AXES, ((0.0, 0.0),), shape="quadrant", part="--"),
        Gate("e", AXES, ((0.0, 0.0), (9.0, 0.0), (0.0, 9.0)), shape="ellipse"),
    ):
        assert not contains(gate, gate.vertices, [nan] * len(gate.axes)).any()


def test_boolean_gates_are_sets() -> None:
    rng = np.random.default_rng(3)
    own = {name: rng.random(200) < 0.5 for name in "abc"}
    square = box(0, 0, 1, 1)
    gates = [Gate(name, AXES, square) for name in "abc"]
    a, not_b = Operand("a"), Operand("b", complement=True)
    gating = Gating(
        (
            *gates,
            Gate("and", (), (), "c", "boolean", operator="and", operands=(a, not_b)),
            Gate("or", (), (), None, "boolean", operator="or", operands=(a, not_b)),
            Gate("in it", AXES, square, "or"),
        )
    )
    inside = members(gating, lambda gate: own.get(gate.name, own["b"]), 200)
    np.testing.assert_array_equal(inside["and"], own["c"] & own["a"] & ~own["b"])
    np.testing.assert_array_equal(inside["or"], own["a"] | ~own["b"])
    np.testing.assert_array_equal(inside["in it"], (own["a"] | ~own["b"]) & own["b"])
    assert gating.rename("b", "B")["and"].operands[1].gate == "B"
    assert gating.remove("b").names == ("a", "c")
    assert gating.needed("in it").names == ("a", "b", "or", "in it")
    with pytest.raises(DataError, match="combines 'z'"):
        gating.add(Gate("x", (), (), None, "boolean", operator="and", operands=(Operand("z"),)))


def test_a_sample_has_gates_of_its_own() -> None:
    gate = Gate("g", AXES, box(0, 0, 1, 1)).placed(box(2, 2, 3, 3), ("donor", "d1"))
    assert gate.by_sample == (Adjusted("donor", "d1", box(2, 2, 3, 3)),)
    assert gate.vertices_of(("donor", "d1")) == box(2, 2, 3, 3)
    assert gate.vertices_of(("donor", "d2")) == gate.vertices_of(None) == box(0, 0, 1, 1)
    again = gate.placed(box(4, 4, 5, 5), ("donor", "d1"))
    assert len(again.by_sample) == 1
    assert draw_gate(again, AXES, WINDOW, ("donor", "d1")).handles.min() == 4


def test_ranges_are_shown_along_both_sides() -> None:
    gate = Gate("r", AXES[1:], ((-1.0,), (1.0,)), shape="range")
    assert shown_on(gate, AXES)
    assert shown_on(gate, AXES[::-1])
    assert not shown_on(gate, AXES[:1])
    drawn = draw_gate(gate, AXES, WINDOW)
    assert drawn.outline[:, 0].tolist() == [-4, 4, 4, -4]
    assert reached(drawn, (0.1, 0.95), (0.2, 0.2)) == 1
    assert reached(drawn, (0.1, 0.0), (0.2, 0.2)) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": "range"}, "has 2 axes"),
        ({"shape": "quadrant"}, "not one quadrant"),
        ({"part": "++"}, "not one quadrant"),
        ({"operator": "and"}, "combine gates"),
        ({"shape": "ellipse", "vertices": ((0, 0), (1, 1), (2, 2))}, "no area"),
        ({"by_sample": (Adjusted("donor", "d", ((0, 0),)),)}, "has 1 corners"),
    ],
)
def test_what_makes_no_shape_is_refused(change: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Gate(**{"name": "a", "axes": AXES, "vertices": box(0, 0, 1, 1), **change})
