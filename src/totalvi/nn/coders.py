"""The encoder of counts into the posterior of latent variables, and the decoder."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from totalvi.nn import ops
from totalvi.nn.cell import CellContext, LinearProduct, SparseCounts, one_hot_width
from totalvi.nn.config import NetworkConfig
from totalvi.nn.layers import (
    Activation,
    HiddenLayer,
    Linear,
    ParallelHiddenLayer,
    uniform_parameter,
)
from totalvi.nn.likelihoods import normal_kl, standard_normal_kl

_VARIANCE_FLOOR = 1e-4
_TRUNKS = 4  # of the decoder: genes, protein background, protein foreground, mixing


_LARGEST_LOG_LIBRARY = 15.0


class CellPosterior(NamedTuple):
    """q(u | x, y) = N(qz_m, qz_v) and q(log l | x, y) = N(ql_m, ql_v); variances, not scales.

    ``ql_m`` and ``ql_v`` are None if the library size is observed. ``level_m`` and ``level_v`` are
    those of the standardised staining level t, (B, 1); None if the model has none.
    """

    qz_m: Tensor
    qz_v: Tensor
    ql_m: Tensor | None = None
    ql_v: Tensor | None = None
    level_m: Tensor | None = None
    level_v: Tensor | None = None

    def latent_kl(self) -> Tensor:
        """Return KL(q(u) || N(0, I)), (B,)."""
        return standard_normal_kl(self.qz_m, self.qz_v).sum(dim=-1)

    def level_at(self, normal: Tensor) -> Tensor:
        """Return the standardised staining level t at given noise, (B, 1)."""
        assert self.level_m is not None
        assert self.level_v is not None
        return self.level_m + self.level_v.sqrt() * normal

    def level_kl(self) -> Tensor:
        """Return KL(q(t) || N(0, 1)) of the staining level, (B,); 0 without."""
        if self.level_m is None or self.level_v is None:
            return torch.zeros_like(self.qz_m[..., 0])
        return standard_normal_kl(self.level_m, self.level_v).sum(dim=-1)

    def library_at(self, context: CellContext, normal: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the library size (B, 1) at given noise, and its log if it is latent."""
        if self.ql_m is None or self.ql_v is None:
            assert context.library_size is not None
            return context.library_size, None
        log_library = self.ql_m + self.ql_v.sqrt() * normal
        return log_library.clamp(max=_LARGEST_LOG_LIBRARY).exp(), log_library

    def library_mean(self, context: CellContext) -> Tensor:
        """Return the posterior mean of the library size, exp(m + v / 2), or the known one, (B, 1)."""
        if self.ql_m is None or self.ql_v is None:
            assert context.library_size is not None
            return context.library_size
        return (self.ql_m + 0.5 * self.ql_v).exp()

    def library_kl(self, mean: Tensor | None, variance: Tensor | None) -> Tensor:
        """Return KL(q(log l) || N(mean, variance)), (B,); 0 if the library size is observed."""
        if self.ql_m is None or self.ql_v is None:
            return torch.zeros_like(self.qz_m[..., 0])
        assert mean is not None
        assert variance is not None
        prior = mean.reshape(-1, 1), variance.reshape(-1, 1)
        return normal_kl(self.ql_m, self.ql_v, *prior).sum(dim=-1)


class EncoderInput(NamedTuple):
    """What the encoder takes of a minibatch's cells.

    Parameters
    ----------
    times
        Multiplies the input from RNA counts, (B, G), by a weight (G, H).
    others
        The input from proteins, and the continuous covariates.
    covariates
        Categorical covariates, one-hot; None without any.
    """

    times: Callable[[Tensor], Tensor]
    others: Tensor
    covariates: Tensor | None


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

    def forward(self, cells: EncoderInput, generator: torch.Generator | None) -> Tensor:
        """Return shape (B, n_output)."""
        linear = cells.times(self.gene_weight) + self.others(cells.others, cells.covariates)
        hidden: Tensor = self.activation(linear, generator)
        return hidden


class Trunk(nn.Module):
    """``n_layers`` hidden layers from the counts."""

    def __init__(
        self, config: NetworkConfig, n_layers: int, generator: torch.Generator | None
    ) -> None:
        super().__init__()
        n_hidden = config.n_hidden
        n_continuous = config.n_continuous_covariates if config.encode_covariates else 0
        n_covariates = one_hot_width(config.encoder_categories())
        activations = [
            Activation(
                n_hidden, config.normalization, config.dropout_rate_encoder, fused=config.fused
            )
            for _ in range(n_layers)
        ]
        n_others = config.n_input_proteins + config.is_mosaic + n_continuous
        self.first = InputLayer(
            config.n_input_genes, n_others, n_covariates, n_hidden, activations[0], generator
        )
        self.rest = nn.ModuleList(
            HiddenLayer(n_hidden, n_hidden, n_covariates, activation, generator)
            for activation in activations[1:]
        )

    def forward(self, cells: EncoderInput, generator: torch.Generator | None) -> Tensor:
        """Return shape (B, n_hidden)."""
        hidden: Tensor = self.first(cells, generator)
        for layer in self.rest:
            hidden = layer(hidden, cells.covariates, generator)
        return hidden


class GaussianHead(nn.Module):
    """Mean and variance of a normal posterior, linear in the hidden layer."""

    def __init__(self, n_hidden: int, n_output: int, generator: torch.Generator | None) -> None:
        super().__init__()
        self.mean = Linear(n_hidden, n_output, generator=generator)
        self.log_variance = Linear(n_hidden, n_output, generator=generator)

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and variance, each (B, n_output)."""
        return self.mean(hidden), self.log_variance(hidden).exp() + _VARIANCE_FLOOR


class Encoder(nn.Module):
    """q(u | x, y, covariates), and q(log l | ...) if the library size is latent.

    With ``encoder_architecture="branched"`` (0.6.x), z and l each have their own hidden layer after a
    shared trunk. With "direct" (scvi-tools), the trunk ends in the heads of z, and l has its own trunk
    of one layer.

    Attributes
    ----------
    bfloat16_products
        Whether compiled loops compute the product with the RNA counts in bfloat16.
    """

    def __init__(self, config: NetworkConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.bfloat16_products = False
        self.fused = config.fused
        self.log_input = config.log_variational
        self.scale_input = config.scale_input
        self.latent_library = config.library == "latent"
        branched = config.encoder_architecture == "branched"
        n_hidden = config.n_hidden

        def branch() -> HiddenLayer:
            # 0.6.x uses torch's defaults of batch normalisation here.
            activation = Activation(
                n_hidden, config.normalization, config.dropout_rate_encoder,
                momentum=0.1, epsilon=1e-5, fused=config.fused,
            )  # fmt: skip
            return HiddenLayer(n_hidden, n_hidden, 0, activation, generator)

        self.trunk = Trunk(config, config.n_layers_encoder, generator)
        self.z_branch = branch() if branched else None
        self.z_head = GaussianHead(n_hidden, config.n_latent, generator)
        if self.latent_library:
            self.library_branch = branch() if branched else None
            self.library_trunk = None if branched else Trunk(config, 1, generator)
            self.library_head = GaussianHead(n_hidden, 1, generator)

    def forward(
        self,
        x: Tensor | SparseCounts,
        y: Tensor,
        continuous: Tensor | None,
        covariates: Tensor | None,
        generator: torch.Generator | None = None,
        *,
        has_rna: Tensor | None = None,
    ) -> CellPosterior:
        """Return the posterior of B cells from counts ``x`` (B, G) and ``y`` (B, T).

        ``has_rna`` says which cells have RNA, (B,), where some panel lacks it.
        """
        others = self._as_seen(y)
        if has_rna is not None:
            others = torch.cat([others, has_rna[:, None].to(others.dtype)], dim=1)
        if continuous is not None:
            others = torch.cat([others, continuous], dim=1)
        times = partial(
            ops.counts_product, self._as_seen(x), x,
            fast=self.fused, bfloat16=self.bfloat16_products,
        )  # fmt: skip
        cells = EncoderInput(times, others, covariates)
        shared = self.trunk(cells, generator)
        z_hidden = shared if self.z_branch is None else self.z_branch(shared, None, generator)
        qz_m, qz_v = self.z_head(z_hidden)
        if not self.latent_library:
            return CellPosterior(qz_m, qz_v)
        if self.library_trunk is not None:
            library_hidden = self.library_trunk(cells, generator)
        else:
            assert self.library_branch is not None
            library_hidden = self.library_branch(shared, None, generator)
        return CellPosterior(qz_m, qz_v, *self.library_head(library_hidden))

    def _as_seen(self, counts: Tensor | SparseCounts) -> Tensor:
        return ops.encoder_input(
            counts, scale=self.scale_input, log=self.log_input, fast=self.fused
        )


UNUSED_DROPOUT = (
    "unused_dropout_weight",
    "unused_dropout_covariate_weight",
    "unused_dropout_bias",
)
"""Weights of the dropout head of an "nb" model, which its likelihood does not use."""


class Decoded(NamedTuple):
    """The output of the decoder for B cells.

    Parameters
    ----------
    gene_product, dropout_product
        Linear layers that end in ``gene_logit`` and ``dropout_logit``. The former is None if only the
        proteins were decoded, the latter if the network has no such layer.
    background_mean, background_scale
        Mean and standard deviation of q(b | z): the log background of each protein, (B, T).
    foreground_factor
        alpha > 1, (B, T).
    background_logit
        Logit of the probability that a protein count is background, (B, T).
    """

    gene_product: LinearProduct | None
    dropout_product: LinearProduct | None
    background_mean: Tensor
    background_scale: Tensor
    foreground_factor: Tensor
    background_logit: Tensor

    def genes(self) -> LinearProduct:
        """Return ``gene_product`` of cells whose genes were decoded."""
        assert self.gene_product is not None
        return self.gene_product

    @property
    def gene_logit(self) -> Tensor:
        """Logit of the RNA proportions, (B, G), the largest product; computed at each access."""
        return self.genes().value()

    @property
    def dropout_logit(self) -> Tensor | None:
        """Logit of RNA's zero inflation, (B, G), computed at each access; None for "nb"."""
        return None if self.dropout_product is None else self.dropout_product.value()

    def unflatten(self, sizes: tuple[int, ...]) -> Self:
        """Return the same output for cells in an array of shape ``sizes``."""
        genes, dropout = self.gene_product, self.dropout_product
        return type(self)(
            None if genes is None else genes.unflatten(sizes),
            None if dropout is None else dropout.unflatten(sizes),
            *(torch.unflatten(part, 0, sizes) for part in self[2:]),
        )


class Decoder(nn.Module):
    """p(x, y | z, covariates): four parallel trunks, and a linear head for each quantity."""

    def __init__(self, config: NetworkConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.background_scale = config.background_scale
        n_hidden, n_proteins = config.n_hidden, config.n_input_proteins
        n_input = config.n_latent + config.n_continuous_covariates
        n_covariates = one_hot_width(config.decoder_categories())

        def activation() -> Activation:
            return Activation(
                _TRUNKS * n_hidden, config.normalization, config.dropout_rate_decoder, _TRUNKS,
                fused=config.fused,
            )  # fmt: skip

        self.first = HiddenLayer(n_input, _TRUNKS * n_hidden, n_covariates, activation(), generator)
        self.rest = nn.ModuleList(
            ParallelHiddenLayer(n_hidden, _TRUNKS, n_covariates, activation(), generator)
            for _ in range(config.n_layers_decoder - 1)
        )

        def head(n_output: int) -> Linear:
            return Linear(n_hidden + n_input, n_output, n_covariates, generator)

        zero_inflated = config.reconstruction_loss_gene == "zinb"
        self.gene_head = head(config.n_input_genes)
        self.dropout_head = head(config.n_input_genes) if zero_inflated else None
        # An "nb" model of 0.6.x has a dropout head that its loss leaves out. It is kept where one is
        # loaded, so that `inference` returns what 0.6.x returned; no fit reads it and no file gets it.
        for part in UNUSED_DROPOUT:
            self.register_buffer(part, None, persistent=False)
        self.background_mean_head = head(n_proteins)
        self.background_scale_head = head(n_proteins)
        self.foreground_head = head(n_proteins)
        self.background_logit_head = head(n_proteins)

    def forward(
        self,
        z: Tensor,
        covariates: Tensor | None,
        generator: torch.Generator | None = None,
        *,
        genes: bool = True,
    ) -> Decoded:
        """Decode ``z`` (B, n_input): the latent state and the continuous covariates.

        Without ``genes``, the trunk of the genes is left out; that is for networks not in training.
        """
        hidden, n_hidden = z, self.gene_head.weight.shape[0] - z.shape[1]
        for layer in (self.first, *self.rest):
            if genes:
                hidden = layer(hidden, covariates, generator)
            else:
                others = _without_gene_trunk(layer, n_hidden)
                hidden = functional_call(layer, others, (hidden, covariates, generator))
        trunks = torch.unflatten(hidden, 1, (-1, n_hidden))
        with_z = torch.cat([trunks, z[:, None].expand(-1, trunks.shape[1], -1)], dim=2)
        *of_genes, background, foreground, mixing = with_z.unbind(dim=1)
        scale = self.background_scale_head(background, covariates)
        return Decoded(
            gene_product=self.gene_head.product(of_genes[0], covariates) if genes else None,
            dropout_product=self._dropout_product(mixing, covariates),
            background_mean=self.background_mean_head(background, covariates),
            background_scale=(
                scale.exp() if self.background_scale == "exp" else F.softplus(scale) + 1e-8
            ),
            foreground_factor=1 + 1e-8 + F.relu(self.foreground_head(foreground, covariates)),
            background_logit=self.background_logit_head(mixing, covariates),
        )

    def _dropout_product(self, mixing: Tensor, covariates: Tensor | None) -> LinearProduct | None:
        if self.dropout_head is not None:
            return self.dropout_head.product(mixing, covariates)
        weight, covariate_weight, bias = (getattr(self, part) for part in UNUSED_DROPOUT)
        if weight is None:
            return None
        return LinearProduct(mixing, weight, bias, covariates, covariate_weight)


def _without_gene_trunk(layer: nn.Module, n_hidden: int) -> dict[str, Tensor]:
    """Return the weights of a decoder's hidden layer for its other trunks, as views."""
    return {
        name: weight[1:] if weight.dim() == 3 else weight[..., n_hidden:]
        for name, weight in layer.state_dict().items()
        if weight.dim()
    }
