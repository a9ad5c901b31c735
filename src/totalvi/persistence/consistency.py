"""Whether what a model folder says of a network can be true of the weights in it."""

from typing import Any

from torch import Tensor


def require_possible_sizes(description: dict[str, Any], weights: dict[str, Tensor]) -> None:
    """Raise ValueError, before a network is made, for one larger than the weights that are there."""
    options, schema = description["options"], description["schema"]
    n_weights = sum(tensor.numel() for tensor in weights.values())
    n_hidden, n_latent = int(options["n_hidden"]), int(options["n_latent"])
    n_layers = int(options["n_layers_encoder"]) + int(options["n_layers_decoder"]) - 2
    n_least = n_hidden * (
        len(schema["gene_names"])
        + len(schema["protein_names"])
        + len(schema["batch_names"])
        + n_latent
        + n_hidden * max(n_layers, 0)
    )
    if min(n_hidden, n_latent) < 1 or n_least > n_weights:
        raise ValueError(f"{n_weights} weights are too few for {n_hidden} hidden nodes")


def require_same_types(network: dict[str, Tensor], weights: dict[str, Tensor]) -> None:
    """Raise ValueError for weights of another data type than the network's, or that are not finite."""
    for name, tensor in weights.items():
        if name in network and tensor.dtype != network[name].dtype:
            raise ValueError(f"{name} is of type {tensor.dtype}, not {network[name].dtype}")
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"{name} is not finite")
