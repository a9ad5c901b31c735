"""Find the levels of a marker in the data: low, mid and high, as the modes of its posterior levels."""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
from torch import Tensor

_GRID = 512
_VALLEY = 0.5  # modes are apart where the density between falls to this share of the lower one
_LEAST_CELLS, _LEAST_SHARE = 8, 0.004  # of a mode
_LEAST_WIDTH = 0.15  # of the kernel and of modes, in log units
_NOT_FOUND = float("nan")


class Boundary(NamedTuple):
    """A boundary between two levels.

    Parameters
    ----------
    at
        Log level there; NaN where there is none.
    slope
        By how much the log odds of the level above rise with the log level.
    """

    at: float = _NOT_FOUND
    slope: float = _NOT_FOUND

    @property
    def found(self) -> bool:
        """Whether there is a boundary."""
        return self.at == self.at

    def above(self, log_level: Tensor) -> Tensor:
        """Return the probability of the level above."""
        return (self.slope * (log_level - self.at)).sigmoid()


class MarkerLevels(NamedTuple):
    """The levels of a marker.

    Parameters
    ----------
    positive
        Between low and the levels above it. An antigen without it is positive where it is foreground.
    high
        Between mid and high; not found where there is only one level above low, which is both.
    medians
        Median log level of each mode, from the lowest.
    """

    positive: Boundary
    high: Boundary
    medians: tuple[float, ...]


def find_levels(log_level: np.ndarray, foreground: np.ndarray | None = None) -> MarkerLevels:
    """Return the levels of a marker that the modes of its levels over cells show.

    Modes most of whose cells are background are low; if there are none, the lowest of several is.
    Above these the last is high and the others are mid. The log odds of two levels are linear in the
    log level, as for two normal distributions with one variance, and 0 where the density is lowest.

    Parameters
    ----------
    log_level
        Posterior mean level of each cell, in logs.
    foreground
        Probability that each is foreground; None for a gene, which has no background.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> level = rng.normal(np.repeat([0.5, 3.0, 5.0], [600, 100, 300]), 0.3)
    >>> levels = find_levels(level, (level > 1.5).astype(float))
    >>> [round(boundary.at) for boundary in (levels.positive, levels.high)]
    [2, 4]
    """
    valleys = _valleys(log_level)
    mode = np.searchsorted(valleys, log_level)
    n_modes = len(valleys) + 1
    medians = tuple(float(np.median(log_level[mode == k])) for k in range(n_modes))
    if foreground is None:
        n_low = 1
    else:
        share = [foreground[mode == k].mean() for k in range(n_modes)]
        n_low = next((k for k in range(n_modes) if share[k] >= 0.5), n_modes) or 1
    first, last = n_low - 1, n_modes - 2
    positive = _boundary(valleys, log_level, mode, first) if first <= last else Boundary()
    high = _boundary(valleys, log_level, mode, last) if first < last else positive
    return MarkerLevels(positive, high, medians)


def _boundary(valleys: np.ndarray, level: np.ndarray, mode: np.ndarray, k: int) -> Boundary:
    """Return the boundary above mode ``k``."""
    below, above = level[mode == k], level[mode == k + 1]
    variance = (len(below) * below.var() + len(above) * above.var()) / (len(below) + len(above))
    slope = (above.mean() - below.mean()) / max(variance, _LEAST_WIDTH**2)
    return Boundary(float(valleys[k]), float(slope))


def _valleys(values: np.ndarray) -> np.ndarray:
    """Return where the density of values is lowest between its modes."""
    n = len(values)
    spread = min(values.std(), np.subtract(*np.quantile(values, [0.75, 0.25])) / 1.34)
    width = max(_LEAST_WIDTH, 0.45 * spread * n**-0.2)
    edges = np.linspace(values.min() - 4 * width, values.max() + 4 * width, _GRID + 1)
    counts, _ = np.histogram(values, edges)
    middle = (edges[1:] + edges[:-1]) / 2
    kernel = np.exp(-0.5 * ((middle[:, None] - middle) / width) ** 2)
    density = kernel @ counts
    rises = np.diff(density) > 0
    peaks = [int(k) + 1 for k in np.flatnonzero(rises[:-1] & ~rises[1:])]
    least = max(_LEAST_CELLS, _LEAST_SHARE * n)
    while len(peaks) > 1:
        valleys = [int(a + density[a:b].argmin()) for a, b in pairwise(peaks)]
        lower = [min(density[a], density[b]) for a, b in pairwise(peaks)]
        depth = np.array([density[v] / low for v, low in zip(valleys, lower, strict=True)])
        mass = np.add.reduceat(counts, [0, *valleys])
        # a small mode joins the neighbour that it is least apart from
        for k in np.flatnonzero(mass < least):
            beside = [i for i in (k - 1, k) if 0 <= i < len(depth)]
            depth[max(beside, key=lambda i: depth[i])] = np.inf
        worst = int(depth.argmax())
        if depth[worst] <= _VALLEY:
            return middle[valleys]
        del peaks[worst if density[peaks[worst]] < density[peaks[worst + 1]] else worst + 1]
    return np.empty(0)
