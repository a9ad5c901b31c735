"""Columns of the counts that results hold, dense or sparse, in a file or a zarr store."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import zarr
from anndata.io import read_elem
from scipy import sparse


def opened(results: Path) -> h5py.File | zarr.Group:
    """Open results to read them."""
    return h5py.File(results, "r") if results.is_file() else zarr.open_group(results, mode="r")


def stored_column(stored: Any, position: int) -> np.ndarray:
    """Return a column of a stored matrix, (N,); a sparse one, of few columns, is read whole."""
    is_dense = isinstance(stored, h5py.Dataset | zarr.Array)
    column: np.ndarray = (stored if is_dense else read_elem(stored).toarray())[:, position]
    return column


def column_of(counts: sparse.csr_matrix, position: int) -> np.ndarray:
    """Return a column of a CSR matrix without sorting the matrix by columns.

    Examples
    --------
    >>> column_of(sparse.csr_matrix([[0.0, 2.0], [3.0, 0.0]]), 1)
    array([2., 0.], dtype=float32)
    """
    stored = np.flatnonzero(counts.indices == position)
    column = np.zeros(counts.shape[0], dtype=np.float32)
    cells = np.searchsorted(counts.indptr, stored, side="right") - 1
    np.add.at(column, cells, counts.data[stored])
    return column
