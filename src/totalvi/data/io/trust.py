"""Check that a file is complete, consistent and self-contained before its content is used."""

import io
import math
import mmap
import os
import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import zarr
from anndata import AnnData
from scipy import sparse

from totalvi.data.counts import to_csr
from totalvi.errors import DataError, ReadError, TotalviError

COMPRESSED = (sparse.csr_matrix, sparse.csc_matrix, sparse.csr_array, sparse.csc_array)


@contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """Turn all errors of a parser on a damaged file into a ReadError that names the file."""
    try:
        yield
    except TotalviError:
        raise
    except MemoryError as error:
        raise ReadError(
            f"{path} needs more memory than there is ({error}); read it on a machine with more, or, if "
            "it should not be that large, copy, download or write it again."
        ) from error
    except PermissionError as error:
        raise ReadError(f"{path} may not be read; ask its owner for permission.") from error
    except ImportError as error:
        raise ReadError(
            f"{path} needs a package that is not installed ({first_line(error)}); install it, or write "
            "the file again without what needs it."
        ) from error
    except Exception as error:  # h5py, zarr, gzip, scipy and anndata raise some dozen types
        fix = "it lacks something, or is laid out otherwise, so write it again."
        if UNKNOWN_FILTER.search(str(error)):
            fix = "it is compressed in a way that is not known here, so write it again with gzip."
        elif isinstance(error, BROKEN_STREAM):
            fix = "it is damaged or cut short, so copy, download or write it again."
        raise ReadError(f"{path} cannot be read as {what} ({first_line(error)}); {fix}") from error


# What a stream that was cut or changed raises; other exceptions say nothing of damage.
BROKEN_STREAM = (OSError, EOFError, zlib.error, UnicodeDecodeError, RuntimeError, struct.error)
UNKNOWN_FILTER = re.compile(r"plugin|required filter|filter .*not registered", re.IGNORECASE)


def first_line(error: Exception) -> str:
    """Return the first line of what a library says, without its full stop."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200].rstrip(".")


def counts_from_csr(
    data: np.ndarray, indices: np.ndarray, indptr: np.ndarray, shape: tuple[int, int], where: str
) -> sparse.csr_matrix:
    """Build cells x features counts (CSR, float32) from three arrays after checking that they match."""
    _require_consistent(data, indices, indptr, shape, where)
    counts = sparse.csr_matrix((data.astype(np.float32), indices, indptr), shape=shape)
    counts.sum_duplicates()
    return counts


def counts_from(values: Any, where: str, cells: pd.Index, features: pd.Index) -> sparse.csr_matrix:
    """Return any matrix of numbers, sparse, dense or a DataFrame, as checked CSR float32."""
    if values is None:
        raise ReadError(f"{where} has no X; write it again with the raw counts in X.")
    require_sound(values, where)
    try:
        counts = to_csr(values, where, cells, features)
    except DataError as error:
        raise ReadError(str(error)) from error
    if counts.shape != (len(cells), len(features)):
        raise ReadError(
            f"{where} is {counts.shape[0]} x {counts.shape[1]} but there are {len(cells)} cells and "
            f"{len(features)} names of features; write the file again so that they match."
        )
    return counts.astype(np.float32, copy=False)


def require_sound(values: Any, where: str) -> None:
    """Refuse a CSR or CSC matrix whose indices point outside it; accept all other types."""
    if isinstance(values, COMPRESSED):
        major, minor = values.shape if values.format == "csr" else values.shape[::-1]
        _require_consistent(values.data, values.indices, values.indptr, (major, minor), where)


def require_sound_anndata(adata: AnnData, where: str) -> None:
    """Check every sparse matrix of an AnnData before anything computes with it."""
    for name, values in (("X", adata.X), *adata.layers.items(), *adata.obsm.items()):
        require_sound(values, f'"{name}" of {where}')


def require_lengths(path: Path, n_rows: int, n_features: int, n_columns: int, n_cells: int) -> None:
    """Refuse a matrix of n_rows x n_columns whose numbers of features or barcodes differ."""
    for n, named, what in ((n_rows, n_features, "features"), (n_columns, n_cells, "barcodes")):
        if n != named:
            raise ReadError(
                f"{path} does not fit together (counts for {n} {what}, but {named} {what} are "
                "listed); use the files of one and the same Cell Ranger run."
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
            f"{where} is damaged (its sparse matrix has {fault}); copy, download or write it again."
        )


# Signature of a heap of texts; then come its length, and objects: a header and a multiple of 8 bytes.
HEAP = b"GCOL\x01\0\0\0"
HEAD = 16
REFERENCE = np.dtype(
    [("length", "<u4"), ("address", "<u8"), ("object", "<u4")]
)  # a reference to a text in a heap


def require_sound_heaps(path: Path) -> None:
    """Refuse a file with a heap whose objects do not fill it without gaps.

    Raises
    ------
    ReadError
        When there is one; the message names the place.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        start = content.find(HEAP)
        while start >= 0:
            end = start + _number(content, start + 8)
            place = start + HEAD
            while place + HEAD <= end <= len(content):
                size = _number(content, place + 8)
                is_free = content[place : place + 2] == b"\0\0"
                step = size if is_free else HEAD + -(-size // 8) * 8
                if step < HEAD or place + step > end:
                    break
                place += step
            if not (place <= end <= len(content) and end - place < HEAD):
                raise _damaged(path, f"its heap of texts at byte {start}")
            start = content.find(HEAP, start + 1)


def require_sound_chunks(dataset: h5py.Dataset, path: Path) -> None:
    """Refuse a dataset that lost chunks, or whose chunks skip a filter that cannot fail.

    Raises
    ------
    ReadError
        When it is such a dataset; the message names it.
    """
    if dataset.chunks is None or not dataset.size:
        return
    found: set[tuple[int, ...]] = set()
    whole = prod(dataset.chunks) * dataset.dtype.itemsize
    filters = dataset.id.get_create_plist()
    skippable = sum(
        1 << i
        for i in range(filters.get_nfilters())
        if filters.get_filter(i)[0] != h5py.h5z.FILTER_SHUFFLE
    )
    faults: list[Any] = []

    def look(chunk: Any) -> None:
        found.add(tuple(chunk.chunk_offset))
        if chunk.filter_mask & ~skippable or (chunk.filter_mask and chunk.size != whole):
            faults.append(chunk.chunk_offset)

    dataset.id.chunk_iter(look)
    ends = zip(dataset.shape, dataset.chunks, strict=True)
    expected = prod(-(-size // length) for size, length in ends)
    inside = sum(_is_inside(offset, dataset) for offset in found)
    if not faults and inside == expected:
        for offset in found:
            try:
                dataset.id.read_direct_chunk(
                    offset
                )  # compare with the list: a damaged tree hides some chunks
            except (OSError, RuntimeError) as error:
                raise _damaged(path, f'chunks of "{dataset.name}"') from error
    if faults or inside != expected:
        raise _damaged(path, f'chunks of "{dataset.name}"')


def require_short_texts(dataset: h5py.Dataset, path: Path) -> None:
    """Refuse texts that are longer than the file, if no compression with a checksum explains this.

    Raises
    ------
    ReadError
        When there are such texts; the message names the dataset.
    """
    text = h5py.check_string_dtype(dataset.dtype)
    start = dataset.id.get_offset() if dataset.chunks is None else None
    if text is None or text.length is not None or start is None:
        return
    n_bytes = path.stat().st_size
    with path.open("rb") as file:
        file.seek(start)
        raw = file.read(dataset.id.get_storage_size())
    references = np.frombuffer(
        raw[: len(raw) // REFERENCE.itemsize * REFERENCE.itemsize], REFERENCE
    )
    if (references["length"] > n_bytes).any() or (references["address"] > n_bytes).any():
        raise _damaged(path, f'texts of "{dataset.name}"')


def _is_inside(offset: tuple[int, ...], dataset: h5py.Dataset) -> bool:
    places = zip(offset, dataset.shape, dataset.chunks, strict=True)
    return all(place % length == 0 and place < size for place, size, length in places)


def _number(content: mmap.mmap, place: int) -> int:
    return int.from_bytes(content[place : place + 8], "little")


def _damaged(path: Path, what: str) -> ReadError:
    return ReadError(f"{path} is damaged ({what}); copy, download or write it again.")


UNSUSPECTED = 2**26  # bytes; a declared size up to this is harmless
# The largest compression of zlib, LZF and similar, and of Zstandard, Blosc and others: unpacked bytes
# divided by stored bytes. A block that was never written counts as a byte.
LARGEST_RATIO = {None: 2, "gzip": 1100, "lzf": 300, "szip": 300}
LARGEST_RATIO_OF_OTHERS = 40_000


BLOSC_HEAD = 16  # bytes; the last four are the total length
# In the index of a zarr shard: bytes of its checksum, and the entry of a missing chunk.
CHECKSUM, NO_CHUNK = 4, 2**64 - 1
ZARR_METADATA = (".zarray", ".zattrs", "zarr.json")
MOST_COLUMNS = 1000  # of an embedding or table beside the counts


def require_plain_hdf5(file: h5py.File, path: Path) -> None:
    """Refuse an HDF5 file that takes values from other files or declares more than it can hold.

    Raises
    ------
    ReadError
        When it is such a file; the message names the member.
    """
    outside: list[str] = []
    soft: list[str] = []

    def follow(name: str, link: object) -> None:
        if isinstance(link, h5py.ExternalLink):
            outside.append(name)
        elif isinstance(link, h5py.SoftLink):
            soft.append(name)

    def measure(name: str, member: object) -> None:
        if isinstance(member, h5py.Group):
            if h5py.h5o.get_info(member.id).rc > 1:
                outside.append(name)  # a group with two paths may contain itself
            _require_columns(member, path)
        if not isinstance(member, h5py.Dataset):
            return
        if member.external or member.is_virtual:
            outside.append(name)
        _require_honest_size(
            member.nbytes, member.id.get_storage_size(), member.compression, name, path
        )
        require_sound_chunks(member, path)
        require_short_texts(member, path)

    require_sound_heaps(path)
    file.visititems_links(follow)
    file.visititems(measure)
    outside += [name for name in soft if name not in file or isinstance(file[name], h5py.Group)]
    if outside:
        raise ReadError(
            f'{path} takes "{outside[0]}" from another place; write it again with all it needs in it.'
        )


def require_honest_zarr(group: zarr.Group, path: Path) -> None:
    """Refuse a store with an array that declares more than its chunks hold, or that lost parts.

    Raises
    ------
    ReadError
        When there is one; the message names the array.
    """
    members = dict(group.members(max_depth=None))
    n_named = {0}  # cells and features whose names are there
    for name, array in members.items():
        is_index = name.endswith(("obs/_index", "var/_index", "obs/index", "var/index"))
        if (
            is_index
            and isinstance(array, zarr.Array)
            and array.nchunks_initialized == array.nchunks
        ):
            n_named.add(array.shape[0])
    for name, array in members.items():
        if isinstance(array, zarr.Group):
            _require_columns(array, path)
            continue
        if array.nbytes > UNSUSPECTED:
            # Chunks that hold only zeros are not stored; a layer, table or embedding may lack many.
            declared = array.nbytes
            if array.shape[0] in n_named and prod(array.shape[1:]) <= max(MOST_COLUMNS, *n_named):
                declared = int(declared * array.nchunks_initialized / array.nchunks)
            _require_honest_size(declared, array.nbytes_stored(), "zstd", name, path)
        if any("blosc" in type(codec).__name__.lower() for codec in array.compressors):
            _require_whole_blosc(path / array.path, array)


def _require_whole_blosc(folder: Path, array: zarr.Array) -> None:
    """Refuse chunks that differ from their declared length, because Blosc reads past the end."""
    for place, _, files in os.walk(folder):
        for name in files:
            if name in ZARR_METADATA:
                continue
            path = Path(place, name)
            with path.open("rb") as file:
                spans = [(0, path.stat().st_size)]
                if array.shards is not None:
                    spans = _chunks_of_shard(file, spans[0][1], array)
                for start, length in spans:
                    file.seek(start)
                    head = file.read(BLOSC_HEAD)
                    if len(head) < BLOSC_HEAD or int.from_bytes(head[12:], "little") != length:
                        raise ReadError(
                            f"{path} is not of the length that it says; copy, download or write it "
                            "again."
                        )


def _chunks_of_shard(
    file: io.BufferedReader, size: int, array: zarr.Array
) -> list[tuple[int, int]]:
    """Return the starts and lengths of the chunks in a shard, from the index of the shard."""
    assert array.shards is not None
    n_chunks = math.prod(s // c for s, c in zip(array.shards, array.chunks, strict=True))
    length = 16 * n_chunks + CHECKSUM
    at_end = array.metadata.codecs[0].index_location.value == "end"
    file.seek(max(size - length, 0) if at_end else 0)
    index = np.frombuffer(file.read(length)[:-CHECKSUM].ljust(length - CHECKSUM, b"\0"), "<u8")
    within = size - length if at_end else size
    spans = [(int(start), int(n)) for start, n in index.reshape(-1, 2) if n != NO_CHUNK]
    return [(start, n) if start + n <= within else (size, n) for start, n in spans]


def _require_columns(group: h5py.Group | zarr.Group, path: Path) -> None:
    """Refuse a data frame with a single value for a column, which pandas would repeat."""
    if group.attrs.get("encoding-type") != "dataframe":
        return
    for name in group:
        if getattr(group[name], "shape", None) == ():
            raise ReadError(
                f'{path} has a single value in place of the column "{name}" of "{group.name}"; copy, '
                "download or write it again."
            )


def _require_honest_size(
    declared: int, stored: int, compression: str | None, name: str, path: Path
) -> None:
    ratio = LARGEST_RATIO.get(compression, LARGEST_RATIO_OF_OTHERS)
    if declared > max(UNSUSPECTED, ratio * max(stored, 1)):
        raise ReadError(
            f'{path} declares {declared:,} bytes for "{name}" and holds {stored:,}; it is damaged, so '
            "copy, download or write it again."
        )
