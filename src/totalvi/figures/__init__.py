"""Figures drawn from plain arrays: Bokeh for the report and the explorer, matplotlib for papers."""
