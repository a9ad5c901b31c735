"""The order in which a fit sees the cells: a pure function of the seed, on disk as in memory."""

import math

import numpy as np

WINDOW = 65_536  # cells in memory at a time
BLOCK = 1024  # cells that lie together on disk and are read together


def even_parts(cells: np.ndarray, size: int) -> list[np.ndarray]:
    """Divide ``cells`` into parts of nearly equal length, none above ``size``.

    Examples
    --------
    >>> import numpy as np
    >>> [len(part) for part in even_parts(np.arange(10), 4)]
    [4, 3, 3]
    """
    n_parts = math.ceil(len(cells) / size)
    return np.array_split(cells, n_parts) if n_parts else []


def shuffled_windows(
    cells: np.ndarray,
    batch_size: int,
    rng: np.random.Generator,
    *,
    window: int = WINDOW,
    block: int = BLOCK,
) -> list[list[np.ndarray]]:
    """Shuffle cells so that those of a window can be read from disk together.

    Blocks of cells that lie together are put in random order and cut into windows; the cells of a
    window are dealt to its minibatches at random, evenly over its blocks. As many cells as a window
    holds, or fewer, come in quite random order.

    Parameters
    ----------
    cells
        Positions of the cells, ascending.
    batch_size
        Cells in a minibatch, at most.
    rng
        Source of the order; nothing else bears upon it.
    window, block
        Cells of a window, about, and rows of a block.

    Returns
    -------
    Minibatches by window, of nearly equal size, as many as `even_parts` makes.

    Examples
    --------
    >>> import numpy as np
    >>> windows = shuffled_windows(np.arange(12), 3, np.random.default_rng(0), window=6, block=2)
    >>> [[len(batch) for batch in batches] for batches in windows]
    [[3, 3], [3, 3]]
    >>> sorted(int(cell) for batches in windows for batch in batches for cell in batch)
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]
    """
    if len(cells) <= window:
        return [even_parts(rng.permutation(cells), batch_size)]
    blocks = np.split(cells, np.flatnonzero(np.diff(cells // block)) + 1)
    in_blocks = np.concatenate([blocks[i] for i in rng.permutation(len(blocks))])
    batches = even_parts(in_blocks, batch_size)
    n_windows = math.ceil(len(cells) / window)
    return [
        _dealt(np.concatenate([batches[i] for i in of_window]), len(of_window), rng)
        for of_window in np.array_split(np.arange(len(batches)), n_windows)
    ]


def _dealt(cells: np.ndarray, n_parts: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Deal cells at random to parts, so that of every ``n_parts`` neighbours each part gets one.

    In each part they stay in the order of ``cells``: any stretch of all parts is a stretch of
    ``cells``, and a process that has that stretch reads no other cells.
    """
    n_rounds, n_left = divmod(len(cells), n_parts)
    rounds = cells[: n_rounds * n_parts].reshape(n_rounds, n_parts)
    parts = list(rng.permuted(rounds, axis=1).T)
    for part, cell in zip(rng.permutation(n_parts)[:n_left], cells[-n_left:], strict=False):
        parts[part] = np.append(parts[part], cell)
    return parts


def windows_in_order(cells: np.ndarray, batch_size: int, window: int) -> list[list[np.ndarray]]:
    """Return ``cells`` as they come, in minibatches, as many to a window as it has room for."""
    batches = even_parts(cells, batch_size)
    per_window = max(1, window // batch_size)
    return [batches[i : i + per_window] for i in range(0, len(batches), per_window)]


def without_first(windows: list[list[np.ndarray]], skip: int) -> list[list[np.ndarray]]:
    """Return windows without the first ``skip`` minibatches, and without windows left empty.

    Examples
    --------
    >>> import numpy as np
    >>> windows = windows_in_order(np.arange(6), 2, 4)
    >>> [[batch.tolist() for batch in batches] for batches in without_first(windows, 1)]
    [[[2, 3]], [[4, 5]]]
    """
    left = []
    for batches in windows:
        if skip < len(batches):
            left.append(batches[skip:])
        skip = max(skip - len(batches), 0)
    return left


def some_of_each(group: np.ndarray, most: int) -> np.ndarray:
    """Return positions of at most ``most`` cells of each group, spread evenly over it, ascending.

    Examples
    --------
    >>> import numpy as np
    >>> some_of_each(np.array([0, 0, 0, 0, 1, 1]), 2).tolist()
    [0, 3, 4, 5]
    """
    chosen = []
    for code in np.unique(group):
        cells = np.flatnonzero(group == code)
        spread = np.linspace(0, len(cells) - 1, min(most, len(cells))).round().astype(np.int64)
        chosen.append(cells[spread])
    return np.sort(np.concatenate(chosen))
