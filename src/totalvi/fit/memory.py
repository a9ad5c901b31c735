"""What a fit needs of a GPU's memory, beforehand and when it was too little."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from totalvi.data.cells import CiteData
from totalvi.errors import TrainingError
from totalvi.fit.batches import minibatch
from totalvi.nn.elbo import objective
from totalvi.nn.v06 import TOTALVI

_PROBE_CELLS = 64
_COPIES_OF_WEIGHTS = 6  # the weights, their gradients, two moments of Adam, the best ones, clipping
_SPARE = 0.9  # share of the free memory that may be planned for
_GB = 1e9


class Memory(NamedTuple):
    """Bytes that a fit needs on its device.

    Parameters
    ----------
    weights
        Weights with their gradients, moments and copies.
    per_cell
        What a cell of a minibatch takes while its gradient is computed.
    counts
        Counts of all cells, if the device holds them; 0 where they stay on disk.
    free
        What the device has.
    """

    weights: int
    per_cell: int
    counts: int
    free: int

    def holds_counts(self, n_cells: int) -> bool:
        """Return whether all counts can be on the device beside minibatches of ``n_cells``."""
        needed = self.weights + n_cells * self.per_cell + self.counts
        return self.counts > 0 and needed <= _SPARE * self.free

    def largest_minibatch(self) -> int:
        """Return how many cells of a minibatch fit, the counts being elsewhere."""
        return max(int((_SPARE * self.free - self.weights) / self.per_cell), 0)

    def sentence(self, n_cells: int) -> str:
        """Return what is needed with minibatches of ``n_cells``, in words."""
        minibatch = n_cells * self.per_cell
        held = self.holds_counts(n_cells)
        total = self.weights + minibatch + held * self.counts
        counts = (
            f"{self.counts / _GB:.2f} for the counts of all cells"
            if held
            else "counts come from the computer's memory"
        )
        return (
            f"memory on the GPU: about {total / _GB:.2f} of {self.free / _GB:.1f} GB "
            f"({self.weights / _GB:.2f} for weights, {minibatch / _GB:.2f} for a minibatch of "
            f"{n_cells:,} cells, {counts})"
        )


def memory_use(module: TOTALVI, data: CiteData, free: int) -> Memory:
    """Return what a fit of ``module`` to ``data`` needs on a device with ``free`` bytes.

    What a minibatch needs is counted on the CPU, in float32, from a few cells spread over the data:
    the tensors that are kept for the gradient, and twice the largest of them beside.
    """
    n_weights = sum(parameter.numel() for parameter in module.parameters())
    cells = np.unique(np.linspace(0, data.n_cells - 1, _PROBE_CELLS).round().astype(np.int64))
    probe = deepcopy(module).cpu().train()
    for part in probe.modules():
        if hasattr(part, "fused"):
            part.fused = False  # type: ignore[assignment]
    batch = minibatch(data, probe, cells)
    with _kept_for_gradient(probe) as sizes:
        terms = probe.elbo(
            batch.x, batch.y, batch.context, batch.library_log_mean, batch.library_log_variance,
            torch.Generator(),
        )  # fmt: skip
        objective(terms)
    per_cell = (sum(sizes.values()) + 2 * max(sizes.values())) // len(cells)
    return Memory(4 * n_weights * _COPIES_OF_WEIGHTS, per_cell, _bytes_of_counts(data), free)


def free_memory(device: torch.device) -> int:
    """Return the bytes that a GPU has free."""
    return torch.cuda.mem_get_info(device)[0]


def require_room(memory: Memory, n_cells: int) -> None:
    """Raise TrainingError when minibatches of ``n_cells`` do not fit."""
    if n_cells > memory.largest_minibatch():
        raise _too_little(memory, n_cells)


@contextmanager
def explained(memory: Memory, n_cells: int) -> Iterator[None]:
    """Raise TrainingError when minibatches of ``n_cells`` took more memory than there was."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise _too_little(memory, n_cells) from error


def _too_little(memory: Memory, n_cells: int) -> TrainingError:
    fits = min(memory.largest_minibatch(), n_cells // 2)
    mend = f"give batch_size={fits} or less" if fits >= 3 else "use the CPU, or fewer genes"
    return TrainingError(
        f"The GPU's memory ({memory.free / _GB:.1f} GB free) is too small for minibatches of "
        f"{n_cells:,} cells; {mend}."
    )


def _bytes_of_counts(data: CiteData) -> int:
    if data.on_disk:
        return 0
    return 8 * data.rna.read().nnz + 8 * (data.n_cells + 1) + data.protein.read().nbytes


@contextmanager
def _kept_for_gradient(module: TOTALVI) -> Iterator[dict[int, int]]:
    """Give the sizes of the tensors that are kept for a gradient, by place; not those of weights."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    sizes: dict[int, int] = {}
    alive: list[Tensor] = []  # so that no place is used twice

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            sizes[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        yield sizes
