"""The RNA log-likelihood of a minibatch, in one readable and two fast forms.

Dense counts go through the reference: every entry through `distributions`. Sparse counts go through
forms that take log-gamma and digamma only at the non-zero counts; they are tested against the
reference by value and gradient.
"""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F

from totalvi.module.distributions import (
    digamma_difference,
    log_rising_ratio,
    negative_binomial_log_prob,
    zero_inflated_negative_binomial_log_prob,
)
from totalvi.module.sparse import SparseCounts


def gene_reconstruction_loss(
    x: Tensor | SparseCounts, log_mean: Tensor, log_r: Tensor, dropout_logit: Tensor | None = None
) -> Tensor:
    """Return ``-log p(x)`` summed over genes, shape (B,).

    Parameters
    ----------
    x
        RNA counts (B, G), dense or sparse.
    log_mean
        Log of the NB mean, (B, G); with posterior samples (n_samples, B, G), giving (n_samples, B).
    log_r
        Log of the inverse dispersion, (1, G) or (B, G).
    dropout_logit
        Of the zero inflation, (B, G); None for NB.
    """
    if isinstance(x, SparseCounts) and log_mean.dim() > 2:
        x = x.to_dense()
    if isinstance(x, SparseCounts):
        if dropout_logit is None:
            loss: Tensor = _SparseNegativeBinomialLoss.apply(x, log_mean, log_r)
            return loss
        return _sparse_zero_inflated_loss(x, log_mean, log_r, dropout_logit)
    if dropout_logit is None:
        return -negative_binomial_log_prob(x, log_mean, log_r).sum(dim=-1)
    return -zero_inflated_negative_binomial_log_prob(x, log_mean, log_r, dropout_logit).sum(dim=-1)


class _SparseNegativeBinomialLoss(torch.autograd.Function):
    """NB loss by cell, with S = softplus(log mean - log r).

    A zero count costs r S. A count c > 0 costs further c S - c log mean + log c! - log_rising_ratio.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, x: SparseCounts, log_mean: Tensor, log_r: Tensor) -> Tensor:
        r = log_r.exp()
        s = F.softplus(log_mean - log_r)
        zero_cost = s @ r[0] if r.shape[0] == 1 else (s * r).sum(dim=1)
        s_nonzero = s[x.cell, x.gene]
        r_nonzero = _at(r, x)
        further_cost = (
            x.counts * (s_nonzero - log_mean[x.cell, x.gene])
            + torch.lgamma(x.counts + 1)
            - log_rising_ratio(r_nonzero, x.counts)
        )
        ctx.counts = x  # type: ignore[attr-defined]
        ctx.save_for_backward(r, s, r_nonzero, s_nonzero)
        return zero_cost + x.sum_by_cell(further_cost)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[None, Tensor, Tensor]:
        x: SparseCounts = ctx.counts  # type: ignore[attr-defined]
        r, s, r_nonzero, s_nonzero = ctx.saved_tensors  # type: ignore[attr-defined]
        by_cell = gradient[:, None]
        d_log_mean = torch.expm1(-s).mul_(r).mul_(-by_cell)  # sigmoid(log mean - log r) = 1 - e^-s
        flat = x.cell * x.shape[1] + x.gene
        counted = gradient[x.cell] * x.counts * torch.exp(-s_nonzero)
        d_log_mean.view(-1).index_add_(0, flat, counted, alpha=-1)

        # log r enters through r, at a fixed difference of the logs, and through that difference
        rising = gradient[x.cell] * r_nonzero * digamma_difference(r_nonzero, x.counts)
        if r.shape[0] == 1:
            d_log_r = (gradient @ s)[None] * r - d_log_mean.sum(dim=0, keepdim=True)
            d_log_r[0].index_add_(0, x.gene, rising, alpha=-1)
        else:
            d_log_r = s.mul(r).mul_(by_cell).sub_(d_log_mean)
            d_log_r.view(-1).index_add_(0, flat, rising, alpha=-1)
        return None, d_log_mean, d_log_r


def _sparse_zero_inflated_loss(
    x: SparseCounts, log_mean: Tensor, log_r: Tensor, dropout_logit: Tensor
) -> Tensor:
    """Charge every entry as a zero, then correct the non-zero ones."""
    log_zero = -log_r.exp() * F.softplus(log_mean - log_r)
    # with w the dropout probability: log(w + (1 - w) NB(0)) = softplus(log_zero - logit) + log w
    zero_cost = F.softplus(-dropout_logit) - F.softplus(log_zero - dropout_logit)
    logit = dropout_logit[x.cell, x.gene]
    nonzero_cost = F.softplus(logit) - negative_binomial_log_prob(
        x.counts, log_mean[x.cell, x.gene], _at(log_r, x)
    )
    return zero_cost.sum(dim=1) + x.sum_by_cell(nonzero_cost - zero_cost[x.cell, x.gene])


def _at(by_gene: Tensor, x: SparseCounts) -> Tensor:
    """Return the entries of a (1, G) or (B, G) tensor at the non-zero counts."""
    return by_gene[0, x.gene] if by_gene.shape[0] == 1 else by_gene[x.cell, x.gene]
