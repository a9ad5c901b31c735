"""Memberships: gates in draws of levels, with what is not known, and the names of cells."""

from itertools import product

import numpy as np
import pandas as pd
import pytest

from totalvi.posterior.gates.hierarchy import (
    Hierarchy,
    markers_of,
    parse_hierarchy,
    read_hierarchy,
)
from totalvi.posterior.gates.memberships import (
    Draws,
    Levels,
    count_members,
    fulfilled,
    known_memberships,
    members,
    name_cells,
    usable,
    wanting,
)

N = 4000


def drawn(p: float, q: float | None = None, *, unknown: bool = False) -> Levels:
    """Draws of one cell: above low with probability p, and high with q."""
    u = np.random.default_rng(int(1000 * p)).random((1, N))
    known = [Draws(u < x, u < x) for x in (p, p if q is None else q)]
    anything = Draws(np.zeros((1, N), bool), np.ones((1, N), bool))
    return Levels(anything, anything, False) if unknown else Levels(*known, q is None)


def membership(hierarchy: Hierarchy, levels: dict[str, Levels]) -> tuple[np.ndarray, np.ndarray]:
    gates = {p.name: usable(p.gate, set(levels)) for p in hierarchy.populations}
    sure, possible = count_members(hierarchy, gates, levels, 1)[:, 0] / N
    return sure, possible


def test_independent_markers_multiply_and_a_level_counts_once() -> None:
    hierarchy = parse_hierarchy("A: X+\nB: A > Y- X+\nC: B > X+ or Y+")
    sure, possible = membership(hierarchy, {"X": drawn(0.7), "Y": drawn(0.4)})
    np.testing.assert_array_equal(sure, possible)
    np.testing.assert_allclose(sure, [0.7, 0.7 * 0.6, 0.7 * 0.6], atol=0.03)


@pytest.mark.parametrize(("level", "p"), [("+", 0.8), ("low", 0.2), ("mid", 0.5), ("high", 0.3)])
def test_levels(level: str, p: float) -> None:
    sure, _ = membership(parse_hierarchy(f"A: X{level}"), {"X": drawn(0.8, 0.3)})
    assert sure[0] == pytest.approx(p, abs=0.03)


def test_one_level_above_low_is_mid_and_high() -> None:
    sure, _ = membership(parse_hierarchy("A: Xmid\nB: Xhigh"), {"X": drawn(0.8)})
    np.testing.assert_allclose(sure, 0.8, atol=0.03)


def test_what_is_not_known_is_bounded_by_all_that_it_may_be() -> None:
    """Against a table of all values, for gates of two known and one unknown marker."""
    text = ("X+ Z+", "X+ or Z+", "not (X+ or Z+)", "X- Y+ Z-", "(X+ or Z-) not Y+", "Z+")
    for gate in text:
        hierarchy = parse_hierarchy(f"A: {gate}")
        for x, y in product((0.0, 1.0), repeat=2):
            known = {"X": drawn(x), "Y": drawn(y)}
            sure, possible = membership(hierarchy, known)
            answers = [membership(hierarchy, known | {"Z": drawn(z)})[0][0] for z in (0.0, 1.0)]
            assert (sure[0], possible[0]) == (min(answers), max(answers)), (gate, x, y)


def test_optional_markers_and_stand_ins() -> None:
    gate = parse_hierarchy("A: (P+ else Q+ else gene:R+) S-?").populations[0].gate
    assert usable(gate, {"P", "Q", "S"}) == parse_hierarchy("A: P+ S-?").populations[0].gate
    assert usable(gate, {"Q"}) == parse_hierarchy("A: Q+").populations[0].gate
    assert wanting(gate, {"Q"}) == []
    assert wanting(gate, {"S"}) == ["P", "Q", "gene:R"]
    assert usable(parse_hierarchy("A: S-?").populations[0].gate, set()) is None


def test_a_marker_that_a_panel_lacks_leaves_its_cells_unknown() -> None:
    levels = {"X": drawn(0.9), "Y": drawn(0.0, unknown=True)}
    draws = fulfilled(parse_hierarchy("A: X+ Y+").populations[0].gate, levels)
    assert draws is not None
    assert not draws.sure.any()
    assert draws.possible.mean() == pytest.approx(0.9, abs=0.03)
    assert np.isnan(known_memberships(draws.sure.mean(1), draws.possible.mean(1)))[0]


def test_cells_are_named_by_the_only_population_that_is_likely() -> None:
    hierarchy = parse_hierarchy("T: A+\nT4: T > B+\nT8: T > C+\nB: D+")
    table = pd.DataFrame(
        [
            [0.9, 0.8, 0.1, 0.0],
            [0.9, 0.45, 0.45, 0.0],
            [0.9, 0.8, 0.8, 0.0],  # two siblings
            [0.8, 0.8, 0.0, 0.7],  # two lineages
            [0.9, np.nan, np.nan, 0.0],
            [0.2, 0.1, 0.1, 0.3],
            [np.nan, np.nan, np.nan, 0.9],
        ],
        columns=["T", "T4", "T8", "B"],
    )
    named = list(name_cells(table, hierarchy))
    assert named == ["T4", "T", "T", "undecided", "T", "undecided", "B"]


def test_cells_count_in_all_populations_that_they_belong_to() -> None:
    hierarchy = parse_hierarchy("T: A+\nAgain: A+ C-\nAgain 4: Again > B+\nB: D+")
    of_t, of_b, of_both = [0.9, 0.9, 0.8, 0.0], [0.0, 0.0, 0.0, 0.9], [0.9, 0.9, 0.9, 0.9]
    rows = [of_t] * 40 + [of_b] * 30 + [of_both] * 4
    table = pd.DataFrame(rows, columns=["T", "Again", "Again 4", "B"])
    assert members(table, hierarchy).sum().tolist() == [44, 44, 44, 34]
    assert list(name_cells(table, hierarchy)) == ["T"] * 40 + ["B"] * 30 + ["undecided"] * 4


def test_a_marker_without_positive_cells_tells_only_what_is_low() -> None:
    low = Draws(np.zeros((1, N), bool), np.zeros((1, N), bool))
    levels = {"X": Levels(low, low, one=True, has_positives=False), "Y": drawn(0.7)}
    for gate, expected in {
        "Y+ X-": (0.7, 0.7), "Y+ not Xhigh": (0.7, 0.7), "Y+ X+": (0.0, 0.7), "X+": (0.0, 1.0),
        "Y+ or X+": (0.7, 1.0), "not (X+ Y+)": (1.0, 1.0), "not X-": (0.0, 1.0),
    }.items():  # fmt: skip
        sure, possible = membership(parse_hierarchy(f"A: {gate}"), levels)
        assert (sure[0], possible[0]) == pytest.approx(expected, abs=0.03), gate


def test_what_a_marker_without_positive_cells_leaves_untold_is_told_by_another() -> None:
    gate = parse_hierarchy("A: (X+ else Y+) (not Xhigh else Z-)").populations[0].gate
    told = usable(gate, {"X", "Y", "Z"}, {"X"})
    assert told == parse_hierarchy("A: Y+ Z-").populations[0].gate
    assert wanting(gate, {"X", "Y", "Z"}, {"X"}) == []
    assert wanting(gate, {"X", "Z"}, {"X"}) == ["X", "Y"]
    either = [parse_hierarchy(f"A: X{level} else Y{level}").populations[0].gate for level in "+-"]
    told = [usable(each, {"X", "Y"}, {"X"}) for each in either]
    assert told == [parse_hierarchy(f"A: Y{level}").populations[0].gate for level in "+-"]
    optional = parse_hierarchy("A: Y+ X+? X-?").populations[0].gate
    assert usable(optional, {"X", "Y"}, {"X"}) == parse_hierarchy("A: Y+ X-?").populations[0].gate


GRANULOCYTES = {  # the antigens that they carry, of those below
    "Neutrophil": {"CD66b", "CD16", "CD11c"},
    "Eosinophil": {"CD66b", "CD193", "CD11c"},
    "Basophil": {"CD123", "FceRIa"},
    "CD14 monocyte": {"CD14", "HLA-DR", "CD11c"},
    "CD16 monocyte": {"CD16", "HLA-DR", "CD11c"},
    "pDC": {"CD123", "CD303", "HLA-DR", "FceRIa"},
    "NK CD56dim": {"CD56", "CD16"},
}
ANTIGENS = {"CD3", "CD19"}.union(*GRANULOCYTES.values())


@pytest.mark.parametrize("name", ["blood", "bone_marrow"])
def test_granulocytes_are_told_from_their_neighbours(name: str) -> None:
    hierarchy = read_hierarchy(name)
    known = {
        antigen: np.array([[antigen in of] for of in GRANULOCYTES.values()]) for antigen in ANTIGENS
    }
    levels = {antigen: Levels(Draws(on, on), Draws(on, on), True) for antigen, on in known.items()}
    gates = {p.name: usable(p.gate, set(levels)) for p in hierarchy.populations}
    counts = count_members(hierarchy, gates, levels, len(GRANULOCYTES))
    table = pd.DataFrame(known_memberships(*counts), columns=list(gates))
    assert list(name_cells(table, hierarchy)) == list(GRANULOCYTES)
    counted = members(table, hierarchy)
    assert counted["Neutrophil"].tolist() == [True] + [False] * (len(GRANULOCYTES) - 1)
    assert not counted.loc[0, "Monocyte"]


def test_monocytes_are_told_where_granulocytes_are_not() -> None:
    (monocyte,) = (p for p in read_hierarchy("blood").populations if p.name == "Monocyte")
    without = parse_hierarchy(
        "Monocyte: (CD14+ or CD16+ CD56- CD11c+) CD3-? CD19-? (CD14+ or CD16+)"
    ).populations[0]
    known = {"CD14", "CD16", "CD56", "CD11c", "CD3", "CD19"}
    assert usable(monocyte.gate, known) == usable(without.gate, known)
    by_cd15 = {m.name for m in markers_of(usable(monocyte.gate, known | {"CD15", "HLA-DR"}))}
    assert by_cd15 == known | {"CD15", "HLA-DR"}
