"""Fitting the model: the plan, the split, the schedules and the loop."""
