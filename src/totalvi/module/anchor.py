"""The anchor of the background prior: what empty droplets say of the proteins' proportions."""

import torch
from torch import Tensor


def profile_penalty(values: Tensor, profile: Tensor, precision: Tensor) -> Tensor:
    """Return ``1/2 sum precision (values - profile - shift)^2``, the shift of each row the best one.

    All (panels, T). What a normal prior around the profile costs, in nats, where all proteins of a
    panel may shift together at no cost: the best shift is the weighted mean difference.

    Examples
    --------
    >>> profile, ones = torch.tensor([[0.0, 1.0, 2.0]]), torch.ones(1, 3)
    >>> profile_penalty(profile + 5, profile, ones).item()
    0.0
    >>> profile_penalty(torch.tensor([[0.0, 1.0, 5.0]]), profile, ones).item()
    3.0
    """
    difference = values - profile
    weight = precision.sum(dim=1, keepdim=True).clamp(min=torch.finfo(precision.dtype).tiny)
    shift = (precision * difference).sum(dim=1, keepdim=True) / weight
    return 0.5 * (precision * (difference - shift).square()).sum()
