"""Which bytes of a file are values that nothing protects: a change there cannot be known."""

import pickle
import re
import struct
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import torch

LOCAL_HEAP = re.compile(rb"HEAP\0\0\0\0")  # names of members
GLOBAL_HEAP = re.compile(rb"GCOL\x01\0\0\0")  # texts of any length


def without_payload(sample: Path, file: Path, before: bytes, after: bytes) -> bytes | None:
    """Return ``after`` with all unprotected values as they were; None where none changed."""
    if len(before) != len(after):
        return None
    if file.suffix in (".h5", ".h5ad", ".h5mu"):
        ranges = _hdf5_payload(file, before)
    elif sample.suffix == ".zarr" and re.fullmatch(r"[\d.]+|c", file.name):
        ranges = [(0, len(before))]
    elif file.suffix == ".pkl":
        ranges = _tensor_payload(file, before)
    else:
        return None
    rest = bytearray(after)
    for start, end in ranges:
        rest[start:end] = before[start:end]
    return bytes(rest) if rest != after else None


class _Storages(pickle.Unpickler):
    """Unpickle torch's older format, and keep the size in bytes of each storage by its key."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self.element_size: dict[str, int] = {}

    def persistent_load(self, saved: tuple[Any, ...]) -> torch.UntypedStorage:
        _, kind, key, _, n_elements, _ = saved
        self.element_size[key] = kind().element_size()
        return torch.storage.TypedStorage(
            wrap_storage=torch.UntypedStorage(n_elements * self.element_size[key]),
            dtype=kind.dtype,
            _internal=True,
        )


def _tensor_payload(file: Path, content: bytes) -> list[tuple[int, int]]:
    """Return where the values of tensors lie in torch's older format, which has no checksum."""
    ranges = []
    with file.open("rb") as opened:
        for _ in range(3):  # a magic number, the version, the system
            pickle.load(opened)  # the test wrote the file itself
        state = _Storages(opened)
        state.load()
        for key in pickle.load(opened):
            (n_elements,) = struct.unpack("<Q", opened.read(8))
            start = opened.tell()
            end = start + n_elements * state.element_size[key]
            ranges.append((start, end))
            opened.seek(end)
    assert ranges[-1][1] == len(content)
    return ranges


def _hdf5_payload(file: Path, content: bytes) -> list[tuple[int, int]]:
    """Return where values and names lie that have neither a checksum nor, by zlib, an Adler-32."""
    ranges = []
    with h5py.File(file, "r") as opened:

        def visit(_: str, node: object) -> None:
            if not isinstance(node, h5py.Dataset) or node.size in (None, 0) or node.fletcher32:
                return
            if node.chunks is None and node.id.get_offset() is not None:
                start = node.id.get_offset()
                ranges.append((start, start + node.id.get_storage_size()))
            elif node.chunks is not None and node.compression is None:
                for i in range(node.id.get_num_chunks()):
                    chunk = node.id.get_chunk_info(i)
                    ranges.append((chunk.byte_offset, chunk.byte_offset + chunk.size))

        opened.visititems(visit)
    for found in LOCAL_HEAP.finditer(content):
        size, _, start = struct.unpack("<QQQ", content[found.end() : found.end() + 24])
        ranges.append((start, start + size))
    for found in GLOBAL_HEAP.finditer(content):
        size = int.from_bytes(content[found.start() + 8 : found.start() + 16], "little")
        ranges.append((found.start() + 16, found.start() + size))
    return ranges
