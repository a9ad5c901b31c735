"""Models of this package as model folders of scvi-tools."""

from io import BytesIO
from pathlib import Path
from typing import Any

import torch

from totalvi.data.cells import Schema
from totalvi.errors import FormatError, OutputError
from totalvi.fit.split import Split
from totalvi.formats.model_folder import write_folder
from totalvi.formats.scvi_options import NORMALIZATION
from totalvi.formats.scvi_registry import name_array, registry_of
from totalvi.formats.scvi_weights import scvi_state
from totalvi.nn.v06 import TOTALVI

_FILE = "model.pt"
_VERSION = "1.4.2"  # whose format this is
_KNOWN_OPTIONS = {
    "background_samples",
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


def write_scvi(
    path: Path,
    module: TOTALVI,
    schema: Schema,
    options: dict[str, Any],
    split: Split,
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
    parts = split._asdict()
    attributes = {
        "init_params_": _init_params(module, options),
        "is_trained_": True,
        "registry_": registry_of(_VERSION, schema, sum(map(len, parts.values()))),
        "history_": {},
        **{f"{name}_indices_": cells for name, cells in parts.items()},
    }
    genes, keys = name_array(schema.gene_names), schema.columns
    names = (
        {keys.rna_modality: genes, keys.protein_modality: name_array(schema.protein_names)}
        if keys.protein_expression_obsm_key is None
        else genes
    )
    content = {"model_state_dict": state, "var_names": names, "attr_dict": attributes}
    packed = BytesIO()  # of a full disk torch says nothing but that it could not write
    torch.save(content, packed)

    def write(folder: Path) -> None:
        (folder / _FILE).write_bytes(packed.getbuffer())

    write_folder(path, write, overwrite, _require_own_folder)


def _require_counterparts(module: TOTALVI, options: dict[str, Any]) -> None:
    """Raise FormatError for the first thing that a totalVI of scvi-tools cannot be."""
    by_label = [
        f"{name} by label"
        for name in ("gene_dispersion", "protein_dispersion")
        if getattr(module, name).endswith("label")
    ]
    lacking = [*sorted(set(options) - _KNOWN_OPTIONS), *by_label]
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


def _require_own_folder(path: Path) -> None:
    names = {entry.name for entry in path.iterdir()} if path.is_dir() else set()
    if names != {_FILE}:
        raise OutputError(
            f"{path} exists and holds not only the {_FILE} of scvi-tools; choose another path."
        )
