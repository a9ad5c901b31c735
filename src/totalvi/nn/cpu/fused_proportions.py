"""RNA proportions of many posterior samples, averaged without keeping them."""

from torch import Tensor

from totalvi.nn.cpu import proportions
from totalvi.nn.cpu.dispatch import as_array
from totalvi.nn.layers import LinearProduct


def add_proportions(head: LinearProduct, scale: Tensor, total: Tensor) -> None:
    """Add each cell's RNA proportions times ``scale`` (B, 1) to ``total`` (B, G), in place."""
    logits = head.x @ head.weight
    if head.covariates is not None and head.covariate_weight is not None:
        logits.addmm_(head.covariates, head.covariate_weight)
    flat = scale.expand(len(logits), 1).reshape(-1).contiguous()
    proportions.add_proportions(*map(as_array, (logits, head.bias, flat, total)))
