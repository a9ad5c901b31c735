"""Nothing in a count file is believed before it is checked: damage becomes a ReadError here."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from totalvi.data.counts import to_csr
from totalvi.errors import DataError, ReadError, TotalviError

COMPRESSED = (sparse.csr_matrix, sparse.csc_matrix, sparse.csr_array, sparse.csc_array)


@contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """Turn whatever a parser raises on a damaged file into a ReadError that names the file."""
    try:
        yield
    except TotalviError:
        raise
    except MemoryError as error:
        raise ReadError(
            f"{path} needs more memory than there is ({error}): read it on a machine with more, or, if "
            "it should not be that large, copy, download or write it again"
        ) from error
    except PermissionError as error:
        raise ReadError(f"{path} may not be read: ask its owner for permission") from error
    except Exception as error:  # h5py, zarr, gzip, scipy and anndata raise some dozen types
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ReadError(
            f"{path} cannot be read as {what} ({lines[0][:200].rstrip('.')}): it is damaged or cut "
            "short, so copy, download or write it again"
        ) from error


def counts_from_csr(
    data: np.ndarray, indices: np.ndarray, indptr: np.ndarray, shape: tuple[int, int], where: str
) -> sparse.csr_matrix:
    """Build cells x features counts (CSR, float32) from its three arrays once they fit together."""
    _require_consistent(data, indices, indptr, shape, where)
    counts = sparse.csr_matrix((data.astype(np.float32), indices, indptr), shape=shape)
    counts.sum_duplicates()
    return counts


def counts_from(values: Any, where: str, cells: pd.Index, features: pd.Index) -> sparse.csr_matrix:
    """Return any matrix of numbers, sparse, dense or a DataFrame, as checked CSR float32."""
    if values is None:
        raise ReadError(f"{where} has no X: write it again with the raw counts in X")
    require_sound(values, where)
    try:
        counts = to_csr(values, where, cells, features)
    except DataError as error:
        raise ReadError(str(error)) from error
    if counts.shape != (len(cells), len(features)):
        raise ReadError(
            f"{where} is {counts.shape[0]} x {counts.shape[1]} but there are {len(cells)} cells and "
            f"{len(features)} names of features: write the file again with both in step"
        )
    return counts.astype(np.float32, copy=False)


def require_sound(values: Any, where: str) -> None:
    """Refuse a CSR or CSC matrix whose indices point outside it; let all other types pass."""
    if isinstance(values, COMPRESSED):
        major, minor = values.shape if values.format == "csr" else values.shape[::-1]
        _require_consistent(values.data, values.indices, values.indptr, (major, minor), where)


def require_sound_anndata(adata: AnnData, where: str) -> None:
    """Check every sparse matrix of an AnnData before anything computes with it."""
    for name, values in (("X", adata.X), *adata.layers.items(), *adata.obsm.items()):
        require_sound(values, f'"{name}" of {where}')


def require_lengths(path: Path, n_rows: int, n_features: int, n_columns: int, n_cells: int) -> None:
    """Refuse a matrix of n_rows x n_columns whose features or barcodes are not as many."""
    for n, named, what in ((n_rows, n_features, "features"), (n_columns, n_cells, "barcodes")):
        if n != named:
            raise ReadError(
                f"{path} does not fit together (counts for {n} {what}, but {named} {what} are "
                "listed): use the files of one and the same Cell Ranger run"
            )


def _require_consistent(
    data: np.ndarray, indices: np.ndarray, indptr: np.ndarray, shape: tuple[int, int], where: str
) -> None:
    n_rows, n_columns = shape
    fault = None
    if data.dtype.kind not in "iufb" or not {indices.dtype.kind, indptr.dtype.kind} <= set("iu"):
        fault = f"counts of type {data.dtype} at indices of type {indices.dtype}"
    elif len(indptr) != n_rows + 1:
        fault = f"row pointers for {len(indptr) - 1} rows in place of {n_rows}"
    elif len(data) != len(indices):
        fault = f"{len(data)} counts but {len(indices)} indices"
    elif indptr[0] != 0 or int(indptr[-1]) != len(data):
        fault = f"row pointers from {indptr[0]} to {indptr[-1]} for {len(data)} counts"
    elif (np.diff(indptr.astype(np.int64)) < 0).any():
        fault = "row pointers that go backwards"
    elif len(indices) and (indices.min() < 0 or indices.max() >= n_columns):
        worst = indices.min() if indices.min() < 0 else indices.max()
        fault = f"a count at index {worst}, outside the {n_columns} columns"
    if fault is not None:
        raise ReadError(
            f"{where} is damaged (its sparse matrix has {fault}): copy, download or write it again"
        )
