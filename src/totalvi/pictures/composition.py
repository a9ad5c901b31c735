"""What each group of cells is made of, as bars that add up to 100 %."""

from collections.abc import Sequence

import numpy as np
from bokeh.models import FactorRange, HoverTool
from bokeh.plotting import figure

from totalvi.pictures.colors import category_colors
from totalvi.pictures.frame import new_figure


def composition(
    counts: np.ndarray, groups: Sequence[str], parts: Sequence[str], *, x_label: str, y_label: str
) -> figure:
    """Draw a bar for each group, divided by the parts of its cells.

    Parameters
    ----------
    counts
        Cells, shape (groups, parts).
    groups, parts
        Names, unique; parts have the colours of `totalvi.pictures.maps.category_legend`.
    """
    drawn = new_figure(
        height=22 * len(groups) + 90,
        x_label=x_label,
        y_label=y_label,
        tools="save",
        y_range=FactorRange(*map(str, reversed(groups))),
    )
    percent = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    ends = percent.cumsum(axis=1)
    for place, (part, color) in enumerate(zip(parts, category_colors(len(parts)), strict=True)):
        bars = drawn.hbar(
            y="group",
            left="left",
            right="right",
            height=0.75,
            source={
                "group": list(map(str, groups)),
                "left": ends[:, place] - percent[:, place],
                "right": ends[:, place],
                "percent": percent[:, place],
                "part": [str(part)] * len(groups),
            },
            color=color,
        )
        tips = [("", "@part"), ("of cells", "@percent{0.0} %")]
        drawn.add_tools(HoverTool(renderers=[bars], tooltips=tips))
    drawn.x_range.start, drawn.x_range.end = 0, 100
    return drawn
