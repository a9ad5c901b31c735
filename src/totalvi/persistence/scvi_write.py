"""Models of this package as model folders of scvi-tools."""

from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import torch

from totalvi.data.cite import Keys, Schema
from totalvi.errors import FormatError, OutputError
from totalvi.module.totalvi import TOTALVI
from totalvi.persistence.format import new_folder
from totalvi.persistence.scvi_export import scvi_state
from totalvi.persistence.scvi_options import NORMALIZATION
from totalvi.training.split import Split

_FILE = "model.pt"
_VERSION = "1.4.2"  # whose format this is
_KNOWN_OPTIONS = {
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


def write_scvi(
    path: Path,
    module: TOTALVI,
    schema: Schema,
    options: dict[str, Any],
    split: Split | None,
    overwrite: bool,
) -> None:
    """Write a folder that scvi-tools 1.4 loads, whole or not at all.

    Parameters
    ----------
    module, schema, options, split
        Of the model: its network, what it knows of its data, the arguments of `TOTALVI` that it gave,
        and the cells that it was trained on.

    Raises
    ------
    FormatError
        When scvi-tools has nothing that corresponds to an option of the model.
    OutputError
        When ``path`` may not be replaced or written to.
    """
    _require_counterparts(module, options)
    state = scvi_state(module, schema.continuous_mean, schema.continuous_scale)
    if module.library == "latent":
        mean, variance = schema.library_log_mean, schema.library_log_variance
        state |= {
            "library_log_means": torch.tensor([mean]),
            "library_log_vars": torch.tensor([variance]),
        }
    parts = {} if split is None else split._asdict()
    attributes = {
        "init_params_": _init_params(module, options),
        "is_trained_": True,
        "registry_": _registry(schema, sum(map(len, parts.values()))),
        "history_": {},
        **{f"{name}_indices_": cells for name, cells in parts.items()},
    }
    genes, keys = _objects(schema.gene_names), schema.keys
    names = (
        {keys.rna_modality: genes, keys.protein_modality: _objects(schema.protein_names)}
        if keys.protein_expression_obsm_key is None
        else genes
    )
    content = {"model_state_dict": state, "var_names": names, "attr_dict": attributes}
    with new_folder(path, overwrite, _require_own_folder) as folder:
        torch.save(content, folder / _FILE)


def _require_counterparts(module: TOTALVI, options: dict[str, Any]) -> None:
    """Raise FormatError for the first thing that a totalVI of scvi-tools cannot be."""
    unknown = sorted(set(options) - _KNOWN_OPTIONS)
    dispersions = ("gene_dispersion", "protein_dispersion")
    by_label = [name for name in dispersions if getattr(module, name).endswith("label")]
    has = {
        unknown[0] if unknown else "": bool(unknown),
        'encoder_architecture="branched"': module.encoder.z_branch is not None,
        "scale_input=False": not module.encoder.scale_input,
        'background_scale="exp"': module.decoder.background_scale == "exp",
        f"{by_label[0]} by label" if by_label else "": bool(by_label),
        "an encoder that sees the batch, but not the covariates, or the reverse": (
            _encodes_covariates(module) is None
        ),
    }
    for what, is_so in has.items():
        if is_so:
            raise FormatError(
                f"The model has {what}, which TOTALVI of scvi-tools cannot have; fit a model without "
                "it to take it there."
            )


def _encodes_covariates(module: TOTALVI) -> bool | None:
    """Return scvi-tools' one switch for batch and covariates in the encoder; None: they differ."""
    switches = set()
    if module.n_batch > 1:
        switches.add(module.encoder_batch)
    if module.n_categories_per_covariate or module.n_continuous_covariates:
        switches.add(module.encode_covariates)
    if len(switches) > 1:
        return None
    return bool(next(iter(switches), True))


def _init_params(module: TOTALVI, options: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments that scvi-tools makes the same network with."""
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


def _registry(schema: Schema, n_cells: int) -> dict[str, Any]:
    """Return the names and categories of the schema, and where the data have them."""
    keys = schema.keys
    in_mudata = keys.protein_expression_obsm_key is None
    rna = {"mod_key": keys.rna_modality} if in_mudata else {}
    protein = {"mod_key": keys.protein_modality} if in_mudata else {}
    n_genes, n_proteins = len(schema.gene_names), len(schema.protein_names)

    def column(name: str, key: str | None, categories: tuple[str, ...]) -> dict[str, Any]:
        own = f"_scvi_{name}"
        return {
            "data_registry": {"attr_name": "obs", "attr_key": own},
            "state_registry": {
                "categorical_mapping": np.array([0]) if key is None else _objects(categories),
                "original_key": own if key is None else key,
            },
            "summary_stats": {f"n_{name}": len(categories)},
        }

    def place(attr_name: str, attr_key: str | None, **modality: str) -> dict[str, Any]:
        return {"attr_name": attr_name, "attr_key": attr_key, **modality}

    def counts(layer: str | None, modality: dict[str, str]) -> dict[str, Any]:
        return place("X" if layer is None else "layers", layer, **modality)

    covariates = keys.categorical_covariate_keys
    mask = np.array(schema.panel_measured)
    proteins: dict[str, Any] = {
        "column_names": _objects(schema.protein_names) if in_mudata else list(schema.protein_names)
    }
    if in_mudata:
        proteins |= {"n_obs": n_cells, "n_vars": n_proteins}
    if not mask.all():
        proteins["protein_batch_mask"] = {str(code): row for code, row in enumerate(mask)}
    nothing: dict[str, Any] = {"data_registry": {}, "state_registry": {}, "summary_stats": {}}
    fields = {
        "X": {
            "data_registry": counts(keys.rna_layer, rna),
            "state_registry": {
                "n_obs": n_cells,
                "n_vars": n_genes,
                "column_names": _objects(schema.gene_names),
            },
            "summary_stats": {"n_vars": n_genes, "n_cells": n_cells},
        },
        "labels": column("labels", None, ("0",)),
        "batch": column("batch", keys.batch_key, schema.batch_names),
        "size_factor": nothing
        if keys.size_factor_key is None
        else {**nothing, "data_registry": place("obs", keys.size_factor_key)},
        "extra_categorical_covs": {
            "data_registry": place("obsm", "_scvi_extra_categorical_covs") if covariates else {},
            "state_registry": {
                "mappings": dict(
                    zip(covariates, map(_objects, schema.covariate_categories), strict=True)
                ),
                "field_keys": list(covariates),
                "n_cats_per_key": list(map(len, schema.covariate_categories)),
            }
            if covariates
            else {},
            "summary_stats": {"n_extra_categorical_covs": len(covariates)},
        },
        "extra_continuous_covs": {
            "data_registry": place("obsm", "_scvi_extra_continuous_covs")
            if keys.continuous_covariate_keys
            else {},
            "state_registry": {"columns": _objects(keys.continuous_covariate_keys)}
            if keys.continuous_covariate_keys
            else {},
            "summary_stats": {"n_extra_continuous_covs": len(keys.continuous_covariate_keys)},
        },
        "proteins": {
            "data_registry": counts(keys.protein_layer, protein)
            if in_mudata
            else place("obsm", keys.protein_expression_obsm_key),
            "state_registry": proteins,
            "summary_stats": {"n_proteins": n_proteins},
        },
    }
    if keys.panel_key is not None:
        fields["panel"] = column("panel", keys.panel_key, schema.panel_names)
    return {
        "scvi_version": _VERSION,
        "model_name": "TOTALVI",
        "setup_args": _setup_arguments(keys),
        "field_registries": fields,
        "setup_method_name": "setup_mudata" if in_mudata else "setup_anndata",
        "_scvi_uuid": str(uuid4()),
    }


def _setup_arguments(keys: Keys) -> dict[str, Any]:
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


def _objects(names: tuple[str, ...]) -> np.ndarray:
    return np.array(names, dtype=object)


def _require_own_folder(path: Path) -> None:
    names = {entry.name for entry in path.iterdir()} if path.is_dir() else set()
    if names != {_FILE}:
        raise OutputError(
            f"{path} exists and holds not only the {_FILE} of scvi-tools; choose another path."
        )
