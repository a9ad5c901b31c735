"""Observed against predicted: dots on the line agree."""

from bokeh.models import ColumnDataSource, HoverTool, LinearColorMapper
from bokeh.plotting import figure

from totalvi.pictures.colors import BACKGROUND, QUIET, WARNING
from totalvi.pictures.frame import new_figure, use_count_axis
from totalvi.pictures.scale import CountScale


def agreement(
    source: ColumnDataSource,
    *,
    label: str,
    scale: CountScale | None,
    high: float,
) -> figure:
    """Draw a dot for each feature, and the line on which both axes agree.

    Parameters
    ----------
    source
        Of features, with the columns ``observed`` and ``predicted``, places on the axes; ``kind``,
        0 a gene and 1 a protein; and ``name``.
    label
        What is compared, for the axes.
    scale
        Of both axes; None: linear.
    high
        Where the line ends.
    """
    drawn = new_figure(
        height=300, x_label=f"observed {label}", y_label=f"predicted {label}", tools="save"
    )
    drawn.line([0, high], [0, high], color=QUIET, line_dash="dashed")
    mapper = LinearColorMapper(palette=[BACKGROUND, WARNING], low=-0.5, high=1.5)
    dots = drawn.scatter(
        "observed",
        "predicted",
        source=source,
        size=6,
        color={"field": "kind", "transform": mapper},
        line_color=None,
        alpha=0.8,
    )
    drawn.add_tools(HoverTool(renderers=[dots], tooltips=[("feature", "@name")]))
    if scale is not None:
        use_count_axis(drawn, "x", scale)
        use_count_axis(drawn, "y", scale)
    return drawn
