"""Read a 0.6.x state dict, which holds only weights, and its config as schema and options."""

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from anndata import AnnData
from mudata import MuData
from torch import Tensor

from totalvi.data.cells import CiteData, Schema
from totalvi.data.columns import Columns
from totalvi.data.describe import describe, library_prior
from totalvi.data.find import find_counts
from totalvi.errors import FormatError
from totalvi.formats.scvi_weights import State
from totalvi.nn.config import protein_mask
from totalvi.posterior.arguments import key_tuple

ONE_CATEGORY = ("all cells",)
"""Name of the batch of data without batches."""

_NAMES = ("gene_names", "protein_names", "batch_names", "label_names")
_LIBRARY = ("library_log_mean", "library_log_variance")
_OPTIONS = (
    "dropout_rate_decoder",
    "dropout_rate_encoder",
    "gene_dispersion",
    "protein_dispersion",
    "log_variational",
    "reconstruction_loss_gene",
    "latent_distribution",
    "encoder_batch",
)
_ARCHITECTURE: dict[str, Any] = {
    "library": "latent",
    "encoder_architecture": "branched",
    "scale_input": False,
    "background_scale": "exp",
}
_KEYS = tuple(
    field.name
    for field in fields(Columns)
    if "covariate" not in field.name and field.name not in ("panel_key", "size_factor_key")
)


def schema_and_options(
    state: State, config: Mapping[str, Any], data: AnnData | MuData | None
) -> tuple[Schema, dict[str, Any]]:
    """Return the schema and the options of the network of a 0.6.x state dict.

    Parameters
    ----------
    state
        The weights, from which all sizes follow.
    config
        See `load_scvi`.
    data
        Source of names and library sizes that ``config`` does not have.

    Raises
    ------
    FormatError
        When ``config`` has an unknown entry, contradicts the weights, or lacks information that they do
        not have.
    """
    found = sizes(state)
    background = state.get("background_pro_alpha")
    if background is None:
        raise FormatError(
            "The state dict has no background_pro_alpha; it is not of a totalVI model."
        )
    counted = {
        "n_input_genes": state["px_r"].shape[0],
        "n_input_proteins": state["py_r"].shape[0],
        "n_batch": background.shape[1] if background.dim() > 1 else 1,
        **found,
    }
    _check(config, counted)
    keys = Columns(**{name: config[name] for name in _KEYS if name in config})
    schema = _schema(config, keys, counted, data)
    options = {name: config[name] for name in _OPTIONS if name in config}
    return schema, {**found, **options, **_ARCHITECTURE}


def read_config(path: Path) -> dict[str, Any]:
    """Return the config of a 0.6.x state dict from a JSON file.

    Raises
    ------
    FormatError
        When it is not a JSON object.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path} is not JSON ({error}); correct it.") from error
    except OSError as error:
        raise FormatError(f"{path} cannot be read ({error.strerror}); give a JSON file.") from error
    if not isinstance(config, dict):
        raise FormatError(f"{path} is not a JSON object; write the entries of config as one.")
    return config


def _check(config: Mapping[str, Any], counted: Mapping[str, int]) -> None:
    known = (*_NAMES, *_LIBRARY, *_OPTIONS, *_KEYS, *counted, "n_labels", "protein_batch_mask")
    for name in config:
        if name not in known:
            raise FormatError(f"config has {name}; known are {', '.join(known)}.")
    for name, size in counted.items():
        given = config.get(name, size)
        if given != size and not (name == "n_batch" and given == 0 and size == 1):
            raise FormatError(f"config has {name}={given!r}, and the weights have {size}.")


def _schema(
    config: Mapping[str, Any],
    keys: Columns,
    counted: Mapping[str, int],
    data: AnnData | MuData | None,
) -> Schema:
    n_batch, n_labels = counted["n_batch"], config.get("n_labels", 0)
    n_proteins = counted["n_input_proteins"]
    if n_batch > 1 and keys.batch_key is None:
        raise FormatError(
            f"config has no batch_key, and the weights have {n_batch} batches; give it."
        )
    source = None if data is None else find_counts(data, keys)
    given = {
        "gene_names": None if source is None else source.gene_names,
        "protein_names": None if source is None else source.protein_names,
        "batch_names": map(str, range(n_batch)) if keys.batch_key else ONE_CATEGORY,
        "label_names": map(str, range(n_labels)),
    } | {name: config[name] for name in _NAMES if name in config}
    wanted = (counted["n_input_genes"], n_proteins, n_batch, n_labels)
    names: dict[str, tuple[str, ...]] = {}
    for (name, values), n_wanted in zip(given.items(), wanted, strict=True):
        if values is None:
            raise FormatError(f"config has no {name}; give them, or adata that has them.")
        names[name] = tuple(map(str, key_tuple(name, values)))
        if len(names[name]) != n_wanted or len(set(names[name])) != n_wanted:
            raise FormatError(
                f"There are {len(set(names[name]))} different {name}, and the weights have {n_wanted}; "
                f"give config the right {name}."
            )
    mask = protein_mask(config.get("protein_batch_mask"), n_batch, n_proteins)
    measured = ((True,) * n_proteins,) * n_batch if mask is None else mask.tolist()
    schema = Schema(
        columns=keys,
        **names,
        panel_names=(),
        covariate_categories=(),
        continuous_mean=(),
        continuous_scale=(),
        panel_measured=tuple(map(tuple, measured)),
        library_log_mean=(0.0,) * n_batch,
        library_log_variance=(1.0,) * n_batch,
        panel_measured_rna=(),
    )
    library = {name: config.get(name) for name in _LIBRARY}
    if None in library.values():
        if data is None:
            raise FormatError("config has no library_log_mean and library_log_variance; give both.")
        library = _library(describe(data, keys, schema))
    return Schema.from_dict(schema.to_dict() | library)


def _library(data: CiteData) -> dict[str, Any]:
    """Return the prior of the log library size from the data."""
    names = data.schema.batch_names
    for code, name in enumerate(names):
        if not (data.batch == code).any():
            raise FormatError(
                f'adata has no cell of batch "{name}" to take its library_log_mean from; give config '
                "library_log_mean and library_log_variance."
            )
    return dict(
        zip(_LIBRARY, library_prior(data.library_size, data.batch, len(names)), strict=True)
    )


def sizes(state: Mapping[str, Tensor]) -> dict[str, int]:
    """Return the sizes of the network of a 0.6.x or scvi-tools state dict.

    Raises
    ------
    FormatError
        When it lacks the tensors that show them, or these contradict each other.
    """
    first, latent = "encoder.encoder.fc_layers.Layer 0.0.weight", "encoder.z_mean_encoder.weight"
    for name in (first, latent, "px_r", "py_r"):
        if name not in state or state[name].dim() == 0:
            raise FormatError(f"The state dict has no {name}; it is not of a totalVI model.")
    n_hidden = state[first].shape[0]

    def n_layers(trunk: str) -> int:
        return sum(f"{trunk}.fc_layers.Layer {i}.0.weight" in state for i in range(len(state)))

    found = {
        "n_hidden": n_hidden,
        "n_latent": state[latent].shape[0],
        "n_layers_encoder": n_layers("encoder.encoder"),
        "n_layers_decoder": n_layers("decoder.px_decoder"),
    }
    # A small file must not lead to a large network, which is built before weights are compared.
    n_further = found["n_layers_encoder"] - 1 + 4 * (found["n_layers_decoder"] - 1)
    n_features = state["px_r"].shape[0] + state["py_r"].shape[0]
    needed = n_hidden * (n_features + n_further * n_hidden + found["n_latent"])
    if needed > sum(tensor.numel() for tensor in state.values()):
        raise FormatError("The sizes of the state dict's tensors do not fit each other.")
    return found
