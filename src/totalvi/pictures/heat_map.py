"""Heat map of features by groups of cells."""

from collections.abc import Sequence

import numpy as np
from bokeh.models import FactorRange, HoverTool
from bokeh.plotting import figure

from totalvi.pictures.frame import new_figure
from totalvi.pictures.maps import add_color_bar, value_mapper


def heat_map(
    values: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    low: float,
    high: float,
    value_name: str,
) -> figure:
    """Draw a tile for each row and column, the first row on top.

    Parameters
    ----------
    values
        Shape (rows, columns); NaN is grey.
    rows, columns
        Names, unique on each axis.
    low, high
        Ends of the colours.
    value_name
        What the values are, shown where the pointer is.
    """
    mapper = value_mapper(low, high)
    drawn = new_figure(
        height=16 * len(rows) + 110,
        tools="save",
        x_range=FactorRange(*map(str, columns)),
        y_range=FactorRange(*map(str, reversed(rows))),
        x_axis_location="above",
    )
    tiles = drawn.rect(
        "column",
        "row",
        width=1,
        height=1,
        source={
            "column": [str(column) for _ in rows for column in columns],
            "row": [str(row) for row in rows for _ in columns],
            "value": values.ravel(),
        },
        fill_color={"field": "value", "transform": mapper},
        line_color="white",
        line_width=0.5,
    )
    tips = [("", "@row, @column"), (value_name, "@value{0.00}")]
    drawn.add_tools(HoverTool(renderers=[tiles], tooltips=tips))
    drawn.axis.major_tick_line_color = None
    drawn.axis.axis_line_color = None
    drawn.axis.major_label_text_font_size = "11px"
    if len(columns) > 12 or max(map(len, map(str, columns)), default=0) > 4:
        drawn.xaxis.major_label_orientation = 1.1
    add_color_bar(drawn, mapper)
    return drawn
