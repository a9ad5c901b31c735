"""The registry of a scvi-tools model: what it knows of its data, as the schema of ours and back."""

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import uuid4

import numpy as np

from totalvi.data.cells import Schema
from totalvi.data.columns import Columns
from totalvi.errors import FormatError
from totalvi.formats.safe_pickle import StoredArray, stored_values

ONE_CATEGORY = ("all cells",)


def at(tree: Any, *path: str) -> Any:
    """Return the entry of nested dicts at ``path``; None where there is none."""
    for key in path:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


def keys_of(registry: Mapping[str, Any], allow_fractional: bool) -> Columns:
    """Return where the model's counts and annotation are in its data."""
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
    """Return names, categories and panels; continuous covariates are taken as they are.

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
    """Return the names or categories stored at ``path`` as texts, each once.

    Raises
    ------
    FormatError
        When there are none, or one comes twice.
    """
    what = " of ".join(reversed([part for part in path if part != "state_registry"]))
    names = tuple(map(str, stored_values(at(tree, *path), what)))
    if not names or len(set(names)) != len(names):
        raise FormatError(f"The model's {what} are empty or not unique.")
    return names


def _protein_names(stored: Any) -> tuple[str, ...]:
    """Return the proteins' names; an array without names has its columns numbered, as in our data."""
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


# --------------------------------------------------------------------------------------- and back


def registry_of(version: str, schema: Schema, n_cells: int) -> dict[str, Any]:
    """Return what scvi-tools must know of the data of a model with this schema.

    Without a key of ``obsm`` the data are a MuData, whose columns of ``obs`` are its own.
    """
    keys = schema.columns
    in_mudata = keys.protein_expression_obsm_key is None
    genes, proteins = name_array(schema.gene_names), name_array(schema.protein_names)
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
                "mappings": dict(zip(covariates, map(name_array, categories), strict=True)),
                "field_keys": list(covariates),
                "n_cats_per_key": list(map(len, categories)),
            }
            if covariates
            else {},
            {"n_extra_categorical_covs": len(covariates)},
        ),
        "extra_continuous_covs": _field(
            _place("obsm", "_scvi_extra_continuous_covs") if continuous else {},
            {"columns": name_array(continuous)} if continuous else {},
            {"n_extra_continuous_covs": len(continuous)},
        ),
        "proteins": _field(protein_place, protein_state, {"n_proteins": len(proteins)}),
    }
    if keys.panel_key is not None:
        fields["panel"] = _column("panel", keys.panel_key, schema.panel_names)
    return {
        "scvi_version": version,
        "model_name": "TOTALVI",
        "setup_args": _setup_arguments(keys),
        "field_registries": fields,
        "setup_method_name": "setup_mudata" if in_mudata else "setup_anndata",
        "_scvi_uuid": str(uuid4()),
    }


def name_array(names: Sequence[str]) -> np.ndarray:
    """Return names as scvi-tools keeps them."""
    return np.array(names, dtype=object)


def _field(place: dict[str, Any], state: dict[str, Any], summary: dict[str, int]) -> dict[str, Any]:
    return {"data_registry": place, "state_registry": state, "summary_stats": summary}


def _place(attr_name: str, attr_key: str | None) -> dict[str, Any]:
    return {"attr_name": attr_name, "attr_key": attr_key}


def _counts_in(layer: str | None) -> dict[str, Any]:
    return _place("X" if layer is None else "layers", layer)


def _column(name: str, key: str | None, categories: tuple[str, ...]) -> dict[str, Any]:
    """Return a column of codes that scvi-tools makes of a column of ``obs``, or of nothing."""
    own = f"_scvi_{name}"
    mapping = np.array([0]) if key is None else name_array(categories)
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
