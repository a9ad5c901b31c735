"""Interactive figures, drawn with Bokeh from arrays; report and explorer share them."""
