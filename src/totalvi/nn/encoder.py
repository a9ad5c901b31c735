"""From a cell's counts to the posterior of its latent state and library size."""

from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from totalvi.nn.cpu.dispatch import suits_compiled_loops
from totalvi.nn.cpu.encoder_input import input_product, transformed_counts
from totalvi.nn.layers import Activation, HiddenLayer, Linear, Normalization, uniform_parameter
from totalvi.nn.sparse import SparseCounts, sparse_product

EncoderArchitecture = Literal["branched", "direct"]
GeneProduct = Callable[[Tensor], Tensor]  # of the transformed RNA counts (B, G) and a weight (G, H)
_VARIANCE_FLOOR = 1e-4


class CellPosterior(NamedTuple):
    """q(u | x, y) = N(qz_m, qz_v) and q(log l | x, y) = N(ql_m, ql_v); variances, not scales.

    ``ql_m`` and ``ql_v`` are None when the library size is observed.
    """

    qz_m: Tensor
    qz_v: Tensor
    ql_m: Tensor | None = None
    ql_v: Tensor | None = None


class InputLayer(nn.Module):
    """The first hidden layer: its product with the RNA counts skips the zeros."""

    def __init__(
        self,
        n_genes: int,
        n_others: int,
        n_covariates: int,
        n_output: int,
        activation: Activation,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        fan_in = n_genes + n_others + n_covariates
        self.gene_weight = uniform_parameter(n_genes, n_output, fan_in=fan_in, generator=generator)
        self.others = Linear(n_others, n_output, n_covariates, generator, fan_in)
        self.others.bias.requires_grad_(activation.feels_shifts)
        self.activation = activation

    def forward(
        self,
        times: GeneProduct,
        others: Tensor,
        covariates: Tensor | None,
        generator: torch.Generator | None,
    ) -> Tensor:
        """Return shape (B, n_output).

        ``times`` multiplies the transformed RNA counts by a weight; ``others`` are the transformed
        proteins and the continuous covariates, (B, n_others).
        """
        linear = times(self.gene_weight) + self.others(others, covariates)
        return self.activation(linear, generator)


class Trunk(nn.Module):
    """``n_layers`` hidden layers from the counts."""

    def __init__(
        self,
        n_genes: int,
        n_others: int,
        n_covariates: int,
        n_hidden: int,
        n_layers: int,
        dropout_rate: float,
        normalization: Normalization,
        generator: torch.Generator | None = None,
        *,
        fused: bool = True,
    ) -> None:
        super().__init__()
        activations = [
            Activation(n_hidden, normalization, dropout_rate, fused=fused) for _ in range(n_layers)
        ]
        self.first = InputLayer(
            n_genes, n_others, n_covariates, n_hidden, activations[0], generator
        )
        self.rest = nn.ModuleList(
            HiddenLayer(n_hidden, n_hidden, n_covariates, activation, generator)
            for activation in activations[1:]
        )

    def forward(
        self,
        times: GeneProduct,
        others: Tensor,
        covariates: Tensor | None,
        generator: torch.Generator | None,
    ) -> Tensor:
        """Return shape (B, n_hidden)."""
        hidden = self.first(times, others, covariates, generator)
        for layer in self.rest:
            hidden = layer(hidden, covariates, generator)
        return hidden


class GaussianHead(nn.Module):
    """Mean and variance of a normal posterior, linear in the hidden layer."""

    def __init__(
        self, n_hidden: int, n_output: int, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.mean = Linear(n_hidden, n_output, generator=generator)
        self.log_variance = Linear(n_hidden, n_output, generator=generator)

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and variance, each (B, n_output)."""
        return self.mean(hidden), self.log_variance(hidden).exp() + _VARIANCE_FLOOR


class Encoder(nn.Module):
    """q(u | x, y, covariates), and q(log l | ...) when the library size is latent.

    Parameters
    ----------
    n_genes, n_proteins, n_continuous, n_covariates
        Widths of the inputs; ``n_covariates`` counts one-hot columns.
    architecture
        "branched" (0.6.x): a shared trunk, then for z and for l a hidden layer of its own.
        "direct" (scvi-tools): the trunk ends in the heads of z; l has a one-layer trunk of its own.
    log_input, scale_input
        Whether counts are divided by 1 + their mean over the cell's features, and then replaced by
        log(1 + .).
    latent_library
        Whether q(log l | ...) is wanted.
    fused
        Whether compiled loops are used on the CPU.

    Attributes
    ----------
    bfloat16_products
        Whether compiled loops take the product with the RNA counts in bfloat16.
    """

    def __init__(
        self,
        n_genes: int,
        n_proteins: int,
        n_continuous: int,
        n_covariates: int,
        n_latent: int,
        n_hidden: int,
        n_layers: int,
        dropout_rate: float,
        normalization: Normalization,
        architecture: EncoderArchitecture,
        log_input: bool,
        scale_input: bool,
        latent_library: bool,
        generator: torch.Generator | None = None,
        *,
        fused: bool = True,
    ) -> None:
        super().__init__()
        self.fused = fused
        self.bfloat16_products = False
        self.log_input = log_input
        self.scale_input = scale_input
        self.n_genes = n_genes
        self.n_proteins = n_proteins

        def trunk(n_trunk_layers: int) -> Trunk:
            n_others = n_proteins + n_continuous
            return Trunk(
                n_genes, n_others, n_covariates, n_hidden, n_trunk_layers, dropout_rate,
                normalization, generator, fused=fused,
            )  # fmt: skip

        def branch() -> HiddenLayer:
            # 0.6.x leaves batch normalisation at torch's own defaults here
            activation = Activation(
                n_hidden, normalization, dropout_rate, momentum=0.1, epsilon=1e-5, fused=fused
            )
            return HiddenLayer(n_hidden, n_hidden, 0, activation, generator)

        self.trunk = trunk(n_layers)
        self.z_branch = branch() if architecture == "branched" else None
        self.z_head = GaussianHead(n_hidden, n_latent, generator)
        if latent_library:
            self.library_branch = branch() if architecture == "branched" else None
            self.library_trunk = trunk(1) if architecture == "direct" else None
            self.library_head = GaussianHead(n_hidden, 1, generator)
        self.latent_library = latent_library

    def forward(
        self,
        x: Tensor | SparseCounts,
        y: Tensor,
        continuous: Tensor | None,
        covariates: Tensor | None,
        generator: torch.Generator | None = None,
    ) -> CellPosterior:
        """Return the posterior of B cells from counts ``x`` (B, G) and ``y`` (B, T)."""
        others = self._transform_dense(y)
        if continuous is not None:
            others = torch.cat([others, continuous], dim=1)
        inputs = (self._gene_product(x), others, covariates, generator)
        shared = self.trunk(*inputs)
        z_hidden = shared if self.z_branch is None else self.z_branch(shared, None, generator)
        qz_m, qz_v = self.z_head(z_hidden)
        if not self.latent_library:
            return CellPosterior(qz_m, qz_v)
        if self.library_trunk is not None:
            library_hidden = self.library_trunk(*inputs)
        else:
            assert self.library_branch is not None
            library_hidden = self.library_branch(shared, None, generator)
        return CellPosterior(qz_m, qz_v, *self.library_head(library_hidden))

    def _gene_product(self, x: Tensor | SparseCounts) -> GeneProduct:
        if not isinstance(x, SparseCounts):
            return partial(torch.matmul, self._transform_dense(x))
        if self.fused and suits_compiled_loops(x.counts):
            value = transformed_counts(x, self.scale_input, self.log_input)
            return lambda weight: input_product(value, x, weight, self.bfloat16_products)
        value = x.counts
        if self.scale_input:
            mean = x.sum_by_cell(x.counts) / self.n_genes
            value = value / (1 + mean)[x.cell]
        value = torch.log1p(value) if self.log_input else value
        return lambda weight: sparse_product(value, x, weight)

    def _transform_dense(self, counts: Tensor) -> Tensor:
        if self.scale_input:
            counts = counts / (1 + counts.mean(dim=1, keepdim=True))
        return torch.log1p(counts) if self.log_input else counts
