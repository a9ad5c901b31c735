"""The registry of a scvi-tools model as the schema of ours."""

from collections.abc import Mapping, Sequence
from typing import Any

from totalvi.data.cite import Keys, Schema
from totalvi.errors import FormatError
from totalvi.persistence.safe_pickle import StoredArray, stored_values

ONE_CATEGORY = ("all cells",)


def at(tree: Any, *path: str) -> Any:
    """Return the entry of nested dicts at ``path``; None where there is none."""
    for key in path:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


def keys_of(registry: Mapping[str, Any], allow_fractional: bool) -> Keys:
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
    return Keys(
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


def schema_of(registry: Mapping[str, Any], keys: Keys, masked: bool) -> Schema:
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
        keys=keys,
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
