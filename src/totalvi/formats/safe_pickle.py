"""Read torch files of unknown origin without running code in them.

A pickle is a program. Here it can build only plain containers, tensors, and the stand-ins below for the
NumPy and pandas objects that scvi-tools stores. Everything else is an error.
"""

import re
import threading
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from totalvi.errors import FormatError

_CODE = re.compile(r"b1|[iu][1248]|f[248]|U\d{1,5}")
_lock = threading.Lock()


class StoredDtype:
    """Stand-in for a NumPy data type: its code, such as "f4", and its byte order."""

    def __init__(self, code: Any = None, *_: Any) -> None:
        self.code, self.order = code, "="

    def __setstate__(self, state: Any) -> None:
        self.order = state[1]


class StoredArray:
    """Stand-in for a NumPy array; `stored_values` decodes it."""

    shape: Any = ()
    dtype: Any = None
    raw: Any = None

    def __setstate__(self, state: Any) -> None:
        _, self.shape, self.dtype, _, self.raw = state


class Ignored:
    """Stand-in for a pandas object, whose content is not used."""

    def __new__(cls, *_: Any, **__: Any) -> "Ignored":
        """Take any arguments."""
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _array(*_: Any) -> StoredArray:
    return StoredArray()


def _scalar(dtype: Any, raw: Any = None) -> Any:
    values = _decoded(dtype, raw)
    return values[0] if values else None


def _dict(*_: Any) -> dict[Any, Any]:
    return {}


def _empty(*_: Any) -> bytes:
    return b""


_STAND_INS: list[tuple[Any, str]] = [
    (StoredArray, "numpy.ndarray"),
    (StoredDtype, "numpy.dtype"),
    *((_array, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    *((_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    (_dict, "collections.defaultdict"),
    (_dict, "builtins.dict"),
    (Ignored, "builtins.slice"),
    (_empty, "builtins.bytes"),
]
_PANDAS = ("pandas.core.", "pandas._libs.")  # its parts differ between versions and are not needed


def load_inert(file: Path) -> Any:
    """Return the content of a torch file without running code in it.

    Raises
    ------
    FormatError
        When it is damaged, larger in memory than on disk, or holds anything except tensors, plain
        containers and arrays.
    """
    if not file.is_file():
        raise FormatError(f"{file} is not a file; give a model.pt of scvi-tools or its folder.")
    _require_honest_sizes(file)
    try:
        with _only_stand_ins(), warnings.catch_warnings(action="ignore"):
            if zipfile.is_zipfile(file):
                names = torch.serialization.get_unsafe_globals_in_checkpoint(file)
                pandas = [(Ignored, name) for name in names if name.startswith(_PANDAS)]
                torch.serialization.add_safe_globals(pandas)  # type: ignore[arg-type]
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged and hostile files can raise any error
        asked = re.search(r"GLOBAL (\S+)", str(error))
        if asked:
            raise FormatError(
                f"{file} asks for {asked[1]}, which no model needs and which was not run; do not use "
                "the file unless you trust its source, and save the model there without it."
            ) from error
        raise FormatError(
            f"{file} is damaged or not a model of scvi-tools ({type(error).__name__}); save it again."
        ) from error


@contextmanager
def _only_stand_ins() -> Iterator[None]:
    """Let torch build only the stand-ins, and no types allowed elsewhere in the process."""
    with _lock:
        allowed = torch.serialization.get_safe_globals()
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(_STAND_INS)  # type: ignore[arg-type]
        try:
            yield
        finally:
            torch.serialization.clear_safe_globals()
            torch.serialization.add_safe_globals(allowed)


def _require_honest_sizes(file: Path) -> None:
    """Refuse an archive whose entries are compressed, overlap, or differ from their checksums."""
    if not zipfile.is_zipfile(file):
        return
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            _require_stored_once(file, entries)
            damaged = archive.testzip()  # torch itself does not verify the checksums
    except (zipfile.BadZipFile, OSError, ValueError, EOFError, RuntimeError) as error:
        raise FormatError(f"{file} is damaged ({error}); save it again.") from error
    if damaged is not None:
        raise FormatError(f"{file} is damaged (in {damaged}); save it again.")


def _require_stored_once(file: Path, entries: list[zipfile.ZipInfo]) -> None:
    compressed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
    if compressed or sum(entry.file_size for entry in entries) > file.stat().st_size:
        raise FormatError(
            f"{file} unpacks to more than its own size, which no model saved by torch does; get it "
            "again from its source."
        )


def stored_values(value: Any, what: str) -> list[Any]:
    """Return the plain values of a list, a tuple, or a stored one-dimensional array.

    Raises
    ------
    FormatError
        When it is something else, or holds more than texts and numbers; the message names ``what``.
    """
    if isinstance(value, StoredArray):
        values = _decoded(value.dtype, value.raw)
        value = values if values is not None and value.shape == (len(values),) else None
    plain = isinstance(value, list | tuple)
    if not plain or not all(isinstance(item, str | int | float) for item in value):
        raise FormatError(f"The model's {what} are not a list of texts or numbers.")
    return list(value)


def _decoded(dtype: Any, raw: Any) -> list[Any] | None:
    """Return the values of an array's memory; None if their type is not supported."""
    code = getattr(dtype, "code", None)
    if isinstance(code, str) and code.startswith("O") and isinstance(raw, list):
        return raw
    if not (isinstance(code, str) and _CODE.fullmatch(code) and isinstance(raw, bytes)):
        return None
    order = dtype.order if dtype.order in ("<", ">") else "="
    of_type = np.dtype(order + code)
    if not of_type.itemsize or len(raw) % of_type.itemsize:
        return None
    values: list[Any] = np.frombuffer(raw, of_type).tolist()
    return values


def checked_tensors(given: Any, file: Path) -> dict[str, Tensor]:
    """Return a state dict after checking that it holds plain finite tensors, no larger than the file.

    Raises
    ------
    FormatError
        When it does not.
    """
    if not (isinstance(given, dict) and all(isinstance(name, str) for name in given)):
        raise FormatError(f"{file} does not hold a state dict of named tensors.")
    size = 0
    for name, tensor in given.items():
        plain = isinstance(tensor, Tensor) and tensor.layout == torch.strided
        if not plain or tensor.is_quantized or tensor.device.type != "cpu":
            raise FormatError(f"{file} holds {name}, which is not a plain tensor.")
        if _overlaps_itself(tensor):  # the older format has no checksum, but needs no such strides
            raise FormatError(f"{file} is damaged (the strides of {name}); save it again.")
        size += tensor.numel() * tensor.element_size()
    if size > file.stat().st_size:
        raise FormatError(f"{file} holds tensors larger than itself; get it again from its source.")
    for name, tensor in given.items():
        if not tensor.isfinite().all():
            raise FormatError(
                f"{file} has values in {name} that are not finite; fit the model again."
            )
    return {name: tensor.detach() for name, tensor in given.items()}


def _overlaps_itself(tensor: Tensor) -> bool:
    """Return whether two elements may share memory."""
    steps = sorted(
        (stride, n) for stride, n in zip(tensor.stride(), tensor.shape, strict=True) if n > 1
    )
    ends = [1, *(stride * n for stride, n in steps)]
    return any(stride < end for (stride, _), end in zip(steps, ends, strict=False))
