"""Write models as model folders of scvi-tools: weights, arguments and registry."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import torch

from totalvi.data.cells import Schema
from totalvi.data.columns import Columns
from totalvi.errors import FormatError, OutputError
from totalvi.fit.model_state import ModelState
from totalvi.formats.model_folder import write_folder
from totalvi.formats.scvi_06 import ONE_CATEGORY
from totalvi.formats.scvi_read import NORMALIZATION
from totalvi.formats.scvi_weights import scvi_state
from totalvi.nn.network import Network

_FILE = "model.pt"
_VERSION = "1.4.2"  # the version of scvi-tools with this format
_KNOWN_OPTIONS = {
    "background_samples",
    "foreground_penalty",
    "hidden_protein_rate",
    "fused",
    "n_latent",
    "n_hidden",
    "n_layers_encoder",
    "n_layers_decoder",
    "dropout_rate_encoder",
    "dropout_rate_decoder",
    "reconstruction_loss_gene",
    "latent_distribution",
    "gene_dispersion",
    "protein_dispersion",
    "library",
    "encoder_architecture",
    "scale_input",
    "background_scale",
    "log_variational",
    "encoder_batch",
    "encode_covariates",
    "protein_efficiency",
    "normalization",
    "background_prior",
}


def write_scvi(path: Path, model: ModelState, overwrite: bool) -> None:
    """Write a folder that scvi-tools 1.4 loads, completely or not at all.

    Raises
    ------
    FormatError
        When an option of the model has no equivalent in scvi-tools.
    OutputError
        When ``path`` may not be replaced or written to.
    """
    module, schema, options = model.network, model.schema, model.options
    _require_counterparts(module, options)
    state = scvi_state(module, schema.continuous_mean, schema.continuous_scale)
    if module.library == "latent":
        mean, variance = schema.library_log_mean, schema.library_log_variance
        state |= {
            "library_log_means": torch.tensor([mean]),
            "library_log_vars": torch.tensor([variance]),
        }
    parts = model.result.split._asdict()
    attributes = {
        "init_params_": _init_params(module, options),
        "is_trained_": True,
        "registry_": _registry(schema, sum(map(len, parts.values()))),
        "history_": {},
        **{f"{name}_indices_": cells for name, cells in parts.items()},
    }
    genes, keys = _name_array(schema.gene_names), schema.columns
    names = (
        {keys.rna_modality: genes, keys.protein_modality: _name_array(schema.protein_names)}
        if keys.protein_expression_obsm_key is None
        else genes
    )
    content = {"model_state_dict": state, "var_names": names, "attr_dict": attributes}
    packed = BytesIO()  # torch does not report a full disk, so we write the file ourselves
    torch.save(content, packed)

    def write(folder: Path) -> None:
        (folder / _FILE).write_bytes(packed.getbuffer())

    write_folder(path, write, overwrite, _require_own_folder)


def _require_counterparts(module: Network, options: dict[str, Any]) -> None:
    """Raise FormatError for the first option without an equivalent in scvi-tools."""
    by_label = [
        f"{name} by label"
        for name in ("gene_dispersion", "protein_dispersion")
        if getattr(module, name).endswith("label")
    ]
    lacking = [*sorted(set(options) - _KNOWN_OPTIONS), *by_label]
    if module.rna_mask is not None:
        lacking.append("cells without RNA")
    if module.encoder.z_branch is not None:
        lacking.append('encoder_architecture="branched"')
    if not module.encoder.scale_input:
        lacking.append("scale_input=False")
    if module.decoder.background_scale == "exp":
        lacking.append('background_scale="exp"')
    if _encodes_covariates(module) is None:
        lacking.append("an encoder that sees the batch, but not the covariates, or the reverse")
    if lacking:
        raise FormatError(
            f"The model has {lacking[0]}, which TOTALVI of scvi-tools cannot have; fit a model without "
            "it to take it there."
        )


def _encodes_covariates(module: Network) -> bool | None:
    """Return scvi-tools' joint option for batch and covariates in the encoder; None if they differ."""
    switches = set()
    if module.n_batch > 1:
        switches.add(module.encoder_batch)
    if module.n_categories_per_covariate or module.n_continuous_covariates:
        switches.add(module.encode_covariates)
    if len(switches) > 1:
        return None
    return bool(next(iter(switches), True))


def _init_params(module: Network, options: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of scvi-tools for the same network."""
    encoder, decoder = module.encoder, module.decoder
    activation = encoder.trunk.first.activation
    batch_norm, layer_norm = next(
        pair for pair, name in NORMALIZATION.items() if name == activation.normalization
    )
    return {
        "non_kwargs": {
            "n_latent": module.n_latent,
            "gene_dispersion": module.gene_dispersion,
            "protein_dispersion": module.protein_dispersion,
            "gene_likelihood": options["reconstruction_loss_gene"],
            "latent_distribution": module.latent_distribution,
            "empirical_protein_background_prior": False,
            "override_missing_proteins": module.protein_mask is None,
        },
        "kwargs": {
            "model_kwargs": {
                "n_hidden": encoder.z_head.mean.weight.shape[0],
                "n_layers_encoder": 1 + len(encoder.trunk.rest),
                "n_layers_decoder": 1 + len(decoder.rest),
                "dropout_rate_encoder": float(activation.dropout_rate),
                "dropout_rate_decoder": float(decoder.first.activation.dropout_rate),
                "log_variational": bool(encoder.log_input),
                "encode_covariates": _encodes_covariates(module),
                "use_observed_lib_size": module.library != "latent",
                "use_batch_norm": batch_norm,
                "use_layer_norm": layer_norm,
            }
        },
    }


def _require_own_folder(path: Path) -> None:
    names = {entry.name for entry in path.iterdir()} if path.is_dir() else set()
    if names != {_FILE}:
        raise OutputError(
            f"{path} exists and holds not only the {_FILE} of scvi-tools; choose another path."
        )


# ----------------------------------------------------------------- the registry: schema of the data


def _registry(schema: Schema, n_cells: int) -> dict[str, Any]:
    """Return the registry of scvi-tools for the data of a model with this schema.

    Without a key of ``obsm``, the data are a MuData with columns in its own ``obs``.
    """
    keys = schema.columns
    in_mudata = keys.protein_expression_obsm_key is None
    genes, proteins = _name_array(schema.gene_names), _name_array(schema.protein_names)
    rna_modality = {"mod_key": keys.rna_modality} if in_mudata else {}
    protein_state: dict[str, Any] = {"column_names": proteins if in_mudata else proteins.tolist()}
    if in_mudata:
        protein_state |= {"n_obs": n_cells, "n_vars": len(proteins)}
        protein_place = {**_counts_in(keys.protein_layer), "mod_key": keys.protein_modality}
    else:
        protein_place = _place("obsm", keys.protein_expression_obsm_key)
    mask = np.array(schema.panel_measured)
    if not mask.all():
        protein_state["protein_batch_mask"] = {str(code): row for code, row in enumerate(mask)}
    covariates, continuous = keys.categorical_covariate_keys, keys.continuous_covariate_keys
    categories = schema.covariate_categories
    fields = {
        "X": _field(
            {**_counts_in(keys.rna_layer), **rna_modality},
            {"n_obs": n_cells, "n_vars": len(genes), "column_names": genes},
            {"n_vars": len(genes), "n_cells": n_cells},
        ),
        "labels": _column("labels", None, ONE_CATEGORY),
        "batch": _column("batch", keys.batch_key, schema.batch_names),
        "size_factor": _field(
            {} if keys.size_factor_key is None else _place("obs", keys.size_factor_key), {}, {}
        ),
        "extra_categorical_covs": _field(
            _place("obsm", "_scvi_extra_categorical_covs") if covariates else {},
            {
                "mappings": dict(zip(covariates, map(_name_array, categories), strict=True)),
                "field_keys": list(covariates),
                "n_cats_per_key": list(map(len, categories)),
            }
            if covariates
            else {},
            {"n_extra_categorical_covs": len(covariates)},
        ),
        "extra_continuous_covs": _field(
            _place("obsm", "_scvi_extra_continuous_covs") if continuous else {},
            {"columns": _name_array(continuous)} if continuous else {},
            {"n_extra_continuous_covs": len(continuous)},
        ),
        "proteins": _field(protein_place, protein_state, {"n_proteins": len(proteins)}),
    }
    if keys.panel_key is not None:
        fields["panel"] = _column("panel", keys.panel_key, schema.panel_names)
    return {
        "scvi_version": _VERSION,
        "model_name": "TOTALVI",
        "setup_args": _setup_arguments(keys),
        "field_registries": fields,
        "setup_method_name": "setup_mudata" if in_mudata else "setup_anndata",
        "_scvi_uuid": str(uuid4()),
    }


def _name_array(names: Sequence[str]) -> np.ndarray:
    """Return names in the form of scvi-tools."""
    return np.array(names, dtype=object)


def _field(place: dict[str, Any], state: dict[str, Any], summary: dict[str, int]) -> dict[str, Any]:
    return {"data_registry": place, "state_registry": state, "summary_stats": summary}


def _place(attr_name: str, attr_key: str | None) -> dict[str, Any]:
    return {"attr_name": attr_name, "attr_key": attr_key}


def _counts_in(layer: str | None) -> dict[str, Any]:
    return _place("X" if layer is None else "layers", layer)


def _column(name: str, key: str | None, categories: tuple[str, ...]) -> dict[str, Any]:
    """Return the entry for a column of codes that scvi-tools derives from a column of ``obs``."""
    own = f"_scvi_{name}"
    mapping = np.array([0]) if key is None else _name_array(categories)
    return _field(
        _place("obs", own),
        {"categorical_mapping": mapping, "original_key": own if key is None else key},
        {f"n_{name}": len(categories)},
    )


def _setup_arguments(keys: Columns) -> dict[str, Any]:
    shared = {
        "batch_key": keys.batch_key,
        "panel_key": keys.panel_key,
        "size_factor_key": keys.size_factor_key,
        "categorical_covariate_keys": list(keys.categorical_covariate_keys) or None,
        "continuous_covariate_keys": list(keys.continuous_covariate_keys) or None,
    }
    if keys.protein_expression_obsm_key is not None:
        return {
            "protein_expression_obsm_key": keys.protein_expression_obsm_key,
            "protein_names_uns_key": keys.protein_names_uns_key,
            "layer": keys.rna_layer,
            **shared,
        }
    return {
        "rna_layer": keys.rna_layer,
        "protein_layer": keys.protein_layer,
        **shared,
        "modalities": {"rna_layer": keys.rna_modality, "protein_layer": keys.protein_modality},
    }
