"""What the plots show: which cells, which proteins on which axes, and in what colours."""

from collections.abc import Callable, Sequence

from bokeh.layouts import row
from bokeh.models import AutocompleteInput, CustomJS, LayoutDOM, RadioButtonGroup, Select

from totalvi.explore.gate_panel import ALL_CELLS
from totalvi.explore.gates import Kind
from totalvi.explore.plot import CellPlot
from totalvi.explore.scales import SCALES

DENSITY = "density of cells"
LEFT_MAP, LEFT_RAW = "Map (UMAP)", "Raw counts"
QUANTITIES: dict[str, Kind] = {
    "denoised": "protein_denoised",
    "raw counts": "protein_raw",
    "foreground probability": "protein_foreground",
}
SHAPES = ("Move", "Rectangle", "Polygon", "Lasso")
_CHOOSE_TOOL = """
tools.forEach((some, i) => some.forEach((tool) => { tool.active = i === cb_obj.active; }));
wheels.forEach((wheel) => { wheel.active = cb_obj.active === 0; });
"""


class ViewPanel:
    """Widgets above the plots.

    Parameters
    ----------
    on_axes, on_colors, on_shown
        Are called when other axes, colours or cells were chosen.
    """

    def __init__(
        self,
        proteins: Sequence[str],
        colors: Sequence[str],
        quantities: Sequence[str],
        plots: Sequence[CellPlot],
        *,
        on_axes: Callable[[], None],
        on_colors: Callable[[], None],
        on_shown: Callable[[], None],
    ) -> None:
        self._setting = False
        self.shape = RadioButtonGroup(labels=list(SHAPES), active=1, name="shape", align="end")
        tools = [[plot.tools[shape.lower()] for plot in plots] for shape in SHAPES]
        self.shape.js_on_change(
            "active",
            CustomJS(
                args={"tools": tools, "wheels": [plot.wheel for plot in plots]},
                code=_CHOOSE_TOOL,
            ),
        )
        self.shown = _select("Cells shown; new gates go inside", [ALL_CELLS], "shown", 190)
        self.x, self.y = (
            _search(
                f"{axis} protein", proteins, proteins[min(i, len(proteins) - 1)], f"{axis}_protein"
            )
            for i, axis in enumerate(("Horizontal", "Vertical"))
        )
        self.quantity = _select("Values", quantities, "quantity", 130)
        self.scale = _select("Scale", SCALES, "scale", 90)
        self.scale.value = "asinh"
        self.left = _select("Left plot", [LEFT_MAP, LEFT_RAW], "left_plot", 120)
        self.color = _search(
            "Colour by (type to search)", [*colors, DENSITY], colors[0], "color", 250
        )
        for widget in (self.x, self.y, self.quantity, self.scale, self.left):
            widget.on_change("value", lambda _attr, _old, _new: on_axes())
        self.color.on_change("value", lambda _attr, _old, _new: on_colors())
        self.shown.on_change(
            "value", lambda _attr, _old, _new: None if self._setting else on_shown()
        )

    def layout(self) -> LayoutDOM:
        """Return the widgets in a row that wraps."""
        arranged = row(
            self.shape, self.shown, self.left, self.x, self.y, self.quantity, self.scale, self.color,
            sizing_mode="stretch_width", name="view",
        )  # fmt: skip
        arranged.styles = {"flex-wrap": "wrap"}
        return arranged

    def offer(self, gates: Sequence[str], shown: str | None) -> None:
        """Offer all cells and those of each gate."""
        self._setting = True
        self.shown.options = [ALL_CELLS, *gates]
        self.shown.value = ALL_CELLS if shown is None else shown
        self._setting = False


def _select(title: str, options: Sequence[str], name: str, width: int) -> Select:
    return Select(title=title, options=list(options), value=options[0], name=name, width=width)


def _search(
    title: str, options: Sequence[str], value: str, name: str, width: int = 140
) -> AutocompleteInput:
    return AutocompleteInput(
        title=title,
        completions=list(options),
        value=value,
        name=name,
        width=width,
        min_characters=1,
        max_completions=30,
        case_sensitive=False,
        search_strategy="includes",
        restrict=True,
    )
