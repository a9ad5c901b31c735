"""What libhdf5 believes without a look: where chunks and texts lie, which older files do not checksum.

A damaged heap of texts can keep it in an endless loop, a damaged length of a text makes it ask for
gigabytes, and a chunk whose place is damaged reads as empty.
"""

import mmap
from math import prod
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from totalvi.errors import ReadError

HEAP = (
    b"GCOL\x01\0\0\0"  # of texts; then its length, and objects of a head and a multiple of 8 bytes
)
HEAD = 16
REFERENCE = np.dtype(
    [("length", "<u4"), ("address", "<u8"), ("object", "<u4")]
)  # to a text in a heap


def require_sound_heaps(path: Path) -> None:
    """Refuse a file with a heap whose objects do not follow each other to its end.

    Raises
    ------
    ReadError
        Naming the place.
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
    """Refuse a dataset that lost chunks, or with chunks that skip a filter which cannot fail.

    Raises
    ------
    ReadError
        Naming the dataset.
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
                )  # listed is not found: a damaged tree hides some
            except (OSError, RuntimeError) as error:
                raise _damaged(path, f'chunks of "{dataset.name}"') from error
    if faults or inside != expected:
        raise _damaged(path, f'chunks of "{dataset.name}"')


def require_short_texts(dataset: h5py.Dataset, path: Path) -> None:
    """Refuse texts longer than the file, where no compression, and with it a checksum, is in between.

    Raises
    ------
    ReadError
        Naming the dataset.
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
    return ReadError(f"{path} is damaged ({what}): copy, download or write it again")
