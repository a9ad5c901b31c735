"""Read models of scvi-tools without scvi-tools.

A file is read as data (`totalvi.formats.safe_pickle`). Its registry becomes the schema, the arguments
of the model become the network's options, and its tensors the network's weights.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData
from torch import Tensor

from totalvi.data.cells import Schema
from totalvi.data.columns import Columns
from totalvi.errors import FormatError, TotalviError, argument
from totalvi.fit.model_state import FitResult, ModelState, network_of
from totalvi.fit.plan import Split
from totalvi.formats.safe_pickle import StoredArray, checked_tensors, load_inert, stored_values
from totalvi.formats.scvi_06 import ONE_CATEGORY, schema_and_options, sizes
from totalvi.formats.scvi_weights import State, load_scvi_state

OLDEST = (1, 0)
SOFTPLUS_BACKGROUND_SINCE = (1, 1)
NORMALIZATION = {("both", "none"): "batch", ("none", "both"): "layer", ("none", "none"): "none"}
"""The name here of each pair of ``use_batch_norm`` and ``use_layer_norm``."""

_SEEN_IN_THE_WEIGHTS = {
    "n_hidden",
    "n_latent",
    "n_layers_encoder",
    "n_layers_decoder",
    "use_observed_lib_size",
}
_OF_THE_START = {"empirical_protein_background_prior", "extra_payload_autotune"}
_TAKEN = {
    "gene_dispersion": "gene",
    "protein_dispersion": "protein",
    "gene_likelihood": "nb",
    "latent_distribution": "normal",
    "log_variational": True,
    "encode_covariates": True,
    "dropout_rate_encoder": 0.2,
    "dropout_rate_decoder": 0.2,
    "use_batch_norm": "both",
    "use_layer_norm": "none",
    "override_missing_proteins": False,
}


def read_scvi(
    file: Path,
    config: Mapping[str, Any] | None = None,
    adata: AnnData | MuData | None = None,
    *,
    allow_fractional: bool = False,
) -> ModelState:
    """Return the model in a file of scvi-tools, or in a 0.6.x state dict that ``config`` describes.

    Parameters
    ----------
    file
        The ``model.pt`` of scvi-tools, or a state dict.
    config, allow_fractional
        See `totalvi.persistence.load_scvi`.
    adata
        Cells that complete ``config``.

    Raises
    ------
    FormatError
        When the file is damaged, is not a totalVI model, would run code, or the model has an option
        that this package does not have.
    """
    content = load_inert(file)
    attributes = at(content, "attr_dict")
    try:
        if attributes is not None:
            weights, schema, options = _scvi_tools(content, file, allow_fractional)
        elif config is not None:
            weights = checked_tensors(content, file)
            config = {"allow_fractional": allow_fractional, **config}
            schema, options = schema_and_options(weights, config, adata)
        else:
            raise FormatError(
                f"{file} holds no model of scvi-tools; if it is a state dict of 0.6.x, describe it "
                f"with {argument('config')}."
            )
        network = network_of(schema, options, seed=0)
        load_scvi_state(network, weights)
        result = FitResult(_no_history(), _split(attributes), plan=None, summary={})
    except TotalviError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise FormatError(
            f"{file} cannot be read as a totalVI model ({type(error).__name__}: {error}); save it "
            "again."
        ) from error
    is_trained = at(attributes, "is_trained_") is not False
    return ModelState(schema, options, 0, network, result, is_trained=is_trained)


def _no_history() -> pd.DataFrame:
    return pd.DataFrame(index=pd.RangeIndex(0, name="epoch"))


def _scvi_tools(
    content: Mapping[str, Any], file: Path, allow_fractional: bool
) -> tuple[State, Schema, dict[str, Any]]:
    """Return the weights and the schema of a scvi-tools model and the options of its network."""
    weights, attributes = content.get("model_state_dict"), content["attr_dict"]
    if isinstance(weights, dict):
        weights.pop("pyro_param_store", None)  # totalVI does not use it
    state = checked_tensors(weights, file)
    registry = at(attributes, "registry_")
    name = at(registry, "model_name")
    if name != "TOTALVI":
        raise FormatError(f"The model is a {name} of scvi-tools; only TOTALVI can be read.")
    version = version_of(at(registry, "scvi_version"))
    arguments = model_arguments(at(attributes, "init_params_"))
    keys = keys_of(registry, allow_fractional)
    schema = schema_of(registry, keys, masked=not arguments["override_missing_proteins"])
    options = network_options(arguments, version, keys.size_factor_key is not None, state)
    if options["library"] == "latent":
        schema = _with_library(schema, state)
    return state, schema, options


def _with_library(schema: Schema, state: State) -> Schema:
    """Return the schema with the mean and variance of the log library size that a state dict has."""
    mean, variance = (
        tuple(state[f"library_log_{name}"].reshape(-1).tolist()) for name in ("means", "vars")
    )
    if not len(mean) == len(variance) == len(schema.batch_names):
        raise FormatError("The state dict's library_log_means are not one a batch.")
    given = schema.to_dict() | {"library_log_mean": mean, "library_log_variance": variance}
    return Schema.from_dict(given)


def _split(attributes: Any) -> Split:
    """Return the training, validation and test cells of the model, if they are stored."""
    parts = []
    for part in Split._fields:
        stored = at(attributes, f"{part}_indices_")
        cells = () if stored is None else stored_values(stored, f"{part}_indices_")
        parts.append(np.array(list(map(int, cells)), dtype=np.int64))
    return Split(*parts)


# ----------------------------------------------------------------- the registry: schema of the data


def at(tree: Any, *path: str) -> Any:
    """Return the entry of nested dicts at ``path``; None if there is none."""
    for key in path:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


def keys_of(registry: Mapping[str, Any], allow_fractional: bool) -> Columns:
    """Return the places of counts and annotation in the model's data."""
    setup = at(registry, "setup_args")
    if not isinstance(setup, Mapping):
        raise FormatError("The model's registry does not say how its data were set up.")
    x, proteins = (
        at(registry, "field_registries", field, "data_registry") for field in ("X", "proteins")
    )

    def key(name: str) -> str | None:
        return _text_or_none(setup.get(name), name)

    def several(name: str) -> tuple[str, ...]:
        given = setup.get(name)
        return () if given is None else tuple(map(str, stored_values(given, name)))

    modalities: dict[str, Any] = {}
    if at(registry, "setup_method_name") == "setup_mudata":
        found = {"rna_modality": at(x, "mod_key"), "protein_modality": at(proteins, "mod_key")}
        if None in found.values():
            raise FormatError(
                "The model was set up with RNA or proteins outside a modality of its MuData; set it up "
                "with modalities= in scvi-tools and save it again."
            )
        modalities = {name: _text_or_none(value, name) for name, value in found.items()}
        modalities["protein_layer"] = _layer(proteins)
    return Columns(
        batch_key=key("batch_key"),
        panel_key=key("panel_key"),
        size_factor_key=key("size_factor_key"),
        categorical_covariate_keys=several("categorical_covariate_keys"),
        continuous_covariate_keys=several("continuous_covariate_keys"),
        rna_layer=_layer(x),
        protein_expression_obsm_key=key("protein_expression_obsm_key"),
        protein_names_uns_key=key("protein_names_uns_key"),
        allow_fractional=allow_fractional,
        **modalities,
    )


def schema_of(registry: Mapping[str, Any], keys: Columns, masked: bool) -> Schema:
    """Return names, categories and panels; continuous covariates are not standardised.

    Parameters
    ----------
    masked
        Whether the model leaves out the proteins that a batch or panel did not measure.
    """
    fields = at(registry, "field_registries")
    genes = names_at(fields, "X", "state_registry", "column_names")
    batches: tuple[str, ...] = ONE_CATEGORY
    if keys.batch_key is not None:
        batches = names_at(fields, "batch", "state_registry", "categorical_mapping")
    panels: tuple[str, ...] = ()
    if keys.panel_key is not None:
        panels = names_at(fields, "panel", "state_registry", "categorical_mapping")
    covariates = tuple(
        names_at(fields, "extra_categorical_covs", "state_registry", "mappings", key)
        for key in keys.categorical_covariate_keys
    )
    proteins = _protein_names(at(fields, "proteins", "state_registry", "column_names"))
    mask = at(fields, "proteins", "state_registry", "protein_batch_mask") if masked else None
    n_panels = len(panels) or len(batches)
    n_continuous = len(keys.continuous_covariate_keys)
    return Schema(
        columns=keys,
        gene_names=genes,
        protein_names=proteins,
        batch_names=batches,
        panel_names=panels,
        label_names=(),
        covariate_categories=covariates,
        continuous_mean=(0.0,) * n_continuous,
        continuous_scale=(1.0,) * n_continuous,
        panel_measured=_measured(mask, n_panels, len(proteins)),
        library_log_mean=(0.0,) * len(batches),
        library_log_variance=(1.0,) * len(batches),
    )


def names_at(tree: Any, *path: str) -> tuple[str, ...]:
    """Return the names or categories stored at ``path`` as unique texts.

    Raises
    ------
    FormatError
        When there are none, or one is repeated.
    """
    what = " of ".join(reversed([part for part in path if part != "state_registry"]))
    names = tuple(map(str, stored_values(at(tree, *path), what)))
    if not names or len(set(names)) != len(names):
        raise FormatError(f"The model's {what} are empty or not unique.")
    return names


def _protein_names(stored: Any) -> tuple[str, ...]:
    """Return the proteins' names; without names, columns are numbered as in our data."""
    numbered = isinstance(stored, StoredArray) and all(
        isinstance(item, int) for item in stored_values(stored, "proteins")
    )
    names = names_at({"protein names": stored}, "protein names")
    return tuple(f"protein_{name}" for name in names) if numbered else names


def _measured(
    mask: Mapping[str, Any] | None, n_panels: int, n_proteins: int
) -> tuple[tuple[bool, ...], ...]:
    if mask is None:
        return ((True,) * n_proteins,) * n_panels
    rows: Sequence[tuple[bool, ...]] = [
        tuple(map(bool, stored_values(at(mask, str(code)), "protein_batch_mask")))
        for code in range(n_panels)
    ]
    if {len(row) for row in rows} != {n_proteins}:
        raise FormatError("The model's protein_batch_mask has not one value a protein and batch.")
    return tuple(rows)


def _layer(data_registry: Any) -> str | None:
    """Return the layer with the counts; None: X."""
    if at(data_registry, "attr_name") != "layers":
        return None
    return _text_or_none(at(data_registry, "attr_key"), "layer")


def _text_or_none(value: Any, what: str) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise FormatError(f"The model's {what} is a {type(value).__name__} and not a text.")


# ---------------------------------------------------------- the arguments of the model


def version_of(text: Any) -> tuple[int, int]:
    """Return the first two numbers of a version of scvi-tools.

    Raises
    ------
    FormatError
        When there are none, or it is older than 1.0.
    """
    found = re.match(r"(\d{1,9})\.(\d{1,9})", text) if isinstance(text, str) else None
    if found is None:
        raise FormatError("The model's registry has no scvi_version, so it cannot be read.")
    version = (int(found[1]), int(found[2]))
    if version < OLDEST:
        raise FormatError(
            f"The model is of scvi-tools {version[0]}.{version[1]}, and those from 1.0 on can be read; "
            "load it in scvi-tools 1.0 or later and save it again."
        )
    return version


def model_arguments(init_params: Any) -> dict[str, Any]:
    """Return the arguments of the model, with defaults.

    Raises
    ------
    FormatError
        When this package has no equivalent of one of them.
    """
    given: dict[str, Any] = {}
    for part in ("non_kwargs", "kwargs"):
        arguments = init_params.get(part) if isinstance(init_params, Mapping) else None
        if not isinstance(arguments, Mapping):
            raise FormatError("The model does not say which arguments it was made with.")
        given |= arguments
    given |= given.pop("model_kwargs", None) or {}
    for name, value in given.items():
        known = name in _TAKEN or name in _SEEN_IN_THE_WEIGHTS or name in _OF_THE_START
        if not known and value not in (None, {}):
            raise FormatError(
                f"The model was made with {name}, which totalvi has no counterpart of."
            )
    return {name: given.get(name, default) for name, default in _TAKEN.items()}


def network_options(
    arguments: Mapping[str, Any],
    version: tuple[int, int],
    has_size_factor: bool,
    state: Mapping[str, Tensor],
) -> dict[str, Any]:
    """Return the arguments of `TOTALVI` for a scvi-tools model."""
    norms = (arguments["use_batch_norm"], arguments["use_layer_norm"])
    if norms not in NORMALIZATION:
        raise FormatError(
            f"The model has use_batch_norm={norms[0]!r} and use_layer_norm={norms[1]!r}; totalvi has "
            "one normalisation, or none, for encoder and decoder alike."
        )
    if has_size_factor:
        library = "size_factor"
    else:
        library = "latent" if "library_log_means" in state else "observed"
    return {
        **sizes(state),
        "dropout_rate_encoder": arguments["dropout_rate_encoder"],
        "dropout_rate_decoder": arguments["dropout_rate_decoder"],
        "reconstruction_loss_gene": arguments["gene_likelihood"],
        "latent_distribution": arguments["latent_distribution"],
        # scvi-tools has only one label, so "by label" means one value for all cells
        "gene_dispersion": str(arguments["gene_dispersion"]).removesuffix("-label"),
        "protein_dispersion": str(arguments["protein_dispersion"]).removesuffix("-label"),
        "library": library,
        "encoder_architecture": "direct",
        "scale_input": True,
        "background_scale": "softplus" if version >= SOFTPLUS_BACKGROUND_SINCE else "exp",
        "log_variational": arguments["log_variational"],
        "encoder_batch": arguments["encode_covariates"],
        "encode_covariates": arguments["encode_covariates"],
        "protein_efficiency": "log_per_batch_efficiency" in state,
        "normalization": NORMALIZATION[norms],
    }
