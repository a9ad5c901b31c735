"""Where the rows of a result go: into memory, or into a zarr store on disk."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from totalvi.data.io.write_zarr import SparseRows, new_store, shared_store
from totalvi.processes import barrier, first_alone, this_process

ROWS_PER_CHUNK = 1024
"""Several processes that write at the same time each write whole chunks of this many rows."""


class RowTarget(Protocol):
    """An array, in memory or on disk, whose rows are written."""

    def __setitem__(self, rows: Any, values: Any, /) -> None: ...


class Table(NamedTuple):
    """Names of the cells and features of a result."""

    cells: pd.Index
    features: np.ndarray

    def frame(self, values: np.ndarray) -> pd.DataFrame:
        """Return ``values`` (cells, features) with the names, not copied."""
        return pd.DataFrame(values, index=self.cells, columns=self.features, copy=False)


@contextmanager
def row_targets(
    tables: Mapping[str, Table], out: str | Path | None, n_samples: int | None = None
) -> Iterator[Mapping[str, RowTarget]]:
    """Give something with rows to write for each table: an array, or a zarr array in ``out``.

    Parameters
    ----------
    tables
        By name of the result.
    out
        Folder of a zarr store that must not exist, or be empty: it gets a group for each table, which
        ``anndata.read_zarr`` reads. It appears whole when all is written, or not at all. None:
        memory. Several processes each write their `own_rows`, counted from 0.
    n_samples
        Length of a leading axis; None: there is none. Only in memory.

    Raises
    ------
    OutputError
        When ``out`` exists, or cannot be written.
    """
    if out is None:
        leading = () if n_samples is None else (n_samples,)
        yield {
            name: np.empty((*leading, len(table.cells), len(table.features)), dtype=np.float32)
            for name, table in tables.items()
        }
        return
    if n_samples is not None:
        raise ValueError("out takes means only; leave return_mean at True, or out at None.")
    with shared_store(out) as path:
        if this_process().rank == 0:
            create_tables(path, tables)
        barrier()
        arrays = open_tables(path, tables)
        yield {
            name: _OwnRows(array, own_rows(len(tables[name].cells)).start)
            for name, array in arrays.items()
        }


def own_rows(n_cells: int) -> slice:
    """Return the rows of a table in a store that this process writes: whole chunks."""
    return this_process().part_of_chunks(n_cells, ROWS_PER_CHUNK)


class _OwnRows(NamedTuple):
    """A zarr array of which this process writes the rows from ``first``, which it counts from 0."""

    array: RowTarget
    first: int

    def __setitem__(self, rows: slice, values: np.ndarray) -> None:
        if rows == slice(None):  # the table has no row for each cell, so all processes write it
            self.array[:] = values
        else:
            self.array[rows.start + self.first : rows.stop + self.first] = values


def write_counts(
    parts: Iterable[tuple[Sequence[sparse.csr_matrix], np.ndarray]],
    rna: Table,
    protein: Table,
    out: str | Path,
    n_samples: int,
) -> None:
    """Write counts to a new zarr store as they come, some cells at a time.

    Of several processes the first writes all.

    Parameters
    ----------
    parts
        RNA, one matrix for each sample, and protein (n_samples, cells, proteins), of the next cells.
    out
        Folder of the store. It gets the groups "rna", sparse, and "protein"; for several samples,
        "sample_0/rna" and so on.

    Raises
    ------
    OutputError
        When ``out`` exists, or cannot be written.
    """
    groups = [""] if n_samples == 1 else [f"sample_{i}/" for i in range(n_samples)]
    with first_alone() as is_first:
        if not is_first:
            return
        with new_store(out) as path:
            protein_tables = {f"{group}protein": protein for group in groups}
            create_tables(path, protein_tables)
            proteins = open_tables(path, protein_tables)
            matrices = [_sparse_table(path, f"{group}rna", rna) for group in groups]
            start = 0
            for rna_counts, protein_counts in parts:
                rows = slice(start, start + protein_counts.shape[1])
                start = rows.stop
                for i, group in enumerate(groups):
                    matrices[i].append(rna_counts[i])
                    proteins[f"{group}protein"][rows] = protein_counts[i]
            for matrix in matrices:
                matrix.close()


def write_sparse(
    parts: Iterable[sparse.csr_matrix], name: str, table: Table, out: str | Path
) -> Path:
    """Write a sparse table to the group ``name`` of a new zarr store as its rows come.

    Of several processes the first writes all.

    Raises
    ------
    OutputError
        When ``out`` exists, or cannot be written.
    """
    with first_alone() as is_first:
        if is_first:
            with new_store(out) as path:
                create_tables(path, {})
                matrix = _sparse_table(path, name, table)
                for rows in parts:
                    matrix.append(rows)
                matrix.close()
    return Path(out)


def _sparse_table(path: Path, name: str, table: Table) -> SparseRows:
    """Begin a sparse table in a store, in the layout of AnnData."""
    import zarr
    from anndata.io import write_elem

    root = zarr.open_group(str(path), mode="a", zarr_format=3)
    write_elem(root, name, _names(table))
    return SparseRows(root[name], "X", len(table.features), np.float32)


def _names(table: Table) -> AnnData:
    return AnnData(
        obs=pd.DataFrame(index=table.cells), var=pd.DataFrame(index=pd.Index(table.features))
    )


def create_tables(path: Path, tables: Mapping[str, Table]) -> None:
    """Begin a store: a group for each table in the layout of AnnData, with ``X`` still to be filled."""
    import zarr
    from anndata.io import write_elem

    root = zarr.open_group(str(path), mode="w", zarr_format=3)
    for name, table in tables.items():
        names = _names(table)
        write_elem(root, name, names)
        n_cells, n_features = names.shape
        array = root[name].create_array(
            "X",
            shape=(n_cells, n_features),
            chunks=(max(min(ROWS_PER_CHUNK, n_cells), 1), max(n_features, 1)),
            dtype=np.float32,
            compressors=None,  # because averages hardly compress, and trying takes long
            overwrite=True,
        )
        array.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})


def open_tables(path: Path, names: Iterable[str]) -> dict[str, RowTarget]:
    """Return the ``X`` of each table of a store that was begun, to be filled row by row."""
    import zarr

    root = zarr.open_group(str(path), mode="r+")
    return {name: root[f"{name}/X"] for name in names}
