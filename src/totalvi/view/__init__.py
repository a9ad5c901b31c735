"""Views of a run: the report and the explorer."""
