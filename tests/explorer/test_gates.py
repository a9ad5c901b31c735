"""Which cells a gate holds, against independent references; and edits of the hierarchy."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.path import Path as Outline

from totalvi.errors import DataError
from totalvi.explorer.axes import Axis
from totalvi.explorer.gate_files import gates_from_text, gates_of_table, gates_to_json
from totalvi.explorer.gate_shapes import inside_polygon
from totalvi.explorer.gates import (
    MOST_GATES,
    MOST_VERTICES,
    Gate,
    Gating,
    Operand,
    counts,
    deepest,
    members,
)

AXES = (Axis("protein_denoised", "CD3", "asinh"), Axis("protein_denoised", "CD19", "asinh"))
number = st.floats(-100, 100).map(lambda x: round(x, 3))
polygons = st.lists(st.tuples(number, number), min_size=3, max_size=30, unique=True)


def box(left: float, bottom: float, right: float, top: float) -> tuple[tuple[float, float], ...]:
    return ((left, bottom), (right, bottom), (right, top), (left, top))


def winding_parity(x: float, y: float, corners: np.ndarray) -> bool:
    """Even-odd rule from angles: crossings of the upward ray, counted on exact integers."""
    from fractions import Fraction

    px, py = Fraction(x), Fraction(y)
    points = [(Fraction(a), Fraction(b)) for a, b in corners.tolist()]
    crossings = 0
    for (ax, ay), (bx, by) in zip(points, points[1:] + points[:1], strict=True):
        if (ay <= py) != (by <= py) and (bx - ax) * (py - ay) / (by - ay) + ax > px:
            crossings += 1
    return crossings % 2 == 1


@settings(max_examples=60, deadline=None)
@given(polygons, st.lists(st.tuples(number, number), min_size=1, max_size=30))
def test_points_are_inside_as_exact_arithmetic_says(corners: list, points: list) -> None:
    x, y = np.array(points).T
    exact = [winding_parity(*point, np.array(corners)) for point in points]
    on_side = [min(_distances(point, np.array(corners))) < 1e-9 for point in points]
    found = inside_polygon(x, y, corners)
    assert all(a == b or near for a, b, near in zip(found, exact, on_side, strict=True))


def _distances(point: tuple[float, float], corners: np.ndarray) -> list[float]:
    distances = []
    for a, b in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        along = np.clip(
            np.dot(np.array(point) - a, b - a) / max(np.dot(b - a, b - a), 1e-300), 0, 1
        )
        distances.append(float(np.linalg.norm(a + along * (b - a) - point)))
    return distances


@pytest.mark.parametrize("n_corners", [3, 4, 7, 250])
def test_points_are_inside_as_matplotlib_says(n_corners: int) -> None:
    rng = np.random.default_rng(n_corners)
    angle = np.sort(rng.uniform(0, 2 * np.pi, n_corners))
    corners = np.c_[np.cos(angle), np.sin(angle)] * rng.uniform(0.3, 1.5, n_corners)[:, None]
    points = rng.normal(size=(5000, 2))
    found = inside_polygon(*points.T, corners.tolist())
    assert 100 < found.sum() < 4500
    np.testing.assert_array_equal(found, Outline(corners).contains_points(points))


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_tiles_share_no_cell_and_leave_none_out(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.integers(-2, 12, (2, 400)).astype(float)
    meeting = rng.integers(1, 9, 2).astype(float)  # four triangles that meet at a point
    corners = box(0, 0, 10, 10)
    tiles = [
        inside_polygon(x, y, [corners[i], corners[(i + 1) % 4], tuple(meeting)]) for i in range(4)
    ]
    whole = (x >= 0) & (x < 10) & (y >= 0) & (y < 10)
    np.testing.assert_array_equal(np.sum(tiles, axis=0), whole.astype(int))


def test_unmeasured_cells_and_their_order() -> None:
    x = np.array([5.0, np.nan, 1.0, 3.0, np.inf])
    y = np.array([1.0, 1.0, np.nan, 3.0, 1.0])
    np.testing.assert_array_equal(
        inside_polygon(x, y, box(0, 0, 9, 9)), [True, False, False, True, False]
    )


def test_children_lie_in_their_parents_and_are_counted() -> None:
    rng = np.random.default_rng(0)
    points = {"CD3": rng.uniform(0, 10, 1000), "CD19": rng.uniform(0, 10, 1000)}
    gating = (
        Gating()
        .add(Gate("T", AXES, box(2, 0, 10, 5)))
        .add(Gate("corner", AXES, box(8, 4, 12, 12), "T"))
        .add(Gate("none", AXES, box(50, 50, 60, 60), "T"))
        .add(Gate("nothing", AXES, box(0, 0, 10, 10), "none"))
    )

    def own(gate: Gate) -> np.ndarray:
        return inside_polygon(*(points[axis.name] for axis in gate.axes), gate.vertices)

    inside = members(gating, own, 1000)
    t = (points["CD3"] >= 2) & (points["CD19"] < 5)
    corner = t & (points["CD3"] >= 8) & (points["CD19"] >= 4)
    np.testing.assert_array_equal(inside["T"], t)
    np.testing.assert_array_equal(inside["corner"], corner)
    found = counts(gating, inside)
    assert found["T"] == (t.sum(), t.mean() * 100, t.mean() * 100)
    assert found["corner"] == pytest.approx(
        (corner.sum(), 100 * corner.sum() / t.sum(), 100 * corner.mean())
    )
    assert found["none"] == (0, 0, 0)
    assert np.isnan(found["nothing"].percent_of_parent)
    labels = deepest(gating, inside)
    assert (labels == "T/corner").sum() == corner.sum()
    assert (labels == "T").sum() == t.sum() - corner.sum()
    assert (labels == "").sum() == 1000 - t.sum()


def test_hierarchy_edits() -> None:
    square = box(0, 0, 1, 1)
    gating = Gating((Gate("a", AXES, square), Gate("b", AXES, square, "a")))
    gating = gating.add(Gate("c", AXES, square, "b")).add(Gate("d", AXES, square))
    assert [(depth, gate.name) for depth, gate in gating.walk()] == [
        (0, "a"),
        (1, "b"),
        (2, "c"),
        (0, "d"),
    ]
    renamed = gating.rename("b", "B")
    assert renamed.path("c") == ("a", "B", "c")
    assert gating.path("c") == ("a", "b", "c")
    assert renamed.remove("a").names == ("d",)
    assert gating.remove("c").names == ("a", "b", "d")
    others = Gating(tuple(Gate(name, AXES, square) for name in ("T", "B", "Gate 2")))
    assert others.free_name() == "Gate 1"  # the own ones are counted, from 1
    assert others.add(Gate("Gate 1", AXES, square)).free_name() == "Gate 3"
    assert others.free_name("T") == "T 2"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": " "}, "has no name"),
        ({"name": "a\nb"}, "cannot be given"),
        ({"name": "CD4/CD8"}, "without a slash"),
        ({"name": "x" * 300}, "cannot be given"),
        ({"vertices": ((0, 0), (1, 1))}, "has 2 corners"),
        ({"vertices": ((0, 0), (1, 1), (1, float("nan")))}, "finite"),
        ({"vertices": ((0, 0), (1, 0), (2, 0))}, "no area"),
        ({"shape": "circle"}, "circle"),
    ],
)
def test_what_is_no_gate_is_refused(change: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Gate(**{"name": "a", "axes": AXES, "vertices": box(0, 0, 1, 1), **change})


def test_only_so_many_gates_and_corners_are_kept() -> None:
    angle = np.linspace(0, 2 * np.pi, MOST_VERTICES + 1, endpoint=False)
    corners = tuple(zip(np.cos(angle).tolist(), np.sin(angle).tolist(), strict=True))
    lasso = Gate("T", AXES, corners[:-1], shape="lasso")
    assert inside_polygon(np.array([0.0, 2.0]), np.zeros(2), lasso.vertices).tolist() == [
        True,
        False,
    ]
    with pytest.raises(DataError, match="has 10001 corners"):
        Gate("T", AXES, corners)
    gates = tuple(Gate(str(i), AXES, box(0, 0, 1, 1)) for i in range(MOST_GATES + 1))
    assert len(Gating(gates[:-1]).gates) == MOST_GATES
    with pytest.raises(DataError, match="There are 1,001 gates"):
        Gating(gates)


def test_what_is_no_hierarchy_is_refused() -> None:
    square = box(0, 0, 1, 1)
    gating = Gating((Gate("a", AXES, square), Gate("b", AXES, square)))
    with pytest.raises(DataError, match="Two gates are named 'a'"):
        gating.rename("b", "a")
    with pytest.raises(DataError, match="lies in 'c'"):
        gating.add(Gate("d", AXES, square, "c"))
    with pytest.raises(DataError, match="no gate 'z'"):
        gating.remove("z")
    with pytest.raises(DataError, match="no kind"):
        Axis("leiden", "1")  # type: ignore[arg-type]


def with_conditions() -> Gating:
    """T is either of two: 1 of 2 has three ranges, 2 of 2 one, which equals a range of the first."""
    rows = [
        ("T, 1 of 2", "", "protein_denoised", "CD3", 5, None),
        ("T, 1 of 2", "", "protein_denoised", "CD4", 5, None),
        ("T, 1 of 2", "", "protein_denoised", "CD19", None, 5),
        ("T, 2 of 2", "", "protein_denoised", "CD3", 5, None),
        ("T", "", "or", "T, 1 of 2", None, None),
        ("T", "", "or", "T, 2 of 2", None, None),
        ("naive", "T", "protein_denoised", "CD45RA", 5, None),
    ]
    columns = ["gate", "parent", "kind", "feature", "low", "high"]
    return gates_of_table(pd.DataFrame(rows, columns=columns))


def test_a_gate_stands_for_its_conditions() -> None:
    gating = with_conditions()
    assert gating.populations == ("T", "naive")
    assert [(depth, gate.name) for depth, gate in gating.walk()] == [(0, "T"), (1, "naive")]
    assert len(gating.conditions("T")) == 5
    assert gating.conditions("naive") == ()
    renamed = gating.rename("T", "T cells")
    assert renamed.populations == ("T cells", "naive")
    assert len(renamed.conditions("T cells")) == 5
    assert gating.remove("T").gates == ()
    assert gates_from_text(gates_to_json(gating)).populations == ("T", "naive")


def test_a_gate_that_was_drawn_is_no_condition() -> None:
    gates = Gate("A", AXES, box(0, 0, 1, 1)), Gate("A: b", AXES, box(0, 0, 2, 2))
    inside = Gate("inside", AXES, box(0, 0, 1, 1), "A: b")
    both = Gate("A and A: b", (), (), None, "boolean", operator="and",
                operands=(Operand("A"), Operand("A: b")))  # fmt: skip
    assert Gating((*gates, both)).populations == ("A", "A: b", "A and A: b")
    whole = Gate("B", (), (), None, "boolean", operator="or", operands=(Operand("B: c"),))
    condition = Gate("B: c", AXES, box(0, 0, 1, 1))
    within = Gate("within", AXES, box(0, 0, 1, 1), "B: c")
    assert Gating((condition, whole)).populations == ("B",)
    assert Gating((condition, whole, within)).populations == ("B: c", "B", "within")
    assert Gating((*gates, inside)).populations == ("A", "A: b", "inside")


def test_equal_conditions_move_together() -> None:
    gating = with_conditions()
    moved = gating.place("T, 2 of 2", ((7.0,), (99.0,)))
    changed = [
        gate.name for gate, before in zip(moved.gates, gating.gates, strict=True) if gate != before
    ]
    assert changed == ["T, 1 of 2: CD3 denoised", "T, 2 of 2"]


def test_no_cell_is_named_by_a_condition() -> None:
    gating = with_conditions()
    is_cd3, is_cd4 = np.array([True, True, False]), np.array([True, False, True])
    own = {"CD3": is_cd3, "CD4": is_cd4, "CD19": is_cd3, "CD45RA": is_cd4}
    inside = members(gating, lambda gate: own[gate.axes[0].name], 3)
    assert deepest(gating, inside).tolist() == ["T/naive", "T", ""]


def test_a_gate_says_in_which_samples_it_differs() -> None:
    gating = with_conditions()
    assert gating.differs("T") == gating.differs("naive") == ""
    condition = gating.conditions("T")[0]
    for sample in ("d2", "d3"):
        gating = gating.place(condition.name, ((9.0,), (50.0,)), ("donor", sample))
    assert gating.differs("T") == "Differs by sample: elsewhere in donor d2, donor d3"
    assert gating.differs("naive") == ""
