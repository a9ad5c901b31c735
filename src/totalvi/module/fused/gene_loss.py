"""RNA's loss straight from the inputs of the decoder's last layer."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from totalvi.module.fused.arrays import as_array
from totalvi.module.kernels import gene_loss
from totalvi.module.layers import LinearProduct
from totalvi.module.sparse import SparseCounts


def negative_binomial_head_loss(
    head: LinearProduct,
    counts: SparseCounts,
    library: Tensor,
    log_r: Tensor,
    group: Tensor,
    bfloat16: bool,
) -> Tensor:
    """Return ``-log p(x)`` of RNA summed over genes, (B,), straight from the decoder's last layer.

    Neither the logits nor anything else as wide as the genes is kept in float32 between passes when
    ``bfloat16`` is True.

    Parameters
    ----------
    head
        The linear layer that ends in the genes' logits.
    library
        Library sizes above 0, (B, 1).
    log_r, group
        Log inverse dispersions (groups, G), and each cell's group, (B,).
    """
    loss: Tensor = _NegativeBinomialHeadLoss.apply(*head, counts, library, log_r, group, bfloat16)
    return loss


class _NegativeBinomialHeadLoss(torch.autograd.Function):
    """The loss and its gradients come from one loop; backward scales them.

    Each cell's gradient by its logits is the same whatever weight the cell has in the objective, so
    the weight goes to the narrow side of the products. That of the dispersion is a sum over cells: it
    is computed for equal weights, and again where they turn out not to be equal.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, covariates: Tensor | None,
        covariate_weight: Tensor | None, counts: SparseCounts, library: Tensor, log_r: Tensor,
        group: Tensor, bfloat16: bool,
    ) -> Tensor:  # fmt: skip
        wide = x if covariates is None else torch.cat([x, covariates], dim=1)
        weights = weight if covariate_weight is None else torch.cat([weight, covariate_weight])
        dtype = torch.bfloat16 if bfloat16 else x.dtype
        wide, weights = wide.to(dtype), weights.to(dtype)
        logits = wide @ weights
        inputs = (logits, bias, library, log_r, group)
        losses = _losses(counts, torch.ones_like(library[:, 0]), *inputs)
        ctx.save_for_backward(wide, weights, *losses[1:], *inputs)
        ctx.counts, ctx.n_inputs = counts, x.shape[1]
        return losses.loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        by_cell = gradients[0]
        wide, weights, by_logit, by_library, by_log_r, *inputs = ctx.saved_tensors
        dtype = by_cell.dtype
        d_wide = (by_logit @ weights.t()).to(dtype) * by_cell[:, None]
        weighted = torch.cat([wide * by_cell[:, None], by_cell[:, None]], dim=1)
        d_weights = (weighted.to(wide.dtype).t() @ by_logit).to(dtype)
        d_weight, d_covariates, d_bias = d_weights.tensor_split((ctx.n_inputs, len(d_weights) - 1))
        if bool((by_cell == by_cell[:1]).all()):
            d_log_r = by_log_r * by_cell[:1].sum()
        else:
            d_log_r = _losses(ctx.counts, by_cell, *inputs).by_log_r
        return (
            d_wide[:, : ctx.n_inputs], d_weight, d_bias[0], None,
            d_covariates if len(d_covariates) else None, None,
            (by_library * by_cell)[:, None], d_log_r, None, None,
        )  # fmt: skip


class _Losses(NamedTuple):
    """Loss (B,), and its gradients: by logit (B, G) and library size (B,) of each cell's own loss, by
    log r (groups, G) of the weighted sum.
    """

    loss: Tensor
    by_logit: Tensor
    by_library: Tensor
    by_log_r: Tensor


def _losses(
    counts: SparseCounts, weight: Tensor, logits: Tensor, bias: Tensor, library: Tensor,
    log_r: Tensor, group: Tensor,
) -> _Losses:  # fmt: skip
    r = log_r.detach().exp()
    library = library[:, 0].contiguous()
    loss, by_log_library = torch.empty_like(weight), torch.empty_like(weight)
    by_logit = torch.empty_like(logits)
    by_log_r = torch.zeros(gene_loss.n_chunks(), *r.shape, dtype=r.dtype)
    gene_loss.negative_binomial_loss(
        as_array(logits), as_array(bias), as_array(library),
        as_array(counts.counts), as_array(counts.gene), as_array(counts.cell_pointer),
        as_array(r), as_array(group), *gene_loss.tables(as_array(r), len(counts.counts)),
        as_array(weight.contiguous()), as_array(loss), as_array(by_logit),
        as_array(by_log_library), as_array(by_log_r),
    )  # fmt: skip
    return _Losses(loss, by_logit, by_log_library / library.detach(), by_log_r.sum(dim=0))
