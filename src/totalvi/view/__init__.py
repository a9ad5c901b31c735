"""Pictures of a fitted model: figures, the report and the explorer."""
