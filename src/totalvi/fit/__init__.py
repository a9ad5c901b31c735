"""Fit the model: the plan, the split, the minibatches and the loop."""
