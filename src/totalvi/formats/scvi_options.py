"""The arguments of a scvi-tools model, and the sizes of its weights, as arguments of `TOTALVI`."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from totalvi.errors import FormatError

OLDEST = (1, 0)
SOFTPLUS_BACKGROUND_SINCE = (1, 1)
NORMALIZATION = {("both", "none"): "batch", ("none", "both"): "layer", ("none", "none"): "none"}
"""What ``use_batch_norm`` and ``use_layer_norm`` together are called here."""

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
    """Return the arguments that the model was made with, defaults filled in.

    Raises
    ------
    FormatError
        When one of them has no counterpart here.
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
        # scvi-tools knows one label only, for which "by label" is the same as one for all cells
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


def sizes(state: Mapping[str, Tensor]) -> dict[str, int]:
    """Return the sizes of the network that a state dict of 0.6.x or scvi-tools belongs to.

    Raises
    ------
    FormatError
        When it lacks the tensors that tell, or they do not fit together.
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
    # the network is built before weights are compared with it: a small file may not ask for a large one
    n_further = found["n_layers_encoder"] - 1 + 4 * (found["n_layers_decoder"] - 1)
    n_features = state["px_r"].shape[0] + state["py_r"].shape[0]
    needed = n_hidden * (n_features + n_further * n_hidden + found["n_latent"])
    if needed > sum(tensor.numel() for tensor in state.values()):
        raise FormatError("The sizes of the state dict's tensors do not fit each other.")
    return found
