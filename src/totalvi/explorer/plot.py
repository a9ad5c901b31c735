"""A plot of cells, on which gates are drawn, moved and reshaped with the mouse."""

from collections.abc import Callable, Collection, Sequence
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
from bokeh.events import DoubleTap, Pan, PanEnd, PanStart, SelectionGeometry, Tap
from bokeh.models import (
    BasicTicker,
    BoxSelectTool,
    ColumnDataSource,
    CustomJS,
    HoverTool,
    LassoSelectTool,
    PanTool,
    PlainText,
    PolySelectTool,
    Range1d,
    ResetTool,
    SaveTool,
    WheelZoomTool,
)

from totalvi.explorer.axes import Axis, Scale, scale_ticks, to_scale
from totalvi.explorer.drawn_cells import contour_lines, draw_cells, histograms, mapped, rgba
from totalvi.explorer.gate_shapes import Drawn, Window, draw_gate
from totalvi.explorer.gates import Gate, Point
from totalvi.explorer.run_cells import Groups
from totalvi.figures.cell_maps import add_labels, density_mapper, point_density, point_size
from totalvi.figures.style import (
    INK,
    PALE,
    PROTEIN_SCALE,
    QUIET,
    WARNING,
    category_colors,
    new_figure,
    use_count_axis,
    use_ticks,
)

Style = Literal["dots", "contours", "histogram"]
Stage = Literal["start", "on", "end"]
PIXELS_BY_PIXEL = 1.7  # of the image, for screens with more pixels than CSS knows
HANDLE_REACH = 13  # pixels
_LARGEST_SIDE = 1400
_MARGIN = 0.04
_LABEL_HEIGHT, _LETTER_WIDTH = 11, 7  # pixels from its middle to its edge, and of a letter
_HALF_HANDLE = 6  # pixels
_RIDGE = 0.75  # between the histograms of two groups, of which each is 1 high
_MOST_RIDGES = 24
# Bokeh ends a polygon with Enter only; people double-click.
_FINISH_POLYGON = """
const area = Bokeh.index.find_one(cb_obj.origin)?.canvas_view.ui_event_bus.hit_area;
area?.dispatchEvent(new KeyboardEvent("keyup", {key: "Enter"}));
"""
_POLYGON = "Polygon gate: click corners, then double-click or press Enter"
_SIGN = "  \u2260"  # behind the name of a gate that differs by sample
_EMPTY = np.zeros(0)


class Events(NamedTuple):
    """What a plot calls: with itself, and with what the mouse or the window did."""

    drawn: Callable[["CellPlot", Any], None]
    tapped: Callable[["CellPlot", Point], None]
    dragged: Callable[["CellPlot", Stage, Point], None]
    window: Callable[["CellPlot"], None]


class CellPlot:
    """A plot of the cells on two axes, or their histogram on one.

    Parameters
    ----------
    name
        For screen readers and tests.
    events
        Called when the mouse drew, tapped or dragged, or the window changed.
    """

    def __init__(self, name: str, events: Events) -> None:
        self.axes: tuple[Axis, ...] = ()
        self.places: tuple[np.ndarray, ...] = (_EMPTY, _EMPTY)
        self.style: Style = "dots"
        self.gates: dict[str, Drawn] = {}  # those outlined
        self.highlighted: list[str] = []  # those of them that belong to the selected gate
        self._setting = False
        self._ridge_ticks: dict[float, str] = {}
        self._sides = {"inner_height": 320, "inner_width": 400}  # until the browser tells
        self.figure = new_figure(
            height=390, tools="", x_range=Range1d(0, 1), y_range=Range1d(0, 1), name=name
        )
        self.figure.toolbar_location = "above"
        self.figure.min_border_right = 12
        self.tools: dict[str, Any] = {
            "move": PanTool(),
            "rectangle": BoxSelectTool(renderers=[], description="Rectangle gate"),
            "polygon": PolySelectTool(renderers=[], description=_POLYGON),
            "lasso": LassoSelectTool(renderers=[], continuous=False, description="Lasso gate"),
            "ellipse": BoxSelectTool(
                renderers=[], description="Ellipse gate: drag the box around it"
            ),
            "range": BoxSelectTool(renderers=[], dimensions="width", description="Range gate"),
        }
        self.wheel = WheelZoomTool()  # in force while moving: else the wheel scrolls the page
        self.figure.add_tools(self.tools["move"], self.wheel, ResetTool(), SaveTool())
        for tool in self.tools.values():
            if tool is not self.tools["move"]:
                tool.visible = False  # the buttons above choose it for all plots
                self.figure.add_tools(tool)
        self.figure.toolbar.active_drag = self.tools["rectangle"]
        self.figure.toolbar.active_scroll = None
        self.figure.toolbar.active_tap = None
        self._add_layers()
        self._listen(events)

    def _add_layers(self) -> None:
        self._image = ColumnDataSource({key: [] for key in ("image", "x", "y", "dw", "dh")})
        self.figure.image_rgba("image", "x", "y", "dw", "dh", source=self._image)
        self._ridges = self._coloured_areas("histograms", fill_alpha=0.45, line_width=1.5)
        self._contours = ColumnDataSource({"xs": [], "ys": []})
        self.figure.multi_line(
            "xs", "ys", source=self._contours, line_color=INK, line_alpha=0.75, name="contours"
        )
        self._outlines = self._coloured_areas("outlines", fill_alpha=0.06, line_width=2)
        self._handles = ColumnDataSource({"x": [], "y": []})
        self.figure.scatter(
            "x", "y", source=self._handles, marker="square", size=9, fill_color="white",
            line_color=WARNING, line_width=2, name="handles",
        )  # fmt: skip
        self._labels = ColumnDataSource({"x": [], "y": [], "text": []})
        add_labels(self.figure, self._labels)
        self._signs = ColumnDataSource({"x": [], "y": [], "differs": []})
        signs = self.figure.scatter(
            "x", "y", source=self._signs, marker="square", size=18, alpha=0.0, name="signs"
        )  # over the sign of a label, for the pointer
        self.figure.add_tools(HoverTool(renderers=[signs], tooltips="@differs", visible=False))

    def _coloured_areas(
        self, name: str, *, fill_alpha: float, line_width: float
    ) -> ColumnDataSource:
        """Return the corners and colours of areas that the figure draws."""
        source = ColumnDataSource({"xs": [], "ys": [], "color": []})
        self.figure.patches(
            "xs", "ys", source=source, fill_color="color", fill_alpha=fill_alpha,
            line_color="color", line_width=line_width, name=name,
        )  # fmt: skip
        return source

    def _listen(self, events: Events) -> None:
        figure = self.figure

        def drawn(event: SelectionGeometry) -> None:
            if event.final:
                events.drawn(self, event.geometry)

        figure.on_event(SelectionGeometry, drawn)
        figure.on_event(Tap, lambda event: events.tapped(self, (event.x, event.y)))
        stages: dict[Any, Stage] = {PanStart: "start", Pan: "on", PanEnd: "end"}
        for kind, stage in stages.items():
            figure.on_event(
                kind, lambda event, stage=stage: events.dragged(self, stage, (event.x, event.y))
            )
        figure.js_on_event(DoubleTap, CustomJS(code=_FINISH_POLYGON))

        def moved(_attr: str, _old: object, _new: object) -> None:
            if not self._setting:
                events.window(self)

        for side in (figure.x_range, figure.y_range):
            for end in ("start", "end"):
                side.on_change(end, moved)

        def resized(side: str, _old: object, length: int) -> None:
            self._sides[side] = length
            events.window(self)

        for length in self._sides:
            figure.on_change(length, resized)

    @property
    def window(self) -> Window:
        """Left, right, bottom and top of what is seen."""
        x, y = self.figure.x_range, self.figure.y_range
        return float(x.start), float(x.end), float(y.start), float(y.end)

    @property
    def units_of_pixel(self) -> tuple[float, float]:
        """Width and height of a pixel, in units of the axes."""
        left, right, bottom, top = self.window
        return (
            (right - left) / max(self._sides["inner_width"], 50),
            (top - bottom) / max(self._sides["inner_height"], 50),
        )

    def set_axes(
        self, axes: tuple[Axis, ...], places: tuple[np.ndarray, ...], labels: Sequence[str]
    ) -> None:
        """Show the cells on other axes, all of them in the window; on one axis as a histogram."""
        self.axes, self.places, self._ridge_ticks = axes, places, {}
        self.__dict__.pop("density_colors", None)
        self._setting = True
        sides = (("x", self.figure.x_range), ("y", self.figure.y_range))
        for (which, side), axis, along, label in zip(sides, axes, places, labels, strict=False):
            low, high = _reach(along)
            side.update(start=low, end=high, reset_start=low, reset_end=high)
            self._axis(which).axis_label = PlainText(text=label)
            _label_ticks(self.figure, which, axis.kind, axis.scale)
        self._setting = False

    def _axis(self, which: str) -> Any:
        return self.figure.xaxis[0] if which == "x" else self.figure.yaxis[0]

    @cached_property
    def density_colors(self) -> np.ndarray:
        """Colours of the cells, uint32 (N,), by how many others lie near each on these axes."""
        density = point_density(self.places[0], self.places[1])
        return mapped(density, 0.0, 1.0, list(density_mapper().palette))

    def draw(
        self,
        colors: np.ndarray | None,
        shown: np.ndarray | None,
        dimmed: np.ndarray | None,
        groups: Groups | None = None,
    ) -> None:
        """Draw the cells.

        Parameters
        ----------
        colors
            Of all cells, uint32 (N,); None: by density.
        shown
            Which to draw, (N,); None: all.
        dimmed
            Which of those to draw pale, (N,); None: none.
        groups
            Whose histograms to draw; None: one of all cells.
        """
        left, right, bottom, top = self.window
        if not (right > left and top > bottom):
            return
        if len(self.axes) == 1:
            self._draw_histograms(shown, groups)
            return
        self._ridges.data = {"xs": [], "ys": [], "color": []}
        colors = self.density_colors if colors is None else colors
        x, y = self.places
        n_cells = len(x) if shown is None else int(shown.sum())
        if shown is not None:
            x, y, colors = x[shown], y[shown], colors[shown]
            dimmed = None if dimmed is None else dimmed[shown]
        lines = contour_lines(x, y, self.window) if self.style == "contours" else []
        self._contours.data = {
            "xs": [list(line[:, 0]) for line in lines],
            "ys": [list(line[:, 1]) for line in lines],
        }
        if lines and dimmed is None:
            colors = np.full(len(x), rgba([PALE])[0])
        image = draw_cells(
            x, y, colors, self.window, self._shape(), PIXELS_BY_PIXEL * point_size(n_cells), dimmed
        )
        self._image.data = {
            "image": [image], "x": [left], "y": [bottom], "dw": [right - left], "dh": [top - bottom]
        }  # fmt: skip

    def _draw_histograms(self, shown: np.ndarray | None, groups: Groups | None) -> None:
        self._image.data = {key: [] for key in self._image.data}
        self._contours.data = {"xs": [], "ys": []}
        places = self.places[0]
        code, names = (np.zeros(len(places), dtype=int), ["cells"]) if groups is None else groups
        names = names[:_MOST_RIDGES]
        code = np.where(code < len(names), code, -1)
        code = code if shown is None else np.where(shown, code, -1)
        along, heights = histograms(places, code, len(names), *self.window[:2])
        foot = _RIDGE * np.arange(len(names))[::-1]
        self._ridges.data = {
            "xs": [[along[0], *along, along[-1]] for _ in names],
            "ys": [[base, *(base + high), base] for base, high in zip(foot, heights, strict=True)],
            "color": category_colors(len(names)),
        }
        self._setting = True
        top = float(foot[0] + 1.25) if len(foot) else 1.25
        self.figure.y_range.update(start=0.0, end=top, reset_start=0.0, reset_end=top)
        ticks = dict(zip(map(float, foot), names, strict=True)) if groups else {0.0: "0", 1.0: "1"}
        if ticks != self._ridge_ticks:  # Bokeh looks through the whole page when they change
            self._ridge_ticks = ticks
            use_ticks(self.figure, "y", ticks)
            label = "" if groups else "cells, relative to the mode"
            self._axis("y").axis_label = PlainText(text=label)
        self._setting = False

    def _shape(self) -> tuple[int, int]:
        sides = self._sides["inner_height"], self._sides["inner_width"]
        rows, columns = (min(int(PIXELS_BY_PIXEL * max(s, 50)), _LARGEST_SIDE) for s in sides)
        return rows, columns

    def outline(
        self,
        gates: Sequence[Gate],
        labels: Sequence[str],
        highlighted: Collection[str | None],
        sample: tuple[str, str] | None = None,
        *,
        with_handles: bool = False,
        differs: Sequence[str] = (),
    ) -> None:
        """Draw the outlines of gates, which `shown_on` these axes, with their labels.

        Parameters
        ----------
        highlighted
            Names of the gates that stand out: the selected one, or its conditions.
        sample
            Whose gates to draw, where they differ by sample.
        with_handles
            Whether these gates show their handles.
        differs
            In which samples each gate lies elsewhere, in words, or "".
        """
        differs = differs or [""] * len(gates)
        labels = [text + _SIGN * bool(words) for text, words in zip(labels, differs, strict=True)]
        self.gates = {g.name: draw_gate(g, self.axes, self.window, sample) for g in gates}
        self.highlighted = [name for name in self.gates if name in highlighted]
        drawn = list(self.gates.values())
        self._outlines.data = {
            "xs": [list(each.outline[:, 0]) for each in drawn],
            "ys": [list(each.outline[:, 1]) for each in drawn],
            "color": [WARNING if name in highlighted else INK for name in self.gates],
        }
        chosen = [self.gates[name].handles for name in self.highlighted if with_handles]
        handles = np.concatenate([np.zeros((0, 2)), *chosen])
        self._handles.data = {"x": list(handles[:, 0]), "y": list(handles[:, 1])}
        places: list[Point] = []
        for each, text in zip(drawn, labels, strict=True):
            usual = self._label_place(each, text, handles)
            places.append(self._free_place(usual, text, places, labels))
        x, y = ([place[side] for place in places] for side in (0, 1))
        self._labels.data = {"x": x, "y": y, "text": labels}
        marked = [i for i, words in enumerate(differs) if words]
        letter = _LETTER_WIDTH * self.units_of_pixel[0]
        self._signs.data = {
            "x": [places[i][0] + letter * (len(labels[i]) - 1) / 2 for i in marked],
            "y": [places[i][1] for i in marked],
            "differs": [differs[i] for i in marked],
        }

    def _label_place(self, drawn: Drawn, text: str, handles: np.ndarray) -> Point:
        """Return where a label is whole and on no handle: above its place, below, or further away."""
        left, right, bottom, top = self.window
        across, up = self.units_of_pixel
        half = min(_LETTER_WIDTH * len(text) / 2 * across, (right - left) / 2)
        x = float(np.clip(drawn.label[0], left + half, right - half))
        margin = _LABEL_HEIGHT * up
        usual = float(np.clip(drawn.label[1], bottom + margin, top - margin))
        reach = half + _HALF_HANDLE * across, margin + _HALF_HANDLE * up
        for steps in (0, 2, -2, 4, -4, 6, -6):
            y = usual + steps * margin
            covers = (np.abs(handles - (x, y)) < reach).all(axis=1).any()
            if bottom + margin <= y <= top - margin and not covers:
                return x, y
        return x, usual

    def _free_place(
        self, place: Point, text: str, others: Sequence[Point], labels: Sequence[str]
    ) -> Point:
        """Return where a label lies on no earlier one: it goes down until there is room."""
        across, up = self.units_of_pixel
        x, y = place
        for _ in others:
            for other, words in zip(others, labels, strict=False):
                wide = _LETTER_WIDTH * (len(text) + len(words)) / 2 * across
                if abs(other[0] - x) < wide and abs(other[1] - y) < 2 * _LABEL_HEIGHT * up:
                    y = other[1] - 2 * _LABEL_HEIGHT * up
        return x, y


def _reach(places: np.ndarray) -> tuple[float, float]:
    known = places[np.isfinite(places)]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    margin = _MARGIN * ((high - low) or 1.0)
    return low - margin, high + margin


def _label_ticks(figure: Any, which: str, kind: str, scale: Scale) -> None:
    axis = figure.xaxis[0] if which == "x" else figure.yaxis[0]
    axis.axis_line_color = PALE if kind == "umap" else QUIET
    if kind == "umap":
        axis.ticker = []
    elif scale == "asinh":
        use_count_axis(figure, which, PROTEIN_SCALE)
    elif scale == "log":
        marks = scale_ticks(1e6, "log") or []
        places = to_scale(np.array(marks), "log").tolist()
        use_ticks(figure, which, dict(zip(places, (f"{m:g}" for m in marks), strict=True)))
    else:
        axis.ticker, axis.major_label_overrides = BasicTicker(), {}
