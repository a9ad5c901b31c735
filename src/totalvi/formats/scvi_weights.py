"""Read and write weights of other implementations of totalVI: the 0.6.x module and scvi-tools."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from totalvi.errors import FormatError
from totalvi.nn.coders import UNUSED_DROPOUT, Trunk
from totalvi.nn.layers import Activation, HiddenLayer, ParallelHiddenLayer
from totalvi.nn.network import Network

State = dict[str, Tensor]
_DROPOUT = "px_dropout_decoder_gene"
_UNUSED = (f"decoder.{_DROPOUT}.", "library_log_", "pyro_param_store")
_UNUSED_WITHOUT_LIBRARY = ("encoder.l_gene_",)
TRUNKS = ("px_decoder", "py_back_decoder", "py_fore_decoder", "sigmoid_decoder")
HEADS = {
    "px_scale_decoder": "gene_head",
    _DROPOUT: "dropout_head",
    "py_back_mean_log_alpha": "background_mean_head",
    "py_back_mean_log_beta": "background_scale_head",
    "py_fore_scale_decoder": "foreground_head",
    "py_background_decoder": "background_logit_head",
}
BATCH_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def load_scvi_state(module: Network, state_dict: Mapping[str, Tensor]) -> Network:
    """Fill ``module`` with the weights of a 0.6.x or scvi-tools totalVI state dict.

    Parameters
    ----------
    module
        Network with the options of the saved model. scvi-tools models need
        ``encoder_architecture="direct"``, ``scale_input=True``, ``background_scale="softplus"`` and,
        from 1.3.1 on, ``protein_efficiency=True``.
    state_dict
        Tensors of the saved model. The library encoder of an observed library size is left out. The
        dropout decoder of an "nb" model is kept only for ``px_["dropout"]``.

    Returns
    -------
    ``module``, filled in place.

    Raises
    ------
    FormatError
        When a tensor is missing, has another shape than the module needs, or belongs to a part that the
        module lacks.
    """
    state = _Read(state_dict)
    try:
        converted = {**_parameters(module, state), **_encoder(module, state)}
        converted |= _decoder(module, state)
    except KeyError as missing:
        raise FormatError(
            f"The state dict has no tensor {missing}; it is not a totalVI model of the configuration "
            "given to TOTALVI."
        ) from missing
    except (IndexError, RuntimeError) as error:  # of slicing and joining tensors of other sizes
        raise FormatError(
            f"The sizes of the state dict's tensors do not fit each other ({error}); save it again."
        ) from error
    _refuse_unread(module, state)
    expected = module.state_dict()
    for name in set(converted) - set(expected):
        if converted[name].numel():
            raise FormatError(
                f"The state dict has covariates or batches for {name}, the module has none there; "
                "check TOTALVI's arguments."
            )
    for name, tensor in expected.items():
        if name == "protein_mask":
            converted[name] = tensor
        elif name not in converted:
            raise FormatError(f"The state dict has nothing for {name}; check TOTALVI's arguments.")
        elif converted[name].shape != tensor.shape:
            raise FormatError(
                f"The state dict gives {name} the shape {tuple(converted[name].shape)}, the module "
                f"has {tuple(tensor.shape)}; check TOTALVI's arguments."
            )
    module.load_state_dict({name: converted[name] for name in expected})
    if module.decoder.dropout_head is None:
        _keep_unused_dropout(module, state_dict)
    return module


def _keep_unused_dropout(module: Network, state_dict: Mapping[str, Tensor]) -> None:
    """Keep the dropout head of an "nb" model of 0.6.x, which its likelihood does not use."""
    source = f"decoder.{_DROPOUT}.fc_layers.Layer 0.0"
    like = module.decoder.gene_head  # which has the same shape
    theirs = state_dict.get(f"{source}.weight")
    n_input = like.weight.shape[0]
    n_columns = 0 if like.covariate_weight is None else len(like.covariate_weight)
    if theirs is None or theirs.shape != (like.weight.shape[1], n_input + n_columns):
        return
    head = _linear(state_dict, source, "", n_input)
    for part, name in zip(UNUSED_DROPOUT, (".weight", ".covariate_weight", ".bias"), strict=True):
        tensor = head[name].detach().to(like.weight).contiguous()
        setattr(module.decoder, part, tensor if tensor.numel() else None)


class _Read(State):
    """A state dict that records which of its tensors have been read."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        super().__init__(state)
        self.unread = set(state)

    def __getitem__(self, name: str) -> Tensor:
        self.unread.discard(name)
        return super().__getitem__(name)


def _refuse_unread(module: Network, state: _Read) -> None:
    library = () if module.encoder.latent_library else _UNUSED_WITHOUT_LIBRARY
    unread = sorted(name for name in state.unread if not name.startswith((*_UNUSED, *library)))
    if unread:
        raise FormatError(
            f"The module has no place for the state dict's {unread[0]}; check TOTALVI's arguments."
        )


def _parameters(module: Network, state: Mapping[str, Tensor]) -> State:
    names = {
        "px_r": "gene_log_r",
        "py_r": "protein_log_r",
        "background_pro_alpha": "background_prior_mean",
        "background_pro_log_beta": "background_prior_log_scale",
    }
    if module.log_efficiency is not None:
        names["log_per_batch_efficiency"] = "log_efficiency"
    return {
        ours: state[theirs].reshape(state[theirs].shape[0], -1).T for theirs, ours in names.items()
    }


def _encoder(module: Network, state: Mapping[str, Tensor]) -> State:
    encoder = module.encoder
    converted = _trunk(state, "encoder.encoder.fc_layers", "encoder.trunk", encoder.trunk)
    branches = {"encoder.z_encoder": ("z_branch", encoder.z_branch)}
    heads = {"z_mean_encoder": "z_head.mean", "z_var_encoder": "z_head.log_variance"}
    if encoder.latent_library:
        branches["encoder.l_gene_encoder"] = ("library_branch", encoder.library_branch)
        heads["l_gene_mean_encoder"] = "library_head.mean"
        heads["l_gene_var_encoder"] = "library_head.log_variance"
        if encoder.library_trunk is not None:
            converted |= _trunk(
                state,
                "encoder.l_gene_encoder.fc_layers",
                "encoder.library_trunk",
                encoder.library_trunk,
            )
    for theirs, (ours, branch) in branches.items():
        if branch is not None:
            converted |= _linear(state, f"{theirs}.0", f"encoder.{ours}.linear")
            converted |= _batch_norm(state, f"{theirs}.1", f"encoder.{ours}.activation.batch_norm")
    for theirs, ours in heads.items():
        converted |= _linear(state, f"encoder.{theirs}", f"encoder.{ours}")
    return converted


def _trunk(state: Mapping[str, Tensor], theirs: str, ours: str, trunk: Trunk) -> State:
    n_genes, n_others = trunk.first.gene_weight.shape[0], trunk.first.others.weight.shape[0]
    first = state[f"{theirs}.Layer 0.0.weight"].T
    converted = {
        f"{ours}.first.gene_weight": first[:n_genes],
        f"{ours}.first.others.weight": first[n_genes : n_genes + n_others],
        f"{ours}.first.others.covariate_weight": first[n_genes + n_others :],
        f"{ours}.first.others.bias": state[f"{theirs}.Layer 0.0.bias"],
    }
    converted |= _batch_norm(state, f"{theirs}.Layer 0.1", f"{ours}.first.activation.batch_norm")
    for i, layer in enumerate(trunk.rest):
        name = f"{ours}.rest.{i}"
        assert isinstance(layer, HiddenLayer)
        n_input = layer.linear.weight.shape[0]
        converted |= _linear(state, f"{theirs}.Layer {i + 1}.0", f"{name}.linear", n_input)
        converted |= _batch_norm(
            state, f"{theirs}.Layer {i + 1}.1", f"{name}.activation.batch_norm"
        )
    return converted


def _decoder(module: Network, state: Mapping[str, Tensor]) -> State:
    decoder = module.decoder
    converted: State = {}
    for i in range(len(decoder.rest) + 1):
        layers = [f"decoder.{trunk}.fc_layers.Layer {i}" for trunk in TRUNKS]
        weights = [state[f"{layer}.0.weight"].T for layer in layers]  # (input + covariates, hidden)
        biases = [state[f"{layer}.0.bias"] for layer in layers]
        if i == 0:
            ours, linear = "decoder.first", "decoder.first.linear"
            n_input = decoder.first.linear.weight.shape[0]
            weight = torch.cat([part[:n_input] for part in weights], dim=1)
        else:
            ours = linear = f"decoder.rest.{i - 1}"
            n_input = weights[0].shape[1]
            weight = torch.stack([part[:n_input] for part in weights])
        converted[f"{linear}.weight"] = weight
        converted[f"{linear}.covariate_weight"] = torch.cat([w[n_input:] for w in weights], dim=1)
        converted[f"{linear}.bias"] = torch.cat(biases)
        for entry in BATCH_NORM if f"{layers[0]}.1.weight" in state else ():
            parts = [state[f"{layer}.1.{entry}"] for layer in layers]
            joined = parts[0] if entry == "num_batches_tracked" else torch.cat(parts)
            converted[f"{ours}.activation.batch_norm.{entry}"] = joined
    for theirs, name in HEADS.items():
        head = getattr(decoder, name)
        if head is not None:
            n_input = head.weight.shape[0]
            source = f"decoder.{theirs}.fc_layers.Layer 0.0"
            converted |= _linear(state, source, f"decoder.{name}", n_input)
    return converted


def _linear(
    state: Mapping[str, Tensor], theirs: str, ours: str, n_input: int | None = None
) -> State:
    weight = state[f"{theirs}.weight"].T
    n_input = weight.shape[0] if n_input is None else n_input
    return {
        f"{ours}.weight": weight[:n_input],
        f"{ours}.covariate_weight": weight[n_input:],
        f"{ours}.bias": state[f"{theirs}.bias"],
    }


def _batch_norm(state: Mapping[str, Tensor], theirs: str, ours: str) -> State:
    if f"{theirs}.weight" not in state:  # no batch normalisation; gaps are found at the end
        return {}
    return {f"{ours}.{entry}": state[f"{theirs}.{entry}"] for entry in BATCH_NORM}


def scvi_state(
    module: Network, continuous_mean: Sequence[float], continuous_scale: Sequence[float]
) -> State:
    """Return a state dict that scvi-tools' module with the same options loads.

    Parameters
    ----------
    module
        Network of the "direct" architecture. Parts that scvi-tools always has and this network
        lacks (the library encoder, the dropout decoder, the efficiency) become zero and have no
        effect.
    continuous_mean, continuous_scale
        Mean and scale that standardise the module's continuous covariates. scvi-tools does not
        standardise, so they become part of the weights.
    """
    mean = torch.tensor(continuous_mean, dtype=torch.float64)
    scale = torch.tensor(continuous_scale, dtype=torch.float64)
    state = {
        **_exported_parameters(module),
        **_exported_encoder(module, mean, scale),
        **_exported_decoder(module, mean, scale),
    }
    return {name: tensor.detach().clone().contiguous() for name, tensor in state.items()}


def _exported_parameters(module: Network) -> State:
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


def _exported_encoder(module: Network, mean: Tensor, scale: Tensor) -> State:
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


def _exported_decoder(module: Network, mean: Tensor, scale: Tensor) -> State:
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
        if head is None:  # the head of gene dropout has the shape of the head of the proportions
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
    """Return layer ``i`` of each of the decoder's trunks."""
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
    """Return the batch normalisation of parallel networks; nothing if there is none."""
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
    """Return weights (inputs, outputs), the last of which are for unstandardised covariates."""
    n = len(mean)
    if n == 0:
        return weight, bias
    weights = weight.double()
    covariate = weights[-n:] / scale[:, None]
    return (
        torch.cat([weights[:-n], covariate]).to(weight.dtype),
        (bias.double() - mean @ covariate).to(bias.dtype),
    )
