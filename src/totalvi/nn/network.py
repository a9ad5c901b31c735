"""The network of totalVI: its generative model, its approximate posterior, and its loss."""

from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn

from totalvi.nn import config as options
from totalvi.nn import likelihoods, ops
from totalvi.nn.cell import CellContext, SparseCounts, one_hot_columns
from totalvi.nn.coders import CellPosterior, Decoded, Decoder, Encoder
from totalvi.nn.config import NetworkConfig
from totalvi.nn.count_integrals import count_log_prob
from totalvi.nn.likelihoods import Dispersion, ElboTerms, GeneLikelihood, ProteinMixture
from totalvi.nn.measured import Masks
from totalvi.nn.sync import standard_normal, stratified_normal


class Network(nn.Module):
    """The joint model of RNA counts x and protein counts y of cells from batches s.

    Generative model, with f_1 ... f_4 the decoder's outputs::

        u ~ N(0, I),  z = softmax(u) or u         latent state
        log l ~ N(m_s, v_s), or l observed        library size
        rho = softmax(f_1(z, s))                  RNA proportions
        x ~ NB(l rho, r), or zero-inflated NB
        b ~ N(c, d**2),  beta = exp(b)            background mean; c, d of the cell's panel
        alpha = 1 + 1e-8 + relu(f_2(z, s))        foreground factor
        pi = sigmoid(f_3(z, s))                   probability of background
        y ~ pi NB(beta, r) + (1 - pi) NB(beta alpha, r)

    Approximate posterior, all normal: q(u | x, y, s) and q(log l | x, y, s) of the encoder, and
    q(b | z, s) of the decoder. Loss, with K samples b_k of the background (1 in evaluation)::

        - log p(x | z, l) - log(1/K sum_k p(y | z, b_k))
        + KL(q(u) || N(0, I)) + KL(q(log l) || N(m_s, v_s)) + KL(q(b | z) || N(c, d**2))
        - w log pi, only in training, with w the option ``foreground_penalty``

    With K = 1 its expectation is minus the evidence lower bound. docs/model.md explains other K,
    and has a table of symbols. `NetworkConfig` documents the options.

    Attributes
    ----------
    reference_frozen
        Whether only rows of new batches are trained; the network then stays in evaluation mode.
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

    def train(self, mode: bool = True) -> Self:
        """Switch to training mode, unless a reference is frozen: its batch normalisation is fixed."""
        return super().train(mode and not self.reference_frozen)

    def set_bfloat16_products(self, value: bool) -> None:
        """Choose whether compiled loops compute products as wide as the genes in bfloat16."""
        self.bfloat16_products = self.encoder.bfloat16_products = value

    # ------------------------------------------------------------------ encoder and decoder

    def encode(
        self,
        x: Tensor | SparseCounts,
        y: Tensor,
        context: CellContext,
        generator: torch.Generator | None = None,
    ) -> CellPosterior:
        """Return the posterior of the latent state and library size.

        As in 0.6.x, values of unmeasured proteins are encoded unchanged; NaN becomes 0.
        """
        codes = context.codes(categorical=self.encode_covariates)
        covariates = one_hot_columns(codes, self.config.encoder_categories(), y.dtype)
        continuous = context.continuous if self.encode_covariates else None
        rate = self.hidden_protein_rate if self.training else 0.0
        seen = self.masks.seen(x, y, context.panel, rate, generator)
        posterior: CellPosterior = self.encoder(
            seen.x, seen.y, continuous, covariates, generator, has_rna=seen.has_rna
        )
        return posterior

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
            Whether the batch's protein efficiency, if the model has one, scales both means, as in
            counts. Denoised expression excludes it.
        """
        if efficiency and self.log_efficiency is not None:
            log_background = log_background + self.log_efficiency[context.batch]
        return ProteinMixture(
            log_background=log_background,
            factor=decoded.foreground_factor,
            background_logit=decoded.background_logit,
            dispersion=Dispersion.of(self.protein_log_r, self.protein_dispersion, context),
        )

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

    # ------------------------------------------------------------------ loss

    def elbo(
        self,
        x: Tensor | SparseCounts,
        y: Tensor,
        context: CellContext,
        local_l_mean_gene: Tensor | None = None,
        local_l_var_gene: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> ElboTerms:
        """Return the terms of the loss, each (B,), at one sample of the latent variables of each cell.

        Parameters
        ----------
        x, y
            Counts (B, G) and (B, T).
        local_l_mean_gene, local_l_var_gene
            Prior mean and variance of the log library size, (B, 1), if it is latent.
        """
        prior = local_l_mean_gene, local_l_var_gene
        posterior, decoded, library_size = self._sample(x, y, context, prior, generator)
        # A frozen reference trains in evaluation mode; validation has no gradient.
        in_training = self.training or (self.reference_frozen and torch.is_grad_enabled())
        n_samples = self.config.background_samples if in_training else 1
        log_background = self.sample_log_background(decoded, generator, n_samples)
        terms = self.elbo_terms(
            x, y, context, posterior, decoded, library_size, log_background, *prior
        )
        weight = self.config.foreground_penalty if in_training else 0.0
        if weight == 0:
            return terms
        measured = self.measured(context.panel)
        paid = weight * likelihoods.background_surprise(decoded.background_logit, measured)
        return terms._replace(kl_div_back_pro=terms.kl_div_back_pro + paid)

    def held_out(
        self,
        x: Tensor | SparseCounts,
        y: Tensor,
        context: CellContext,
        local_l_mean_gene: Tensor | None = None,
        local_l_var_gene: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, ...]:
        """Return the terms of `elbo`, and -log p(y | z) with b integrated over its prior, each (B,)."""
        prior = local_l_mean_gene, local_l_var_gene
        posterior, decoded, library_size = self._sample(x, y, context, prior, generator)
        terms = self.elbo_terms(
            x, y, context, posterior, decoded, library_size,
            self.sample_log_background(decoded, generator), *prior,
        )  # fmt: skip
        return *terms, -self.protein_log_prob(y, decoded, context).sum(dim=-1)

    @torch.no_grad()
    def protein_log_prob(self, y: Tensor, decoded: Decoded, context: CellContext) -> Tensor:
        """Return log p(y | z) of each protein, (B, T), b integrated over its prior; 0 if unmeasured."""
        panel = context.panel
        scale = self.background_prior_log_scale[panel].exp()
        proteins = self.proteins(decoded, self.background_prior_mean[panel], context)
        return count_log_prob(y, proteins, scale, self.measured(panel), fast=self.fused)

    def _sample(
        self,
        x: Tensor | SparseCounts,
        y: Tensor,
        context: CellContext,
        library_prior: tuple[Tensor | None, Tensor | None],
        generator: torch.Generator | None,
    ) -> tuple[CellPosterior, Decoded, Tensor]:
        """Return the posterior, and the decoded parameters and library size at a sample of it."""
        posterior = self.encode(x, y, context, generator)
        posterior = self.masks.known_library(posterior, context.panel, *library_prior)
        untran_z = self.latent_at(posterior, standard_normal(posterior.qz_m, generator))
        library_size, _ = self.sample_library(posterior, context, generator)
        decoded = self.decode(self.transform_latent(untran_z), context, generator)
        return posterior, decoded, library_size

    def elbo_terms(
        self,
        x: Tensor | SparseCounts,
        y: Tensor,
        context: CellContext,
        posterior: CellPosterior,
        decoded: Decoded,
        library_size: Tensor,
        log_background: Tensor,
        local_l_mean_gene: Tensor | None = None,
        local_l_var_gene: Tensor | None = None,
    ) -> ElboTerms:
        """Return the terms at given samples of the latent variables.

        ``log_background`` may hold several samples, (K, B, T), over which p(y | z, b) is averaged.
        """
        reconstruction, divergence = self.protein_losses(y, decoded, log_background, context)
        return ElboTerms(
            reconst_loss_gene=self.gene_loss(x, decoded, library_size, context),
            reconst_loss_protein=reconstruction,
            kl_div_z=posterior.latent_kl(),
            kl_div_l_gene=posterior.library_kl(local_l_mean_gene, local_l_var_gene),
            kl_div_back_pro=divergence,
        )

    def gene_loss(
        self,
        x: Tensor | SparseCounts,
        decoded: Decoded,
        library_size: Tensor,
        context: CellContext,
    ) -> Tensor:
        """Return -log p(x | z, l), (B,); 0 where a panel lacks RNA."""
        gene_loss = partial(ops.gene_loss, fast=self.fused, bfloat16=self.bfloat16_products)
        genes = self.genes(decoded, library_size, context)
        loss: Tensor = self.masks.gene_loss(gene_loss, x, genes, context.panel)
        return loss

    def protein_losses(
        self, y: Tensor, decoded: Decoded, log_background: Tensor, context: CellContext
    ) -> tuple[Tensor, Tensor]:
        """Return -log p(y | z, b) and KL(q(b | z) || p(b)) of measured proteins, each (B,)."""
        measured = self.measured(context.panel)
        proteins = self.proteins(decoded, log_background, context)
        reconstruction = ops.protein_loss(y, proteins, measured, fast=self.fused)
        return reconstruction, self._background_kl(decoded, context)

    def _background_kl(self, decoded: Decoded, context: CellContext) -> Tensor:
        measured = self.measured(context.panel)
        divergence = ops.background_divergence(
            decoded.background_mean, decoded.background_scale,
            self.background_prior_mean, self.background_prior_log_scale,
            context.panel, measured, fast=self.fused,
        )  # fmt: skip
        if self.log_efficiency is None:
            return divergence
        # scvi-tools has a prior of the efficiency, and a weak prior of pi towards 1, of all proteins.
        efficiency = likelihoods.log_normal_log_prob(self.log_efficiency[context.batch])
        surprise = likelihoods.background_surprise(decoded.background_logit, None)
        return divergence - efficiency.sum(dim=-1) + 1e-3 * surprise

    # ------------------------------------------------------------------ prior of the background

    def set_background_prior(self, mean: Any, scale: Any) -> None:
        """Set the prior mean and standard deviation of the log background, (T,) or (panels, T)."""
        mean, scale = options.background_prior(mean, scale, self.n_panels, self.n_input_proteins)
        with torch.no_grad():
            self.background_prior_mean.copy_(mean)
            self.background_prior_log_scale.copy_(scale.log())

    def anchor_background(self, anchor: Any) -> None:
        """Hold the background prior near levels by protein, while training.

        ``anchor`` holds the log of each protein's mean background, the profile of
        `background_prior_log_scale` (up to a constant), and the precisions of both, each (panels, T).
        They count once per cell; 0 means not anchored.
        """
        value = options.background_anchor(anchor, self.n_panels, self.n_input_proteins)
        self.background_anchor = value.to(self.background_prior_mean.device)

    def anchor_penalty(self) -> Tensor | float:
        """Return the term of the anchor in the objective, in nats per cell; 0 without an anchor."""
        if self.background_anchor is None:
            return 0.0
        prior = self.background_prior_mean, self.background_prior_log_scale
        return likelihoods.anchor_penalty(self.background_anchor, *prior)
