"""The explorer: gates on the cells of a run in a browser, and what the model says of them."""
