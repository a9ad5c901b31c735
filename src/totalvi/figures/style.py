"""Colours and count axes of all figures; colours differ with normal and colour-blind vision."""

from typing import Any, NamedTuple

import numpy as np
from bokeh.models import FixedTicker
from bokeh.plotting import figure

INK = "#222222"
QUIET = "#8A8F98"
PALE = "#D5D8DC"
BACKGROUND = "#B4B9C0"
FOREGROUND = "#0072B2"
WARNING = "#C43C00"

# Six colours of Okabe and Ito, then each the one farthest (in CIELAB, the least over normal vision
# and simulated deuteranopia and protanopia) from all before it.
# fmt: off
PALETTE = (
    "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#0069FF", "#692D0F",
    "#004B4B", "#C3D287", "#4B0FA5", "#6996FF", "#E1B4B4", "#781E78", "#B4693C", "#C3A54B",
    "#0FE1F0", "#0F694B", "#3C5AC3", "#FF4B78", "#785A78", "#963C00", "#5A2D96", "#C3D24B",
    "#3CB4C3", "#3C5A2D", "#E1C3A5", "#5A6996", "#4B4BD2", "#B4002D", "#A569D2", "#8787C3",
    "#D29669", "#2D9600", "#7878FF", "#87E169", "#D28796", "#693C69", "#B44B5A", "#4B964B",
)
# fmt: on


def category_colors(n_categories: int) -> list[str]:
    """Return one colour for each category; after 40 categories the colours start again."""
    return [PALETTE[i % len(PALETTE)] for i in range(n_categories)]


class CountScale(NamedTuple):
    """Linear up to ``cofactor`` counts and logarithmic far above: ``asinh(count / cofactor)``.

    Examples
    --------
    >>> PROTEIN_SCALE.ticks(0, 2000)
    {0.0: '0', 1.4436354751788103: '10', 3.6895038689889055: '100', 5.991470797049389: '1k'}
    """

    cofactor: float

    def forward(self, counts: np.ndarray | float) -> np.ndarray:
        """Return places on the axis; NaN stays NaN."""
        return np.arcsinh(np.asarray(counts) / self.cofactor)

    def inverse(self, places: np.ndarray | float) -> np.ndarray:
        """Return the counts at these places on the axis."""
        counts: np.ndarray = np.sinh(np.asarray(places)) * self.cofactor
        return counts

    def ticks(self, low: float = 0.0, high: float = 1e7, fine: bool = False) -> dict[float, str]:
        """Return the places of 0 and of powers of ten between two counts, with their labels.

        Powers below ``cofactor`` are left out, as they crowd around zero; with ``fine`` the cofactor
        and two fifths of it stand in for them, for axes that hold nothing else.
        """
        marks = [10.0**power for power in range(-2, 8) if 10.0**power > self.cofactor]
        if fine:
            marks = [0.4 * self.cofactor, self.cofactor, *marks]
        shown = [mark for mark in (0.0, *marks) if low <= mark <= high]
        return {float(self.forward(mark)): _label(mark) for mark in shown}

    def close_ticks(self, low: float, high: float) -> dict[float, str]:
        """Return ticks between two counts, with 2 and 5 times powers of ten when these are few.

        Examples
        --------
        >>> list(PROTEIN_SCALE.close_ticks(90, 3000).values())
        ['100', '200', '500', '1k', '2k']
        """
        ticks = self.ticks(low, high)
        if len(ticks) > 3:
            return ticks
        marks = [digit * 10.0**power for power in range(-2, 8) for digit in (1, 2, 5)]
        return {
            float(self.forward(mark)): _label(mark)
            for mark in (0.0, *marks)
            if low <= mark <= high and (mark == 0 or mark >= self.cofactor)
        }

    def ticker(self) -> FixedTicker:
        """Return a ticker at the fine ticks, minor ticks between them."""
        minor = [d * 10.0**power for power in range(-2, 7) for d in range(1, 10)]
        shown = [float(self.forward(mark)) for mark in minor if mark >= self.cofactor / 5]
        return FixedTicker(ticks=list(self.ticks(fine=True)), minor_ticks=shown)


PROTEIN_SCALE = CountScale(5.0)
RNA_SCALE = CountScale(0.5)  # denoised counts in 10,000, few of them above ten


def _label(count: float) -> str:
    if count >= 1e6:
        return f"{count / 1e6:g}M"
    return f"{count / 1e3:g}k" if count >= 1e3 else f"{count:g}"


TOOLS = "pan,box_zoom,wheel_zoom,reset,save"


def new_figure(
    title: str = "",
    *,
    height: int = 360,
    x_label: str = "",
    y_label: str = "",
    tools: str = TOOLS,
    active_drag: str | None = None,
    **options: Any,
) -> figure:
    """Return an empty figure.

    Parameters
    ----------
    title, x_label, y_label
        Text, never read as markup.
    height
        In pixels; the width is that of the page.
    tools
        Of Bokeh.
    active_drag
        Tool that dragging uses from the start. None: a finger on the figure scrolls the page.
    **options
        Of `bokeh.plotting.figure`.
    """
    drawn = figure(
        title=title,
        height=height,
        sizing_mode="stretch_width",
        tools=tools,
        active_drag=active_drag,
        active_scroll=None,
        toolbar_location="above" if tools else None,
        x_axis_label=x_label or None,
        y_axis_label=y_label or None,
        **options,
    )
    drawn.toolbar.logo = None
    drawn.min_border_right = 14  # half of the last tick's label
    drawn.outline_line_color = None
    drawn.grid.grid_line_color = None
    drawn.title.visible = bool(title)
    drawn.title.text_color = INK
    drawn.title.text_font_size = "13px"
    for axis in drawn.axis:
        axis.axis_line_color = QUIET
        axis.major_tick_line_color = axis.minor_tick_line_color = QUIET
        axis.major_tick_in = 0
        axis.major_label_text_color = axis.axis_label_text_color = INK
        axis.major_label_text_font_size = axis.axis_label_text_font_size = "12px"
        axis.axis_label_text_font_style = "normal"
    return drawn


def use_count_axis(drawn: figure, which: str, scale: CountScale) -> None:
    """Label the axis ``"x"`` or ``"y"``, whose places are of ``scale``, in counts."""
    axis = drawn.xaxis[0] if which == "x" else drawn.yaxis[0]
    axis.ticker = scale.ticker()
    axis.major_label_overrides = scale.ticks(fine=True)


def use_ticks(drawn: figure, which: str, labels: dict[float, str]) -> None:
    """Put these labels at these places on the axis ``"x"`` or ``"y"``, and no others."""
    axis = drawn.xaxis[0] if which == "x" else drawn.yaxis[0]
    axis.ticker = FixedTicker(ticks=list(labels))
    axis.major_label_overrides = labels
