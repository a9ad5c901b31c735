"""Minibatches of `CiteData` as tensors: order of cells, reading ahead, counts on a GPU."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from totalvi.data.cells import CiteData
from totalvi.data.counts import Counts, CountsInMemory, evenly_spaced, read_ahead
from totalvi.fit.minibatch import CountlessMinibatch, Minibatch
from totalvi.nn.cell import CellContext, SparseCounts
from totalvi.nn.coders import CellPosterior
from totalvi.nn.config import at_least_one
from totalvi.nn.cpu.gene_rows import take_rows
from totalvi.nn.network import Network
from totalvi.nn.sync import Share
from totalvi.processes import Process

WINDOW = 65_536  # cells in memory at a time
BLOCK = 1024  # neighbouring cells on disk that are read together


def even_parts(cells: np.ndarray, size: int) -> list[np.ndarray]:
    """Split ``cells`` into parts of nearly equal length, none longer than ``size``.

    Examples
    --------
    >>> import numpy as np
    >>> [len(part) for part in even_parts(np.arange(10), 4)]
    [4, 3, 3]
    """
    n_parts = math.ceil(len(cells) / size)
    return np.array_split(cells, n_parts) if n_parts else []


def shuffled_windows(
    cells: np.ndarray,
    batch_size: int,
    rng: np.random.Generator,
    *,
    window: int = WINDOW,
    block: int = BLOCK,
) -> list[list[np.ndarray]]:
    """Shuffle cells so that those of a window can be read from disk together.

    Blocks of neighbouring cells are put in random order and cut into windows. The cells of a window are
    assigned to its minibatches at random, evenly over its blocks. If all cells fit into one window,
    their order is fully random.

    Parameters
    ----------
    cells
        Positions of the cells, ascending.
    batch_size
        Largest number of cells in a minibatch.
    rng
        Generator of the order, which depends on nothing else.
    window, block
        Approximate number of cells of a window, and rows of a block.

    Returns
    -------
    Minibatches by window, of nearly equal size, as many as `even_parts` returns.

    Examples
    --------
    >>> import numpy as np
    >>> windows = shuffled_windows(np.arange(12), 3, np.random.default_rng(0), window=6, block=2)
    >>> [[len(batch) for batch in batches] for batches in windows]
    [[3, 3], [3, 3]]
    >>> sorted(int(cell) for batches in windows for batch in batches for cell in batch)
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]
    """
    if len(cells) <= window:
        return [even_parts(rng.permutation(cells), batch_size)]
    blocks = np.split(cells, np.flatnonzero(np.diff(cells // block)) + 1)
    in_blocks = np.concatenate([blocks[i] for i in rng.permutation(len(blocks))])
    batches = even_parts(in_blocks, batch_size)
    n_windows = math.ceil(len(cells) / window)
    return [
        _dealt(np.concatenate([batches[i] for i in of_window]), len(of_window), rng)
        for of_window in np.array_split(np.arange(len(batches)), n_windows)
    ]


def _dealt(cells: np.ndarray, n_parts: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Assign cells at random to parts, so that each part gets one of every ``n_parts`` neighbours.

    Each part keeps the order of ``cells``. The same range of all parts is therefore a range of
    ``cells``, and a process that has this range reads no other cells.
    """
    n_rounds, n_left = divmod(len(cells), n_parts)
    rounds = cells[: n_rounds * n_parts].reshape(n_rounds, n_parts)
    parts = list(rng.permuted(rounds, axis=1).T)
    for part, cell in zip(rng.permutation(n_parts)[:n_left], cells[-n_left:], strict=False):
        parts[part] = np.append(parts[part], cell)
    return parts


def windows_in_order(cells: np.ndarray, batch_size: int, window: int) -> list[list[np.ndarray]]:
    """Return ``cells`` in their order, in minibatches, with as many in a window as fit."""
    batches = even_parts(cells, batch_size)
    per_window = max(1, window // batch_size)
    return [batches[i : i + per_window] for i in range(0, len(batches), per_window)]


def without_first(windows: list[list[np.ndarray]], skip: int) -> list[list[np.ndarray]]:
    """Return windows without the first ``skip`` minibatches, and without empty windows.

    Examples
    --------
    >>> import numpy as np
    >>> windows = windows_in_order(np.arange(6), 2, 4)
    >>> [[batch.tolist() for batch in batches] for batches in without_first(windows, 1)]
    [[[2, 3]], [[4, 5]]]
    """
    left = []
    for batches in windows:
        if skip < len(batches):
            left.append(batches[skip:])
        skip = max(skip - len(batches), 0)
    return left


def some_of_each(group: np.ndarray, most: int) -> np.ndarray:
    """Return ascending positions of at most ``most`` cells of each group, spread evenly over it.

    Examples
    --------
    >>> import numpy as np
    >>> some_of_each(np.array([0, 0, 0, 0, 1, 1]), 2).tolist()
    [0, 3, 4, 5]
    """
    chosen = [evenly_spaced(np.flatnonzero(group == code), most) for code in np.unique(group)]
    return np.sort(np.concatenate(chosen))


class CountsOnDevice(NamedTuple):
    """RNA and protein counts of all cells as tensors on one device.

    Parameters
    ----------
    rna
        (N, G).
    protein
        (N, T).
    """

    rna: SparseCounts
    protein: Tensor

    def take(self, rows: np.ndarray) -> tuple[SparseCounts, Tensor]:
        """Return RNA and protein of the cells at ``rows``, in this order."""
        cells = torch.from_numpy(rows).to(self.protein.device)
        start = self.rna.cell_pointer[cells]
        length = self.rna.cell_pointer[cells + 1] - start
        pointer = torch.cat([length.new_zeros(1), length.cumsum(0)])
        shift = (start - pointer[:-1]).repeat_interleave(length)
        place = torch.arange(len(shift), device=shift.device) + shift
        rna = SparseCounts(self.rna.counts[place], self.rna.gene[place], pointer, self.rna.n_genes)
        return rna, self.protein[cells]


def counts_on_device(data: CiteData, device: torch.device | str) -> CountsOnDevice:
    """Return the counts of all cells on ``device``; they must be in memory."""
    held = data.rna.read()
    counts, gene, pointer = (
        torch.from_numpy(part).to(device)
        for part in (held.data, held.indices, held.indptr.astype(np.int64))
    )
    rna = SparseCounts(counts, gene, pointer, held.shape[1])
    return CountsOnDevice(rna, torch.from_numpy(data.protein.read()).to(device))


_IN_ORDER = 8192  # cells read at a time in a given order


class _Counts(NamedTuple):
    """Counts in memory; those of the requested cells are at ``rows``."""

    rna: sparse.csr_matrix
    protein: Counts[np.ndarray]
    rows: np.ndarray

    def to(self, device: torch.device | str) -> tuple[SparseCounts, Tensor]:
        """Return RNA and protein of the requested cells; copy them to a GPU while it computes."""
        x, y = sparse_rows(self.rna, self.rows), torch.from_numpy(self.protein.rows(self.rows))
        if torch.device(device).type != "cuda":
            return x.to(device), y.to(device)
        return x.pin_memory().to(device), y.pin_memory().to(device, non_blocking=True)


def minibatches(
    data: CiteData,
    module: Network,
    cells: np.ndarray,
    batch_size: int,
    shuffle: np.random.Generator | None = None,
    device: torch.device | str = "cpu",
    skip: int = 0,
    process: Process | None = None,
    held: CountsOnDevice | None = None,
) -> Iterator[Minibatch]:
    """Yield ``cells`` in minibatches of nearly equal size, none larger than ``batch_size``.

    With equal sizes and ``batch_size`` of 3 or more, batch normalisation never gets a minibatch of one
    cell. The first ``skip`` minibatches are left out, because a fit that resumes has used them.

    Counts on disk are read one window of cells at a time. A thread reads the next window while the
    minibatches of the current one are used. ``shuffle`` then mixes cells within windows of random
    blocks (see `shuffled_windows`), so ``cells`` must ascend. Windows that are left out completely are
    not read.

    If several processes share minibatches, ``process`` gets its part and reads no other cells. Counts
    that the device already holds (``held``) are used from there.
    """
    at_least_one("batch_size", batch_size)
    if not data.has_counts_of(cells):
        for rows in even_parts(cells, batch_size)[skip:]:
            yield _stored(data, module, rows, torch.device(device))
        return
    if data.on_disk:
        yield from _from_disk(data, module, cells, batch_size, shuffle, device, skip, process)
        return
    order = cells if shuffle is None else shuffle.permutation(cells)
    for rows in even_parts(order, batch_size)[skip:]:
        own, share = _own(rows, process)
        x, y = _in_memory(data, own).to(device) if held is None else held.take(own)
        yield _minibatch(data, module, own, x, y, share)


def _own(rows: np.ndarray, process: Process | None) -> tuple[np.ndarray, Share | None]:
    """Return the process's own cells of a minibatch, and their position in it."""
    if process is None:
        return rows, None
    part = process.part(len(rows))
    return rows[part], Share(part.start, len(rows))


def _from_disk(
    data: CiteData,
    module: Network,
    cells: np.ndarray,
    batch_size: int,
    shuffle: np.random.Generator | None,
    device: torch.device | str,
    skip: int,
    process: Process | None,
) -> Iterator[Minibatch]:
    windows = without_first(
        windows_in_order(cells, batch_size, _IN_ORDER)
        if shuffle is None
        else shuffled_windows(cells, batch_size, shuffle),
        skip,
    )

    def read(batches: list[np.ndarray]) -> _Counts:
        own = [_own(rows, process)[0] for rows in batches]
        rows = np.unique(np.concatenate(own))  # ascending rows are read faster
        return _read(data, rows)

    for batches, (rna, protein, held) in zip(windows, read_ahead(read, windows), strict=True):
        for rows in batches:
            own, share = _own(rows, process)
            counts = _Counts(rna, protein, np.searchsorted(held, own))
            yield _minibatch(data, module, own, *counts.to(device), share)
        del rna, protein, counts  # free this window before the one after the next is read


def read_once(data: CiteData, cells: np.ndarray) -> tuple[CiteData, np.ndarray]:
    """Return cells in memory and their positions there, so that epochs need not read them again."""
    return (data.in_memory(cells), np.arange(len(cells))) if data.on_disk else (data, cells)


def minibatch(
    data: CiteData, module: Network, rows: np.ndarray, device: torch.device | str = "cpu"
) -> Minibatch:
    """Return the cells at ``rows`` as one minibatch."""
    return _minibatch(data, module, rows, *_in_memory(data, rows).to(device))


def _in_memory(data: CiteData, rows: np.ndarray) -> _Counts:
    if data.on_disk:
        return _read(data, rows)._replace(rows=np.arange(len(rows)))
    return _Counts(data.rna.read(), data.protein, rows)


def _read(data: CiteData, rows: np.ndarray) -> _Counts:
    return _Counts(data.rna.rows(rows), CountsInMemory(data.protein.rows(rows)), rows)


def _minibatch(
    data: CiteData,
    module: Network,
    rows: np.ndarray,
    x: SparseCounts,
    y: Tensor,
    share: Share | None = None,
) -> Minibatch:
    context, mean, variance = _context(data, module, rows, y.device)
    return Minibatch(rows, data.cell_keys[rows], x, y, context, mean, variance, share)


def _stored(
    data: CiteData, module: Network, rows: np.ndarray, device: torch.device
) -> CountlessMinibatch:
    """Return the cells at ``rows``, of which a minified reference keeps no counts."""
    assert data.posterior is not None

    def part(values: np.ndarray) -> Tensor:
        return torch.from_numpy(values[rows]).to(device)

    stored = data.posterior
    parts = (None if values is None else part(values) for values in stored)
    posterior = CellPosterior(*parts)  # type: ignore[arg-type]
    absent: Any = None
    return CountlessMinibatch(
        rows, data.cell_keys[rows], absent, absent, *_context(data, module, rows, device),
        posterior=posterior,
    )  # fmt: skip


def _context(
    data: CiteData, module: Network, rows: np.ndarray, device: torch.device
) -> tuple[CellContext, Tensor | None, Tensor | None]:
    """Return the context of cells, and mean and variance of the prior of their log library size."""

    def tensor(values: np.ndarray | None) -> Tensor | None:
        return None if values is None else torch.from_numpy(values[rows]).to(device)

    def required(values: np.ndarray) -> Tensor:
        return torch.from_numpy(values[rows]).to(device)

    context = CellContext(
        batch=required(data.batch),
        panel=required(data.panel),
        label=tensor(data.label),
        categorical=tensor(data.categorical),
        continuous=tensor(data.continuous),
        library_size=None if module.library == "latent" else required(data.library_size)[:, None],
    )
    log_mean = log_variance = None
    if module.library == "latent":
        codes = data.batch[rows]
        log_mean, log_variance = (
            torch.tensor(by_batch, dtype=torch.float32)[codes][:, None].to(device)
            for by_batch in (data.schema.library_log_mean, data.schema.library_log_variance)
        )
    return context, log_mean, log_variance


def sparse_rows(counts: sparse.csr_matrix, rows: np.ndarray) -> SparseCounts:
    """Return the cells at ``rows`` of a float32 CSR matrix as the tensors of `SparseCounts`."""
    pointer = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum(counts.indptr[rows + 1] - counts.indptr[rows], out=pointer[1:])
    data = np.empty(pointer[-1], dtype=np.float32)
    gene = np.empty(pointer[-1], dtype=counts.indices.dtype)
    take_rows(counts.data, counts.indices, counts.indptr, rows, data, gene, pointer)
    return SparseCounts(
        torch.from_numpy(data), torch.from_numpy(gene), torch.from_numpy(pointer), counts.shape[1]
    )
