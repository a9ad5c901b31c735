"""Bring a count matrix of any storage into memory, as CSR or dense, without changing it."""

from numbers import Real
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from totalvi.errors import DataError


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
