"""`totalvi explore`: gates on a run's cells in a browser, and what the model says of them."""
