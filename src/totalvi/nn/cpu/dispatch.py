"""What tensors and threads are to compiled loops."""

from collections.abc import Iterator
from contextlib import contextmanager

import numba
import numpy as np
import torch
from torch import Tensor


@contextmanager
def threads_of_torch() -> Iterator[None]:
    """Let compiled loops use as many threads as torch does, for the thread that enters."""
    before = numba.get_num_threads()
    numba.set_num_threads(min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS))
    try:
        yield
    finally:
        numba.set_num_threads(before)


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
