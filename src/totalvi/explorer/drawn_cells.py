"""Cells as images, contours and histograms, which the server draws for 2,000 as for a million."""

import numpy as np
from contourpy import contour_generator
from scipy.ndimage import gaussian_filter, gaussian_filter1d

from totalvi.figures.style import BACKGROUND, PALE

CLEAR = np.uint32(0)
_ENCLOSED = (0.95, 0.85, 0.7, 0.55, 0.4, 0.25, 0.1)  # of the cells, by each contour
_BINS = 96
_SMOOTH_BINS = 1.7
_HISTOGRAM_BINS = 160
_HISTOGRAM_SMOOTH_BINS = 2.0


def rgba(colors: list[str]) -> np.ndarray:
    """Return colours such as "#0072B2" as Bokeh's images hold them, uint32.

    Examples
    --------
    >>> [hex(color) for color in rgba(["#0072B2"]).tolist()]
    ['0xffb27200']
    """
    parts = [(int(c[1:3], 16), int(c[3:5], 16), int(c[5:7], 16)) for c in colors]
    return np.array([r | g << 8 | b << 16 | 255 << 24 for r, g, b in parts], dtype=np.uint32)


def mapped(values: np.ndarray, low: float, high: float, palette: list[str]) -> np.ndarray:
    """Return the colour of each value between ``low`` and ``high``, uint32; grey for NaN."""
    steps = (values - low) * (len(palette) / max(high - low, 1e-12))
    known = np.isfinite(steps)
    place = np.clip(np.where(known, steps, 0), 0, len(palette) - 1).astype(np.intp)
    return np.where(known, rgba(list(palette))[place], rgba([BACKGROUND])[0])


def draw_cells(
    x: np.ndarray,
    y: np.ndarray,
    colors: np.ndarray,
    window: tuple[float, float, float, float],
    shape: tuple[int, int],
    diameter: float,
    dimmed: np.ndarray | None = None,
) -> np.ndarray:
    """Return an image of the cells, uint32 (rows, columns), the lowest row first.

    Parameters
    ----------
    x, y
        Places of the cells, each (N,); NaN: not drawn.
    colors
        From `rgba` or `mapped`, (N,). Of cells at one place, the last one shows.
    window
        Left, right, bottom and top of the image.
    shape
        Its rows and columns.
    diameter
        Of a cell, in pixels of the image.
    dimmed
        Cells to draw pale, and under the others, (N,).
    """
    left, right, bottom, top = window
    rows, columns = shape
    image = np.full(rows * columns, CLEAR, dtype=np.uint32)
    across = (x - left) * (columns / (right - left))
    up = (y - bottom) * (rows / (top - bottom))
    with np.errstate(invalid="ignore"):  # NaN is in no window
        shown = (across >= 0) & (across < columns) & (up >= 0) & (up < rows)
    cells = np.flatnonzero(shown)
    if dimmed is not None:
        pale = dimmed[cells]
        colors = np.where(dimmed, rgba([PALE])[0], colors)
        cells = np.concatenate([cells[pale], cells[~pale]])
    column, row = across[cells].astype(np.int32), up[cells].astype(np.int32)
    offsets = _disc(diameter)
    pale_first = [slice(0, len(cells))]
    if dimmed is not None:
        n_pale = int(pale.sum())
        pale_first = [slice(0, n_pale), slice(n_pale, len(cells))]
    for part in pale_first:  # whole discs of the pale cells before any of the others
        for down, aside in offsets:
            r, c = row[part] + down, column[part] + aside
            inside = (r >= 0) & (r < rows) & (c >= 0) & (c < columns)
            image[(r * columns + c)[inside]] = colors[cells[part][inside]]
    return image.reshape(rows, columns)


def _disc(diameter: float) -> list[tuple[int, int]]:
    """Return the pixels of a disc about a pixel, its rim first."""
    radius = max(diameter / 2, 0.5)
    reach = np.arange(-int(radius), int(radius) + 1)
    pixels = [(int(a), int(b)) for a in reach for b in reach if a * a + b * b <= radius * radius]
    return sorted(pixels, key=lambda pixel: -(pixel[0] ** 2 + pixel[1] ** 2))


def contour_lines(
    x: np.ndarray, y: np.ndarray, window: tuple[float, float, float, float]
) -> list[np.ndarray]:
    """Return contours of the density of cells, each (n, 2), that enclose 95 % to 10 % of them.

    Parameters
    ----------
    x, y
        Places of the cells, (N,); those with NaN or outside of the window do not count.
    window
        Left, right, bottom and top.

    Examples
    --------
    >>> x, y = np.random.default_rng(0).normal(size=(2, 1000))
    >>> len(contour_lines(x, y, (-4, 4, -4, 4))) >= 7
    True
    """
    left, right, bottom, top = window
    with np.errstate(invalid="ignore"):
        known = (x >= left) & (x <= right) & (y >= bottom) & (y <= top)
    if known.sum() < 3:
        return []
    counts, x_edges, y_edges = np.histogram2d(
        x[known], y[known], bins=_BINS, range=((left, right), (bottom, top))
    )
    density = gaussian_filter(counts, _SMOOTH_BINS, mode="constant")
    falling = np.sort(density.ravel())[::-1]
    enclosed = np.cumsum(falling) / falling.sum()
    levels = np.unique(falling[np.searchsorted(enclosed, _ENCLOSED).clip(max=falling.size - 1)])
    across, up = ((edges[1:] + edges[:-1]) / 2 for edges in (x_edges, y_edges))
    lines = contour_generator(x=across, y=up, z=density.T)
    return [np.asarray(line) for level in levels for line in lines.lines(float(level))]


def histograms(
    places: np.ndarray, group: np.ndarray, n_groups: int, low: float, high: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return smooth histograms of groups of cells, each in units of its highest point.

    Parameters
    ----------
    places
        Of the cells, (N,).
    group
        Of each cell, (N,); negative: none.
    low, high
        Ends of the axis.

    Returns
    -------
    Places along the axis, (bins,), and heights, (n_groups, bins).

    Examples
    --------
    >>> _, heights = histograms(np.array([1.0, 1.0, 2.0]), np.array([0, 0, 1]), 2, 0.0, 3.0)
    >>> heights.max(axis=1).tolist()
    [1.0, 1.0]
    """
    edges = np.linspace(low, high, _HISTOGRAM_BINS + 1)
    with np.errstate(invalid="ignore"):
        known = (group >= 0) & (places >= low) & (places <= high)
    place = ((places[known] - low) * (_HISTOGRAM_BINS / (high - low))).astype(np.intp)
    flat = group[known] * _HISTOGRAM_BINS + place.clip(max=_HISTOGRAM_BINS - 1)
    counts = np.bincount(flat, minlength=n_groups * _HISTOGRAM_BINS).astype(float)
    counts = counts.reshape(n_groups, _HISTOGRAM_BINS)
    smooth = gaussian_filter1d(counts, _HISTOGRAM_SMOOTH_BINS, axis=1, mode="nearest")
    heights: np.ndarray = smooth / np.maximum(smooth.max(axis=1, keepdims=True), 1e-300)
    return (edges[1:] + edges[:-1]) / 2, heights
