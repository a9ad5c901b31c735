"""A plot of all cells, drawn as an image, on which gates are drawn with the mouse."""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from bokeh.events import DoubleTap, SelectionGeometry
from bokeh.models import (
    BasicTicker,
    BoxSelectTool,
    ColumnDataSource,
    CustomJS,
    LassoSelectTool,
    PanTool,
    PlainText,
    PolySelectTool,
    Range1d,
    ResetTool,
    SaveTool,
    WheelZoomTool,
)

from totalvi.explorer.gates import Axis, Gate, Scale, Shape, scale_ticks, to_scale
from totalvi.figures.cell_maps import add_labels, density_mapper, point_density, point_size
from totalvi.figures.style import (
    BACKGROUND,
    INK,
    PALE,
    PROTEIN_SCALE,
    WARNING,
    new_figure,
    use_count_axis,
    use_ticks,
)

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


PIXELS_BY_PIXEL = 1.7  # of the image, for screens with more pixels than CSS knows
_LARGEST_SIDE = 1400
_MARGIN = 0.04
# Bokeh ends a polygon with Enter only; people double-click.
_FINISH_POLYGON = """
const area = Bokeh.index.find_one(cb_obj.origin)?.canvas_view.ui_event_bus.hit_area;
area?.dispatchEvent(new KeyboardEvent("keyup", {key: "Enter"}));
"""
_POLYGON = "Polygon gate: click corners, then double-click or press Enter"
Corners = tuple[tuple[float, float], ...]


class CellPlot:
    """A plot of the cells on two axes.

    Parameters
    ----------
    name
        For screen readers and tests.
    on_gate
        Is called with this plot, the shape and the corners of what was drawn.
    on_window
        Is called when the window changed, so that the image must be drawn again.
    """

    def __init__(
        self,
        name: str,
        on_gate: Callable[["CellPlot", Shape, Corners], None],
        on_window: Callable[["CellPlot"], None],
    ) -> None:
        self.axes: tuple[Axis, Axis] = (Axis("umap", "1"), Axis("umap", "2"))
        self.places = (np.zeros(0), np.zeros(0))
        self._setting = False
        self._sides = {"inner_height": 400, "inner_width": 450}  # until the browser tells
        self.figure = new_figure(
            height=470, tools="", x_range=Range1d(0, 1), y_range=Range1d(0, 1), name=name
        )
        self.figure.toolbar_location = "above"
        self.figure.min_border_right = 12
        self.tools: dict[str, Any] = {
            "move": PanTool(),
            "rectangle": BoxSelectTool(renderers=[], description="Rectangle gate"),
            "polygon": PolySelectTool(renderers=[], description=_POLYGON),
            "lasso": LassoSelectTool(renderers=[], continuous=False, description="Lasso gate"),
        }
        self.wheel = WheelZoomTool()  # in force while moving: else the wheel scrolls the page
        self.figure.add_tools(*self.tools.values(), self.wheel, ResetTool(), SaveTool())
        self.figure.toolbar.active_drag = self.tools["rectangle"]
        self.figure.toolbar.active_scroll = None
        self.figure.toolbar.active_tap = None
        self._image = ColumnDataSource({key: [] for key in ("image", "x", "y", "dw", "dh")})
        self.figure.image_rgba("image", "x", "y", "dw", "dh", source=self._image)
        self._outlines = ColumnDataSource({"xs": [], "ys": [], "color": []})
        self.figure.patches(
            "xs",
            "ys",
            source=self._outlines,
            fill_color="color",
            fill_alpha=0.06,
            line_color="color",
            line_width=2,
            name="outlines",
        )
        self._labels = ColumnDataSource({"x": [], "y": [], "text": []})
        add_labels(self.figure, self._labels)

        def drawn(event: SelectionGeometry) -> None:
            if event.final and (found := _corners(event.geometry)) is not None:
                on_gate(self, *found)

        self.figure.on_event(SelectionGeometry, drawn)
        self.figure.js_on_event(DoubleTap, CustomJS(code=_FINISH_POLYGON))

        def moved(_attr: str, _old: object, _new: object) -> None:
            if not self._setting:
                on_window(self)

        for side in (self.figure.x_range, self.figure.y_range):
            for end in ("start", "end"):
                side.on_change(end, moved)

        def resized(side: str, _old: object, length: int) -> None:
            self._sides[side] = length
            on_window(self)

        for length in self._sides:
            self.figure.on_change(length, resized)

    def set_axes(
        self, axes: tuple[Axis, Axis], places: tuple[np.ndarray, np.ndarray], labels: Sequence[str]
    ) -> None:
        """Show the cells on other axes, all of them in the window."""
        self.axes, self.places = axes, places
        self.__dict__.pop("density_colors", None)
        self._setting = True
        sides = zip(
            "xy", (self.figure.x_range, self.figure.y_range), axes, places, labels, strict=True
        )
        for which, side, axis, along, label in sides:
            low, high = _reach(along)
            side.update(start=low, end=high, reset_start=low, reset_end=high)
            drawn = self.figure.xaxis[0] if which == "x" else self.figure.yaxis[0]
            drawn.axis_label = PlainText(text=label)
            _label_ticks(self.figure, which, axis.kind, axis.scale)
        self._setting = False

    @cached_property
    def density_colors(self) -> np.ndarray:
        """Colours of the cells, uint32 (N,), by how many others lie near each on these axes."""
        density = point_density(*self.places)
        return mapped(density, 0.0, 1.0, list(density_mapper().palette))

    def draw(self, colors: np.ndarray, shown: np.ndarray | None, dimmed: np.ndarray | None) -> None:
        """Draw the cells.

        Parameters
        ----------
        colors
            Of all cells, uint32 (N,).
        shown
            Which to draw, (N,); None: all.
        dimmed
            Which of those to draw pale, (N,); None: none.
        """
        x, y = self.places
        n_cells = len(x) if shown is None else int(shown.sum())
        if shown is not None:
            x, y, colors = x[shown], y[shown], colors[shown]
            dimmed = None if dimmed is None else dimmed[shown]
        ends = self.figure.x_range, self.figure.y_range
        window = (ends[0].start, ends[0].end, ends[1].start, ends[1].end)
        left, right, bottom, top = map(float, window)
        if not (right > left and top > bottom):
            return
        image = draw_cells(
            x, y, colors, (left, right, bottom, top), self._shape(),
            PIXELS_BY_PIXEL * point_size(n_cells), dimmed,
        )  # fmt: skip
        self._image.data = {
            "image": [image], "x": [left], "y": [bottom], "dw": [right - left], "dh": [top - bottom]
        }  # fmt: skip

    def _shape(self) -> tuple[int, int]:
        sides = self._sides["inner_height"], self._sides["inner_width"]
        rows, columns = (min(int(PIXELS_BY_PIXEL * max(s, 50)), _LARGEST_SIDE) for s in sides)
        return rows, columns

    def outline(self, gates: Sequence[Gate], labels: Sequence[str], selected: str | None) -> None:
        """Draw the outlines of gates, which are on this plot's axes, with their labels."""
        corners = [np.array(gate.vertices) for gate in gates]
        self._outlines.data = {
            "xs": [list(c[:, 0]) for c in corners],
            "ys": [list(c[:, 1]) for c in corners],
            "color": [WARNING if gate.name == selected else INK for gate in gates],
        }
        self._labels.data = {
            "x": [float(c[:, 0].min() + c[:, 0].max()) / 2 for c in corners],
            "y": [float(c[:, 1].max()) for c in corners],
            "text": list(labels),
        }


def _corners(geometry: Any) -> tuple[Shape, Corners] | None:
    """Return the shape and corners of what the mouse drew; None for a mere click."""
    if geometry["type"] == "rect":
        left, right = sorted((float(geometry["x0"]), float(geometry["x1"])))
        bottom, top = sorted((float(geometry["y0"]), float(geometry["y1"])))
        if left == right or bottom == top:
            return None
        return "rectangle", ((left, bottom), (right, bottom), (right, top), (left, top))
    if geometry["type"] != "poly" or len(geometry["x"]) < 3:
        return None
    pairs = zip(geometry["x"], geometry["y"], strict=True)
    corners = tuple(dict.fromkeys((float(x), float(y)) for x, y in pairs))
    if len(corners) < 3:
        return None
    return ("polygon" if len(corners) <= 12 else "lasso"), corners


def _reach(places: np.ndarray) -> tuple[float, float]:
    known = places[np.isfinite(places)]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    margin = _MARGIN * ((high - low) or 1.0)
    return low - margin, high + margin


def _label_ticks(figure: Any, which: str, kind: str, scale: Scale) -> None:
    axis = figure.xaxis[0] if which == "x" else figure.yaxis[0]
    if kind == "umap":
        axis.ticker = []
    elif scale == "asinh":
        use_count_axis(figure, which, PROTEIN_SCALE)
    elif scale == "log":
        marks = scale_ticks(1e6, "log") or []
        places = to_scale(np.array(marks), "log").tolist()
        use_ticks(figure, which, dict(zip(places, (f"{m:,.0f}" for m in marks), strict=True)))
    else:
        axis.ticker, axis.major_label_overrides = BasicTicker(), {}
