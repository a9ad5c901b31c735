"""Splits are disjoint, complete, sorted, and follow the seed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from totalvi.errors import DataError
from totalvi.fit.plan import Split, check_split, random_split


@given(n_cells=st.integers(4, 500), train=st.floats(0.5, 1), validation=st.floats(0, 1))
def test_parts_are_disjoint_and_cover_all_cells(
    n_cells: int, train: float, validation: float
) -> None:
    validation *= 1 - train
    split = random_split(n_cells, train, validation, np.random.default_rng(0))
    assert np.array_equal(np.sort(np.concatenate(split)), np.arange(n_cells))
    assert all((np.diff(part) > 0).all() for part in split)
    assert abs(len(split.train) - train * n_cells) < 1
    assert abs(len(split.validation) - validation * n_cells) <= 1


@pytest.mark.parametrize(
    ("train", "validation", "sizes"),
    [
        (0.9, None, (90, 10, 0)),
        (0.8, 0.05, (80, 5, 15)),
        (1.0, None, (100, 0, 0)),
        (1.0, 0, (100, 0, 0)),
    ],
)
def test_sizes(train: float, validation: float | None, sizes: tuple[int, int, int]) -> None:
    split = random_split(100, train, validation, np.random.default_rng(0))
    assert tuple(map(len, split)) == sizes


def test_the_order_follows_the_generator() -> None:
    one, same, other = (
        random_split(100, 0.9, None, np.random.default_rng(seed)) for seed in (0, 0, 1)
    )
    assert np.array_equal(one.validation, same.validation)
    assert not np.array_equal(one.validation, other.validation)


@pytest.mark.parametrize(
    ("train", "validation", "message"),
    [
        (0, None, "train_size is 0"),
        (1.1, None, "train_size is 1.1"),
        (float("nan"), None, "train_size is nan"),
        (0.9, 0.2, r"validation_size is 0.2; allowed are numbers from 0 to 0.1"),
        (0.9, -0.1, "validation_size is -0.1"),
    ],
)
def test_wrong_shares(train: float, validation: float | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        random_split(100, train, validation, np.random.default_rng(0))


def split_of(train: list[int], validation: list[int], test: list[int]) -> Split:
    return Split(*(np.array(part, dtype=np.int64) for part in (train, validation, test)))


def test_given_splits() -> None:
    good = split_of([0, 3, 2], [1], [])
    for checked, part in zip(check_split(good, 4), good, strict=True):
        np.testing.assert_array_equal(checked, part)
    with pytest.raises(ValueError, match="2 parts"):
        check_split([[0, 1], [2]], 4)
    with pytest.raises(ValueError, match="train is not a list of positions"):
        check_split([[0.5, 1.2], [], []], 4)
    with pytest.raises(ValueError, match="positions from 0 to 4; allowed are 0 to 3"):
        check_split(split_of([0, 1], [4], []), 4)
    with pytest.raises(ValueError, match="positions from -1"):
        check_split(split_of([0, 1], [-1], []), 4)
    with pytest.raises(ValueError, match="a cell twice"):
        check_split(split_of([0, 1], [1], []), 4)
    with pytest.raises(DataError, match="leaves 1 cells to train on"):
        check_split(split_of([0], [1], [2]), 4)
