"""Minibatches of CiteData as tensors for the module."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from totalvi.data.cite import CiteData
from totalvi.data.on_disk import read_ahead
from totalvi.data.order import even_parts, shuffled_windows, windows_in_order, without_first
from totalvi.module.context import CellContext
from totalvi.module.kernels.counts import take_rows
from totalvi.module.options import at_least_one
from totalvi.module.shared import Share
from totalvi.module.sparse import SparseCounts
from totalvi.module.totalvi import TOTALVI
from totalvi.on_device import CountsOnDevice
from totalvi.processes import Process

_IN_ORDER = 8192  # cells read at a time where their order is given


class Minibatch(NamedTuple):
    """Counts and context of B cells.

    Parameters
    ----------
    cells
        Their positions in the data, (B,).
    keys
        One number a cell, made from its name, by which its noise is drawn, (B,).
    x, y
        RNA counts (B, G), sparse, and protein counts (B, T).
    context
        What else is known of them.
    library_log_mean, library_log_variance
        Prior of the log library size, (B, 1); None where it is not latent.
    share
        Which part they are of a minibatch that several processes share; None: it is not shared.
    """

    cells: np.ndarray
    keys: np.ndarray
    x: SparseCounts
    y: Tensor
    context: CellContext
    library_log_mean: Tensor | None
    library_log_variance: Tensor | None
    share: Share | None = None


class _Counts(NamedTuple):
    """Counts in memory, those of the cells wanted among them at ``rows``."""

    rna: sparse.csr_matrix
    protein: np.ndarray
    rows: np.ndarray

    def to(self, device: torch.device | str) -> tuple[SparseCounts, Tensor]:
        """Return RNA and protein of the cells wanted; to a GPU they go while it computes."""
        x, y = sparse_rows(self.rna, self.rows), torch.from_numpy(self.protein[self.rows])
        if torch.device(device).type != "cuda":
            return x.to(device), y.to(device)
        return x.pin_memory().to(device), y.pin_memory().to(device, non_blocking=True)


def minibatches(
    data: CiteData,
    module: TOTALVI,
    cells: np.ndarray,
    batch_size: int,
    shuffle: np.random.Generator | None = None,
    device: torch.device | str = "cpu",
    skip: int = 0,
    process: Process | None = None,
    held: CountsOnDevice | None = None,
) -> Iterator[Minibatch]:
    """Yield ``cells`` in minibatches of nearly equal size, none above ``batch_size``.

    Equal sizes keep batch normalisation from ever seeing a last minibatch of one cell, where
    ``batch_size`` is 3 or more. The first ``skip`` are left out: a fit that goes on has had them.

    Counts on disk are read a window of cells at a time, the next one in a thread of its own while
    the minibatches of this one are used; ``shuffle`` then mixes cells within windows of random
    blocks (see `shuffled_windows`), so that ``cells`` must ascend. Windows that are left out whole
    are not read.

    Of minibatches that several processes share, ``process`` gets its part, and no other cells are read.
    Counts that the device holds already, ``held``, are taken there.
    """
    at_least_one("batch_size", batch_size)
    if data.on_disk:
        yield from _from_disk(data, module, cells, batch_size, shuffle, device, skip, process)
        return
    order = cells if shuffle is None else shuffle.permutation(cells)
    for rows in even_parts(order, batch_size)[skip:]:
        own, share = _own(rows, process)
        x, y = _in_memory(data, own).to(device) if held is None else held.take(own)
        yield _minibatch(data, module, own, x, y, share)


def _own(rows: np.ndarray, process: Process | None) -> tuple[np.ndarray, Share | None]:
    """Return which cells of a minibatch are the process's own, and their place in it."""
    if process is None:
        return rows, None
    part = process.part(len(rows))
    return rows[part], Share(part.start, len(rows))


def _from_disk(
    data: CiteData,
    module: TOTALVI,
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
        rows = np.unique(np.concatenate(own))  # ascending, which reads fast
        return _Counts(data.rna[rows], data.protein[rows], rows)

    for batches, (rna, protein, held) in zip(windows, read_ahead(read, windows), strict=True):
        for rows in batches:
            own, share = _own(rows, process)
            counts = _Counts(rna, protein, np.searchsorted(held, own))
            yield _minibatch(data, module, own, *counts.to(device), share)
        del rna, protein, counts  # before the window after the next is read


def minibatch(
    data: CiteData, module: TOTALVI, rows: np.ndarray, device: torch.device | str = "cpu"
) -> Minibatch:
    """Return the cells at ``rows`` as one minibatch."""
    return _minibatch(data, module, rows, *_in_memory(data, rows).to(device))


def _in_memory(data: CiteData, rows: np.ndarray) -> _Counts:
    if data.on_disk:
        return _Counts(data.rna[rows], data.protein[rows], np.arange(len(rows)))
    return _Counts(data.rna, data.protein, rows)


def _minibatch(
    data: CiteData,
    module: TOTALVI,
    rows: np.ndarray,
    x: SparseCounts,
    y: Tensor,
    share: Share | None = None,
) -> Minibatch:
    device = y.device

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
    return Minibatch(rows, data.cell_keys[rows], x, y, context, log_mean, log_variance, share)


def sparse_rows(counts: sparse.csr_matrix, rows: np.ndarray) -> SparseCounts:
    """Return the cells at ``rows`` of a float32 CSR matrix as the tensors that the module takes."""
    pointer = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum(counts.indptr[rows + 1] - counts.indptr[rows], out=pointer[1:])
    data = np.empty(pointer[-1], dtype=np.float32)
    gene = np.empty(pointer[-1], dtype=counts.indices.dtype)
    take_rows(counts.data, counts.indices, counts.indptr, rows, data, gene, pointer)
    return SparseCounts(
        torch.from_numpy(data), torch.from_numpy(gene), torch.from_numpy(pointer), counts.shape[1]
    )
