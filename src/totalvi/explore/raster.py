"""Cells drawn as an image on the server: one message, however many cells there are."""

import numpy as np

from totalvi.pictures.colors import BACKGROUND, PALE

CLEAR = np.uint32(0)


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
