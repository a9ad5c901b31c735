"""What a minified reference keeps of its cells: their posteriors, and the counts of a few of them."""

from pathlib import Path
from typing import NamedTuple, NoReturn, Self

import numpy as np

from totalvi.data.counts import Block, Counts
from totalvi.errors import DataError, setting

_GRIDS = ((11, 9), (10, 9), (10, 8))
_MOST_BYTES = 2.75  # of a mean and a variance, before what is known of the variance is taken out
_ENTROPY_OF_NORMAL = 4.1327  # sqrt(2 pi e): its entropy is log2(spread / step * this) bits
_SMALLEST_VARIANCE = 1e-30
_START = b'{"__metadata__":'  # of the header of a safetensors file with metadata
_OURS = b'"totalvi":'  # in this header
LONGEST_HEADER = 1 << 28
_PLACES = 4095  # steps on each axis of a map


def is_minified(path: Path) -> bool:
    """Return whether ``path`` is a file that starts like a minified reference."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        start = file.read(8 + len(_START))
        if start[8:] != _START:
            return False
        length = min(int.from_bytes(start[:8], "little"), LONGEST_HEADER)
        return _OURS in file.read(length)


class Grid(NamedTuple):
    """How fine posteriors are kept: in steps of 2 to the power of minus these numbers.

    Attributes
    ----------
    mean, log_variance
        Of the means, whose errors are half a step, and of the logarithms of the variances.
    """

    mean: int
    log_variance: int

    @classmethod
    def that_fits(cls, mean: np.ndarray, variance: np.ndarray) -> Self:
        """Return the finest grid on which normal values like these need few bytes.

        Examples
        --------
        >>> rng = np.random.default_rng(0)
        >>> mean, variance = rng.normal(size=(1000, 5)), rng.gamma(40, size=(1000, 5)) / 100
        >>> Grid.that_fits(mean, variance), Grid.that_fits(2 * mean, variance)
        (Grid(mean=11, log_variance=9), Grid(mean=10, log_variance=9))
        """
        spread = np.array([mean.std(axis=0), _log(variance).std(axis=0)], dtype=np.float64)
        for grid in _GRIDS:
            steps = spread * 2.0 ** np.array(grid)[:, None] * _ENTROPY_OF_NORMAL
            n_bytes = np.log2(np.maximum(steps, 1)).sum() / 8
            if n_bytes <= _MOST_BYTES * mean.shape[1]:
                break
        return cls(*grid)


class Steps(NamedTuple):
    """Means and log variances of N cells as numbers of steps of a grid, each (N, d), int64."""

    mean: np.ndarray
    log_variance: np.ndarray
    grid: Grid

    @classmethod
    def of(cls, mean: np.ndarray, variance: np.ndarray, grid: Grid) -> Self:
        """Return means and variances to the nearest steps.

        Examples
        --------
        >>> steps = Steps.of(np.array([[0.3]]), np.array([[0.5]]), Grid(11, 9))
        >>> mean, variance = steps.values()
        >>> bool(abs(mean - 0.3).max() < 0.0003), bool(abs(variance / 0.5 - 1).max() < 0.001)
        (True, True)
        """
        return cls(
            np.rint(mean.astype(np.float64) * 2.0**grid.mean).astype(np.int64),
            np.rint(_log(variance) * 2.0**grid.log_variance).astype(np.int64),
            grid,
        )

    def values(self) -> tuple[np.ndarray, np.ndarray]:
        """Return means and variances, float32, whose nearest steps are these."""
        mean = (self.mean / 2.0**self.grid.mean).astype(np.float32)
        return mean, np.exp(self.log_variance / 2.0**self.grid.log_variance).astype(np.float32)


def _log(variance: np.ndarray) -> np.ndarray:
    found: np.ndarray = np.log(np.maximum(variance.astype(np.float64), _SMALLEST_VARIANCE))
    return found


class Places(NamedTuple):
    """Places of N cells on a map, in 4,095 steps of the width of each axis.

    Attributes
    ----------
    steps
        Shape (N, 2), int64.
    least, width
        Of each axis.
    """

    steps: np.ndarray
    least: list[float]
    width: list[float]

    @classmethod
    def of(cls, layout: np.ndarray) -> Self:
        """Return places to the nearest steps.

        Examples
        --------
        >>> Places.of(np.array([[0.0, 1.0], [4.0, 1.0], [1.0, 1.0]])).steps.tolist()
        [[0, 0], [4095, 0], [1024, 0]]
        """
        least, width = layout.min(axis=0), np.maximum(np.ptp(layout, axis=0), 1e-12)
        steps = np.rint((layout - least) / width * _PLACES).astype(np.int64)
        return cls(steps, least.tolist(), width.tolist())

    def values(self) -> np.ndarray:
        """Return the places, float64."""
        found: np.ndarray = self.steps / _PLACES * np.array(self.width) + np.array(self.least)
        return found


class StoredPosterior(NamedTuple):
    """q(u | cell) of N cells and, where they are latent, of library size and staining level.

    Attributes
    ----------
    latent_mean, latent_variance
        Shape (N, n_latent), float32.
    library_mean, library_variance
        Of the log library size, shape (N, 1), float32; None where it is observed.
    level_mean, level_variance
        Of the staining level, shape (N, 1), float32; None where the model has none.
    """

    latent_mean: np.ndarray
    latent_variance: np.ndarray
    library_mean: np.ndarray | None = None
    library_variance: np.ndarray | None = None
    level_mean: np.ndarray | None = None
    level_variance: np.ndarray | None = None

    @property
    def grid(self) -> Grid:
        """The grid on which it is kept."""
        return Grid.that_fits(self.latent_mean, self.latent_variance)


class KeptCounts(Counts[Block]):
    """Counts of some of N cells; those of the others are not there.

    Parameters
    ----------
    values
        Counts of the kept cells, (kept, features).
    cells
        Positions of the kept cells, (kept,).
    n_cells
        N, the number of all cells.

    Examples
    --------
    >>> counts = KeptCounts(np.array([[3.0, 4.0]]), np.array([1]), n_cells=5)
    >>> counts.shape, counts.rows(np.array([1])).tolist()
    ((5, 2), [[3.0, 4.0]])
    """

    def __init__(self, values: Block, cells: np.ndarray, n_cells: int) -> None:
        self.values: Block = values
        self.cells, self.shape = cells, (n_cells, int(values.shape[1]))
        self._place = np.full(n_cells, -1)
        self._place[cells] = np.arange(len(cells))

    def has(self, cells: np.ndarray) -> bool:
        """Return whether the counts of all ``cells`` are kept."""
        return bool((self._place[cells] >= 0).all())

    def rows(self, which: np.ndarray | slice) -> Block:
        """Return the cells at positions, or those of a slice.

        Raises
        ------
        DataError
            When the counts of one of them are not kept.
        """
        place = self._place[which]
        if (place < 0).any():
            refuse_counts()
        found: Block = self.values[place]
        return found

    def columns(self, which: np.ndarray) -> Self:
        """Return the features at positions."""
        return type(self)(self.values[:, which], self.cells, self.shape[0])


def require_calibrating(n_cells: int) -> None:
    """Refuse to calibrate on fewer than 10 of the cells that keep their counts."""
    if n_cells < 10:
        raise DataError(
            f"Only {n_cells} of the labelled cells keep their counts in this minified reference, too "
            "few to calibrate on; load it with the cells, Model.load(path, data)."
        )


def refuse_counts() -> NoReturn:
    """Say that counts are asked for which a minified reference lacks.

    Raises
    ------
    DataError
        Always, with what to do.
    """
    raise DataError(
        "This asks for the counts of the reference's cells, which a minified reference does not keep; "
        f"load it with the cells, Model.load(path, data), or, where the query has it, give "
        f"{setting('given_counts', False)} or {setting('stacked', False)}."
    )
