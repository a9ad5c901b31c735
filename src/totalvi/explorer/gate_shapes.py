"""The geometry of gates: which points are inside, what is drawn, and what the mouse does to them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from totalvi.explorer.axes import Axis
from totalvi.explorer.gates import Gate, Point, Shape, Vertices

Window = tuple[float, float, float, float]  # left, right, bottom, top
_ELLIPSE_SIDES = 72
_MOST_CLICKED = 12  # corners of a polygon; more are of a lasso


def contains(gate: Gate, vertices: Vertices, places: Sequence[np.ndarray]) -> np.ndarray:
    """Return which points lie inside the region of a gate; NaN lies outside.

    Parameters
    ----------
    vertices
        Of the gate, or of a sample.
    places
        Of the points along each of the gate's axes, each (N,).
    """
    with np.errstate(invalid="ignore"):  # NaN is nowhere
        if gate.shape == "range":
            low, high = sorted(end[0] for end in vertices)
            between: np.ndarray = (places[0] >= low) & (places[0] < high)
            return between
        if gate.shape == "quadrant":
            sides = zip(places, vertices[0], gate.part, strict=True)
            above = [place >= at if side == "+" else place < at for place, at, side in sides]
            both: np.ndarray = above[0] & above[1]
            return both
        if gate.shape == "ellipse":
            centre, axes = _half_diameters(vertices)
            offset = np.array(places, dtype=np.float64) - centre[:, None]
            inside: np.ndarray = (np.linalg.solve(axes, offset) ** 2).sum(axis=0) <= 1
            return inside
    return inside_polygon(places[0], places[1], vertices)


def _half_diameters(vertices: Vertices) -> tuple[np.ndarray, np.ndarray]:
    """Return the centre (2,) and the matrix (2, 2) whose columns are two conjugate half-diameters."""
    points = np.array(vertices, dtype=np.float64)
    return points[0], (points[1:] - points[0]).T


def inside_polygon(x: np.ndarray, y: np.ndarray, vertices: Sequence[Point]) -> np.ndarray:
    """Return which points lie in a polygon, by the even-odd rule; NaN lies outside.

    Points are sorted by height once, and each side is then compared only with the points at its
    height, so a lasso of hundreds of corners takes little longer than a rectangle.

    Parameters
    ----------
    x, y
        Of the points, each (N,).
    vertices
        Corners; see :class:`totalvi.explorer.gates.Gate` for what the border belongs to.

    Examples
    --------
    >>> square = [(0, 0), (2, 0), (2, 2), (0, 2)]
    >>> inside_polygon(np.array([1.0, 0.0, 2.0, 3.0]), np.array([1.0, 1.0, 1.0, 1.0]), square)
    array([ True,  True, False, False])
    """
    corners = np.asarray(vertices, dtype=np.float64)
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    (left, bottom), (right, top) = corners.min(axis=0), corners.max(axis=0)
    near = np.flatnonzero((x >= left) & (x < right) & (y >= bottom) & (y < top))
    near = near[np.argsort(y[near], kind="stable")]
    along, height = x[near], y[near]
    odd = np.zeros(len(near), dtype=bool)
    for one, other in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        low, high = (one, other) if one[1] < other[1] else (other, one)  # as seen from both sides
        first, last = np.searchsorted(height, (low[1], high[1]))
        if first == last:
            continue
        share = (height[first:last] - low[1]) / (high[1] - low[1])
        odd[first:last] ^= along[first:last] < low[0] + share * (high[0] - low[0])
    inside = np.zeros(len(x), dtype=bool)
    inside[near] = odd
    return inside


def box(left: float, bottom: float, right: float, top: float) -> Vertices:
    """Return the corners of a rectangle, counter-clockwise from the lower left.

    Examples
    --------
    >>> box(0, 1, 2, 3)
    ((0, 1), (2, 1), (2, 3), (0, 3))
    """
    return ((left, bottom), (right, bottom), (right, top), (left, top))


class Drawn(NamedTuple):
    """How a gate looks on a plot.

    Parameters
    ----------
    outline
        Corners, (n, 2).
    handles
        Places that the mouse can take, of which each moves the vertex of its number, (n, 2).
    label
        Where its name goes.
    """

    outline: np.ndarray
    handles: np.ndarray
    label: tuple[float, float]


def shown_on(gate: Gate, axes: Sequence[Axis]) -> bool:
    """Return whether a gate can be drawn on a plot of these axes; a range also along the side."""
    return bool(gate.axes) and (
        gate.axes == tuple(axes) or (len(gate.axes) == 1 and gate.axes[0] in axes)
    )


def draw_gate(
    gate: Gate, axes: Sequence[Axis], window: Window, sample: tuple[str, str] | None = None
) -> Drawn:
    """Return how a gate looks on a plot of these axes, which `shown_on` has found to show it."""
    left, right, bottom, top = window
    middle = ((left + right) / 2, (bottom + top) / 2)
    vertices = np.array(gate.vertices_of(sample), dtype=np.float64)
    if gate.shape == "range":
        along = list(axes).index(gate.axes[0])
        ends = np.sort(vertices[:, 0])
        low, high = np.clip(ends, *(window[:2] if along == 0 else window[2:]))
        sides = (low, bottom, high, top) if along == 0 else (left, low, right, high)
        handles = np.tile(middle, (2, 1))
        handles[:, along] = vertices[:, 0]
        return _drawn(np.array(box(*sides)), handles)
    if gate.shape == "quadrant":
        (x, y), (right_of, above) = vertices[0], (side == "+" for side in gate.part)
        sides = (x if right_of else left, y if above else bottom,
                 right if right_of else x, top if above else y)  # fmt: skip
        outline = np.array(box(*sides))
        label = (float(sides[0] + sides[2]) / 2, float(top if above else bottom))
        return Drawn(outline, vertices, label)
    if gate.shape == "ellipse":
        centre, half = _half_diameters(gate.vertices_of(sample))
        angle = np.linspace(0, 2 * np.pi, _ELLIPSE_SIDES, endpoint=False)
        return _drawn(centre + (half @ [np.cos(angle), np.sin(angle)]).T, vertices)
    reach = np.array([right - left, top - bottom])
    low, high = np.array([left, bottom]) - reach, np.array([right, top]) + reach
    return _drawn(np.clip(vertices, low, high), vertices)


def _drawn(outline: np.ndarray, handles: np.ndarray) -> Drawn:
    middle = float(outline[:, 0].min() + outline[:, 0].max()) / 2
    return Drawn(outline, handles, (middle, float(outline[:, 1].max())))


def reached(drawn: Drawn, place: Point, reach: tuple[float, float]) -> int | None:
    """Return which handle lies within reach of the mouse, the nearest one; None: none does.

    Parameters
    ----------
    reach
        Half width and half height of what is near, in units of the axes.
    """
    away = (np.abs(drawn.handles - place) / reach).max(axis=1)
    return int(away.argmin()) if away.size and away.min() <= 1 else None


def dragged(
    gate: Gate, vertices: Vertices, axes: Sequence[Axis], handle: int | None, way: Point
) -> Vertices:
    """Return the vertices of a gate after the mouse has dragged a handle, or with None the whole gate.

    A rectangle stays one: the corners on the sides of the dragged corner follow. An ellipse follows
    its centre whole.

    Parameters
    ----------
    vertices
        From which it was dragged.
    axes
        Of the plot.
    way
        How far, along both axes of the plot.
    """
    moved = np.array(vertices, dtype=np.float64)
    step = np.array(way if len(gate.axes) == 2 else [way[list(axes).index(gate.axes[0])]])
    if handle is None or (gate.shape == "ellipse" and handle == 0):
        moved += step
    elif gate.shape == "rectangle":
        corner = moved[handle].copy()
        moved[moved[:, 0] == corner[0], 0] += step[0]
        moved[moved[:, 1] == corner[1], 1] += step[1]
    else:
        moved[handle] += step
    return tuple(tuple(map(float, point)) for point in moved)


def shape_of_box(shape: Shape, left: float, bottom: float, right: float, top: float) -> Vertices:
    """Return the vertices of a rectangle, ellipse or range that was drawn as a box.

    Examples
    --------
    >>> shape_of_box("ellipse", 0, 0, 4, 2)
    ((2.0, 1.0), (4.0, 1.0), (2.0, 2.0))
    """
    if shape == "range":
        return ((left,), (right,))
    if shape == "ellipse":
        x, y = (left + right) / 2, (bottom + top) / 2
        return ((x, y), (float(right), y), (x, float(top)))
    return box(left, bottom, right, top)


def shape_of_lasso(xs: Sequence[float], ys: Sequence[float]) -> tuple[Shape, Vertices] | None:
    """Return the shape and corners of what the mouse drew freely; None: they are too few.

    Examples
    --------
    >>> shape_of_lasso([0, 1, 1, 0], [0, 0, 1, 0])
    ('polygon', ((0.0, 0.0), (1.0, 0.0), (1.0, 1.0)))
    """
    corners = tuple(dict.fromkeys((float(x), float(y)) for x, y in zip(xs, ys, strict=True)))
    if len(corners) < 3:
        return None
    return ("polygon" if len(corners) <= _MOST_CLICKED else "lasso"), corners
