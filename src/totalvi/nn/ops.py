"""The operations of the network that have a fast form on the CPU.

Each function is the readable form. If ``fast`` is true and the compiled loops in `cpu` accept the
tensors, these loops are used. Both forms give the same values and gradients, up to rounding.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F

from totalvi.nn.cell import LinearProduct, SparseCounts, sparse_product
from totalvi.nn.cpu import gene_loss as cpu_genes
from totalvi.nn.cpu import gene_rows as cpu_rows
from totalvi.nn.cpu import hidden as cpu_hidden
from totalvi.nn.cpu import protein_loss as cpu_proteins
from totalvi.nn.likelihoods import (
    SMALLEST_NORMAL,
    GeneLikelihood,
    ProteinMixture,
    digamma_difference,
    log_proportions,
    log_rising_ratio,
    negative_binomial_log_prob,
    normal_kl,
    sum_measured,
    without_unmeasured,
    zero_inflated_negative_binomial_log_prob,
)
from totalvi.nn.sync import SharedGenerator, n_cells_of_all, own_cells, shared_batch_norm


def suits_compiled_loops(tensor: Tensor) -> bool:
    """Return whether compiled loops accept results of ``tensor``: on the CPU, with one data type.

    Under ``torch.autocast`` some results are in 16 bits and others are not.
    """
    single = tensor.dtype in (torch.float32, torch.float64)
    return tensor.is_cpu and single and not torch.is_autocast_enabled("cpu")


def encoder_input(x: Tensor | SparseCounts, *, scale: bool, log: bool, fast: bool) -> Tensor:
    """Return the encoder's input from counts: dense (B, F), or the non-zero ones of ``SparseCounts``.

    Parameters
    ----------
    x
        Counts (B, F).
    scale
        Whether to divide them by 1 + their mean over the cell's features.
    log
        Whether to apply log(1 + .) afterwards.
    """
    if isinstance(x, SparseCounts):
        if fast and suits_compiled_loops(x.counts):
            return cpu_rows.transformed_counts(x, scale, log)
        value = x.counts
        if scale:
            value = value / (1 + x.sum_by_cell(value) / x.n_genes)[x.cell]
    else:
        value = x / (1 + x.mean(dim=1, keepdim=True)) if scale else x
    return torch.log1p(value) if log else value


def counts_product(
    value: Tensor, x: Tensor | SparseCounts, weight: Tensor, *, fast: bool, bfloat16: bool
) -> Tensor:
    """Return the encoder's input from RNA counts times ``weight`` (G, H): (B, H).

    Parameters
    ----------
    value
        `encoder_input` of ``x``.
    x
        RNA counts, which give the positions of the values.
    bfloat16
        Whether the fast form multiplies in bfloat16.
    """
    if not isinstance(x, SparseCounts):
        return value @ weight
    if fast and suits_compiled_loops(x.counts):
        return cpu_rows.input_product(value, x, weight, bfloat16)
    return sparse_product(value, x, weight)


def hidden(
    x: Tensor,
    batch_norm: nn.BatchNorm1d,
    dropout_rate: float,
    generator: torch.Generator | None,
    *,
    fast: bool,
) -> Tensor:
    """Return dropout(ReLU(batch_norm(x))), (B, features); dropout only in training."""
    training = batch_norm.training
    if fast and suits_compiled_loops(x) and (training or not torch.is_grad_enabled()):
        return cpu_hidden.hidden(x, batch_norm, dropout_rate, generator)
    if training and isinstance(generator, SharedGenerator):
        x = shared_batch_norm(x, batch_norm, generator)
    else:
        x = batch_norm(x)
    return dropout(F.relu(x), dropout_rate if training else 0.0, generator)


def dropout(x: Tensor, rate: float, generator: torch.Generator | None) -> Tensor:
    """Set a share ``rate`` of ``x`` to zero and scale up the rest.

    The mask compares 16 random bits of each element with ``rate``; a random number serves four
    elements.
    """
    threshold = min(round(rate * 2**16), 2**16 - 1)
    if threshold == 0:
        return x
    shape = n_cells_of_all(len(x), generator), *x.shape[1:]
    words = torch.empty(-(-math.prod(shape) // 4), dtype=torch.int64, device=x.device)
    words.random_(-(2**63), None, generator=generator)
    bits = words.view(torch.int16)[: math.prod(shape)].view(shape)
    kept = own_cells(bits, len(x), generator) >= threshold - 2**15
    return x * kept.to(x.dtype).mul_(2**16 / (2**16 - threshold))


def gene_loss(
    x: Tensor | SparseCounts, genes: GeneLikelihood, *, fast: bool, bfloat16: bool
) -> Tensor:
    """Return ``-log p(x)`` summed over genes, (B,).

    Parameters
    ----------
    x
        RNA counts (B, G).
    bfloat16
        Whether the fast form computes the products as wide as the genes in bfloat16.
    """
    library = genes.library_size
    suits = fast and library.dim() == 2 and not genes.softplus and suits_compiled_loops(library)
    if suits and isinstance(x, SparseCounts):
        above_zero = library.clamp(min=SMALLEST_NORMAL)
        return cpu_genes.gene_head_loss(
            genes.logit, genes.dropout, x, above_zero, *genes.dispersion, bfloat16
        )
    return gene_reconstruction_loss(x, genes.log_mean(), genes.log_r, genes.dropout_logit())


def protein_loss(
    y: Tensor, proteins: ProteinMixture, measured: Tensor | None, *, fast: bool
) -> Tensor:
    """Return ``-log p(y)`` summed over measured proteins, (B,).

    Parameters
    ----------
    y
        Protein counts (B, T).
    proteins
        Their distribution. If its log background has a further axis, as several samples (K, B, T)
        do, p(y) is averaged over this axis.
    measured
        Which counts the cell's panel measured, (B, T); None: all.
    """
    if fast and suits_compiled_loops(proteins.log_background) and proteins.factor.dim() == 2:
        log_background, factor, logit, dispersion = proteins
        return cpu_proteins.protein_mixture_loss(
            y, measured, log_background, factor, logit, *dispersion
        )
    log_prob = proteins.log_prob(without_unmeasured(y, measured))
    if log_prob.dim() > proteins.factor.dim():
        log_prob = log_prob.logsumexp(dim=0) - math.log(len(log_prob))
    return -sum_measured(log_prob, measured)


def background_divergence(
    mean: Tensor,
    scale: Tensor,
    prior_mean: Tensor,
    prior_log_scale: Tensor,
    panel: Tensor,
    measured: Tensor | None,
    *,
    fast: bool,
) -> Tensor:
    """Return KL(N(mean, scale**2) || prior of the cell's panel) summed over measured proteins, (B,).

    Parameters
    ----------
    mean, scale
        Mean and scale of q(b | z), (B, T).
    prior_mean, prior_log_scale
        Mean and log scale of the prior, (panels, T).
    panel
        Panel of each cell, (B,).
    measured
        Which proteins the cell's panel measured, (B, T); None: all.
    """
    if fast and suits_compiled_loops(mean) and mean.dim() == 2:
        return cpu_proteins.background_divergence(
            measured, mean, scale, prior_mean, prior_log_scale, panel
        )
    prior_variance = (2 * prior_log_scale[panel]).exp()
    return sum_measured(normal_kl(mean, scale**2, prior_mean[panel], prior_variance), measured)


@torch.no_grad()
def add_proportions(
    logit: LinearProduct, scale: Tensor, total: Tensor, *, softplus: bool, fast: bool
) -> None:
    """Add RNA proportions times ``scale`` (B, 1) to ``total`` (B, G), in place, without a gradient.

    Parameters
    ----------
    logit
        Linear layer that ends in the logits of the proportions.
    softplus
        Whether proportions are the softplus of their logits, instead of their softmax.
    """
    if fast and suits_compiled_loops(total) and not softplus:
        cpu_rows.add_proportions(logit, scale, total)
    else:
        total.add_(log_proportions(logit.value(), softplus=softplus).exp_().mul_(scale))


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
        Logit of the zero inflation, (B, G); None for NB.
    """
    if isinstance(x, SparseCounts) and log_mean.dim() > 2:
        x = x.to_dense()
    if isinstance(x, SparseCounts):
        if dropout_logit is None:
            return _apply_negative_binomial_loss(x, log_mean, log_r)
        return _sparse_zero_inflated_loss(x, log_mean, log_r, dropout_logit)
    if dropout_logit is None:
        return -negative_binomial_log_prob(x, log_mean, log_r).sum(dim=-1)
    return -zero_inflated_negative_binomial_log_prob(x, log_mean, log_r, dropout_logit).sum(dim=-1)


class _SparseNegativeBinomialLoss(torch.autograd.Function):
    """Compute the NB loss per cell, with S = softplus(log mean - log r).

    A zero count costs r S. A count c > 0 costs this plus c S - c log mean + log c! - log_rising_ratio.
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

        # log r enters through r at a fixed difference of the logs, and through this difference
        rising = gradient[x.cell] * r_nonzero * digamma_difference(r_nonzero, x.counts)
        if r.shape[0] == 1:
            d_log_r = (gradient @ s)[None] * r - d_log_mean.sum(dim=0, keepdim=True)
            d_log_r[0].index_add_(0, x.gene, rising, alpha=-1)
        else:
            d_log_r = s.mul(r).mul_(by_cell).sub_(d_log_mean)
            d_log_r.view(-1).index_add_(0, flat, rising, alpha=-1)
        return None, d_log_mean, d_log_r


_apply_negative_binomial_loss: Callable[..., Tensor] = _SparseNegativeBinomialLoss.apply


def _sparse_zero_inflated_loss(
    x: SparseCounts, log_mean: Tensor, log_r: Tensor, dropout_logit: Tensor
) -> Tensor:
    """Compute the cost of every entry as a zero, then correct the non-zero ones."""
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
