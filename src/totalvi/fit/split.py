"""The split: which cells train the model, which validate it, and which it never sees."""

from collections.abc import Sequence
from numbers import Real
from typing import Any, NamedTuple

import numpy as np

from totalvi.errors import DataError

MOST_VALIDATION_CELLS = 50_000
"""More would take time in every epoch, and memory, and hardly change when a fit stops."""
DEFAULT_SIZES: tuple[float, float | None] = (0.9, None)


class Split(NamedTuple):
    """Positions of the cells used to train, to validate (and stop early), and held out for tests."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def random_split(
    n_cells: int, train_size: float, validation_size: float | None, rng: np.random.Generator
) -> Split:
    """Split cells at random.

    Parameters
    ----------
    n_cells
        Number of cells.
    train_size
        Share of cells to train on, above 0 and at most 1.
    validation_size
        Share to validate on; the rest is the test set. None: all that ``train_size`` leaves.
    rng
        Source of the order.

    Raises
    ------
    ValueError
        When the shares are not within bounds, or leave fewer than two cells to train on.

    Examples
    --------
    >>> import numpy as np
    >>> split = random_split(100, 0.8, 0.05, np.random.default_rng(0))
    >>> [len(part) for part in split]
    [80, 5, 15]
    """
    if not (isinstance(train_size, Real) and 0 < train_size <= 1):
        raise ValueError(f"train_size is {train_size!r}; allowed are numbers above 0, at most 1.")
    left = 1 - train_size
    validation_size = left if validation_size is None else validation_size
    if not (isinstance(validation_size, Real) and 0 <= validation_size <= left + 1e-9):
        raise ValueError(
            f"validation_size is {validation_size!r}; allowed are numbers from 0 to {left:g}, which "
            "train_size leaves."
        )
    n_train = int(np.ceil(train_size * n_cells - 1e-9))
    n_validation = min(round(validation_size * n_cells), n_cells - n_train)
    order = rng.permutation(n_cells)
    parts = np.split(order, [n_train, n_train + n_validation])
    return check_split(Split(*(np.sort(part) for part in parts)), n_cells)


def fewer_validate(split: Split, rng: np.random.Generator) -> Split:
    """Leave `MOST_VALIDATION_CELLS` to validate on, and hold the others out for tests."""
    if len(split.validation) <= MOST_VALIDATION_CELLS:
        return split
    parts = np.split(rng.permutation(split.validation), [MOST_VALIDATION_CELLS])
    test = np.sort(np.concatenate([split.test, parts[1]]))
    return split._replace(validation=np.sort(parts[0]), test=test)


def choose_split(
    given: Sequence[Any] | None,
    n_cells: int,
    sizes: tuple[float, float | None],
    rng: np.random.Generator,
) -> Split:
    """Return the given split, checked, or a random one of these sizes; see `Model.train`."""
    if given is None:
        split = random_split(n_cells, *sizes, rng)
        return fewer_validate(split, rng) if sizes[1] is None else split
    return check_split(given, n_cells)


def check_split(given: Sequence[Any], n_cells: int) -> Split:
    """Return three lists of cells as a `Split`; they must be disjoint positions below ``n_cells``.

    Raises
    ------
    ValueError
        When there are not three lists of whole numbers, or a position is out of range or twice.
    DataError
        When fewer than two cells are left to train on.
    """
    if len(given) != 3:
        raise ValueError(f"split has {len(given)} parts; allowed are train, validation and test.")
    parts = [np.asarray(part) for part in given]
    for name, part in zip(Split._fields, parts, strict=True):
        if part.ndim != 1 or (part.size and not np.issubdtype(part.dtype, np.integer)):
            raise ValueError(f"split's {name} is not a list of positions (whole numbers).")
    split = Split(*(part.astype(np.int64) for part in parts))
    every = np.concatenate(split)
    if len(every) and (every.min() < 0 or every.max() >= n_cells):
        raise ValueError(
            f"split holds positions from {every.min()} to {every.max()}; "
            f"allowed are 0 to {n_cells - 1}."
        )
    if len(np.unique(every)) != len(every):
        raise ValueError("split holds a cell twice; each may be in one part only.")
    if len(split.train) < 2:
        raise DataError(
            f"The split leaves {len(split.train)} cells to train on, and 2 are the least; raise "
            "train_size or give more cells."
        )
    return split
