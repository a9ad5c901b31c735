"""More than 2^31 non-zero counts, where int32 no longer tells which is which.

Such a matrix would fill 16 GB, but a file of that length that was never written takes no room: here
only the last rows are real, and the first row, which nothing reads, has all entries before them.
"""

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import zarr
from anndata.io import sparse_dataset
from scipy import sparse

from counts import SMALL, annotated, described
from totalvi.data.cells import fingerprint
from totalvi.data.check_counts import tally_counts
from totalvi.data.columns import Columns
from totalvi.data.counts import CountsInMemory, SparseOnDisk
from totalvi.data.find import find_counts
from totalvi.data.io.write_zarr import SparseRows
from totalvi.fit.batches import CountsOnDevice, minibatch, sparse_rows
from totalvi.nn.cell import SparseCounts
from totalvi.nn.v06 import TOTALVI
from totalvi.run.variable_genes import select_genes

BEYOND = 2**31
COUNTS = sparse.csr_matrix(np.random.default_rng(0).poisson(0.5, (6, 9)).astype(np.float32))
POINTER = np.concatenate([[0], BEYOND + COUNTS.indptr.astype(np.int64)])  # of 7 rows
LENGTH = int(POINTER[-1])


def stored(folder: Path, kind: str) -> h5py.Group | zarr.Group:
    """Write the matrix as AnnData lays it out; entries that are not real are in no file."""
    if kind == "h5":
        group = h5py.File(folder / "m.h5", "w").create_group("X")
        group.create_dataset("data", (LENGTH,), np.float32, chunks=(2**16,))
        group.create_dataset("indices", (LENGTH,), np.int64, chunks=(2**16,))
        group.create_dataset("indptr", data=POINTER)
    else:
        group = zarr.open_group(folder / "m.zarr", mode="w").create_group("X")
        group.create_array("data", shape=(LENGTH,), chunks=(2**16,), dtype=np.float32)
        group.create_array("indices", shape=(LENGTH,), chunks=(2**16,), dtype=np.int64)
        group.create_array("indptr", data=POINTER)
    group["data"][BEYOND:] = COUNTS.data
    group["indices"][BEYOND:] = COUNTS.indices
    layout = {"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": [7, 9]}
    group.attrs.update(layout)
    return group


@pytest.mark.parametrize("kind", ["h5", "zarr"])
def test_rows_are_read_from_disk(tmp_path: Path, kind: str) -> None:
    counts = SparseOnDisk(sparse_dataset(stored(tmp_path, kind)), "X")
    dense = COUNTS.toarray()
    np.testing.assert_array_equal(counts.rows(np.arange(1, 7)).toarray(), dense)
    np.testing.assert_array_equal(counts.rows(np.array([6, 2, 6])).toarray(), dense[[5, 1, 5]])
    some = counts.columns(np.array([8, 0]))
    np.testing.assert_array_equal(some.rows(slice(1, 7)).toarray(), dense[:, [8, 0]])


def test_rows_are_appended_to_a_store(tmp_path: Path) -> None:
    group = zarr.open_group(tmp_path / "m.zarr", mode="w")
    rows = SparseRows(group, "X", 9, np.uint16)
    rows._data.array.resize((BEYOND,))  # as if so many had been appended
    rows._indices.array.resize((BEYOND,))
    rows._pointer, rows._n_entries = [np.array([0, BEYOND])], BEYOND
    rows.append(COUNTS[:2])
    rows.append(COUNTS[2:])
    rows.close()
    np.testing.assert_array_equal(group["X/indptr"][:], POINTER)
    found = SparseOnDisk(sparse_dataset(group["X"]), "X").rows(slice(1, 7))
    np.testing.assert_array_equal(found.toarray(), COUNTS.toarray())


@pytest.fixture
def matrix(tmp_path: Path) -> sparse.csr_matrix:
    """Return the matrix in memory, as pages that no one has touched."""
    parts = {}
    for name, dtype in (("data", np.float32), ("indices", np.int64)):
        values = np.memmap(tmp_path / name, dtype=dtype, mode="w+", shape=(LENGTH,))
        values[BEYOND:] = getattr(COUNTS, name)
        parts[name] = np.asarray(values)
    whole = sparse.csr_matrix((7, 9), dtype=np.float32)
    whole.data, whole.indices, whole.indptr = parts["data"], parts["indices"], POINTER
    return whole


def test_rows_are_taken_in_memory(matrix: sparse.csr_matrix) -> None:
    assert matrix.nnz == LENGTH
    rows = np.array([5, 1, 6])
    expected = COUNTS.toarray()[rows - 1]
    np.testing.assert_array_equal(sparse_rows(matrix, rows).to_dense().numpy(), expected)
    np.testing.assert_array_equal(CountsInMemory(matrix).rows(rows).toarray(), expected)
    parts = (torch.from_numpy(part) for part in (matrix.data, matrix.indices, matrix.indptr))
    held = CountsOnDevice(SparseCounts(*parts, n_genes=9), torch.zeros(7, 2))
    np.testing.assert_array_equal(held.take(rows)[0].to_dense().numpy(), expected)


def wide(counts: sparse.csr_matrix) -> sparse.csr_matrix:
    """Return counts with the indices that scipy gives to more than 2^31 of them."""
    copy = counts.copy()
    copy.indices, copy.indptr = copy.indices.astype(np.int64), copy.indptr.astype(np.int64)
    return copy


def test_what_is_told_of_counts_does_not_depend_on_their_indices() -> None:
    narrow = described()
    other = replace(narrow, rna=CountsInMemory(wide(narrow.rna.read())))
    assert other.rna.read().indices.dtype == np.int64
    assert fingerprint(other) == fingerprint(narrow)
    module = TOTALVI(30, 6, 2, **SMALL, generator=torch.Generator().manual_seed(0))
    losses = []
    for data in (narrow, other):
        some = minibatch(data, module, np.arange(0, 120, 2))
        prior = some.library_log_mean, some.library_log_variance
        terms = module.elbo(some.x, some.y, some.context, *prior, torch.Generator())
        losses.append(terms.reconst_loss_gene)
    assert torch.equal(*losses)

    mdata = annotated()
    names = list(mdata["rna"].var_names)
    chosen = [select_genes(x, names, n_genes=12) for x in (mdata["rna"].X, wide(mdata["rna"].X))]
    np.testing.assert_array_equal(*chosen)
    source = find_counts(mdata, Columns())
    group = np.zeros(120, dtype=np.int64)
    sources = source, source._replace(rna=CountsInMemory(wide(source.rna.read())))
    tallies = [tally_counts(each, group, 1) for each in sources]
    assert tallies[0].rna == tallies[1].rna
    np.testing.assert_array_equal(tallies[0].gene_total, tallies[1].gene_total)
