"""RNA's loss straight from the inputs of the decoder's last layers."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from totalvi.nn.cpu.dispatch import as_array
from totalvi.nn.cpu.gene_loss import negative_binomial_loss
from totalvi.nn.cpu.gene_rows import N_CHUNKS, tables
from totalvi.nn.cpu.zero_inflated_loss import zero_inflated_loss
from totalvi.nn.layers import LinearProduct
from totalvi.nn.sparse import SparseCounts


def gene_head_loss(
    head: LinearProduct,
    dropout_head: LinearProduct | None,
    counts: SparseCounts,
    library: Tensor,
    log_r: Tensor,
    group: Tensor,
    bfloat16: bool,
) -> Tensor:
    """Return ``-log p(x)`` of RNA summed over genes, (B,), straight from the decoder's last layers.

    Neither the logits nor anything else as wide as the genes is kept in float32 between passes when
    ``bfloat16`` is True.

    Parameters
    ----------
    head, dropout_head
        The linear layers that end in the logits of the genes' proportions and of dropout; the latter
        None without zero inflation.
    library
        Library sizes above 0, (B, 1).
    log_r, group
        Log inverse dispersions (groups, G), and each cell's group, (B,).
    """
    heads = [*head] if dropout_head is None else [*head, *dropout_head]
    loss: Tensor = _GeneHeadLoss.apply(counts, library, log_r, group, bfloat16, *heads)
    return loss


class _GeneHeadLoss(torch.autograd.Function):
    """The loss and its gradients come from one loop; backward scales them.

    Each cell's gradient by its logits is the same whatever weight the cell has in the objective, so
    the weight goes to the narrow side of the products. That of the dispersion is a sum over cells: it
    is computed for equal weights, and again where they turn out not to be equal.
    """

    @staticmethod
    def forward(
        ctx: Any, counts: SparseCounts, library: Tensor, log_r: Tensor, group: Tensor,
        bfloat16: bool, *parts: Any,
    ) -> Tensor:  # fmt: skip
        heads = _heads(parts)
        products = [_wide_product(head, bfloat16) for head in heads]
        logits = [
            (product.logits, head.bias) for product, head in zip(products, heads, strict=True)
        ]
        losses = _losses(counts, torch.ones_like(library[:, 0]), logits, library, log_r, group)
        # not the loss itself, which refers to this context: the two would keep each other in memory
        ctx.save_for_backward(
            library, log_r, group, losses.by_library, losses.by_log_r,
            *(part for pair in logits for part in pair), *losses.by_logits,
            *(part for product in products for part in (product.wide, product.weights)),
        )  # fmt: skip
        ctx.counts, ctx.n_inputs = counts, [head.x.shape[1] for head in heads]
        return losses.loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        by_cell = gradients[0]
        library, log_r, group, by_library, by_log_r, *rest = ctx.saved_tensors
        n_heads = len(ctx.n_inputs)
        logits = _pairs(rest[: 2 * n_heads])
        by_logits, operands = rest[2 * n_heads : 3 * n_heads], _pairs(rest[3 * n_heads :])
        if bool((by_cell == by_cell[:1]).all()):
            d_log_r = by_log_r * by_cell[:1].sum()
        else:
            d_log_r = _losses(ctx.counts, by_cell, logits, library, log_r, group).by_log_r
        d_library = (by_library * by_cell)[:, None]
        d_heads: list[Tensor | None] = []
        for (wide, weights), by_logit, n in zip(operands, by_logits, ctx.n_inputs, strict=True):
            d_heads += _head_gradients(wide, weights, by_logit, by_cell, n)
        return None, d_library, d_log_r, None, None, *d_heads


def _heads(parts: Sequence[Any]) -> list[LinearProduct]:
    n_parts = len(LinearProduct._fields)
    return [LinearProduct(*parts[i : i + n_parts]) for i in range(0, len(parts), n_parts)]


def _pairs(tensors: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    return list(zip(tensors[::2], tensors[1::2], strict=True))


class _WideProduct(NamedTuple):
    """A product as wide as the genes, and its operands: inputs and covariates side by side."""

    wide: Tensor
    weights: Tensor
    logits: Tensor


def _wide_product(head: LinearProduct, bfloat16: bool) -> _WideProduct:
    dtype = torch.bfloat16 if bfloat16 else head.x.dtype
    wide, weights = head.x, head.weight
    if head.covariates is not None and head.covariate_weight is not None:
        wide = torch.cat([wide, head.covariates], dim=1)
        weights = torch.cat([weights, head.covariate_weight])
    wide, weights = wide.to(dtype), weights.to(dtype)
    return _WideProduct(wide, weights, wide @ weights)


def _head_gradients(
    wide: Tensor, weights: Tensor, by_logit: Tensor, by_cell: Tensor, n_inputs: int
) -> tuple[Tensor | None, ...]:
    """Return the gradients by the parts of a `LinearProduct`; the ones of the bias are a column."""
    dtype = by_cell.dtype
    d_wide = (by_logit @ weights.t()).to(dtype) * by_cell[:, None]
    weighted = torch.cat([wide * by_cell[:, None], by_cell[:, None]], dim=1)
    d_weights = (weighted.to(wide.dtype).t() @ by_logit).to(dtype)
    d_weight, d_covariates, d_bias = d_weights.tensor_split((n_inputs, len(d_weights) - 1))
    d_rest = d_covariates if len(d_covariates) else None
    return d_wide[:, :n_inputs], d_weight, d_bias[0], None, d_rest


class _Losses(NamedTuple):
    """Loss (B,), and its gradients: by logits (B, G) and library size (B,) of each cell's own loss, by
    log r (groups, G) of the weighted sum.
    """

    loss: Tensor
    by_logits: list[Tensor]
    by_library: Tensor
    by_log_r: Tensor


def _losses(
    counts: SparseCounts, weight: Tensor, logits: list[tuple[Tensor, Tensor]], library: Tensor,
    log_r: Tensor, group: Tensor,
) -> _Losses:  # fmt: skip
    """Return the loss from (logits, bias) of one head, or of two where RNA is zero-inflated."""
    r = log_r.detach().exp()
    library = library.detach()[:, 0].contiguous()
    loss, by_log_library = torch.empty_like(weight), torch.empty_like(weight)
    by_logits = [torch.empty_like(product) for product, _ in logits]
    by_log_r = torch.zeros(N_CHUNKS, *r.shape, dtype=r.dtype)
    compute = negative_binomial_loss if len(logits) == 1 else zero_inflated_loss
    compute(
        *(as_array(part) for pair in logits for part in pair), as_array(library),
        as_array(counts.counts), as_array(counts.gene), as_array(counts.cell_pointer),
        as_array(r), as_array(group), *tables(as_array(r), len(counts.counts)),
        as_array(weight.contiguous()), as_array(loss), *map(as_array, by_logits),
        as_array(by_log_library), as_array(by_log_r),
    )  # fmt: skip
    return _Losses(loss, by_logits, by_log_library / library, by_log_r.sum(dim=0))
