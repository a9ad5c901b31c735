"""What tensors and threads are to compiled loops."""

import numpy as np
import torch
from torch import Tensor

from totalvi.processes import threads_of_torch as threads_of_torch


def suits_compiled_loops(tensor: Tensor) -> bool:
    """Return whether compiled loops can take what is made of ``tensor``: on the CPU, one data type.

    Under ``torch.autocast`` some results are in 16 bits and others are not.
    """
    single = tensor.dtype in (torch.float32, torch.float64)
    return tensor.is_cpu and single and not torch.is_autocast_enabled("cpu")


def as_array(tensor: Tensor) -> np.ndarray:
    """Return a tensor as an array that shares its memory; bfloat16 as uint16."""
    tensor = tensor.detach()
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
