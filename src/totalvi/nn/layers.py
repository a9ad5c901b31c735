"""The fully connected layers of encoder and decoder.

Weights are stored as (inputs, outputs). Categorical covariates enter each layer as further inputs with
their own weight, so that nothing is concatenated.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from totalvi.nn import ops
from totalvi.nn.cell import LinearProduct
from totalvi.nn.config import Normalization


def uniform_parameter(
    *shape: int, fan_in: int, generator: torch.Generator | None = None
) -> nn.Parameter:
    """Return a parameter drawn from U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""
    bound = 1 / math.sqrt(fan_in)
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound, generator=generator))


class Linear(nn.Module):
    """``x W + covariates V + b``.

    Parameters
    ----------
    n_input, n_covariates, n_output
        Columns of ``x``, of ``covariates`` (0: none), and of the result.
    fan_in
        Number of inputs that bounds the initial weights, if it is larger than these.
    """

    def __init__(
        self,
        n_input: int,
        n_output: int,
        n_covariates: int = 0,
        generator: torch.Generator | None = None,
        fan_in: int | None = None,
    ) -> None:
        super().__init__()
        fan_in = n_input + n_covariates if fan_in is None else fan_in
        self.weight = uniform_parameter(n_input, n_output, fan_in=fan_in, generator=generator)
        self.covariate_weight = (
            uniform_parameter(n_covariates, n_output, fan_in=fan_in, generator=generator)
            if n_covariates
            else None
        )
        self.bias = uniform_parameter(n_output, fan_in=fan_in, generator=generator)

    def forward(self, x: Tensor, covariates: Tensor | None = None) -> Tensor:
        """Return shape (B, n_output)."""
        return self.product(x, covariates).value()

    def product(self, x: Tensor, covariates: Tensor | None = None) -> LinearProduct:
        """Return the product of `forward` before its multiplication."""
        return LinearProduct(x, self.weight, self.bias, covariates, self.covariate_weight)


class Activation(nn.Module):
    """Normalisation, ReLU and dropout, which follow the linear part of each hidden layer.

    Parameters
    ----------
    n_features
        Number of columns, of all networks if there are ``n_parallel``.
    normalization
        Over the minibatch ("batch"), over the cell's features of each network ("layer"), or "none".
    momentum, epsilon
        Parameters of batch normalisation.
    fused
        Whether `ops` may use its fast forms.
    """

    def __init__(
        self,
        n_features: int,
        normalization: Normalization,
        dropout_rate: float,
        n_parallel: int = 1,
        momentum: float = 0.01,
        epsilon: float = 1e-3,
        *,
        fused: bool = True,
    ) -> None:
        super().__init__()
        self.fused = fused
        self.normalization = normalization
        self.dropout_rate = dropout_rate
        self.n_hidden = n_features // n_parallel
        if normalization == "batch":
            self.batch_norm = nn.BatchNorm1d(n_features, momentum=momentum, eps=epsilon)

    @property
    def feels_shifts(self) -> bool:
        """Return whether the bias of the linear part matters.

        Batch normalisation cancels it. Its gradient is only rounding errors, which Adam would scale
        up to full steps, and the running mean would lag behind.
        """
        return self.normalization != "batch"

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return shape (B, n_features)."""
        if self.normalization == "batch":
            return ops.hidden(x, self.batch_norm, self.dropout_rate, generator, fast=self.fused)
        if self.normalization == "layer":
            parts = torch.unflatten(x, -1, (-1, self.n_hidden))
            x = F.layer_norm(parts, parts.shape[-1:]).flatten(-2)
        return ops.dropout(F.relu(x), self.dropout_rate if self.training else 0.0, generator)


class HiddenLayer(nn.Module):
    """Linear -> normalisation -> ReLU -> dropout; covariates enter the linear part."""

    def __init__(
        self,
        n_input: int,
        n_output: int,
        n_covariates: int,
        activation: Activation,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.linear = Linear(n_input, n_output, n_covariates, generator)
        self.linear.bias.requires_grad_(activation.feels_shifts)
        self.activation = activation

    def forward(
        self, x: Tensor, covariates: Tensor | None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return shape (B, n_output)."""
        hidden: Tensor = self.activation(self.linear(x, covariates), generator)
        return hidden


class ParallelHiddenLayer(nn.Module):
    """The hidden layers of ``n_parallel`` networks, each on its own part of the columns.

    Attributes
    ----------
    bfloat16_products
        Whether the products with the weights are computed in bfloat16.
    """

    def __init__(
        self,
        n_hidden: int,
        n_parallel: int,
        n_covariates: int,
        activation: Activation,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.bfloat16_products = False
        fan_in = n_hidden + n_covariates
        self.weight = uniform_parameter(
            n_parallel, n_hidden, n_hidden, fan_in=fan_in, generator=generator
        )
        self.covariate_weight = (
            uniform_parameter(
                n_covariates, n_parallel * n_hidden, fan_in=fan_in, generator=generator
            )
            if n_covariates
            else None
        )
        self.bias = uniform_parameter(n_parallel * n_hidden, fan_in=fan_in, generator=generator)
        self.bias.requires_grad_(activation.feels_shifts)
        self.activation = activation

    def forward(
        self, x: Tensor, covariates: Tensor | None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return shape (B, n_parallel * n_hidden)."""
        dtype = torch.bfloat16 if self.bfloat16_products else x.dtype
        parts = torch.unflatten(x, -1, (len(self.weight), -1)).transpose(0, 1)
        products = torch.bmm(parts.to(dtype), self.weight.to(dtype))  # (networks, B, hidden)
        result = products.transpose(0, 1).flatten(1).to(x.dtype) + self.bias
        if self.covariate_weight is not None:
            assert covariates is not None
            result = result + covariates @ self.covariate_weight
        hidden: Tensor = self.activation(result, generator)
        return hidden
