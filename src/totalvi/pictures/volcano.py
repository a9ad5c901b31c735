"""Volcano plot: how large each difference is against how sure it is."""

from bokeh.models import ColumnDataSource, HoverTool, LinearColorMapper
from bokeh.plotting import figure

from totalvi.pictures.colors import BACKGROUND, FOREGROUND, INK, WARNING
from totalvi.pictures.frame import new_figure


def volcano(
    source: ColumnDataSource,
    *,
    x: str = "x",
    y: str = "y",
    kind: str = "kind",
    name: str = "name",
    x_label: str = "log2 fold change",
    y_label: str = "",
    height: int = 380,
) -> figure:
    """Draw a dot for each feature.

    Parameters
    ----------
    source
        Of features, with the columns ``x``; ``y``; ``kind``: 0 not called, 1 a gene, 2 a protein
        that is; and ``name``.
    """
    drawn = new_figure(height=height, x_label=x_label, y_label=y_label)
    mapper = LinearColorMapper(palette=[BACKGROUND, FOREGROUND, WARNING], low=-0.5, high=2.5)
    dots = drawn.scatter(
        x,
        y,
        source=source,
        size=7,
        alpha=0.75,
        color={"field": kind, "transform": mapper},
        line_color=None,
        selection_line_color=INK,
        nonselection_fill_alpha=0.3,
        name="features",
    )
    tips = [("feature", f"@{{{name}}}"), ("log2 fold change", f"@{{{x}}}{{0.00}}")]
    drawn.add_tools(HoverTool(renderers=[dots], tooltips=tips))
    drawn.xgrid.grid_line_color = drawn.ygrid.grid_line_color = "#EEF0F2"
    return drawn
