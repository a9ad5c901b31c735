"""Groups from columns, masks, positions and query strings."""

import numpy as np
import pandas as pd
import pytest

from totalvi.posterior.differential.groups import (
    Groups,
    by_group_size,
    cells_for_pairs,
    groups_by_cells,
    groups_by_column,
)

OBS = pd.DataFrame(
    {"labels": list("BBTTTNNB"), "batch": list("01010101"), "score": np.arange(8) / 10},
    index=["x"] * 8,  # names may repeat
)
OBS.loc[:, "partial"] = pd.Categorical(["a", "a", "b", None, "c", "c", None, "b"])


def cells(groups: Groups, comparison: int, which: int) -> list[int]:
    return np.flatnonzero(np.isin(groups.part, groups.comparisons[comparison][which])).tolist()


def test_each_category_against_the_rest() -> None:
    groups = groups_by_column(OBS, "labels", None, None)
    assert groups.names == [("B", "Rest"), ("N", "Rest"), ("T", "Rest")]
    assert cells(groups, 0, 0) == [0, 1, 7]
    assert cells(groups, 0, 1) == [2, 3, 4, 5, 6]


def test_cells_without_a_category_are_in_no_group() -> None:
    groups = groups_by_column(OBS, "partial", "a", None)
    assert cells(groups, 0, 1) == [2, 4, 5, 7]
    assert groups.part[[3, 6]].tolist() == [-1, -1]


def test_chosen_categories() -> None:
    groups = groups_by_column(OBS, "labels", ["T", "N"], "B")
    assert groups.names == [("T", "B"), ("N", "B")]
    assert cells(groups, 1, 0) == [5, 6]
    assert cells(groups, 1, 1) == [0, 1, 7]
    pair = groups_by_column(OBS, "labels", "T", "N")
    assert (pair.part[[0, 1, 7]] == -1).all()
    others = groups_by_column(OBS, "labels", None, "B")
    assert others.names == [("N", "B"), ("T", "B")]


@pytest.mark.parametrize(
    ("idx1", "idx2", "first", "second"),
    [
        ([0, 1], None, [0, 1], [2, 3, 4, 5, 6, 7]),
        (np.arange(8) < 3, [6, 7], [0, 1, 2], [6, 7]),
        ("labels == 'B' & batch == '1'", "labels == 'T'", [1, 7], [2, 3, 4]),
        ("score > 0.45", [5, 0], [5, 6, 7], [0, 5]),
        ([1, 2], [1, 2], [1, 2], [1, 2]),
    ],
)
def test_cells(idx1: object, idx2: object, first: list[int], second: list[int]) -> None:
    groups = groups_by_cells(OBS, idx1, idx2)  # type: ignore[arg-type]
    assert cells(groups, 0, 0) == first
    assert cells(groups, 0, 1) == second


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("label", None, None), "groupby is 'label'; did you mean \"labels\""),
        (("labels", "b", None), "group1 is 'b'; did you mean \"B\""),
        (("labels", ["B", "X"], None), "group1 is 'X'; there are"),
        (("labels", "B", "t"), "group2 is 't'; did you mean \"T\""),
        (("labels", "B", "B"), "both 'B'"),
    ],
)
def test_wrong_columns(arguments: tuple[str, str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        groups_by_column(OBS, *arguments)


def test_a_single_category_has_nothing_to_compare_with() -> None:
    with pytest.raises(ValueError, match="leaves nothing to compare"):
        groups_by_column(OBS.assign(one="a"), "one", None, None)


@pytest.mark.parametrize(
    ("idx1", "idx2", "message"),
    [
        ("lables == 'B'", None, "idx1 .* no column 'lables'; did you mean \"labels\""),
        ("labels ==", None, "idx1 .* is no query"),
        ("labels == 'Q'", None, "no cell fulfils"),
        ([0], "score > 9", "idx2 .* no cell fulfils"),
        ([99], None, "idx1 holds positions from 99"),
        (np.ones(3, dtype=bool), None, r"idx1 is a mask of shape \(3,\)"),
        (np.ones(8, dtype=bool), None, "none is left"),
    ],
)
def test_wrong_cells(idx1: object, idx2: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        groups_by_cells(OBS, idx1, idx2)  # type: ignore[arg-type]


def test_small_groups_are_sampled_more_often() -> None:
    part = np.repeat([-1, 0, 1], [5, 300, 40])
    sampled = {times: some.tolist() for times, some in by_group_size(part)}
    assert sampled == {1: list(range(5, 305)), 10: list(range(305, 345))}


def test_cells_for_pairs_leave_small_groups_whole() -> None:
    part = np.repeat([-1, 0, 1, 2], [5, 30_000, 400, 8000])
    chosen = cells_for_pairs(part, np.random.default_rng(0))
    assert len(chosen) == 10_000
    assert (np.diff(chosen) > 0).all()
    assert np.bincount(part[chosen]).tolist() == [4800, 400, 4800]
    few = np.repeat([-1, 0, 1], [5, 30, 4])
    assert cells_for_pairs(few, np.random.default_rng(0)).tolist() == list(range(5, 39))
