"""Damage to files, all from a seed: truncation, flipped bits, hostile numbers, links, sizes."""

import gzip
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from fuzzing.payload import without_payload

HOSTILE_NUMBERS = (
    0,
    1,
    0x7F,
    0xFF,
    0xFFFF,
    2**31 - 1,
    2**31,
    2**32 - 1,
    10**12,
    2**40,
    2**62,
    2**63 - 1,
    2**64 - 1,
)
HOSTILE_TOKENS = (
    b"", b"-1", b"0", b"1e308", b"1e15", b"nan", b"NaN", b"inf", b"-inf", b"99999999999999999999",
    b"1_000", b"0x10", b"1,5", b"\0", b"\xff\xfe", b"../../escaped", b"/etc/passwd", b'"', b"'",
    b"null", b"[]", b"{}", b"true", b"1.5", b"A" * 5000, b"\t\t\t", b"\r", b"%", b"\xef\xbb\xbf",
)  # fmt: skip


class Mutation(NamedTuple):
    """What was done; and, where values without a checksum were among the bytes that changed, the file
    and its content with only the other changes: what is wrong with the former and not with the latter
    is what the format cannot know.
    """

    what: str
    file: Path | None = None
    rest: bytes | None = None


def mutate(path: Path, rng: np.random.Generator) -> Mutation:
    """Damage the sample at ``path``, a file or a folder, in place."""
    kinds: list[tuple[Callable[[Path, np.random.Generator], Mutation], float]] = [(_bytes, 0.6)]
    if path.suffix in (".h5", ".h5ad", ".h5mu"):
        kinds.append((_hdf5_member, 0.3))
    if path.is_dir():
        kinds += [(_member_file, 0.12), (_json_value, 0.15)]
    if path.suffix == ".json":
        kinds.append((_json_value, 0.5))
    if any(path.rglob("*.gz")):
        kinds.append((_inside_gzip, 0.5))
    weights = np.array([weight for _, weight in kinds])
    kind = kinds[int(rng.choice(len(kinds), p=weights / weights.sum()))][0]
    return kind(path, rng)


def files_of(path: Path) -> list[Path]:
    """Return the files of a sample, in order."""
    return [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())


def _some_file(path: Path, rng: np.random.Generator) -> Path:
    files = files_of(path)
    return files[int(rng.integers(len(files)))]


def _bytes(path: Path, rng: np.random.Generator) -> Mutation:
    file = _some_file(path, rng)
    before = file.read_bytes()
    what, after = damaged(before, rng)
    rest = None if what == "truncated" else without_payload(path, file, before, after)
    file.write_bytes(after)
    return Mutation(f"{what} in {file.name}", file, rest)


def damaged(content: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    """Return a name for the damage, and the damaged bytes."""
    n = len(content)
    data = bytearray(content)
    at = int(rng.integers(max(n, 1)))
    what = str(rng.choice(
        ["truncated", "bits", "bits", "bits", "byte", "number", "number", "zeros", "removed", "doubled",
         "swapped", "added", "token"]
    ))  # fmt: skip
    if n == 0:
        return "added", b"x"
    length = int(rng.choice([1, 4, 8, 64, 512]))
    if what == "truncated":
        block = int(rng.choice([1, 8, 512]))
        return what, content[: at // block * block]
    if what == "bits":
        for _ in range(int(rng.integers(1, 4))):
            place = int(rng.integers(n)) if rng.random() < 0.3 else min(at, n - 1)
            data[place] ^= 1 << int(rng.integers(8))
    elif what == "byte":
        data[at] = int(rng.choice([0, 0xFF, int(rng.integers(256))]))
    elif what == "number":
        form = str(rng.choice(["<Q", ">Q", "<I", "<H"]))
        number = int(rng.choice(np.array(HOSTILE_NUMBERS, dtype=object)))
        packed = struct.pack(form, number % 2 ** (8 * struct.calcsize(form)))
        at = at // len(packed) * len(packed) if rng.random() < 0.7 else at
        data[at : at + len(packed)] = packed[: n - at]
    elif what == "zeros":
        data[at : at + length] = bytes(min(length, n - at))
    elif what == "removed":
        del data[at : at + length]
    elif what == "doubled":
        data[at:at] = data[at : at + length]
    elif what == "swapped":
        other = int(rng.integers(n))
        data[at : at + length], data[other : other + length] = (
            data[other : other + length],
            data[at : at + length],
        )
    elif what == "added":
        data += rng.bytes(length)
    else:
        token = HOSTILE_TOKENS[int(rng.integers(len(HOSTILE_TOKENS)))]
        start, end = _token_at(content, at)
        data[start:end] = token
    return what, bytes(data)


def _token_at(content: bytes, at: int) -> tuple[int, int]:
    """Return where the word around a place begins and ends."""
    separators = b" \t\n,:;"
    start = end = at
    while start > 0 and content[start - 1] not in separators and at - start < 64:
        start -= 1
    while end < len(content) and content[end] not in separators and end - at < 64:
        end += 1
    return start, end


def _inside_gzip(path: Path, rng: np.random.Generator) -> Mutation:
    files = [file for file in files_of(path) if file.suffix == ".gz"]
    file = files[int(rng.integers(len(files)))]
    if rng.random() < 0.05:
        form = b"1 1 1\n" if "mtx" in file.name else b"A\t1\t1\t1\t1\n"
        file.write_bytes(
            gzip.compress(gzip.decompress(file.read_bytes()) + form * 3_000_000, 9, mtime=0)
        )
        return Mutation(f"bomb in {file.name}")
    if rng.random() < 0.03:
        file.write_bytes(gzip.compress(b"A" * 300_000_000, 1, mtime=0))
        return Mutation(f"endless line in {file.name}")
    what, content = damaged(gzip.decompress(file.read_bytes()), rng)
    file.write_bytes(gzip.compress(content, mtime=0))
    return Mutation(f"{what} inside {file.name}")


def _member_file(path: Path, rng: np.random.Generator) -> Mutation:
    """Remove, empty, swap or link a file of a folder, or put more beside it."""
    file = _some_file(path, rng)
    outside = path.parent / "secret"
    outside.write_bytes(file.read_bytes())
    what = str(rng.choice(["gone", "empty", "swapped", "link", "folder", "beside", "pipe", "loop"]))
    if what == "beside":
        names = ["..%2f..", "d", "0.0.0", "zarr.json.bak", "x" * 200]
        (file.parent / str(rng.choice(names))).write_bytes(b"x")
        return Mutation(what)
    if what == "swapped":
        other = _some_file(path, rng)
        ours, theirs = file.read_bytes(), other.read_bytes()
        other.write_bytes(ours)
        file.write_bytes(theirs)
        return Mutation(f"{what} {file.name} and {other.name}")
    file.unlink()
    if what == "empty":
        file.write_bytes(b"")
    elif what == "link":
        file.symlink_to(outside)
    elif what == "loop":
        file.symlink_to(file)
    elif what == "folder":
        file.mkdir()
    elif what == "pipe":
        os.mkfifo(file)
    return Mutation(f"{what} {file.name}")


HOSTILE_VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1.5, 10**12, 2**63, 1e400, "", "x", "../../escaped", [], {}, [[]], ["a", "a"],
    {"a": 1}, "float64", "<f8", "|O", [10**12], [0], [-1, 3],
)  # fmt: skip


def _json_value(path: Path, rng: np.random.Generator) -> Mutation:
    """Change a value, or a name, somewhere in a JSON file."""
    files = [f for f in files_of(path) if f.suffix == ".json" or f.name.startswith(".z")]
    if not files:
        return _bytes(path, rng)
    file = files[int(rng.integers(len(files)))]
    root = {"root": json.loads(file.read_text())}
    places: list[tuple[Any, Any]] = []
    stack: list[Any] = [root]
    while stack:
        node = stack.pop()
        keys = list(node) if isinstance(node, dict) else range(len(node))
        for key in keys:
            places.append((node, key))
            if isinstance(node[key], dict | list):
                stack.append(node[key])
    node, key = places[int(rng.integers(len(places)))]
    what = f"{file.name}: {key!r}"
    if isinstance(node, dict) and rng.random() < 0.2 and node is not root:
        del node[key]
        what += " gone"
    else:
        value = HOSTILE_VALUES[int(rng.integers(len(HOSTILE_VALUES)))]
        node[key] = value
        what += f" = {value!r}"
    file.write_text(json.dumps(root.get("root")))
    return Mutation(what)


def _hdf5_member(path: Path, rng: np.random.Generator) -> Mutation:
    """Replace a dataset, group or attribute of an HDF5 file by something it should not be."""
    outside, before = path.parent / "secret", path.read_bytes()
    with h5py.File(outside, "w") as other:
        other["x"] = np.arange(5)
    with h5py.File(path, "r+") as file:
        names: list[str] = []
        file.visit(names.append)
        name = names[int(rng.integers(len(names)))]
        node = file[name]
        attributes = list(node.attrs)
        what = str(rng.choice(HDF5_EDITS))
        if what.startswith("attribute"):
            if not attributes:
                return _hdf5_replaced(file, name, "gone", rng)
            attribute = attributes[int(rng.integers(len(attributes)))]
            del node.attrs[attribute]
            if what == "attribute":
                value = ("x", -1, 10**12, np.zeros(3), "csr_matrix", "array", "0.0.0", b"\xff")
                node.attrs[attribute] = value[int(rng.integers(len(value)))]
            return Mutation(f"{what} {attribute} of {name}")
        done = _hdf5_replaced(file, name, what, rng)
    # other numbers or texts of the same shape, or no proteins, are what the file then says
    says = what in ("negative", "text", "floats") or (what in ("group", "gone") and "obsm" in name)
    return done._replace(file=path, rest=before) if says else done


HDF5_EDITS = (
    "gone", "renamed", "group", "dataset", "scalar", "text", "floats", "complex", "compound",
    "negative",
    "huge", "huge", "empty", "shorter", "longer", "2d", "soft link", "external link", "to itself",
    "external storage", "virtual", "attribute", "attribute", "attribute gone", "null", "references",
)  # fmt: skip


def _hdf5_replaced(file: h5py.File, name: str, what: str, rng: np.random.Generator) -> Mutation:
    node = file[name]
    is_dataset = isinstance(node, h5py.Dataset)
    values = node[()] if is_dataset else np.zeros(3)
    attributes = dict(node.attrs)
    size = np.shape(values) or (1,)
    del file[name]
    if what == "renamed":
        new = str(rng.choice([".. x", "a\nb", "x" * 300, name.rpartition("/")[2] + " "]))
        file.create_dataset(f"{name.rpartition('/')[0]}/{new}", data=np.zeros(2))
    elif what == "soft link":
        file[name] = h5py.SoftLink(str(rng.choice(["/nowhere", "/", ".."])))
    elif what == "external link":
        file[name] = h5py.ExternalLink("secret", "/x")
    elif what == "to itself":
        file[name] = file["/"]
    elif what == "group":
        file.create_group(name)
    elif what != "gone":
        _dataset(file, name, what, values, size)
    if name in file and what not in ("soft link", "external link", "to itself"):
        for key, value in attributes.items():
            file[name].attrs[key] = value
    return Mutation(f"{what} {name}")


def _dataset(file: h5py.File, name: str, what: str, values: Any, size: tuple[int, ...]) -> None:
    integers = np.arange(np.prod(size), dtype=np.int64).reshape(size) - 3
    if what == "huge":
        file.create_dataset(
            name, shape=(10**12,), chunks=(1024,), dtype=np.int32, compression="gzip"
        )
    elif what == "external storage":
        file.create_dataset(name, (5,), np.int32, external=[("secret", 0, 20)])
    elif what == "virtual":
        layout = h5py.VirtualLayout(shape=(5,), dtype=np.int64)
        layout[:] = h5py.VirtualSource("secret", "x", shape=(5,))
        file.create_virtual_dataset(name, layout)
    elif what == "null":
        file.create_dataset(name, data=h5py.Empty("f4"))
    elif what == "references":
        file.create_dataset(name, data=np.array([file.ref] * 3, dtype=h5py.ref_dtype))
    elif what == "compound":
        file.create_dataset(name, data=np.zeros(size, dtype=[("a", "i4"), ("b", "f8")]))
    else:
        made = {
            "dataset": np.zeros(3),
            "scalar": np.int64(3),
            "text": np.full(size, b"text"),
            "floats": integers / 3,
            "complex": integers * 1j,
            "negative": integers * -1000,
            "empty": np.zeros((0,) * len(size)),
            "shorter": values[:-1] if np.ndim(values) else np.zeros(1),
            "longer": np.concatenate([values, values]) if np.ndim(values) else np.zeros(9),
            "2d": np.zeros((2, 3)),
        }[what]
        file.create_dataset(name, data=made)
