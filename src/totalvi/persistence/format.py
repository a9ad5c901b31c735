"""The folder in which a model is kept: safetensors weights and one JSON file."""

import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from totalvi.errors import FormatError, OutputError

FORMAT = "totalvi model"
FORMAT_VERSION = 1
_WEIGHTS, _DESCRIPTION = "weights.safetensors", "model.json"


def write_model(
    path: Path, weights: dict[str, Tensor], description: dict[str, Any], overwrite: bool
) -> None:
    """Write a model folder, whole or not at all.

    It is written to a temporary sibling, flushed to disk, and renamed.

    Raises
    ------
    OutputError
        When ``path`` exists and ``overwrite`` is False, or is something else than a model folder, or
        its folder cannot be written to.
    """
    with new_folder(path, overwrite, _require_own_folder) as temporary:
        save_file(
            {name: tensor.contiguous() for name, tensor in weights.items()}, temporary / _WEIGHTS
        )
        content = {"format": FORMAT, "format_version": FORMAT_VERSION, **description}
        text = json.dumps(_without_nan(content), indent=1, default=_plain, allow_nan=False)
        (temporary / _DESCRIPTION).write_text(text, encoding="utf-8")


@contextmanager
def new_folder(path: Path, overwrite: bool, require_own: Callable[[Path], None]) -> Iterator[Path]:
    """Give an empty folder that takes the place of ``path`` when the block ends without an error.

    ``require_own`` raises OutputError for a folder that may not be replaced.
    """
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists; give overwrite=True to replace it, or another path.")
    path = path.resolve()  # a link keeps pointing at the model
    if path.exists():
        require_own(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error}); choose another path.") from error
    try:
        yield temporary
        for file in temporary.iterdir():
            _flush(file)
        temporary.chmod(0o755)  # mkdtemp makes a folder that only its owner may enter
        _put_in_place(temporary, path)
    finally:
        if temporary.exists():
            shutil.rmtree(temporary)


def is_model(path: Path) -> bool:
    """Return whether ``path`` is a folder that `Model.save` wrote, by its files."""
    return (path / _DESCRIPTION).is_file()


def read_model(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the weights and the description of the model in folder ``path``.

    Raises
    ------
    FormatError
        When it is missing, damaged, or of a format version that this package does not know.
    """
    file = path / _DESCRIPTION
    for name in (_DESCRIPTION, _WEIGHTS):
        _require_own_file(path / name)
    if not file.is_file():
        raise FormatError(
            f"{path} is not a totalvi model: it has no {_DESCRIPTION}; give the folder that Model.save "
            "wrote."
        )
    try:
        description = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{file} is damaged ({error}); save the model again.") from error
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise FormatError(f"{file} does not describe a totalvi model.")
    version = description.get("format_version")
    if version != FORMAT_VERSION:
        raise FormatError(
            f"{path} has format version {version!r}, and this totalvi reads {FORMAT_VERSION}; "
            "update totalvi."
        )
    try:
        weights = load_file(path / _WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise FormatError(
            f"{path / _WEIGHTS} is damaged ({error}); save the model again."
        ) from error
    return weights, description


def _require_own_file(file: Path) -> None:
    """Raise FormatError for a link, a pipe or a device in place of a file of the model."""
    if file.is_symlink() or (file.exists() and not file.is_file()):
        raise FormatError(
            f"{file} is no file of its own, as every part of a model is; copy it there."
        )


def _require_own_folder(path: Path) -> None:
    """Raise OutputError unless the folder holds a totalvi model, damaged or not, and nothing else."""
    names = {entry.name for entry in path.iterdir()} if path.is_dir() else set()
    foreign = sorted(names - {_WEIGHTS, _DESCRIPTION})
    if foreign:
        raise OutputError(
            f"{path} holds {foreign[0]}, which is not part of a totalvi model; choose another path."
        )
    if _DESCRIPTION not in names or FORMAT not in (path / _DESCRIPTION).read_text(errors="replace"):
        raise OutputError(f"{path} exists and is not a totalvi model; choose another path.")


def _without_nan(value: Any) -> Any:
    """Return ``value`` with NaN replaced by None, which JSON knows."""
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    return [_without_nan(item) for item in value] if isinstance(value, list) else value


def _put_in_place(temporary: Path, path: Path) -> None:
    """Rename ``temporary`` to ``path``; a folder that was there is kept until the new one is."""
    if not path.exists():
        temporary.rename(path)
        return
    retired = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent))
    path.rename(retired / "model")
    try:
        temporary.rename(path)
    except OSError:
        (retired / "model").rename(path)
        raise
    finally:
        if path.exists():
            shutil.rmtree(retired)


def _plain(value: Any) -> Any:
    """Return a NumPy number or array, or a tensor, as plain numbers and lists."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be kept in {_DESCRIPTION}.")


def _flush(file: Path) -> None:
    with file.open("rb") as handle:
        os.fsync(handle.fileno())
