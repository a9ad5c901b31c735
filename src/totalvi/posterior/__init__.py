"""What a fitted model says of cells: a file for each topic, with its queries and their computation."""
