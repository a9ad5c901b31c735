"""What a fitted model says: a topic a file, each with its query and its computation."""
