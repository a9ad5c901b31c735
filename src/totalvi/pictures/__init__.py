"""Interactive figures, drawn with Bokeh from arrays or data sources; report and explorer share them."""
