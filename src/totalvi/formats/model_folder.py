"""Write and read the folder of a model: safetensors weights and one JSON file.

`write_state` and `read_state` handle a model. `write_model` and `read_model` do not depend on the
content of the JSON file.
"""

import hashlib
import json
import math
import platform
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from totalvi.atomic import locked, new_folder, parents_of, standing_folder, writing
from totalvi.data.cells import QueryMapping, Schema
from totalvi.errors import FormatError, OutputError, setting
from totalvi.fit.model_state import FitResult, ModelState, network_of

FORMAT = "totalvi model"
FORMAT_VERSION = 2
PACKAGES = ("totalvi", "torch", "numpy")
SAVING_TAKES_AT_MOST_S = 60
_WEIGHTS, _DESCRIPTION = "weights.safetensors", "model.json"


def write_state(path: Path, state: ModelState, overwrite: bool) -> None:
    """Write the folder of a model, completely or not at all; see `write_model`."""
    write_model(path, state.network.state_dict(), description_of(state), overwrite)


def description_of(state: ModelState) -> dict[str, Any]:
    """Return what there is of a model besides its weights."""
    return {
        "options": state.options,
        "schema": state.schema.to_dict(),
        "seed": state.seed,
        "n_fits": state.n_fits,
        **state.result.to_dict(),
        "background_levels": state.network.background_anchor,
        "mapping": None if state.mapping is None else state.mapping.to_dict(),
    }


def read_state(path: Path) -> ModelState:
    """Return the model in folder ``path``.

    Raises
    ------
    FormatError
        When the folder is not a complete model.
    """
    return state_of(path, *read_model(path))


def state_of(path: Path, weights: dict[str, Tensor], description: dict[str, Any]) -> ModelState:
    """Return the model with these weights and description, which are of the file or folder ``path``.

    Raises
    ------
    FormatError
        When they are not of a complete model.
    """
    try:
        _require_possible_sizes(description, weights)
        schema, options = Schema.from_dict(description["schema"]), description["options"]
        network = network_of(schema, options, description["seed"])
        _require_same_types(network.state_dict(), weights)
        network.load_state_dict(weights)
        if description.get("background_levels") is not None:
            network.anchor_background(description["background_levels"])
        result = FitResult.from_dict(description)
        _require_whole_calibration(result, schema)
        mapping = description.get("mapping")  # models saved by versions without mapping lack it
        return ModelState(
            schema,
            options,
            description["seed"],
            network,
            result,
            description["n_fits"],
            mapping=None if mapping is None else QueryMapping.from_dict(mapping),
        )
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise FormatError(
            f"{path} does not hold a whole model ({type(error).__name__}: {error}); save the model "
            "again."
        ) from error


def write_model(
    path: Path, weights: dict[str, Tensor], description: dict[str, Any], overwrite: bool
) -> None:
    """Write a model folder, completely or not at all.

    Raises
    ------
    OutputError
        When ``path`` exists and ``overwrite`` is False, or is not a model folder, or its folder
        cannot be written to.
    """
    packed = save({name: tensor.contiguous() for name, tensor in weights.items()})
    content = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "versions": versions(),
        **description,
        "tensors": declared(weights),
        "weights_sha256": hashlib.sha256(packed).hexdigest(),
    }
    content = plain_values(content)
    text = json.dumps(content | {"sha256": _checksum(content)}, indent=1)

    def write(folder: Path) -> None:
        (folder / _WEIGHTS).write_bytes(packed)
        (folder / _DESCRIPTION).write_text(text, encoding="utf-8")

    write_folder(path, write, overwrite, _require_own_folder)


def write_folder(
    path: Path,
    write: Callable[[Path], None],
    overwrite: bool,
    require_own: Callable[[Path], None],
) -> None:
    """Let ``write`` fill an empty folder, and replace ``path`` by it, completely or not at all.

    ``require_own`` raises OutputError for a folder that may not be replaced.
    """
    path = path.resolve()  # a link then still points to the model
    with parents_of(path), locked(path, SAVING_TAKES_AT_MOST_S):
        if path.exists() and not overwrite:
            raise OutputError(
                f"{path} exists; give {setting('overwrite', True)} to replace it, or another path."
            )
        if path.exists():
            with writing(path):
                require_own(path)
        with new_folder(path) as folder:
            write(folder)


def is_model(path: Path) -> bool:
    """Return whether ``path`` is a folder that `Model.save` wrote, by its files."""
    return (standing_folder(path) / _DESCRIPTION).is_file()


def read_model(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the weights and the description of the model in folder ``path``.

    Raises
    ------
    FormatError
        When it is missing, damaged, or of a format version that this package does not know.
    """
    path = standing_folder(path)
    description = _read_description(path)
    reader = _READERS.get(description["format_version"])
    if reader is None:
        raise FormatError(
            f"{path} has format version {description['format_version']!r}, and this totalvi reads "
            f"1 to {FORMAT_VERSION}; update totalvi."
        )
    description = reader(path, description)
    weights_file = path / _WEIGHTS
    try:
        weights = load_file(weights_file)
    except (OSError, SafetensorError, KeyError) as error:  # KeyError means a type that torch lacks
        raise FormatError(f"{weights_file} is damaged ({error}); save the model again.") from error
    if "tensors" in description and declared(weights) != description["tensors"]:
        raise FormatError(
            f"{weights_file} does not hold the tensors that {_DESCRIPTION} lists; save the model "
            "again."
        )
    return weights, description


def require_model(path: Path) -> None:
    """Refuse what does not exist or is no folder of a model.

    Raises
    ------
    FormatError
        Naming what to give.
    """
    path = standing_folder(path)
    if (path / _DESCRIPTION).is_file():
        return
    if not path.exists():
        raise FormatError(
            f"{path} is not a totalvi model: it does not exist; give the folder of a model or of a run."
        )
    if path.is_file() and path.name != "model.pt":
        raise FormatError(
            f"{path} is not a totalvi model: it is a file, but not a minified reference, or only part "
            "of one; give the folder of a model or of a run, or copy the reference again."
        )
    hint = "give the folder that Model.save wrote"
    if path.name == "model.pt" or (path / "model.pt").is_file():
        hint = "if it is of scvi-tools, use totalvi.persistence.load_scvi"
    raise FormatError(f"{path} is not a totalvi model: it has no {_DESCRIPTION}; {hint}.")


def _read_description(path: Path) -> dict[str, Any]:
    file = path / _DESCRIPTION
    for name in (_DESCRIPTION, _WEIGHTS):
        _require_own_file(path / name)
    require_model(path)
    try:
        description = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise FormatError(f"{file} cannot be read ({error.strerror}).") from error
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{file} is damaged ({error}); save the model again.") from error
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise FormatError(f"{file} does not describe a totalvi model.")
    number = description.setdefault("format_version", None)
    if not isinstance(number, int) or isinstance(number, bool):
        raise FormatError(
            f"{file} declares format version {number!r}; supported are 1 to {FORMAT_VERSION}."
        )
    return description


def _read_version_1(_path: Path, description: dict[str, Any]) -> dict[str, Any]:
    """Complete a description of version 1, which has no checksums, versions or fingerprint."""
    return {**description, "versions": {}, "fingerprint": None}


def _read_version_2(path: Path, description: dict[str, Any]) -> dict[str, Any]:
    content = dict(description)
    if content.pop("sha256", None) != _checksum(content):
        raise FormatError(f"{path / _DESCRIPTION} is damaged (checksum); save the model again.")
    file = path / _WEIGHTS
    try:
        with file.open("rb") as handle:
            found = hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as error:
        raise FormatError(f"{file} is damaged ({error.strerror}); save the model again.") from error
    if found != content["weights_sha256"]:
        raise FormatError(f"{file} is damaged (checksum); save the model again.")
    return content


_READERS = {1: _read_version_1, 2: _read_version_2}


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages on which a model depends."""
    return {"python": platform.python_version()} | {p: version(p) for p in PACKAGES}


def plain_values(content: dict[str, Any]) -> dict[str, Any]:
    """Return values as JSON has them, with None for NaN."""
    plain: dict[str, Any] = json.loads(
        json.dumps(_without_nan(content), default=_plain, allow_nan=False)
    )
    return plain


def declared(weights: dict[str, Tensor]) -> dict[str, Any]:
    """Return data type and shape of each tensor as JSON values."""
    return {
        name: [str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]
        for name, tensor in sorted(weights.items())
    }


def _checksum(content: dict[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _require_own_file(file: Path) -> None:
    """Raise FormatError if a file of the model is a link, a pipe or a device."""
    if file.is_symlink() or (file.exists() and not file.is_file()):
        raise FormatError(
            f"{file} is not a regular file, as each part of a model must be; copy the file itself "
            "there."
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
    """Return ``value`` with NaN replaced by None, which JSON supports."""
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    return [_without_nan(item) for item in value] if isinstance(value, list) else value


def _plain(value: Any) -> Any:
    """Return a NumPy number or array, or a tensor, as plain numbers and lists."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be kept in {_DESCRIPTION}.")


def _require_possible_sizes(description: dict[str, Any], weights: dict[str, Tensor]) -> None:
    """Raise ValueError for a network larger than the weights, before it is created."""
    options, schema = description["options"], description["schema"]
    n_weights = sum(tensor.numel() for tensor in weights.values())
    n_hidden, n_latent = int(options["n_hidden"]), int(options["n_latent"])
    n_layers = int(options["n_layers_encoder"]) + int(options["n_layers_decoder"]) - 2
    n_least = n_hidden * (
        len(schema["gene_names"])
        + len(schema["protein_names"])
        + len(schema["batch_names"])
        + n_latent
        + n_hidden * max(n_layers, 0)
    )
    if min(n_hidden, n_latent) < 1 or n_least > n_weights:
        raise ValueError(f"{n_weights} weights are too few for {n_hidden} hidden nodes")


def _require_whole_calibration(result: FitResult, schema: Schema) -> None:
    """Raise ValueError for a calibration that lacks proteins, or is not finite."""
    if result.calibration is None:
        return
    n_proteins = len(schema.protein_names)
    for name in ("protein_log_r", "protein_log_scale"):
        values = getattr(result.calibration, name)
        if values.shape != (n_proteins,) or not np.isfinite(values).all():
            raise ValueError(f"{name} of the calibration are not {n_proteins} finite numbers")


def _require_same_types(network: dict[str, Tensor], weights: dict[str, Tensor]) -> None:
    """Raise ValueError for weights that are not finite or have another data type than the network."""
    for name, tensor in weights.items():
        if name in network and tensor.dtype != network[name].dtype:
            raise ValueError(f"{name} is of type {tensor.dtype}, not {network[name].dtype}")
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"{name} is not finite")
