"""The terms of the objective, from counts and samples of the latent variables."""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from totalvi.nn.cell import CellContext
from totalvi.nn.cpu.dispatch import suits_compiled_loops
from totalvi.nn.cpu.fused_gene_loss import gene_head_loss
from totalvi.nn.cpu.fused_protein_terms import background_divergence, protein_mixture_loss
from totalvi.nn.decoder import Decoded
from totalvi.nn.encoder import CellPosterior
from totalvi.nn.likelihoods import (
    gene_reconstruction_loss,
    log_normal_log_prob,
    normal_kl,
    standard_normal_kl,
)
from totalvi.nn.network import SMALLEST_NORMAL, Network, sample_normal, stratified_normal
from totalvi.nn.sparse import SparseCounts


class ElboTerms(NamedTuple):
    """The five terms of the negative evidence lower bound, each (B,).

    Parameters
    ----------
    reconst_loss_gene, reconst_loss_protein
        ``-log p(x | z, l)`` and ``-log p(y | z, b)``; unmeasured proteins count nothing.
    kl_div_z, kl_div_l_gene, kl_div_back_pro
        Divergences of q(u), q(log l) and q(b), the last summed over measured proteins.
    """

    reconst_loss_gene: Tensor
    reconst_loss_protein: Tensor
    kl_div_z: Tensor
    kl_div_l_gene: Tensor
    kl_div_back_pro: Tensor

    def reconstruction(self) -> Tensor:
        """Return the reconstruction loss of both modalities, (B,)."""
        return self.reconst_loss_gene + self.reconst_loss_protein

    def divergence(self) -> Tensor:
        """Return the sum of the three divergences, (B,)."""
        return self.kl_div_z + self.kl_div_l_gene + self.kl_div_back_pro


def objective(terms: ElboTerms, kl_weight: float | Tensor = 1.0) -> Tensor:
    """Return what training minimises: the mean over cells of reconstruction + weighted divergences.

    ``kl_weight`` scales the divergences of z and of the protein background, which grow from zero
    during the warm-up; that of the library size, whose posterior is data-driven from the start,
    counts in full. At ``kl_weight=1`` this is the negative ELBO of the totalVI paper.

    Examples
    --------
    >>> import torch
    >>> ones = torch.ones(4)
    >>> objective(ElboTerms(ones, ones, ones, ones, ones), kl_weight=0.5).item()
    4.0
    """
    weighted = terms.kl_div_z + terms.kl_div_back_pro
    return torch.mean(terms.reconstruction() + terms.kl_div_l_gene + kl_weight * weighted)


class LossTerms(Network):
    """The network with its losses."""

    def elbo(
        self,
        x: Tensor | SparseCounts,
        y: Tensor,
        context: CellContext,
        local_l_mean_gene: Tensor | None = None,
        local_l_var_gene: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> ElboTerms:
        """Return the terms of `forward` for cells whose ``context`` has been checked."""
        posterior = self.encode(x, y, context, generator)
        untran_z = sample_normal(posterior.qz_m, posterior.qz_v.sqrt(), generator)
        library_size = self.sample_library(posterior, context, generator)[0]
        decoded = self.decode(self.transform_latent(untran_z), context, generator)
        log_background = self._log_background(decoded, generator)
        return self.elbo_terms(
            x, y, context, posterior, decoded, library_size, log_background,
            local_l_mean_gene, local_l_var_gene,
        )  # fmt: skip

    def _log_background(self, decoded: Decoded, generator: torch.Generator | None) -> Tensor:
        """Return one sample of the log background, (B, T); in training ``background_samples`` of it."""
        # a frozen reference stays in evaluation mode while it is trained; validation takes no gradient
        in_training = self.training or (self.reference_frozen and torch.is_grad_enabled())
        if not in_training or self.background_samples == 1:
            return self.sample_log_background(decoded, generator)
        mean, scale = decoded.background_mean, decoded.background_scale
        return mean + scale * stratified_normal(self.background_samples, mean, generator)

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
        kl_z = standard_normal_kl(posterior.qz_m, posterior.qz_v).sum(dim=-1)
        return ElboTerms(
            reconst_loss_gene=self._gene_loss(x, context, decoded, library_size),
            reconst_loss_protein=self._protein_loss(y, context, decoded, log_background),
            kl_div_z=kl_z,
            kl_div_l_gene=self._library_kl(posterior, local_l_mean_gene, local_l_var_gene, kl_z),
            kl_div_back_pro=self._background_kl(context, decoded),
        )

    def _gene_loss(
        self, x: Tensor | SparseCounts, context: CellContext, decoded: Decoded, library_size: Tensor
    ) -> Tensor:
        if self._can_fuse(x, library_size):
            assert isinstance(x, SparseCounts)
            group = self._dispersion_group(self.gene_dispersion, context)
            return gene_head_loss(
                decoded.gene_product,
                decoded.dropout_product,
                x,
                library_size.clamp(min=SMALLEST_NORMAL),
                self.gene_log_r,
                group,
                self.bfloat16_products,
            )
        log_mean = self.gene_log_mean(decoded.gene_logit, library_size)
        log_r = self.gene_log_inverse_dispersion(context)
        return gene_reconstruction_loss(x, log_mean, log_r, decoded.dropout_logit)

    def _can_fuse(self, x: Tensor | SparseCounts, library_size: Tensor) -> bool:
        """Return whether a compiled loop can take RNA's loss: sparse, one sample a cell, softmax."""
        return (
            self.fused
            and isinstance(x, SparseCounts)
            and suits_compiled_loops(library_size)
            and library_size.dim() == 2
            and self.library != "size_factor"
        )

    def _protein_loss(
        self, y: Tensor, context: CellContext, decoded: Decoded, log_background: Tensor
    ) -> Tensor:
        mixture = self.proteins(decoded, log_background, context)
        measured = self.measured(context.panel)
        if self.fused and suits_compiled_loops(log_background) and mixture.factor.dim() == 2:
            return protein_mixture_loss(
                y,
                measured,
                mixture.log_background,
                mixture.factor,
                mixture.background_logit,
                *mixture.dispersion,
            )
        log_prob = mixture.log_prob(without_unmeasured(y, measured))
        if log_prob.dim() > mixture.factor.dim():  # several samples of the background
            log_prob = log_prob.logsumexp(dim=0) - math.log(len(log_prob))
        return -sum_measured(log_prob, measured)

    def _library_kl(
        self,
        posterior: CellPosterior,
        local_l_mean_gene: Tensor | None,
        local_l_var_gene: Tensor | None,
        like: Tensor,
    ) -> Tensor:
        if posterior.ql_m is None or posterior.ql_v is None:
            return torch.zeros_like(like)
        if local_l_mean_gene is None or local_l_var_gene is None:
            raise ValueError(
                "local_l_mean_gene and local_l_var_gene are needed where the library size is latent."
            )
        n_cells = len(posterior.ql_m)
        prior = {"local_l_mean_gene": local_l_mean_gene, "local_l_var_gene": local_l_var_gene}
        for name, given in prior.items():
            if given.numel() not in (1, n_cells):
                raise ValueError(
                    f"{name} has shape {tuple(given.shape)}; allowed is ({n_cells}, 1)."
                )
        prior_mean, prior_variance = (given.reshape(-1, 1) for given in prior.values())
        return normal_kl(posterior.ql_m, posterior.ql_v, prior_mean, prior_variance).sum(dim=-1)

    def _background_kl(self, context: CellContext, decoded: Decoded) -> Tensor:
        mean, scale = decoded.background_mean, decoded.background_scale
        measured = self.measured(context.panel)
        prior = self.background_prior_mean, self.background_prior_log_scale
        if self.fused and suits_compiled_loops(mean) and mean.dim() == 2:
            total = background_divergence(measured, mean, scale, *prior, context.panel)
        else:
            prior_mean, prior_log_scale = (parameter[context.panel] for parameter in prior)
            divergence = normal_kl(mean, scale**2, prior_mean, (2 * prior_log_scale).exp())
            total = sum_measured(divergence, measured)
        if self.log_efficiency is not None:
            # scvi-tools' prior of the efficiency, and its small pull of pi towards 1
            efficiency_prior = log_normal_log_prob(self.log_efficiency[context.batch]).sum(dim=-1)
            log_pi = F.logsigmoid(decoded.background_logit).sum(dim=-1)
            total = total - efficiency_prior - 1e-3 * log_pi
        return total

    def protein_log_efficiency(self, context: CellContext) -> Tensor | float:
        """Return the log of the factor on both protein means, (B, T); 0 where the model has none."""
        return 0.0 if self.log_efficiency is None else self.log_efficiency[context.batch]


def without_unmeasured(y: Tensor, measured: Tensor | None) -> Tensor:
    """Return ``y`` with 0 where it was not measured."""
    return y if measured is None else torch.where(measured, y, torch.zeros_like(y))


def sum_measured(value: Tensor, measured: Tensor | None) -> Tensor:
    """Sum over proteins; where unmeasured, neither the value nor its gradient counts."""
    if measured is not None:
        value = torch.where(measured, value, torch.zeros_like(value))
    return value.sum(dim=-1)
