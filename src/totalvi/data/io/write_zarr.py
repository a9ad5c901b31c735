"""Write counts to a zarr store that is fast to read: CSR in shards of compressed chunks."""

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import mudata
import numpy as np
import pandas as pd
import zarr
from anndata import AnnData
from mudata import MuData
from scipy import sparse
from zarr.codecs import BloscCodec

from totalvi.atomic import locked, new_folder, parents_of, partial_of, writing
from totalvi.errors import DataError, OutputError, listed
from totalvi.processes import barrier, first_alone

ENTRIES_PER_CHUNK, CHUNKS_PER_SHARD = 1 << 17, 64  # entries of CSR in a chunk: some hundred cells
ROWS_PER_CHUNK, ROWS_PER_SHARD = 1024, 1 << 16  # rows of dense matrices in a chunk
_COMPRESSOR = BloscCodec(cname="lz4", clevel=5, shuffle="shuffle")


class CountsTooLarge(ValueError):  # noqa: N818  # not an error: the writer starts again
    """A count does not fit the data type of the store."""


def name_in_store(name: str) -> str:
    """Return the name of a column or entry in a zarr store, which holds none with a slash.

    Examples
    --------
    >>> name_in_store("donor/id")
    'donor_id'
    """
    return name.replace("/", "_")


def without_slashes(value: Any) -> Any:
    """Return a table or a mapping, and what is in it, with the names of `name_in_store`.

    Raises
    ------
    DataError
        When two of the names would be one.
    """
    if not isinstance(value, pd.DataFrame | Mapping):
        return value
    names = pd.Index([name_in_store(str(name)) for name in value])
    if names.has_duplicates and "/" in "".join(map(str, value)):
        both = [
            str(name) for name in value if name_in_store(str(name)) in names[names.duplicated()]
        ]
        raise DataError(
            f"{listed(both)} would have one name in a zarr store, which holds no slash in names; "
            "rename one of them."
        )
    if isinstance(value, pd.DataFrame):
        index = None if value.index.name is None else name_in_store(str(value.index.name))
        return value.set_axis(names, axis=1).rename_axis(index)
    return {name: without_slashes(value[old]) for name, old in zip(names, value, strict=True)}


class CountStore:
    """A MuData on disk whose counts of RNA and proteins are appended some cells at a time.

    Use it as a context manager: the store is complete when the block has ended. ``mudata.read_zarr``,
    `totalvi.read` and `totalvi.data.io.h5_zarr.open_on_disk` read it.

    Parameters
    ----------
    path
        Folder of the store, which is created.
    obs
        Annotation of all cells.
    rna_var, protein_var
        Annotation of the features.
    rna_dtype
        Data type of the RNA counts on disk.
    others
        Further modalities, in memory.
    uns
        Further entries of ``uns``.

    Examples
    --------
    >>> import tempfile, totalvi
    >>> mdata = totalvi.simulate(n_cells=60, n_genes=30, n_proteins=5)
    >>> path = Path(tempfile.mkdtemp()) / "cells.zarr"
    >>> with CountStore(path, mdata.obs, mdata["rna"].var, mdata["prot"].var, np.uint16) as store:
    ...     store.append(mdata["rna"].X[:40], mdata["prot"].X[:40])
    ...     store.append(mdata["rna"].X[40:], mdata["prot"].X[40:])
    >>> totalvi.read(path)["rna"].X.sum() == mdata["rna"].X.sum()
    np.True_
    """

    def __init__(
        self,
        path: Path,
        obs: pd.DataFrame,
        rna_var: pd.DataFrame,
        protein_var: pd.DataFrame,
        rna_dtype: Any,
        others: dict[str, AnnData] | None = None,
        uns: dict[str, Any] | None = None,
    ) -> None:
        cells = pd.DataFrame(index=obs.index)
        modalities = {
            "rna": AnnData(obs=cells, var=without_slashes(rna_var)),
            "prot": AnnData(obs=cells, var=without_slashes(protein_var)),
        }
        for name, part in (others or {}).items():
            obs_of_part, var = without_slashes(part.obs), without_slashes(part.var)
            modalities[name] = AnnData(part.X, obs=obs_of_part, var=var)
        # chunks of zeros would look lost if they were not written
        keeping_empty = zarr.config.set({"array.write_empty_chunks": True})
        with mudata.set_options(pull_on_update=False), keeping_empty:
            skeleton = MuData(modalities)
            skeleton.obs = without_slashes(obs)
            skeleton.uns.update(uns or {})
            mudata.write_zarr(str(path), skeleton, zarr_format=3)
        root = zarr.open_group(path, mode="a")
        self._rna = SparseRows(root["mod/rna"], "X", len(rna_var), rna_dtype)
        self._protein = DenseRows(root["mod/prot"], "X", len(protein_var))

    def append(self, rna: sparse.csr_matrix, protein: np.ndarray) -> None:
        """Write the next cells; unmeasured proteins may be NaN.

        Raises
        ------
        CountsTooLarge
            When a count does not fit ``rna_dtype``.
        """
        self._rna.append(rna)
        self._protein.append(protein)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        if kind is None:
            self._rna.close()
            self._protein.close()


def write_counts(
    path: Path,
    blocks: Callable[[], Iterable[tuple[sparse.csr_matrix, np.ndarray]]],
    *,
    obs: pd.DataFrame,
    rna_var: pd.DataFrame,
    protein_var: pd.DataFrame,
    others: dict[str, AnnData] | None = None,
    uns: dict[str, Any] | None = None,
) -> None:
    """Write the RNA and protein counts of ``blocks``, in order, to a store at ``path``.

    RNA counts have the narrowest type of uint16, int32 and float32 that holds all of them. If a count
    does not fit, the store is written again from the start.
    """
    for dtype in (np.uint16, np.int32, np.float32):
        try:
            with CountStore(path, obs, rna_var, protein_var, dtype, others, uns) as store:
                for rna, protein in blocks():
                    store.append(rna, protein)
        except CountsTooLarge:
            shutil.rmtree(path)
            continue
        return


@contextmanager
def new_store(out: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty folder for a store, which replaces ``out`` when the block ends without an error.

    No other process can write ``out`` in the meantime. At every moment the old or the new store is
    complete.

    Parameters
    ----------
    out
        A folder that does not exist or is empty, or a link to one; missing parents are created.
    overwrite
        Whether to replace an existing zarr store.

    Raises
    ------
    OutputError
        When ``out`` may not be replaced, is being written, or cannot be written.
    """
    target = Path(os.path.realpath(out))
    _require_replaceable(target, overwrite)
    with parents_of(target), locked(target):
        _require_replaceable(target, overwrite)  # another process may have just written it
        with new_folder(target) as folder:
            yield folder


@contextmanager
def shared_store(out: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield the folder of `new_store` in all processes; each writes a part of it.

    The first process writes what all of them need before a `totalvi.processes.barrier`.
    """
    target = Path(os.path.realpath(out))
    with ExitStack() as written:
        with first_alone() as is_first:
            if is_first:
                folder = written.enter_context(new_store(out, overwrite=overwrite))
            else:
                folder = partial_of(target)
        with nullcontext() if is_first else writing(target):
            yield folder
        barrier()  # all processes have written
    barrier()  # the store is in its place


def _require_replaceable(target: Path, overwrite: bool) -> None:
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not overwrite:
        raise OutputError(f"{target} exists already; choose another folder, or remove it.")
    if not any((target / name).is_file() for name in ("zarr.json", ".zgroup")):
        raise OutputError(f"{target} is not a zarr store, and stays; choose another folder.")


class SparseRows:
    """A CSR matrix in the layout of AnnData, to which rows are appended."""

    def __init__(self, group: zarr.Group, name: str, n_columns: int, dtype: Any) -> None:
        self._group = group.create_group(name, overwrite=True)
        self._n_columns, self._dtype = n_columns, np.dtype(dtype)
        self._pointer, self._n_entries = [np.zeros(1, dtype=np.int64)], 0
        per_shard = ENTRIES_PER_CHUNK * CHUNKS_PER_SHARD
        self._data, self._indices = (
            _Growing(self._group, part, (), ENTRIES_PER_CHUNK, per_shard, of)
            for part, of in (("data", self._dtype), ("indices", np.dtype(np.int32)))
        )

    def append(self, rows: sparse.csr_matrix) -> None:
        """Write the next rows."""
        with np.errstate(invalid="ignore"):  # NaN needs float32
            counts = rows.data.astype(self._dtype)
        if self._dtype.kind != "f" and not np.array_equal(counts, rows.data):
            raise CountsTooLarge(f"a count is not of type {self._dtype}")
        self._data.append(counts)
        self._indices.append(rows.indices.astype(np.int32))
        self._pointer.append(self._n_entries + rows.indptr[1:].astype(np.int64))
        self._n_entries += len(counts)

    def close(self) -> None:
        """Write the remaining entries and the row pointers."""
        self._data.close()
        self._indices.close()
        pointer = np.concatenate(self._pointer)
        self._group.create_array("indptr", data=pointer, chunks=(max(len(pointer), 1),))
        self._group.attrs.update(
            {
                "encoding-type": "csr_matrix",
                "encoding-version": "0.1.0",
                "shape": [len(pointer) - 1, self._n_columns],
            }
        )


class DenseRows:
    """A dense float32 matrix in the layout of AnnData, to which rows are appended."""

    def __init__(self, group: zarr.Group, name: str, n_columns: int) -> None:
        self._rows = _Growing(
            group, name, (n_columns,), ROWS_PER_CHUNK, ROWS_PER_SHARD, np.dtype(np.float32)
        )
        attributes = {"encoding-type": "array", "encoding-version": "0.2.0"}
        self._rows.array.attrs.update(attributes)

    def append(self, rows: np.ndarray) -> None:
        """Write the next rows."""
        self._rows.append(np.asarray(rows, dtype=np.float32))

    def close(self) -> None:
        """Write the remaining rows."""
        self._rows.close()


class _Growing:
    """An array that grows along its first axis, written one whole shard at a time."""

    def __init__(
        self,
        group: zarr.Group,
        name: str,
        row_shape: tuple[int, ...],
        per_chunk: int,
        per_shard: int,
        dtype: np.dtype,
    ) -> None:
        width = tuple(max(n, 1) for n in row_shape)
        self.array = group.create_array(
            name,
            shape=(0, *row_shape),
            chunks=(per_chunk, *width),
            shards=(per_shard, *width),
            dtype=dtype,
            compressors=_COMPRESSOR,
            config={"write_empty_chunks": True},  # so that a lost chunk is noticed
            overwrite=True,
        )
        self._per_shard = per_shard
        self._waiting: list[np.ndarray] = []
        self._n_waiting = 0

    def append(self, values: np.ndarray) -> None:
        self._waiting.append(values)
        self._n_waiting += len(values)
        if self._n_waiting >= self._per_shard:
            self._write(self._n_waiting // self._per_shard * self._per_shard)

    def close(self) -> None:
        self._write(self._n_waiting)

    def _write(self, number: int) -> None:
        if number == 0:
            return
        values = np.concatenate(self._waiting)
        start = self.array.shape[0]
        self.array.resize((start + number, *self.array.shape[1:]))
        self.array[start:] = values[:number]
        self._waiting, self._n_waiting = [values[number:].copy()], len(values) - number
