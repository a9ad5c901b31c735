"""Write and read a minified reference: a model in one file, with the posteriors of its cells.

The file is of safetensors. Its metadata hold a description as JSON, and a checksum of that and of all
tensors. docs/reliability.md says what it holds.
"""

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from totalvi.atomic import locked, parents_of, write_file
from totalvi.data.cells import LAYOUT, Annotation, CiteData
from totalvi.data.minified_cells import (
    LONGEST_HEADER,
    Grid,
    KeptCounts,
    Places,
    Steps,
    StoredPosterior,
    is_minified,
)
from totalvi.errors import FormatError, OutputError, setting
from totalvi.fit.model_state import ModelState
from totalvi.fit.plan import Split
from totalvi.formats.model_folder import (
    SAVING_TAKES_AT_MOST_S,
    declared,
    description_of,
    plain_values,
    state_of,
    versions,
)
from totalvi.formats.packed_columns import (
    Packed,
    PackedSteps,
    as_whole,
    n_predictors,
    pack,
    pack_rows,
    pack_sizes,
    pack_steps,
    pack_texts,
    unpack,
    unpack_rows,
    unpack_sizes,
    unpack_steps,
    unpack_texts,
)
from totalvi.mapping.reference_card import Minified
from totalvi.posterior.rna_predictors import RnaPredictors

FORMAT = "totalvi minified reference"
FORMAT_VERSION = 1
_MOST_UNPACKED = 20  # times the bytes of the file, so that none is made to fill memory; usual are 4
_WEIGHTS, _CELLS, _PREDICTORS = "weights.", "cells.", "predictors."
_PARTS = ("train", "validation", "test")
_Part = TypeVar("_Part")


def write_minified(
    path: Path,
    state: ModelState,
    data: CiteData,
    kept: Minified,
    overwrite: bool,
) -> None:
    """Write a minified reference, completely or not at all.

    Parameters
    ----------
    data
        The cells that the model was fitted to.
    kept
        What is kept of them.

    Raises
    ------
    OutputError
        When ``path`` exists and ``overwrite`` is False, or is not a minified reference, or cannot be
        written.
    """
    packed = _packed_cells(state, data, kept.posterior, kept.kept)
    for name, values in kept.labels.items():
        same = [other for other in kept.labels if values.equals(kept.labels[other])]
        if name == same[0]:  # objects of several modalities have columns twice
            about = {"names": same, "categories": list(map(str, values.categories))}
            codes = pack(values.codes)
            packed[f"obs_{len(packed)}"] = codes._replace(described=codes.described | about)
    left_out = [str(name) for name in data.annotation.obs() if str(name) not in kept.labels]
    tensors = {
        _WEIGHTS + name: tensor.contiguous() for name, tensor in state.network.state_dict().items()
    }
    tensors |= {_CELLS + name: torch.from_numpy(part.tensor()) for name, part in packed.items()}
    tensors |= {
        _PREDICTORS + name: torch.from_numpy(np.array(part))
        for name, part in kept.predictors.items()
    }
    description = description_of(_without_cells(state)) | {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "versions": versions(),
        "cells": {
            "n_cells": data.n_cells,
            "n_kept": len(kept.kept),
            "grid": list(kept.posterior.grid),
            "columns": {name: part.described for name, part in packed.items()},
        },
        "card": kept.card | {"obs_left_out": left_out},
        "tensors": declared(tensors),
    }
    content = _with_checksum(tensors, json.dumps(plain_values(description)))
    path = path.resolve()
    with parents_of(path), locked(path, SAVING_TAKES_AT_MOST_S):
        require_replaceable(path, overwrite)
        write_file(path, content)


def require_replaceable(path: Path, overwrite: bool) -> None:
    """Refuse a path at which no reference can be written.

    Raises
    ------
    OutputError
        When it exists, and ``overwrite`` is False or it is not a minified reference.
    """
    if not path.exists():
        return
    if not overwrite:
        raise OutputError(
            f"{path} exists; give {setting('overwrite', True)} to replace it, or another path."
        )
    if not is_minified(path):
        raise OutputError(f"{path} exists and is not a minified reference; choose another path.")


def read_minified(path: Path) -> tuple[ModelState, CiteData]:
    """Return the model in a minified reference, and its cells.

    Raises
    ------
    FormatError
        When the file is damaged, or of a format version that this package does not know.
    """
    tensors, description = _read(path)
    state = state_of(path, _called(_WEIGHTS, tensors), description)
    try:
        with np.errstate(all="ignore"):  # of damaged numbers, which are then refused
            return _with_cells(state, tensors, description["cells"], path.stat().st_size)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from error


def read_card(path: Path) -> dict[str, Any]:
    """Return the card of a minified reference, with its format version and versions of packages.

    Raises
    ------
    FormatError
        As `read_minified`.
    """
    description = _read(path)[1]
    try:
        return {name: description[name] for name in ("format_version", "versions", "card")}
    except KeyError as error:
        raise _damaged(path, f"it lacks its {error.args[0]}") from error


def _called(prefix: str, parts: Mapping[str, _Part]) -> dict[str, _Part]:
    """Return the parts whose names start with ``prefix``, without it."""
    return {
        name.removeprefix(prefix): part for name, part in parts.items() if name.startswith(prefix)
    }


def _without_cells(state: ModelState) -> ModelState:
    """Return the state without its lists of cells, which are packed elsewhere."""
    nobody = np.array([], dtype=np.int64)
    calibration = state.result.calibration
    if calibration is not None:
        calibration = calibration._replace(cells=nobody)
    result = replace(state.result, split=Split(nobody, nobody, nobody), calibration=calibration)
    return replace(state, result=result)


def _packed_cells(
    state: ModelState, data: CiteData, posterior: StoredPosterior, kept: np.ndarray
) -> dict[str, Packed]:
    """Return the columns of all cells, and the counts of the kept ones."""
    means, variances = (
        np.hstack([part for part in posterior[first::2] if part is not None]) for first in (0, 1)
    )
    size = pack_sizes(data.library_size)
    in_steps = pack_steps(
        Steps.of(means, variances, posterior.grid), unpack_sizes(*size, data.n_cells)
    )
    part_of_fit, calibrates = np.zeros(data.n_cells, np.int64), np.zeros(data.n_cells, np.int64)
    for code, cells in enumerate(state.result.split, start=1):
        part_of_fit[cells] = code
    if state.result.calibration is not None:
        calibrates[state.result.calibration.cells] = 1
    packed = {
        "mean": in_steps.mean,
        "log_variance": in_steps.residual,
        "coefficients": pack(in_steps.coefficients),
        "library_size": size,
        "names": pack_texts(list(map(str, data.cell_names))),
        "part_of_fit": pack(part_of_fit),
        "calibrates": pack(calibrates),
        "batch": pack(data.batch),
        "panel": pack(data.panel),
        "kept": pack(np.diff(kept, prepend=0)),
        "kept_protein": pack(as_whole(data.protein.rows(kept))),
    }
    layout = data.annotation.layout()
    if layout is not None:
        places = Places.of(layout)
        steps = pack(places.steps)
        about = {"least": places.least, "width": places.width}
        packed["layout"] = steps._replace(described=steps.described | about)
    optional = {"label": data.label, "categorical": data.categorical, "continuous": data.continuous}
    packed |= {name: pack(values) for name, values in optional.items() if values is not None}
    rows = pack_rows(data.rna.rows(kept))
    return packed | {f"kept_rna_{name}": part for name, part in rows.items()}


def _with_cells(
    state: ModelState, tensors: dict[str, Tensor], cells: dict[str, Any], n_bytes: int
) -> tuple[ModelState, CiteData]:
    """Return the state with its lists of cells, and the cells; ValueError where they are damaged."""
    n_cells, n_kept, columns = int(cells["n_cells"]), int(cells["n_kept"]), cells["columns"]
    if not 0 < n_cells <= n_bytes or not 0 <= n_kept <= n_cells:
        raise ValueError(f"{n_cells} cells in {n_bytes} bytes.")  # each cell has more than one byte
    parts = {
        name: Packed(tensors[_CELLS + name].numpy().tobytes(), described)
        for name, described in columns.items()
    }
    n_unpacked = sum(part.n_unpacked for part in parts.values())
    if n_unpacked > _MOST_UNPACKED * n_bytes:
        raise ValueError(f"{n_unpacked} bytes packed into {n_bytes}.")
    schema, network = state.schema, state.network

    def codes(name: str, n_codes: int, shape: tuple[int, ...] = (n_cells,)) -> np.ndarray:
        found = unpack(*parts[name], shape)
        if found.dtype != np.int64 or not ((found >= 0) & (found < n_codes)).all():
            raise ValueError(f"{name} holds codes that are not there.")
        return found

    size = unpack_sizes(*parts["library_size"], n_cells)
    grid = Grid(*map(int, cells["grid"]))
    widths = network.n_latent, network.library == "latent", network.staining is not None
    posterior = _posterior(parts, size, grid, widths)
    if not all(np.isfinite(part).all() for part in (size, *posterior) if part is not None):
        raise ValueError("the posterior is not finite.")
    part_of_fit = codes("part_of_fit", len(_PARTS) + 1)
    split = Split(*(np.flatnonzero(part_of_fit == code) for code in range(1, len(_PARTS) + 1)))
    calibration = state.result.calibration
    if calibration is not None:
        calibration = calibration._replace(cells=np.flatnonzero(codes("calibrates", 2)))
    kept = np.cumsum(unpack(*parts["kept"], (n_kept,)))
    if n_kept and not ((np.diff(kept) > 0).all() and kept[0] >= 0 and kept[-1] < n_cells):
        raise ValueError("kept cells that are not there.")
    rows = _called("kept_rna_", parts)
    protein = unpack(*parts["kept_protein"], (n_kept, len(schema.protein_names)))
    if not (np.isfinite(protein).all() and (protein >= 0).all()):
        raise ValueError("protein counts that are no counts.")
    predictors = {name: part.numpy() for name, part in _called(_PREDICTORS, tensors).items()}
    if predictors:
        RnaPredictors.of_arrays(predictors, schema)  # which checks them
    names = pd.Index(unpack_texts(parts["names"], n_cells), dtype=object)
    n_covariates = list(map(len, schema.covariate_categories))
    categorical = None
    if n_covariates:
        shape = (n_cells, len(n_covariates))
        categorical = codes("categorical", max(n_covariates), shape)
        if (categorical >= n_covariates).any():
            raise ValueError("categories that are not there.")
    continuous = None
    if "continuous" in parts:
        n_continuous = len(schema.columns.continuous_covariate_keys)
        continuous = unpack(*parts["continuous"], (n_cells, n_continuous)).astype(np.float32)
    data = CiteData(
        schema=schema,
        rna=KeptCounts(unpack_rows(rows, (n_kept, len(schema.gene_names))), kept, n_cells),
        protein=KeptCounts(protein.astype(np.float32), kept, n_cells),
        cell_names=names,
        batch=codes("batch", len(schema.batch_names)),
        panel=codes("panel", len(schema.panel_measured)),
        label=codes("label", len(schema.label_names)) if "label" in parts else None,
        categorical=categorical,
        continuous=continuous,
        library_size=size,
        annotation=Annotation.of_table(_labels(parts, names)),
        controls=pd.DataFrame(index=names),
        posterior=posterior,
        predictors=predictors or None,
    )
    result = replace(state.result, split=split, calibration=calibration)
    return replace(state, result=result), data


def _posterior(
    parts: dict[str, Packed], size: np.ndarray, grid: Grid, widths: tuple[int, int, int]
) -> StoredPosterior:
    """Return the posteriors of latent state, library size and level; width 0: there is none."""
    shape = len(size), sum(widths)
    shape_of_regression = n_predictors(shape[1]), shape[1]
    coefficients = unpack(*parts["coefficients"], shape_of_regression).astype(np.float32)
    packed = PackedSteps(parts["mean"], parts["log_variance"], coefficients, grid)
    mean, variance = unpack_steps(packed, shape, size).values()
    ends = np.cumsum(widths)
    return StoredPosterior(*(
        np.ascontiguousarray(x[:, end - width : end]) if width else None
        for width, end in zip(widths, ends, strict=True)
        for x in (mean, variance)
    ))  # type: ignore[arg-type]  # fmt: skip


def _labels(parts: dict[str, Packed], names: pd.Index) -> pd.DataFrame:
    """Return the columns of obs that were kept, as categories."""
    obs = pd.DataFrame(index=names)
    for name, part in parts.items():
        if name.startswith("obs_"):
            codes = unpack(*part, (len(names),))
            categories = pd.Index(part.described["categories"], dtype=object)
            for column in part.described["names"]:
                obs[column] = pd.Categorical.from_codes(codes, categories)
    if "layout" in parts:
        steps, about = unpack(*parts["layout"], (len(names), 2)), parts["layout"].described
        obs[list(LAYOUT)] = Places(steps, about["least"], about["width"]).values()
    return obs


def _with_checksum(tensors: dict[str, Tensor], text: str) -> bytes:
    """Return the file's content; the checksum is of the description and the bytes of all tensors."""
    unsigned = safetensors.torch.save(tensors, {"totalvi": text, "sha256": "0" * 64})
    digest = _digest(text, _body(unsigned))
    content: bytes = safetensors.torch.save(tensors, {"totalvi": text, "sha256": digest})
    return content


def _body(content: bytes) -> memoryview:
    (length,) = struct.unpack("<Q", content[:8])
    return memoryview(content)[8 + length :]


def _digest(text: str, body: memoryview) -> str:
    digest = hashlib.sha256(text.encode())
    digest.update(body)
    return digest.hexdigest()


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the description of the file, once they are known to be whole."""
    if not is_minified(path):
        raise FormatError(
            f"{path} is not a minified reference; give a file that Model.save(path, minified=True) or "
            "`totalvi convert RUN FILE --to minified` wrote."
        )
    try:
        content = path.read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        if length > min(len(content) - 8, LONGEST_HEADER):
            raise ValueError("it ends too early.")
        metadata = json.loads(content[8 : 8 + length])["__metadata__"]
        text = metadata["totalvi"]
        if metadata["sha256"] != _digest(text, _body(content)):
            raise ValueError("checksum.")
        description = json.loads(text)
        if description["format"] != FORMAT:
            raise ValueError(f"format {description['format']!r}.")
    except (OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise _damaged(path, str(error)) from error
    if description.get("format_version") != FORMAT_VERSION:
        raise FormatError(
            f"{path} has format version {description.get('format_version')!r}, and this totalvi reads "
            f"{FORMAT_VERSION}; update totalvi."
        )
    try:
        tensors = safetensors.torch.load(content)
        if declared(tensors) != description["tensors"]:
            raise ValueError("other tensors than it lists.")
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise _damaged(path, str(error)) from error
    return tensors, description


def _damaged(path: Path, why: str) -> FormatError:
    why = why.rstrip(".")
    return FormatError(f"{path} is damaged ({why}); save the reference again, or copy it again.")
