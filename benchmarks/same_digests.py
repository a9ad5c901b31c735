"""Digests of all results and files of totalvi, which cover the type and each bit of a number.

`digests` splits a result into named pieces. A piece becomes one text: the start of its SHA-256, its
type and shape, and its mean, which shows how far apart two differing pieces are.
"""

import dataclasses
import gzip
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import torch
import zarr
from scipy import sparse

# What two runs of the same program say differently; the hashes are of files with such entries.
_VOLATILE = {"seconds", "finished", "versions", "sha256", "model_path", "_scvi_uuid"}
_TIMES_IN_REPORT = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC|\b\d[\d,.]* (?:s|min)\b")
_PLAIN = (str, bytes, bool, int, float, complex, type(None), np.generic)


def digests(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Yield each piece of a value by its name, as text."""
    match value:
        case np.ndarray():
            yield name, digest_of_array(value)
        case torch.Tensor():
            yield name, digest_of_array(value.detach().cpu().numpy())
        case pd.DataFrame():
            yield f"{name}.index", _digest_of_index(value.index)
            yield f"{name}.columns", _digest_of_index(value.columns)
            if len(set(value.dtypes)) == 1 and isinstance(value.dtypes.iloc[0], np.dtype):
                yield f"{name}.values", digest_of_array(value.to_numpy())
                return
            for i, column in enumerate(value.columns):
                yield f"{name}[{column!r}]", _digest_of_column(value.iloc[:, i])
        case pd.Series():
            yield f"{name}.index", _digest_of_index(value.index)
            yield f"{name}.values", _digest_of_column(value)
        case pd.Index():
            yield name, _digest_of_index(value)
        case _ if sparse.issparse(value):
            compressed = value.tocsr() if value.format == "coo" else value
            for part in ("data", "indices", "indptr"):
                yield f"{name}.{value.format}.{part}", digest_of_array(getattr(compressed, part))
        case Path():
            yield from (digests_of_folder if value.is_dir() else digests_of_file)(value, name)
        case _ if isinstance(value, _PLAIN):
            yield name, _digest(f"{type(value).__name__} {value!r}".encode(), repr(value)[:60])
        case _:
            for key, part in _parts(value):
                yield from digests(part, f"{name}{key}")


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the members of a container, or the public attributes of another object."""
    if isinstance(value, Mapping):
        for key in value:
            yield f"[{key!r}]", value[key]
    elif hasattr(value, "_asdict"):
        yield from ((f".{key}", part) for key, part in value._asdict().items())
    elif isinstance(value, list | tuple | range):
        yield "", f"{type(value).__name__} of {len(value)}"
        yield from ((f"[{i}]", part) for i, part in enumerate(value))
    elif dataclasses.is_dataclass(value):
        yield from ((f".{field.name}", getattr(value, field.name)) for field in _fields(value))
    else:
        yield "", type(value).__name__
        for key in dir(value):
            part = None if key.startswith("_") else getattr(value, key)
            if not (key.startswith("_") or callable(part)):
                yield f".{key}", part


def _fields(value: Any) -> list[Any]:
    return [field for field in dataclasses.fields(value) if not field.name.startswith("_")]


def digest_of_array(array: np.ndarray) -> str:
    """Return a digest of data type, shape and content."""
    array = np.asarray(array)
    about = f"{array.dtype} {array.shape}"
    if array.dtype.kind in "OTU":
        content = json.dumps([str(item) for item in array.ravel().tolist()]).encode()
        about = f"text {array.shape}"
    else:
        content = np.ascontiguousarray(array).tobytes()
    if array.dtype.kind in "fiu" and array.size:
        with np.errstate(all="ignore"):
            about += f" mean {np.mean(array, dtype=np.float64):.12g}"
    return _digest(about.encode() + content, about)


def _digest_of_index(index: pd.Index) -> str:
    about = json.dumps([str(index.dtype), [str(name) for name in index.names]])
    return _digest(about.encode() + json.dumps([str(item) for item in index]).encode(), about)


def _digest_of_column(column: pd.Series) -> str:
    if isinstance(column.dtype, pd.CategoricalDtype):
        categories = [str(item) for item in column.cat.categories]
        content = json.dumps([categories, column.cat.codes.tolist(), bool(column.cat.ordered)])
        return _digest(content.encode(), f"categories {categories[:5]}")
    if isinstance(column.dtype, np.dtype):
        return digest_of_array(column.to_numpy())
    content = json.dumps([str(column.dtype), [str(item) for item in column]])
    return _digest(content.encode(), f"{column.dtype} ({len(column)},)")


def _digest(content: bytes, about: str) -> str:
    return f"{hashlib.sha256(content).hexdigest()[:16]} {about}"


# ------------------------------------------------------------------------------------------ files


def digests_of_folder(folder: Path, name: str = "") -> Iterator[tuple[str, str]]:
    """Yield what is in a zarr store, or in each file of another folder."""
    if (folder / "zarr.json").is_file() or (folder / ".zgroup").is_file():
        yield from _digests_of_store(folder, name)
        return
    for path in sorted(folder.iterdir()):
        yield from digests(path, f"{name}/{path.name}")


def digests_of_file(path: Path, name: str = "") -> Iterator[tuple[str, str]]:
    """Yield what is in a file, without the times that a program notes in it."""
    if path.suffix in (".h5mu", ".h5ad"):
        with h5py.File(path) as file:
            yield f"{name} attributes", _digest_of_attributes(file.attrs)
            items: dict[str, Any] = {}
            file.visititems(items.__setitem__)
            for key in sorted(items):
                yield f"{name}:{key} attributes", _digest_of_attributes(items[key].attrs)
                if isinstance(items[key], h5py.Dataset):
                    yield f"{name}:{key}", digest_of_array(_read_dataset(items[key]))
        return
    content = path.read_bytes()
    if path.suffix == ".gz":
        content = gzip.decompress(content)
    if path.suffix == ".json":
        yield from digests(_without_volatile(json.loads(content)), name)
        return
    if path.suffix == ".pt":
        content = torch.load(path, weights_only=False, map_location="cpu")
        yield from digests(_without_volatile(content), name)
        return
    if path.name == "history.csv":
        yield from digests(pd.read_csv(path).drop(columns="seconds"), name)
        return
    if path.suffix == ".html":
        text = _TIMES_IN_REPORT.sub("", content.decode().replace(str(Path.cwd()), ""))
        for part in text.split("<h2")[1:]:
            title = re.sub("<[^>]*>", "", part.partition("</h2>")[0].partition(">")[2])
            yield f"{name}, {title}", _digest(part.encode(), f"{len(part)} characters")
        return
    yield name, _digest(content, f"{len(content)} bytes")


def _digests_of_store(path: Path, name: str) -> Iterator[tuple[str, str]]:
    group = zarr.open_group(path, mode="r")
    yield f"{name} attributes", _digest_of_attributes(group.attrs)
    for key, member in sorted(group.members(max_depth=None)):
        yield f"{name}:{key} attributes", _digest_of_attributes(member.attrs)
        if isinstance(member, zarr.Array):
            layout = f"chunks {member.chunks} shards {member.shards}"
            yield f"{name}:{key}", f"{digest_of_array(np.asarray(member[...]))} {layout}"


def _read_dataset(dataset: h5py.Dataset) -> np.ndarray:
    if h5py.check_string_dtype(dataset.dtype):
        return np.asarray(dataset.asstr()[...])
    return np.asarray(dataset[...])


def _digest_of_attributes(attributes: Mapping[str, Any]) -> str:
    content = {
        key: value.tolist() if isinstance(value, np.ndarray) else str(value)
        for key, value in attributes.items()
    }
    return _digest(json.dumps(content, sort_keys=True, default=str).encode(), ", ".join(content))


def _without_volatile(value: Any) -> Any:
    """Return what a file holds without times, versions and the present folder."""
    if isinstance(value, dict):
        kept = {key: item for key, item in value.items() if key not in _VOLATILE}
        return {key: _without_volatile(item) for key, item in kept.items()}
    if isinstance(value, list):  # of a JSON file, as one piece
        return json.dumps([_without_volatile(item) for item in value], default=repr)
    if isinstance(value, str):
        return value.replace(str(Path.cwd()), "")
    return value
