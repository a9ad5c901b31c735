"""The device of a fit: its precision, the threads of a processor, and the memory of a GPU."""

import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from totalvi.compiled import processor_has
from totalvi.data.cells import CiteData
from totalvi.data.counts import evenly_spaced
from totalvi.errors import TrainingError, setting
from totalvi.fit.batches import CountsOnDevice, counts_on_device, minibatch
from totalvi.fit.plan import Precision, TrainingPlan
from totalvi.nn.likelihoods import objective
from totalvi.nn.network import Network

# -------------------------------------------------------------------------------------- precision


def resolved_plan(plan: TrainingPlan, network: Network, device: torch.device) -> TrainingPlan:
    """Return the plan with "auto" replaced by the device and the precision to use."""
    precision = resolve_precision(plan.precision, network, device)
    return replace(plan, accelerator=device.type, precision=precision)


def resolve_precision(given: Precision, network: Network, device: torch.device) -> Precision:
    """Return the precision of a fit of ``network`` on ``device``.

    "auto" is "bf16-mixed" for fused networks on processors with instructions for bfloat16: wide
    products are several times faster, and fits measured as good. Otherwise it is "32-true". CPUs do
    not train in float16, so "16-mixed" means "bf16-mixed" there.
    """
    on_cpu = device.type == "cpu"
    if given == "auto":
        has_bfloat16 = processor_has("amx_bf16") or processor_has("avx512_bf16")
        return "bf16-mixed" if on_cpu and network.fused and has_bfloat16 else "32-true"
    return "bf16-mixed" if on_cpu and given == "16-mixed" else given


def autocast_precision(precision: Precision, network: Network, device: torch.device) -> Precision:
    """Return the precision for ``torch.autocast``.

    On the CPU, fused networks compute their large products in bfloat16 themselves, and everything
    else in float32: see `wide_products`.
    """
    fused = precision == "bf16-mixed" and network.fused and device.type == "cpu"
    return "32-true" if fused else precision


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[Any]:
    """Return a context in which torch runs the operations that tolerate it in 16 bits."""
    if precision == "32-true":
        return nullcontext()
    dtype = torch.bfloat16 if precision == "bf16-mixed" else torch.half
    return torch.autocast(device.type, dtype=dtype)


def loss_scaler(precision: Precision, device: torch.device) -> torch.amp.GradScaler | None:
    """Return the scaler that prevents gradients from vanishing in float16; None otherwise."""
    return torch.amp.GradScaler(device.type) if precision == "16-mixed" else None


@contextmanager
def wide_products(network: Network, precision: Precision) -> Iterator[None]:
    """Compute the large products of a network in this precision while the block runs.

    They are those as wide as the genes, and those of the decoder's hidden layers after the first.
    """
    before = network.bfloat16_products
    network.set_bfloat16_products(precision == "bf16-mixed")
    try:
        yield
    finally:
        network.set_bfloat16_products(before)


# ---------------------------------------------------------------------------------------- threads

_LEAST_SHARE_OF_PROCESSORS = 0.7
_LEAST_SECONDS = 1.0  # shorter epochs tell nothing reliable


def watch_threads(device: torch.device) -> Callable[[], None]:
    """Return a function to call after each epoch, which warns once if threads wait for each other.

    By default threads wait busily, so all of them run all the time unless other programs hold the
    processors. A thread that is held up then holds up the others, which keep it from running.
    """
    sleeps = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys()
    before: tuple[float, float] | None = None  # the first epoch also compiles
    done = device.type != "cpu" or bool(sleeps)

    def after_epoch() -> None:
        nonlocal before, done
        now = time.perf_counter(), time.process_time()
        if before is not None and not done:
            done = warn_of_waiting(now[0] - before[0], now[1] - before[1])
        before = now

    return after_epoch


def warn_of_waiting(seconds: float, processor_seconds: float) -> bool:
    """Warn if the threads of a fit did not run all the time in an epoch; return whether that is so.

    Parameters
    ----------
    seconds, processor_seconds
        The duration of the epoch, and the processor time of all threads in it.
    """
    n_threads = torch.get_num_threads()
    used = processor_seconds / max(seconds, 1e-9)
    busy = used > _LEAST_SHARE_OF_PROCESSORS * n_threads
    if n_threads == 1 or busy or seconds < _LEAST_SECONDS:
        return False
    warnings.warn(
        f"Other programs use the processors: the {n_threads} threads of this fit got {used:.1f} of "
        f"them in an epoch of {seconds:.1f} s, and wait for each other. Train faster with "
        "torch.set_num_threads(1), or start Python with OMP_WAIT_POLICY=passive in its environment.",
        RuntimeWarning,
        stacklevel=2,
    )
    return True


# ----------------------------------------------------------------------------------------- memory

_PROBE_CELLS = 64
_COPIES_OF_WEIGHTS = 6  # weights, gradients, two moments of Adam, the best weights, clipping
_SPARE = 0.9  # share of the free memory that a plan may use
_GB = 1e9


class Memory(NamedTuple):
    """Bytes that a fit needs on its device.

    Parameters
    ----------
    weights
        Weights with their gradients, moments and copies.
    per_cell
        Memory of a cell of a minibatch while its gradient is computed.
    counts
        Counts of all cells, if the device holds them; 0 if they stay on disk.
    free
        Free memory of the device.
    """

    weights: int
    per_cell: int
    counts: int
    free: int

    def holds_counts(self, n_cells: int) -> bool:
        """Return whether all counts fit on the device beside minibatches of ``n_cells``."""
        needed = self.weights + n_cells * self.per_cell + self.counts
        return self.counts > 0 and needed <= _SPARE * self.free

    def largest_minibatch(self) -> int:
        """Return how many cells of a minibatch fit if the counts are not on the device."""
        return max(int((_SPARE * self.free - self.weights) / self.per_cell), 0)

    def sentence(self, n_cells: int) -> str:
        """Describe the memory needed with minibatches of ``n_cells``."""
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


def plan_memory(
    network: Network, data: CiteData, device: torch.device, n_cells: int, *, show: bool
) -> tuple[Memory, CountsOnDevice | None]:
    """Return the memory that a fit needs on a GPU, and the counts on the GPU if they fit.

    Parameters
    ----------
    n_cells
        Largest number of cells in a minibatch.
    show
        Whether to print the memory needed on standard error.

    Raises
    ------
    TrainingError
        When minibatches do not fit.
    """
    memory = memory_use(network, data, free_memory(device))
    require_room(memory, n_cells)
    if show:
        sys.stderr.write(f"{memory.sentence(n_cells)}\n")
    with explained(memory, n_cells):
        held = counts_on_device(data, device) if memory.holds_counts(n_cells) else None
    return memory, held


def memory_use(network: Network, data: CiteData, free: int) -> Memory:
    """Estimate the memory of a fit of ``network`` to ``data`` on a device with ``free`` bytes.

    The memory of a minibatch is measured on the CPU, in float32, with a few cells spread over the data.
    It is the size of the tensors that are kept for the gradient, plus twice the largest of them.
    """
    n_weights = sum(parameter.numel() for parameter in network.parameters())
    cells = evenly_spaced(np.arange(data.n_cells), _PROBE_CELLS)
    probe = deepcopy(network).cpu().train()
    for part in probe.modules():
        if hasattr(part, "fused"):
            part.fused = False  # type: ignore[assignment]
    batch = minibatch(data, probe, cells)
    with _kept_for_gradient(probe) as sizes:
        objective(batch.terms(probe.elbo, torch.Generator()))
    per_cell = (sum(sizes.values()) + 2 * max(sizes.values())) // len(cells)
    return Memory(4 * n_weights * _COPIES_OF_WEIGHTS, per_cell, _bytes_of_counts(data), free)


def free_memory(device: torch.device) -> int:
    """Return the free memory of a GPU in bytes."""
    free, _total = torch.cuda.mem_get_info(device)
    return int(free)


def require_room(memory: Memory, n_cells: int) -> None:
    """Raise TrainingError when minibatches of ``n_cells`` do not fit."""
    if n_cells > memory.largest_minibatch():
        raise _too_little(memory, n_cells)


@contextmanager
def explained(memory: Memory, n_cells: int) -> Iterator[None]:
    """Turn an out-of-memory error of the block into a TrainingError that explains it."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise _too_little(memory, n_cells) from error


def _too_little(memory: Memory, n_cells: int) -> TrainingError:
    fits = min(memory.largest_minibatch(), n_cells // 2)
    fix = (
        f"give {setting('batch_size', fits)} or less"
        if fits >= 3
        else "use the CPU, or fewer genes"
    )
    return TrainingError(
        f"The GPU's memory ({memory.free / _GB:.1f} GB free) is too small for minibatches of "
        f"{n_cells:,} cells; {fix}."
    )


def _bytes_of_counts(data: CiteData) -> int:
    if data.on_disk:
        return 0
    rna = 8 * int(data.rna.read().nnz) + 8 * (data.n_cells + 1)
    return rna + int(data.protein.read().nbytes)


@contextmanager
def _kept_for_gradient(network: Network) -> Iterator[dict[int, int]]:
    """Yield the bytes of the tensors that are kept for a gradient, without weights, by address."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    sizes: dict[int, int] = {}
    alive: list[Tensor] = []  # keep each tensor, so that no address is used twice

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            sizes[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        yield sizes
