"""The network of totalVI: its generative model, its approximate posterior, and its loss."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from totalvi.nn import config as options
from totalvi.nn import likelihoods, ops
from totalvi.nn.cell import CellContext, SparseCounts, take_cells
from totalvi.nn.coders import CellPosterior, Decoded
from totalvi.nn.count_integrals import count_log_prob
from totalvi.nn.generative import GenerativeNetwork
from totalvi.nn.likelihoods import ElboTerms
from totalvi.nn.measured import Seen
from totalvi.nn.sync import standard_normal

_AGREEMENT = 3.0  # weight of the posteriors' agreement in a mosaic; see docs/decisions.md


class Network(GenerativeNetwork):
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
        with ``staining_level``, both means of y are times exp(s t), t ~ N(0, 1), s of each protein

    Approximate posterior, all normal: q(u | x, y, s) and q(log l | x, y, s) of the encoder, and
    q(b | z, s) of the decoder. Loss, with K samples b_k of the background (1 in evaluation)::

        - log p(x | z, l) - log(1/K sum_k p(y | z, b_k))
        + KL(q(u) || N(0, I)) + KL(q(log l) || N(m_s, v_s)) + KL(q(b | z) || N(c, d**2))
        - w log pi, only in training, with w the option ``foreground_penalty``
        + 3 KL(q(u | x, y) || q(u | what is seen)), only in training and in a mosaic, where the
          encoder sees a part of what was measured

    With K = 1 its expectation is minus the evidence lower bound. docs/model.md explains other K,
    and has a table of symbols. `NetworkConfig` documents the options.

    Attributes
    ----------
    reference_frozen
        Whether only rows of new batches are trained; the network then stays in evaluation mode.
    """

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
        seen = self.seen(x, y, context, generator)
        posterior = self.posterior_of(seen, context, generator)
        disagreement = None
        if self.training and self.rna_mask is not None:
            disagreement = self._disagreement(x, y, context, seen, posterior)
        posterior, context, decoded, library_size = self._sample(
            posterior, context, prior, generator
        )
        # A frozen reference trains in evaluation mode; validation has no gradient.
        in_training = self.training or (self.reference_frozen and torch.is_grad_enabled())
        n_samples = self.config.background_samples if in_training else 1
        log_background = self.sample_log_background(decoded, generator, n_samples)
        terms = self.elbo_terms(
            x, y, context, posterior, decoded, library_size, log_background, *prior
        )
        if disagreement is not None:
            terms = terms._replace(kl_div_z=terms.kl_div_z + _AGREEMENT * disagreement)
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
        """Return the terms of `elbo`, and -log p(y | z) with b integrated over its prior, each (B,).

        The divergence of the staining level is part of the last.
        """
        prior = local_l_mean_gene, local_l_var_gene
        posterior, context, decoded, library_size = self._sample(
            self.encode(x, y, context, generator), context, prior, generator
        )
        terms = self.elbo_terms(
            x, y, context, posterior, decoded, library_size,
            self.sample_log_background(decoded, generator), *prior,
        )  # fmt: skip
        log_prob = self.protein_log_prob(y, decoded, context).sum(dim=-1)
        return *terms, posterior.level_kl() - log_prob

    @torch.no_grad()
    def protein_log_prob(self, y: Tensor, decoded: Decoded, context: CellContext) -> Tensor:
        """Return log p(y | z) of each protein, (B, T), b integrated over its prior; 0 if unmeasured."""
        panel = context.panel
        scale = self.background_prior_log_scale[panel].exp()
        proteins = self.proteins(decoded, self.background_prior_mean[panel], context)
        return count_log_prob(y, proteins, scale, self.measured(panel), fast=self.fused)

    def _disagreement(
        self,
        x: Tensor | SparseCounts,
        y: Tensor,
        context: CellContext,
        seen: Seen,
        posterior: CellPosterior,
    ) -> Tensor:
        """Return KL(q(u | x, y) || q(u | what is seen)), (B,); 0 where all is seen.

        ``posterior`` is that of what is seen. The other has no dropout and leaves the running
        moments of batch normalisation as they are, so that nothing is drawn or counted twice.
        """
        rows = self.masks.partly_seen(seen, context.panel)
        if not len(rows):
            return torch.zeros_like(posterior.qz_m[:, 0])
        of_rows = context.take_cells(rows)
        whole = self.masks.seen(take_cells(x, rows), y[rows], of_rows.panel, 0.0, None)
        self.encoder.eval()
        full = self.posterior_of(whole, of_rows)
        self.encoder.train()
        divergence = likelihoods.normal_kl(
            full.qz_m, full.qz_v, posterior.qz_m[rows], posterior.qz_v[rows]
        )
        divergence = divergence.sum(dim=-1)  # in mixed precision of another dtype than its parts
        return divergence.new_zeros(len(posterior.qz_m)).index_copy(0, rows, divergence)

    def _sample(
        self,
        posterior: CellPosterior,
        context: CellContext,
        library_prior: tuple[Tensor | None, Tensor | None],
        generator: torch.Generator | None,
    ) -> tuple[CellPosterior, CellContext, Decoded, Tensor]:
        """Return the posterior, and at a sample of it context, decoded parameters and library size."""
        posterior = self.masks.known_library(posterior, context.panel, *library_prior)
        untran_z = self.latent_at(posterior, standard_normal(posterior.qz_m, generator))
        library_size, _ = self.sample_library(posterior, context, generator)
        context = self.at_level(context, self.sample_level(posterior, generator))
        decoded = self.decode(self.transform_latent(untran_z), context, generator)
        return posterior, context, decoded, library_size

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
            kl_div_back_pro=divergence + posterior.level_kl(),
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
