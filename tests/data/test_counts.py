import h5py
import numpy as np
import pytest
import zarr
from anndata.io import sparse_dataset, write_elem
from scipy import sparse

from totalvi.data import counts as on_disk
from totalvi.data.counts import DenseOnDisk, SparseOnDisk, read_ahead
from totalvi.errors import DataError


def stored(folder, matrix, kind):
    """Write a matrix as one of the ways it may lie on disk."""
    if kind.startswith("h5"):
        group = h5py.File(folder / "m.h5", "w")
    else:
        group = zarr.open_group(folder / "m.zarr", mode="w")
    write_elem(group, "X", matrix if kind.endswith("csr") else matrix.toarray())
    return sparse_dataset(group["X"]) if kind.endswith("csr") else group["X"]


@pytest.fixture
def counts():
    rng = np.random.default_rng(0)
    return sparse.csr_matrix(rng.poisson(0.3, (300, 20)).astype(np.float32))


@pytest.mark.parametrize("kind", ["h5-csr", "zarr-csr", "h5-dense", "zarr-dense"])
@pytest.mark.parametrize("columns", [None, [7, 2, 11]])
def test_rows_are_those_of_the_matrix(tmp_path, counts, kind, columns, monkeypatch):
    monkeypatch.setattr(on_disk, "ROWS_AT_A_TIME", 16)
    monkeypatch.setattr(on_disk, "_LARGEST_GAP", 5)
    columns = None if columns is None else np.array(columns)
    x = stored(tmp_path, counts, kind)
    expected = counts.toarray() if columns is None else counts.toarray()[:, columns]
    for dense, kind in ((False, SparseOnDisk), (True, DenseOnDisk)):
        rows_on_disk = kind(x, "X", columns=columns)
        assert rows_on_disk.shape == expected.shape
        for rows in (
            slice(None), slice(3, 40), np.array([], dtype=int), np.array([5, 299, 5, 0, 70, 71]),
            np.arange(0, 300, 3),
        ):  # fmt: skip
            found = rows_on_disk.rows(rows)
            values = found if dense else found.toarray()
            assert found.dtype == np.float32
            np.testing.assert_array_equal(values, expected[rows])
            assert dense or (found.data != 0).all()
    blocks = [block for _, block in DenseOnDisk(x, "X", columns=columns).blocks()]
    np.testing.assert_array_equal(np.concatenate(blocks), expected)


def test_unsorted_repeated_and_zero_entries_are_put_right(tmp_path):
    group = zarr.open_group(tmp_path / "m.zarr", mode="w")
    write_elem(group, "X", sparse.csr_matrix(np.array([[1.0, 2.0, 3.0], [4.0, 0.0, 5.0]])))
    group["X/indices"][:] = [2, 0, 2, 0, 1]
    group["X/data"][4] = 0
    found = SparseOnDisk(sparse_dataset(group["X"]), "X").read()
    np.testing.assert_array_equal(found.toarray(), [[2, 0, 4], [4, 0, 0]])
    assert found.has_canonical_format
    assert found.nnz == 3


def test_what_cannot_be_read_by_cell_is_refused(tmp_path, counts):
    group = zarr.open_group(tmp_path / "m.zarr", mode="w")
    write_elem(group, "X", counts.tocsc())
    with pytest.raises(DataError, match="stored by column"):
        SparseOnDisk(sparse_dataset(group["X"]), "X")


@pytest.mark.parametrize("part", ["indices", "indptr"])
def test_damage_is_found(tmp_path, counts, part):
    group = zarr.open_group(tmp_path / "m.zarr", mode="w")
    write_elem(group, "X", counts)
    group[f"X/{part}"][3] = 10**6
    with pytest.raises(DataError, match="damaged"):
        SparseOnDisk(sparse_dataset(group["X"]), "X").read()


def test_reading_ahead_keeps_the_order_and_hands_on_what_went_wrong():
    assert list(read_ahead(str, range(5))) == list("01234")
    assert list(read_ahead(str, [])) == []
    with pytest.raises(ZeroDivisionError):
        list(read_ahead(lambda x: 1 // x, [1, 0]))
