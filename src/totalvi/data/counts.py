"""Counts that stay on disk: rows of a matrix in HDF5 or zarr, read when they are asked for."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from numbers import Real
from typing import Any, Literal, Self, TypeVar

import h5py
import numpy as np
import pandas as pd
import zarr
from scipy import sparse

from totalvi.compiled import compiled
from totalvi.errors import DataError

ROWS_AT_A_TIME = 4096  # read in one piece, of which memory holds one at a time
_Item = TypeVar("_Item")
_Found = TypeVar("_Found")
_LARGEST_GAP = 512  # rows read in vain rather than a read begun anew: about a chunk


class RowsOnDisk:
    """A matrix on disk of which only the rows asked for are read, as float32.

    ``matrix[rows]``, with positions or a slice of unit steps, is a CSR matrix, or an array where
    ``dense`` is True. Rows near each other are read together; neither time nor memory depends on
    the size of the whole.

    Parameters
    ----------
    stored
        A sparse dataset of anndata in CSR, or a two-dimensional dataset of HDF5 or zarr.
    where
        Name of the matrix, for messages.
    columns
        Positions of the columns to give, in that order. None: all.
    dense
        Whether rows are given as arrays.

    Raises
    ------
    DataError
        When the matrix is stored by column (CSC), holds no numbers, or is damaged.
    """

    def __init__(
        self, stored: Any, where: str, *, columns: np.ndarray | None = None, dense: bool = False
    ) -> None:
        self._stored, self.where, self.dense = stored, where, dense
        self._pointer: np.ndarray | None = None
        n_rows, n_columns = map(int, stored.shape)
        if hasattr(stored, "format"):
            if stored.format != "csr":
                raise DataError(
                    f"{where} is stored by column ({stored.format}), which cannot be read some cells "
                    "at a time: write it as CSR (`adata.X = adata.X.tocsr()`), or read it into memory"
                )
            self._stored = stored.group
            self._pointer = np.asarray(self._stored["indptr"][...]).astype(np.int64)
            n_stored = min(self._stored[part].shape[0] for part in ("data", "indices"))
            _require_pointer(self._pointer, n_rows, n_stored, where)
        dtype = stored.dtype
        if dtype.kind not in "fiub":
            raise DataError(
                f"{where} holds {dtype} values in place of counts: convert it to numbers"
            )
        self._n_stored_columns = n_columns
        self.columns = columns
        self.shape = (n_rows, n_columns if columns is None else len(columns))

    def __len__(self) -> int:
        return self.shape[0]

    def take_columns(self, columns: np.ndarray) -> Self:
        """Return the same rows with the columns at these positions."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other.columns = columns if self.columns is None else self.columns[columns]
        other.shape = (self.shape[0], len(columns))
        return other

    def __getitem__(self, rows: np.ndarray | slice) -> Any:
        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(self.shape[0]))
        if (rows[1:] > rows[:-1]).all():
            return self._ascending(rows)
        wanted, place = np.unique(rows, return_inverse=True)
        return self._ascending(wanted)[place]

    def _ascending(self, rows: np.ndarray) -> Any:
        """Return rows that ascend."""
        if self._pointer is not None and self.columns is None and not self.dense:
            found = self._copied(rows, self._pointer)
            if found is not None:
                return found
        return _stacked([self._piece(piece) for piece in _pieces(rows)], self.shape[1], self.dense)

    def _copied(self, rows: np.ndarray, pointer: np.ndarray) -> sparse.csr_matrix | None:
        """Return rows of a CSR matrix, copied once; None where it is not in canonical form."""
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

    def _piece(self, rows: np.ndarray) -> Any:
        """Return a few rows that are near each other and ascend."""
        start, stop = int(rows[0]), int(rows[-1]) + 1
        found: Any = self._read(start, stop)
        if len(rows) < stop - start:
            found = found[rows - start]
        if self.columns is not None:
            found = found[:, self.columns]
        if self.dense:
            return found if isinstance(found, np.ndarray) else found.toarray()
        found = found if sparse.issparse(found) else sparse.csr_matrix(found)
        found.eliminate_zeros()
        return found

    def _read(self, start: int, stop: int) -> Any:
        if self._pointer is None:
            return np.asarray(self._stored[start:stop]).astype(np.float32)
        first, last = int(self._pointer[start]), int(self._pointer[stop])
        counts = np.asarray(self._stored["data"][first:last]).astype(np.float32)
        column = np.asarray(self._stored["indices"][first:last])
        if len(column) and not (column.min() >= 0 and column.max() < self._n_stored_columns):
            raise DataError(
                f"{self.where} has column numbers beyond its {self._n_stored_columns} columns: it is "
                "damaged, so copy, download or write it again"
            )
        pointer = self._pointer[start : stop + 1] - first
        shape = (stop - start, self._n_stored_columns)
        found = sparse.csr_matrix((counts, column, pointer), shape=shape)
        if not found.has_canonical_format:
            found.sum_duplicates()
        return found


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


def take_columns(matrix: Any, columns: np.ndarray) -> Any:
    """Return the columns at these positions; the matrix itself where they are all, in order."""
    if np.array_equal(columns, np.arange(matrix.shape[1])):
        return matrix
    return matrix.take_columns(columns) if isinstance(matrix, RowsOnDisk) else matrix[:, columns]


def lies_on_disk(values: Any) -> bool:
    """Return whether ``values`` is a matrix of HDF5 or zarr that has not been read."""
    return hasattr(values, "group") or isinstance(values, h5py.Dataset | zarr.Array)


def row_blocks(matrix: Any) -> Iterator[tuple[int, Any]]:
    """Yield a matrix, in memory or on disk, in parts, each with the position of its first row.

    Examples
    --------
    >>> import numpy as np
    >>> [(start, len(part)) for start, part in row_blocks(np.zeros((5000, 2)))]
    [(0, 4096), (4096, 904)]
    """
    starts = range(0, matrix.shape[0], ROWS_AT_A_TIME)

    def read(start: int) -> Any:
        return matrix[start : start + ROWS_AT_A_TIME]

    in_memory = isinstance(matrix, np.ndarray) or sparse.issparse(matrix)
    yield from zip(
        starts, map(read, starts) if in_memory else read_ahead(read, starts), strict=True
    )


def read_ahead(read: Callable[[_Item], _Found], items: Sequence[_Item]) -> Iterator[_Found]:
    """Yield what ``read`` gives for each item, reading the next in a thread while this one is used.

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
    """Divide ascending rows where gaps are long, and again into pieces that are not."""
    for run in np.split(rows, np.flatnonzero(np.diff(rows) > _LARGEST_GAP) + 1):
        if len(run):
            pieces = (run - run[0]) // ROWS_AT_A_TIME
            yield from np.split(run, np.flatnonzero(np.diff(pieces)) + 1)


def _stacked(parts: list[Any], n_columns: int, dense: bool) -> Any:
    if dense:
        return np.concatenate(parts) if parts else np.empty((0, n_columns), dtype=np.float32)
    if not parts:
        return sparse.csr_matrix(np.empty((0, n_columns), dtype=np.float32))
    return parts[0] if len(parts) == 1 else sparse.vstack(parts, format="csr")


def _require_pointer(pointer: np.ndarray, n_rows: int, n_stored: int, where: str) -> None:
    rises = len(pointer) == n_rows + 1 and pointer[0] == 0 and bool((np.diff(pointer) >= 0).all())
    if not (rises and pointer[-1] <= n_stored):
        raise DataError(
            f"{where} is damaged (its row pointer does not fit its {n_rows} rows and {n_stored} "
            "values): copy, download or write it again"
        )


def in_memory(values: Any) -> Any:
    """Load a matrix that lies on disk (HDF5, zarr, dask); leave others as they are."""
    if hasattr(values, "to_memory"):
        return values.to_memory()
    if hasattr(values, "compute"):
        return values.compute()
    if _is_sparse(values) or isinstance(values, np.ndarray | pd.DataFrame):
        return values
    return np.asarray(values[...])


def to_csr(values: Any, where: str, cells: pd.Index, features: pd.Index) -> sparse.csr_matrix:
    """Return CSR with sorted, unique column indices; shares memory with ``values`` if it can."""
    values = in_memory(values)
    if not _is_sparse(values):
        return sparse.csr_matrix(_numeric(np.asarray(values), where, cells, features))
    _require_real(values.dtype, where)
    found = values.tocsr() if values.format != "csr" else values
    # A new object around the same arrays, so that not even scipy's cached flags change.
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
        columns = [values.iloc[:, [i]].to_numpy() for i in range(values.shape[1])]
        columns = [
            _numeric(column, where, cells, features[i : i + 1]) for i, column in enumerate(columns)
        ]
        return np.hstack(columns).astype(np.float32)
    array = np.asarray(values)
    array = array.reshape(len(array), -1) if array.ndim < 2 else array
    return _numeric(array, where, cells, features).astype(np.float32)


def _is_sparse(values: Any) -> bool:
    return bool(sparse.issparse(values))


def _is_real(dtype: Any) -> bool:
    return isinstance(dtype, np.dtype) and dtype.kind in "fiub"


def _numeric(array: np.ndarray, where: str, cells: pd.Index, features: pd.Index) -> np.ndarray:
    """Return a matrix of numbers as it is, one of Python numbers as float64; refuse text."""
    if _is_real(array.dtype):
        return array
    for j, column in enumerate(array.T):
        for i, value in enumerate(column):
            if not (isinstance(value, Real) or pd.isna(value)):
                raise DataError(
                    f'{where} holds {type(value).__name__} in place of counts, first "{value}" in '
                    f'cell "{cells[i]}", feature "{features[j]}": convert it to numbers'
                )
    numbers = np.where(pd.isna(array), np.nan, array)
    return numbers.astype(np.float64)


def _require_real(dtype: Any, where: str) -> None:
    if not _is_real(dtype):
        raise DataError(f"{where} holds {dtype} values in place of counts: convert it to numbers")


def evenly_spaced(
    cells: np.ndarray, at_most: int, *, rounding: Literal["nearest", "down"] = "nearest"
) -> np.ndarray:
    """Return at most so many of the cells, the first, the last and others evenly spaced between them.

    Parameters
    ----------
    rounding
        How places between two cells are rounded.

    Examples
    --------
    >>> evenly_spaced(np.arange(10, 15), 4).tolist()
    [10, 11, 13, 14]
    """
    if len(cells) <= at_most:
        return cells
    places = np.linspace(0, len(cells) - 1, at_most)
    return cells[(places.round() if rounding == "nearest" else places).astype(np.int64)]
