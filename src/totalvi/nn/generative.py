"""What a network says of counts: encoder, decoder, latent variables and the distributions of counts."""

from typing import Any, Self

import torch
from torch import Tensor, nn

from totalvi.nn import config as options
from totalvi.nn import ops
from totalvi.nn.cell import CellContext, SparseCounts, one_hot_columns
from totalvi.nn.coders import CellPosterior, Decoded, Decoder, Encoder
from totalvi.nn.config import NetworkConfig
from totalvi.nn.layers import ParallelHiddenLayer
from totalvi.nn.likelihoods import Dispersion, GeneLikelihood, ProteinMixture
from totalvi.nn.measured import Masks, Seen
from totalvi.nn.staining import StainingLevel
from totalvi.nn.sync import standard_normal, stratified_normal


class GenerativeNetwork(nn.Module):
    """The parameters of the joint model, and its distributions; `Network` adds the loss.

    Parameters
    ----------
    config
        Its options.
    generator
        Generator of the initial weights. None: torch's own.
    """

    def __init__(self, config: NetworkConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        self.n_input_genes = n_genes = config.n_input_genes
        self.n_input_proteins = n_proteins = config.n_input_proteins
        self.n_batch = n_batch = config.n_batch
        self.n_latent = config.n_latent
        self.n_panels = max(n_batch, 1) if config.n_panels is None else config.n_panels
        self.gene_dispersion = config.gene_dispersion
        self.protein_dispersion = config.protein_dispersion
        self.latent_distribution = config.latent_distribution
        self.library = config.library
        self.n_categories_per_covariate = tuple(config.n_categories_per_covariate)
        self.n_continuous_covariates = config.n_continuous_covariates
        self.encoder_batch = config.encoder_batch
        self.encode_covariates = config.encode_covariates
        self.hidden_protein_rate = config.hidden_protein_rate
        self.fused = config.fused
        self.bfloat16_products = False
        self.reference_frozen = False

        mask = options.protein_mask(config.protein_batch_mask, self.n_panels, n_proteins)
        self.register_buffer("protein_mask", mask)
        self.protein_mask: Tensor | None
        self.register_buffer("rna_mask", options.rna_mask(config.panel_measured_rna, self.n_panels))
        self.rna_mask: Tensor | None

        def normal(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(shape, generator=generator))

        self.gene_log_r = normal(config.n_groups(config.gene_dispersion), n_genes)
        n_groups = config.n_groups(config.protein_dispersion)
        self.protein_log_r = nn.Parameter(torch.ones(n_groups, n_proteins))
        self.background_prior_mean = normal(self.n_panels, n_proteins)
        self.background_prior_log_scale = nn.Parameter(torch.zeros(self.n_panels, n_proteins))
        if config.background_prior is not None:
            self.set_background_prior(*config.background_prior)
        self.register_buffer("background_anchor", None, persistent=False)  # see `anchor_background`
        self.background_anchor: Tensor | None
        efficiency = torch.zeros(max(n_batch, 1), n_proteins)
        self.log_efficiency = nn.Parameter(efficiency) if config.protein_efficiency else None
        self.encoder = Encoder(config, generator)
        self.decoder = Decoder(config, generator)
        self.staining = StainingLevel(n_proteins, generator) if config.staining_level else None

    def train(self, mode: bool = True) -> Self:
        """Switch to training mode, unless a reference is frozen: its batch normalisation is fixed."""
        return super().train(mode and not self.reference_frozen)

    def set_bfloat16_products(self, value: bool) -> None:
        """Choose whether the largest products are in bfloat16: of all genes, and of hidden layers."""
        self.bfloat16_products = self.encoder.bfloat16_products = value
        for layer in self.decoder.rest:
            assert isinstance(layer, ParallelHiddenLayer)
            layer.bfloat16_products = value

    # ------------------------------------------------------------------ encoder and decoder

    def encode(
        self,
        x: Tensor | SparseCounts,
        y: Tensor,
        context: CellContext,
        generator: torch.Generator | None = None,
    ) -> CellPosterior:
        """Return the posterior of the latent state, the library size and the staining level.

        As in 0.6.x, values of unmeasured proteins are encoded unchanged; NaN becomes 0.
        """
        return self.posterior_of(self.seen(x, y, context, generator), context, generator)

    def seen(
        self,
        x: Tensor | SparseCounts,
        y: Tensor,
        context: CellContext,
        generator: torch.Generator | None = None,
    ) -> Seen:
        """Return what the encoder sees of cells: in training, not all of each; see `Masks.seen`."""
        rate = self.hidden_protein_rate if self.training else 0.0
        return self.masks.seen(x, y, context.panel, rate, generator)

    def posterior_of(
        self, seen: Seen, context: CellContext, generator: torch.Generator | None = None
    ) -> CellPosterior:
        """Return the posterior of cells from what the encoder sees of them."""
        codes = context.codes(categorical=self.encode_covariates)
        covariates = one_hot_columns(codes, self.config.encoder_categories(), seen.y.dtype)
        continuous = context.continuous if self.encode_covariates else None
        posterior: CellPosterior = self.encoder(
            seen.x, seen.y, continuous, covariates, generator, has_rna=seen.has_rna
        )
        if self.staining is None:
            return posterior
        log_background = self.background_prior_mean.detach()[context.panel]
        mean, variance = self.staining(seen.y, seen.proteins, log_background)
        return posterior._replace(level_m=mean, level_v=variance)

    @property
    def masks(self) -> Masks:
        """What each panel measured."""
        return Masks(self.protein_mask, self.rna_mask)

    def measured(self, panel: Tensor) -> Tensor | None:
        """Return which proteins were measured in each context, (B, T), or None if all were."""
        return None if self.protein_mask is None else self.protein_mask[panel]

    def decode(
        self,
        z: Tensor,
        context: CellContext,
        generator: torch.Generator | None = None,
        *,
        genes: bool = True,
    ) -> Decoded:
        """Decode the latent states ``z`` (B, n_latent) of cells in ``context``; see `Decoder`."""
        covariates = one_hot_columns(context.codes(), self.config.decoder_categories(), z.dtype)
        if context.continuous is not None:
            z = torch.cat([z, context.continuous], dim=1)
        decoded: Decoded = self.decoder(z, covariates, generator, genes=genes)
        return decoded

    # ------------------------------------------------------------------ latent variables

    def transform_latent(self, untran_z: Tensor) -> Tensor:
        """Return z from u: itself, or its softmax for the logistic normal."""
        return untran_z if self.latent_distribution == "normal" else untran_z.softmax(dim=-1)

    def latent_at(self, posterior: CellPosterior, normal: Tensor) -> Tensor:
        """Return u at given standard normal noise, (..., B, n_latent)."""
        return posterior.qz_m + posterior.qz_v.sqrt() * normal

    def sample_library(
        self, posterior: CellPosterior, context: CellContext, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the library size (..., B, 1), and its log if it is latent."""
        if posterior.ql_m is None:
            assert context.library_size is not None
            return context.library_size.expand(*posterior.qz_m.shape[:-1], 1), None
        return posterior.library_at(context, standard_normal(posterior.ql_m, generator))

    def at_level(self, context: CellContext, level: Tensor | None) -> CellContext:
        """Return the context at a standardised staining level (B, 1), if the model has it."""
        if self.staining is None or level is None:
            return context
        return context._replace(log_level=self.staining.log_level(level))

    def sample_level(
        self, posterior: CellPosterior, generator: torch.Generator | None
    ) -> Tensor | None:
        """Return a sample of the standardised staining level, (..., B, 1); None without."""
        if posterior.level_m is None:
            return None
        return posterior.level_at(standard_normal(posterior.level_m, generator))

    def sample_log_background(
        self, decoded: Decoded, generator: torch.Generator | None = None, n_samples: int = 1
    ) -> Tensor:
        """Return one sample of b, the log background of each protein, (..., B, T).

        With several samples, there is one from each of ``n_samples`` equally likely intervals, along a
        first axis.
        """
        mean = decoded.background_mean
        if n_samples == 1:
            return mean + decoded.background_scale * standard_normal(mean, generator)
        return mean + decoded.background_scale * stratified_normal(n_samples, mean, generator)

    # ------------------------------------------------------------------ distributions of counts

    def genes(self, decoded: Decoded, library_size: Tensor, context: CellContext) -> GeneLikelihood:
        """Return the distribution of RNA counts at a library size, (..., B, 1)."""
        return GeneLikelihood(
            logit=decoded.genes(),
            dropout=decoded.dropout_product if self.decoder.dropout_head is not None else None,
            library_size=library_size,
            dispersion=Dispersion.of(self.gene_log_r, self.gene_dispersion, context),
            softplus=self.library == "size_factor",
        )

    def proteins(
        self,
        decoded: Decoded,
        log_background: Tensor,
        context: CellContext,
        *,
        efficiency: bool = True,
    ) -> ProteinMixture:
        """Return the distribution of protein counts at a log background b, (..., B, T).

        Parameters
        ----------
        decoded
            Output of `decode` for the cells.
        log_background
            A sample of b, or a value that replaces it, such as the logarithm of E[exp(b)].
        context
            Context in which the cells were decoded.
        efficiency
            Whether the batch's protein efficiency and the cell's staining level, if the model has
            them, scale both means, as in counts. Denoised expression excludes them.
        """
        if efficiency:
            log_background = log_background + self.log_factor(context)
        return ProteinMixture(
            log_background=log_background,
            factor=decoded.foreground_factor,
            background_logit=decoded.background_logit,
            dispersion=Dispersion.of(self.protein_log_r, self.protein_dispersion, context),
        )

    def log_factor(self, context: CellContext) -> Tensor | float:
        """Return the log of what both protein means are multiplied by in counts, (B, T), or 0."""
        level = 0.0 if context.log_level is None else context.log_level
        return level if self.log_efficiency is None else self.log_efficiency[context.batch] + level

    @torch.no_grad()
    def proportions(self, decoded: Decoded) -> Tensor:
        """Return rho, (B, G), without a gradient."""
        like = decoded.background_mean
        total = like.new_zeros(len(like), self.n_input_genes)
        self.add_proportions(decoded, like.new_ones(len(like), 1), total)
        return total

    def add_proportions(self, decoded: Decoded, scale: Tensor, total: Tensor) -> None:
        """Add rho times ``scale`` (B, 1) to ``total`` (B, G), in place and without a gradient."""
        softplus = self.library == "size_factor"
        ops.add_proportions(decoded.genes(), scale, total, softplus=softplus, fast=self.fused)

    def set_background_prior(self, mean: Any, scale: Any) -> None:
        """Set the prior mean and standard deviation of the log background, (T,) or (panels, T)."""
        mean, scale = options.background_prior(mean, scale, self.n_panels, self.n_input_proteins)
        with torch.no_grad():
            self.background_prior_mean.copy_(mean)
            self.background_prior_log_scale.copy_(scale.log())
