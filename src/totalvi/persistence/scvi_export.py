"""A module's weights in the names and shapes of scvi-tools: the inverse of `load_scvi_state`."""

from collections.abc import Sequence

import torch
from torch import Tensor

from totalvi.module.encoder import Trunk
from totalvi.module.layers import Activation, HiddenLayer, ParallelHiddenLayer
from totalvi.module.totalvi import TOTALVI
from totalvi.persistence.scvi import BATCH_NORM, HEADS, TRUNKS, State


def scvi_state(
    module: TOTALVI, continuous_mean: Sequence[float], continuous_scale: Sequence[float]
) -> State:
    """Return the state dict that scvi-tools' module of the same configuration loads.

    Parameters
    ----------
    module
        Of the "direct" architecture. What it has no weights for and scvi-tools always has (the library
        encoder, the dropout decoder, the efficiency) is zero, and without effect.
    continuous_mean, continuous_scale
        By which the module's continuous covariates are standardised: scvi-tools takes them as they
        are, so this goes into the weights.
    """
    mean = torch.tensor(continuous_mean, dtype=torch.float64)
    scale = torch.tensor(continuous_scale, dtype=torch.float64)
    state = {
        **_exported_parameters(module),
        **_exported_encoder(module, mean, scale),
        **_exported_decoder(module, mean, scale),
    }
    return {name: tensor.detach().clone().contiguous() for name, tensor in state.items()}


def _exported_parameters(module: TOTALVI) -> State:
    gene, protein = module.gene_log_r.T, module.protein_log_r.T
    efficiency = module.log_efficiency
    n_batch = max(module.n_batch, 1)
    return {
        "px_r": gene[:, 0] if module.gene_dispersion == "gene" else gene,
        "py_r": protein[:, 0] if module.protein_dispersion == "protein" else protein,
        "background_pro_alpha": module.background_prior_mean.T,
        "background_pro_log_beta": module.background_prior_log_scale.T,
        "log_per_batch_efficiency": (
            torch.zeros(module.n_input_proteins, n_batch) if efficiency is None else efficiency.T
        ),
    }


def _exported_encoder(module: TOTALVI, mean: Tensor, scale: Tensor) -> State:
    encoder = module.encoder
    if not module.encode_covariates:
        mean, scale = mean[:0], scale[:0]
    state = _exported_trunk("encoder.encoder.fc_layers", encoder.trunk, mean, scale)
    heads = {"z_mean_encoder": encoder.z_head.mean, "z_var_encoder": encoder.z_head.log_variance}
    library = "encoder.l_gene_encoder.fc_layers"
    if encoder.latent_library:
        assert encoder.library_trunk is not None
        state |= _exported_trunk(library, encoder.library_trunk, mean, scale)
        heads["l_gene_mean_encoder"] = encoder.library_head.mean
        heads["l_gene_var_encoder"] = encoder.library_head.log_variance
    else:
        first = "encoder.encoder.fc_layers.Layer 0."
        state |= {
            name.replace("encoder.encoder.fc_layers", library): torch.zeros_like(tensor)
            for name, tensor in state.items()
            if name.startswith(first)
        }
        n_hidden = encoder.z_head.mean.weight.shape[0]
        for name in ("l_gene_mean_encoder", "l_gene_var_encoder"):
            state[f"encoder.{name}.weight"] = torch.zeros(1, n_hidden)
            state[f"encoder.{name}.bias"] = torch.zeros(1)
    for name, head in heads.items():
        state |= {f"encoder.{name}.weight": head.weight.T, f"encoder.{name}.bias": head.bias}
    return state


def _exported_trunk(name: str, trunk: Trunk, mean: Tensor, scale: Tensor) -> State:
    first = trunk.first
    others, bias = _unstandardised(first.others.weight, first.others.bias, mean, scale)
    state = _layer(
        f"{name}.Layer 0", [first.gene_weight, others, first.others.covariate_weight], bias
    )
    state |= _exported_batch_norm([f"{name}.Layer 0"], first.activation)
    for i, layer in enumerate(trunk.rest, 1):
        assert isinstance(layer, HiddenLayer)
        linear = layer.linear
        state |= _layer(f"{name}.Layer {i}", [linear.weight, linear.covariate_weight], linear.bias)
        state |= _exported_batch_norm([f"{name}.Layer {i}"], layer.activation)
    return state


def _exported_decoder(module: TOTALVI, mean: Tensor, scale: Tensor) -> State:
    decoder = module.decoder
    linear = decoder.first.linear
    weight, bias = _unstandardised(linear.weight, linear.bias, mean, scale)
    state = _parallel(0, list(weight.chunk(len(TRUNKS), dim=1)), linear.covariate_weight, bias)
    state |= _exported_batch_norm(_trunk_layers(0), decoder.first.activation)
    for i, layer in enumerate(decoder.rest, 1):
        assert isinstance(layer, ParallelHiddenLayer)
        state |= _parallel(i, list(layer.weight.unbind()), layer.covariate_weight, layer.bias)
        state |= _exported_batch_norm(_trunk_layers(i), layer.activation)
    for theirs, ours in HEADS.items():
        name = f"decoder.{theirs}.fc_layers.Layer 0"
        head = getattr(decoder, ours)
        if head is None:  # the dropout of genes, of the same shape as their proportions
            like = decoder.gene_head
            parts = (like.weight, like.covariate_weight)
            zeros = [None if part is None else torch.zeros_like(part) for part in parts]
            state |= _layer(name, zeros, torch.zeros_like(like.bias))
        else:
            weight, bias = _unstandardised(head.weight, head.bias, mean, scale)
            state |= _layer(name, [weight, head.covariate_weight], bias)
    return state


def _trunk_layers(i: int) -> list[str]:
    return [f"decoder.{trunk}.fc_layers.Layer {i}" for trunk in TRUNKS]


def _parallel(i: int, weights: list[Tensor], covariate: Tensor | None, bias: Tensor) -> State:
    """Return layer ``i`` of the decoder's trunks, each apart."""
    n = len(TRUNKS)
    covariates = [None] * n if covariate is None else covariate.chunk(n, dim=1)
    state: State = {}
    for name, weight, of_covariates, part in zip(
        _trunk_layers(i), weights, covariates, bias.chunk(n), strict=True
    ):
        state |= _layer(name, [weight, of_covariates], part)
    return state


def _layer(name: str, weights: Sequence[Tensor | None], bias: Tensor) -> State:
    weight = torch.cat([part for part in weights if part is not None])
    return {f"{name}.0.weight": weight.T, f"{name}.0.bias": bias}


def _exported_batch_norm(names: list[str], activation: Activation) -> State:
    """Return the batch normalisation of networks side by side; nothing where there is none."""
    if activation.normalization != "batch":
        return {}
    ours = activation.batch_norm.state_dict()
    return {
        f"{name}.1.{entry}": part
        for entry in BATCH_NORM
        for name, part in zip(
            names,
            ours[entry].chunk(len(names)) if ours[entry].dim() else [ours[entry]] * len(names),
            strict=True,
        )
    }


def _unstandardised(
    weight: Tensor, bias: Tensor, mean: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor]:
    """Return weights (inputs, outputs), the last of them for covariates that are not standardised."""
    n = len(mean)
    if n == 0:
        return weight, bias
    weights = weight.double()
    covariate = weights[-n:] / scale[:, None]
    return (
        torch.cat([weights[:-n], covariate]).to(weight.dtype),
        (bias.double() - mean @ covariate).to(bias.dtype),
    )
