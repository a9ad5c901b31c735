"""What all figures share: a light frame that fills the width it is given."""

from typing import Any

from bokeh.models import FixedTicker
from bokeh.plotting import figure

from totalvi.pictures.colors import INK, QUIET
from totalvi.pictures.scale import CountScale

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
