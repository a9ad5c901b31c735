"""Counts of cells by genes or proteins: one protocol for counts in memory and on disk."""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from numbers import Real
from typing import Any, Literal, Protocol, Self, TypeVar

import h5py
import numpy as np
import pandas as pd
import zarr
from scipy import sparse

from totalvi.compiled import compiled
from totalvi.errors import DataError

ROWS_AT_A_TIME = 4096  # cells of a block; memory holds one block at a time
_LARGEST_GAP = 512  # longest gap of rows that is read instead of skipped: about a chunk
Block = TypeVar("Block", sparse.csr_matrix, np.ndarray)
BlockOf = TypeVar("BlockOf", covariant=True)
_Item = TypeVar("_Item")
_Found = TypeVar("_Found")


class Counts(Protocol[BlockOf]):
    """Counts (cells, features) that can be read some cells at a time, as CSR or as arrays."""

    shape: tuple[int, int]

    @abstractmethod
    def rows(self, which: np.ndarray | slice) -> BlockOf:
        """Return the cells at positions, in this order, or those of a slice of unit steps."""

    @abstractmethod
    def columns(self, which: np.ndarray) -> Self:
        """Return the same cells with the features at positions, in this order."""

    def blocks(self) -> Iterator[tuple[int, BlockOf]]:
        """Yield all cells in parts, each with the position of its first cell."""
        starts = range(0, self.shape[0], ROWS_AT_A_TIME)

        def read(start: int) -> BlockOf:
            return self.rows(slice(start, start + ROWS_AT_A_TIME))

        yield from zip(starts, read_ahead(read, starts), strict=True)

    def read(self) -> BlockOf:
        """Return all cells; counts in memory are not copied."""
        return self.rows(slice(None))


class CountsInMemory(Counts[Block]):
    """Counts in memory, as a CSR matrix or an array.

    Examples
    --------
    >>> counts = CountsInMemory(np.zeros((5000, 2)))
    >>> [(start, len(part)) for start, part in counts.blocks()]
    [(0, 4096), (4096, 904)]
    """

    def __init__(self, values: Block) -> None:
        self.values: Block = values
        self.shape: tuple[int, int] = values.shape[0], values.shape[1]

    def rows(self, which: np.ndarray | slice) -> Block:
        """Return the cells at positions, or those of a slice, which an array shares."""
        found: Block = self.values[which]
        return found

    def columns(self, which: np.ndarray) -> Self:
        """Return the features at positions."""
        return self if _are_all(which, self.shape) else type(self)(self.values[:, which])

    def blocks(self) -> Iterator[tuple[int, Block]]:
        """Yield all cells in parts."""
        for start in range(0, self.shape[0], ROWS_AT_A_TIME):
            yield start, self.rows(slice(start, start + ROWS_AT_A_TIME))

    def read(self) -> Block:
        """Return the values themselves."""
        return self.values


class MeasuredCounts(Counts[np.ndarray]):
    """Protein counts with 0 for the proteins that the cell's panel did not measure.

    Parameters
    ----------
    protein
        Counts (N, T).
    panel
        Codes, (N,).
    measured
        Which proteins each panel measured, (panels, T).
    """

    def __init__(
        self, protein: Counts[np.ndarray], panel: np.ndarray, measured: np.ndarray
    ) -> None:
        self._protein, self._panel, self._measured = protein, panel, measured
        self.shape = protein.shape

    def rows(self, which: np.ndarray | slice) -> np.ndarray:
        """Return the cells at positions, or those of a slice."""
        measured = self._measured[self._panel[which]]
        return np.where(measured, self._protein.rows(which), np.float32(0))

    def columns(self, which: np.ndarray) -> Self:
        """Return the features at positions."""
        return type(self)(self._protein.columns(which), self._panel, self._measured[:, which])


class _OnDisk(Counts[Block]):
    """A matrix on disk from which only the requested rows are read, as float32.

    Rows near each other are read together. Time and memory do not depend on the size of the matrix.

    Parameters
    ----------
    stored
        A sparse dataset of anndata in CSR, or a two-dimensional dataset of HDF5 or zarr.
    where
        Name of the matrix, for messages.
    columns
        Positions of the columns to return, in this order. None: all.

    Raises
    ------
    DataError
        When the matrix is stored by column (CSC), holds no numbers, or is damaged.
    """

    def __init__(self, stored: Any, where: str, *, columns: np.ndarray | None = None) -> None:
        self._stored, self._where, self._columns = stored, where, columns
        self._pointer: np.ndarray | None = None
        n_rows, n_columns = map(int, stored.shape)
        if hasattr(stored, "format"):
            if stored.format != "csr":
                raise DataError(
                    f"{where} is stored by column ({stored.format}), which cannot be read some cells "
                    "at a time; write it as CSR (`adata.X = adata.X.tocsr()`), or read it into memory."
                )
            self._stored = stored.group
            self._pointer = np.asarray(self._stored["indptr"][...]).astype(np.int64)
            n_stored = min(self._stored[part].shape[0] for part in ("data", "indices"))
            _require_pointer(self._pointer, n_rows, n_stored, where)
        _require_real(stored.dtype, where)
        self._n_stored_columns = n_columns
        self.shape = n_rows, n_columns if columns is None else len(columns)

    def rows(self, which: np.ndarray | slice) -> Block:
        """Read the cells at positions, or those of a slice."""
        if isinstance(which, slice):
            which = np.arange(*which.indices(self.shape[0]))
        if (which[1:] > which[:-1]).all():
            return self._ascending(which)
        wanted, place = np.unique(which, return_inverse=True)
        return self._ascending(wanted)[place]

    def columns(self, which: np.ndarray) -> Self:
        """Return the features at positions, without reading them yet."""
        if _are_all(which, self.shape):
            return self
        other = copy(self)
        other._columns = which if self._columns is None else self._columns[which]
        other.shape = self.shape[0], len(which)
        return other

    @abstractmethod
    def _ascending(self, rows: np.ndarray) -> Block:
        """Read rows in ascending order."""

    def _piece(self, rows: np.ndarray) -> Any:
        """Read a few rows near each other, in ascending order, sparse if the matrix is."""
        start, stop = int(rows[0]), int(rows[-1]) + 1
        found = self._span(start, stop)
        if len(rows) < stop - start:
            found = found[rows - start]
        return found if self._columns is None else found[:, self._columns]

    def _span(self, start: int, stop: int) -> Any:
        if self._pointer is None:
            return np.asarray(self._stored[start:stop]).astype(np.float32)
        first, last = int(self._pointer[start]), int(self._pointer[stop])
        counts = np.asarray(self._stored["data"][first:last]).astype(np.float32)
        column = np.asarray(self._stored["indices"][first:last])
        if len(column) and not (column.min() >= 0 and column.max() < self._n_stored_columns):
            raise DataError(
                f"{self._where} has column numbers beyond its {self._n_stored_columns} columns; it is "
                "damaged, so copy, download or write it again."
            )
        pointer = self._pointer[start : stop + 1] - first
        shape = (stop - start, self._n_stored_columns)
        found = sparse.csr_matrix((counts, column, pointer), shape=shape)
        if not found.has_canonical_format:
            found.sum_duplicates()
        return found


class DenseOnDisk(_OnDisk[np.ndarray]):
    """A matrix on disk, read as arrays."""

    def _ascending(self, rows: np.ndarray) -> np.ndarray:
        parts = [self._piece(piece) for piece in _pieces(rows)]
        arrays = [part if isinstance(part, np.ndarray) else part.toarray() for part in parts]
        return np.concatenate(arrays) if arrays else np.empty((0, self.shape[1]), dtype=np.float32)


class SparseOnDisk(_OnDisk[sparse.csr_matrix]):
    """A matrix on disk, read as CSR without stored zeros."""

    def _ascending(self, rows: np.ndarray) -> sparse.csr_matrix:
        if self._pointer is not None and self._columns is None:
            found = self._copied(rows, self._pointer)
            if found is not None:
                return found
        parts = [sparse.csr_matrix(self._piece(piece)) for piece in _pieces(rows)]
        for part in parts:
            part.eliminate_zeros()
        if not parts:
            return sparse.csr_matrix(np.empty((0, self.shape[1]), dtype=np.float32))
        return parts[0] if len(parts) == 1 else sparse.vstack(parts, format="csr")

    def _copied(self, rows: np.ndarray, pointer: np.ndarray) -> sparse.csr_matrix | None:
        """Return rows of a CSR matrix, copied once; None if it is not in canonical form."""
        new_pointer = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum(pointer[rows + 1] - pointer[rows], out=new_pointer[1:])
        counts = np.empty(new_pointer[-1], dtype=np.float32)
        column = np.empty(new_pointer[-1], dtype=np.int32)
        done = 0
        for piece in _pieces(rows):
            first, last = pointer[piece[0]], pointer[piece[-1] + 1]
            sound = _copy_rows(
                np.asarray(self._stored["data"][first:last]),
                np.asarray(self._stored["indices"][first:last]),
                pointer[piece] - first, new_pointer[done : done + len(piece) + 1],
                counts, column, self.shape[1],
            )  # fmt: skip
            if not sound:
                return None
            done += len(piece)
        return sparse.csr_matrix((counts, column, new_pointer), shape=(len(rows), self.shape[1]))


@compiled(nogil=True)
def _copy_rows(
    counts: np.ndarray, column: np.ndarray, start: np.ndarray, new_pointer: np.ndarray,
    new_counts: np.ndarray, new_column: np.ndarray, n_columns: int,
) -> bool:  # fmt: skip
    """Copy the rows that begin at ``start``; return whether columns ascend and no count is 0."""
    sound = True
    for i in range(len(start)):
        previous = -1
        for target in range(new_pointer[i], new_pointer[i + 1]):
            source = start[i] + target - new_pointer[i]
            here = column[source]
            if here <= previous or here >= n_columns or counts[source] == 0:
                sound = False
            previous = here
            new_counts[target] = counts[source]
            new_column[target] = here
    return sound


def read_ahead(read: Callable[[_Item], _Found], items: Sequence[_Item]) -> Iterator[_Found]:
    """Yield the result of ``read`` for each item; a thread reads the next one in the meantime.

    Examples
    --------
    >>> list(read_ahead(lambda x: 2 * x, [1, 2, 3]))
    [2, 4, 6]
    """
    with ThreadPoolExecutor(1, thread_name_prefix="totalvi-reader") as reader:
        coming = [reader.submit(read, item) for item in items[:1]]
        for following in items[1:]:
            found = coming.pop().result()
            coming.append(reader.submit(read, following))
            yield found
            del found
        if coming:
            yield coming.pop().result()


def _pieces(rows: np.ndarray) -> Iterator[np.ndarray]:
    """Split ascending rows at long gaps, and then into pieces of limited length."""
    for run in np.split(rows, np.flatnonzero(np.diff(rows) > _LARGEST_GAP) + 1):
        if len(run):
            pieces = (run - run[0]) // ROWS_AT_A_TIME
            yield from np.split(run, np.flatnonzero(np.diff(pieces)) + 1)


def _are_all(columns: np.ndarray, shape: tuple[int, int]) -> bool:
    return np.array_equal(columns, np.arange(shape[1]))


def _require_pointer(pointer: np.ndarray, n_rows: int, n_stored: int, where: str) -> None:
    is_sound = len(pointer) == n_rows + 1 and pointer[0] == 0 and pointer[-1] <= n_stored
    if not (is_sound and (np.diff(pointer) >= 0).all()):
        raise DataError(
            f"{where} is damaged (its row pointer does not fit its {n_rows} rows and {n_stored} "
            "values); copy, download or write it again."
        )


def lies_on_disk(values: Any) -> bool:
    """Return whether ``values`` is a matrix of HDF5 or zarr on disk."""
    return hasattr(values, "group") or isinstance(values, h5py.Dataset | zarr.Array)


def in_memory(values: Any) -> Any:
    """Load a matrix from disk (HDF5, zarr, dask); return others unchanged."""
    if hasattr(values, "to_memory"):
        return values.to_memory()
    if hasattr(values, "compute"):
        return values.compute()
    if _is_sparse(values) or isinstance(values, np.ndarray | pd.DataFrame):
        return values
    return np.asarray(values[...])


def to_csr(values: Any, where: str, cells: pd.Index, features: pd.Index) -> sparse.csr_matrix:
    """Return CSR with sorted, unique column indices; share memory with ``values`` if possible."""
    values = in_memory(values)
    if not _is_sparse(values):
        return sparse.csr_matrix(_numeric(np.asarray(values), where, cells, features))
    _require_real(values.dtype, where)
    found = values.tocsr() if values.format != "csr" else values
    # Create a new object around the same arrays, so that scipy's cached flags do not change.
    rna = sparse.csr_matrix((found.data, found.indices, found.indptr), shape=found.shape)
    if not rna.has_canonical_format:
        rna = rna.copy()
        rna.sum_duplicates()
    return rna


def to_dense(values: Any, where: str, cells: pd.Index, features: pd.Index) -> np.ndarray:
    """Return a dense float32 copy."""
    values = in_memory(values)
    if _is_sparse(values):
        _require_real(values.dtype, where)
        return np.asarray(values.toarray(), dtype=np.float32)
    if isinstance(values, pd.DataFrame) and not all(map(_is_real, values.dtypes)):
        columns = (values.iloc[:, [i]].to_numpy() for i in range(values.shape[1]))
        named = zip(columns, features, strict=True)
        numbers = [_numeric(column, where, cells, pd.Index([name])) for column, name in named]
        return np.hstack(numbers).astype(np.float32)
    array = np.asarray(values)
    table = array.reshape(len(array), -1) if array.ndim < 2 else array
    return _numeric(table, where, cells, features).astype(np.float32)


def _is_sparse(values: Any) -> bool:
    return bool(sparse.issparse(values))


def _is_real(dtype: Any) -> bool:
    return isinstance(dtype, np.dtype) and dtype.kind in "fiub"


def _numeric(array: np.ndarray, where: str, cells: pd.Index, features: pd.Index) -> np.ndarray:
    """Return a matrix of numbers unchanged, and one of Python numbers as float64; refuse text."""
    if _is_real(array.dtype):
        return array
    for j, column in enumerate(array.T):
        for i, value in enumerate(column):
            if not (isinstance(value, Real) or pd.isna(value)):
                raise DataError(
                    f'{where} holds {type(value).__name__} in place of counts, first "{value}" in '
                    f'cell "{cells[i]}", feature "{features[j]}"; convert it to numbers.'
                )
    return np.where(pd.isna(array), np.nan, array).astype(np.float64)


def _require_real(dtype: Any, where: str) -> None:
    if not _is_real(dtype):
        raise DataError(f"{where} holds {dtype} values in place of counts; convert it to numbers.")


def evenly_spaced(
    cells: np.ndarray, at_most: int, *, rounding: Literal["nearest", "down"] = "nearest"
) -> np.ndarray:
    """Return at most ``at_most`` cells: the first, the last and evenly spaced ones between them.

    Parameters
    ----------
    rounding
        Function that rounds positions between two cells.

    Examples
    --------
    >>> evenly_spaced(np.arange(10, 15), 4).tolist()
    [10, 11, 13, 14]
    """
    if len(cells) <= at_most:
        return cells
    places = np.linspace(0, len(cells) - 1, at_most)
    return cells[(places.round() if rounding == "nearest" else places).astype(np.int64)]
