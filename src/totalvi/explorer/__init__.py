"""The explorer: gates on the cells of a run in a browser, and comparisons of the gated cells."""
