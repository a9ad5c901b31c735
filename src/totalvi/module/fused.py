"""The compiled loops of `kernels` as differentiable operations on CPU tensors.

Products as wide as the genes may be taken in bfloat16 with sums in float32, which processors with
matrix units do many times faster; ``product_dtype`` says which.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numba
import numpy as np
import torch
from torch import Tensor, nn

from totalvi.module.kernels import counts as counts_kernels
from totalvi.module.kernels import gene_loss, hidden, protein_terms
from totalvi.module.sparse import SparseCounts

if TYPE_CHECKING:
    from totalvi.module.layers import LinearProduct


@contextmanager
def threads_of_torch() -> Iterator[None]:
    """Let compiled loops use as many threads as torch does, for the thread that enters."""
    before = numba.get_num_threads()
    numba.set_num_threads(min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS))
    try:
        yield
    finally:
        numba.set_num_threads(before)


def transformed_counts(x: SparseCounts, scale: bool, log: bool) -> Tensor:
    """Return what the encoder sees of the non-zero counts, (nnz,); see `Encoder`."""
    value = torch.empty_like(x.counts)
    counts_kernels.transform(
        x.counts.numpy(), x.cell_pointer.numpy(), x.n_genes, scale, log, value.numpy()
    )
    return value


def input_product(
    value: Tensor, x: SparseCounts, weight: Tensor, product_dtype: torch.dtype
) -> Tensor:
    """Multiply the sparse (B, G) matrix of ``value`` at ``x``'s places by ``weight`` (G, H).

    In bfloat16 the matrix is made dense: the matrix unit is faster than leaving out the zeros.
    """
    product: Tensor = _InputProduct.apply(value, x, weight, product_dtype)
    return product


class _InputProduct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, value: Tensor, x: SparseCounts, weight: Tensor, product_dtype: torch.dtype
    ) -> Tensor:
        ctx.value, ctx.x = value, x
        if product_dtype == torch.bfloat16:
            ctx.dense = torch.empty(x.shape, dtype=torch.bfloat16)
            counts_kernels.scatter(
                value.numpy(), x.gene.numpy(), x.cell_pointer.numpy(), _array(ctx.dense)
            )
            return (ctx.dense @ weight.to(torch.bfloat16)).to(weight.dtype)
        ctx.dense = None
        result = torch.empty(x.shape[0], weight.shape[1], dtype=weight.dtype)
        counts_kernels.product(
            value.numpy(), x.gene.numpy(), x.cell_pointer.numpy(),
            weight.detach().numpy(), result.numpy(),
        )  # fmt: skip
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, Tensor, None]:
        gradient = gradients[0].contiguous()
        if ctx.dense is not None:
            product = ctx.dense.t() @ gradient.to(torch.bfloat16)
            return None, None, product.to(gradient.dtype), None
        result = torch.empty(ctx.x.n_genes, gradient.shape[1], dtype=gradient.dtype)
        places = counts_kernels.by_gene(ctx.x.gene.numpy(), ctx.x.cell_pointer.numpy(), len(result))
        counts_kernels.transposed_product(
            ctx.value.numpy(), *places, gradient.numpy(), result.numpy()
        )
        return None, None, result, None


def normalized_activation(
    x: Tensor, batch_norm: nn.BatchNorm1d, dropout_rate: float, generator: torch.Generator | None
) -> Tensor:
    """Return dropout(ReLU(batch_norm(x))) of a layer in training, (B, features)."""
    assert batch_norm.running_mean is not None
    assert batch_norm.running_var is not None
    assert batch_norm.momentum is not None
    n_cells = len(x)
    if n_cells < 2:
        raise ValueError("x has 1 cell; batch normalisation needs 2 while training.")
    seed = int(torch.randint(2**31, (1,), generator=generator)) if dropout_rate else 0
    y, mean, variance = _NormalizedActivation.apply(
        x, batch_norm.weight, batch_norm.bias, batch_norm.eps, dropout_rate, seed
    )
    momentum = batch_norm.momentum
    batch_norm.running_mean.lerp_(mean, momentum)
    batch_norm.running_var.lerp_(variance * (n_cells / (n_cells - 1)), momentum)
    if batch_norm.num_batches_tracked is not None:
        batch_norm.num_batches_tracked.add_(1)
    result: Tensor = y
    return result


class _NormalizedActivation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, epsilon: float, rate: float, seed: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        x = x.contiguous()
        y, mean, variance = torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight)
        hidden.forward(
            _array(x), _array(weight), _array(bias), epsilon, rate, seed,
            _array(mean), _array(variance), _array(y),
        )  # fmt: skip
        ctx.save_for_backward(x, y, weight, mean, variance)
        ctx.epsilon, ctx.rate = epsilon, rate
        ctx.mark_non_differentiable(mean, variance)
        return y, mean, variance

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, y, weight, mean, variance = ctx.saved_tensors
        d_x, d_weight, d_bias = (torch.empty_like(like) for like in (x, weight, weight))
        hidden.backward(
            _array(gradients[0].contiguous()), _array(x), _array(y), _array(weight), _array(mean),
            _array(variance), ctx.epsilon, ctx.rate, _array(d_x), _array(d_weight), _array(d_bias),
        )  # fmt: skip
        return d_x, d_weight, d_bias, None, None, None


def negative_binomial_head_loss(
    head: "LinearProduct",
    counts: SparseCounts,
    library: Tensor,
    log_r: Tensor,
    group: Tensor,
    product_dtype: torch.dtype,
) -> Tensor:
    """Return ``-log p(x)`` of RNA summed over genes, (B,), straight from the decoder's last layer.

    Neither the logits nor anything else as wide as the genes is kept in float32 between passes when
    ``product_dtype`` is bfloat16.

    Parameters
    ----------
    head
        The linear layer that ends in the genes' logits.
    library
        Library sizes, (B, 1).
    log_r, group
        Log inverse dispersions (groups, G), and each cell's group, (B,).
    """
    loss: Tensor = _NegativeBinomialHeadLoss.apply(
        *head, counts, library, log_r, group, product_dtype
    )
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
        group: Tensor, product_dtype: torch.dtype,
    ) -> Tensor:  # fmt: skip
        wide = x if covariates is None else torch.cat([x, covariates], dim=1)
        weights = weight if covariate_weight is None else torch.cat([weight, covariate_weight])
        wide, weights = wide.to(product_dtype), weights.to(product_dtype)
        logits = wide @ weights
        ctx.arguments = (logits, bias, library, counts, log_r, group)
        loss, gradient, d_log_r = _losses(*ctx.arguments, torch.ones_like(library[:, 0]))
        ctx.products = wide, weights, gradient
        ctx.d_log_r = d_log_r
        ctx.n_inputs = x.shape[1]
        return loss

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        by_cell = gradients[0]
        wide, weights, gradient = ctx.products
        dtype = by_cell.dtype
        d_wide = (gradient @ weights.t()).to(dtype) * by_cell[:, None]
        weighted = torch.cat([wide * by_cell[:, None], by_cell[:, None]], dim=1)
        d_weights = (weighted.to(wide.dtype).t() @ gradient).to(dtype)
        d_weight, d_rest, d_bias = d_weights.tensor_split((ctx.n_inputs, len(d_weights) - 1))
        if bool((by_cell == by_cell[0]).all()):
            d_log_r = ctx.d_log_r * by_cell[0]
        else:
            d_log_r = _losses(*ctx.arguments, by_cell)[2]
        with_covariates = wide.shape[1] > ctx.n_inputs
        return (
            d_wide[:, : ctx.n_inputs], d_weight, d_bias[0], None,
            d_rest if with_covariates else None, None, None, d_log_r, None, None,
        )  # fmt: skip


def _losses(
    logits: Tensor, bias: Tensor, library: Tensor, counts: SparseCounts, log_r: Tensor,
    group: Tensor, weight: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return loss (B,), gradient by logit without the weight (B, G), and by log r with it."""
    r = log_r.detach().exp()
    rising, digamma = gene_loss.tables(r.numpy(), len(counts.counts))
    loss, gradient = torch.empty_like(weight), torch.empty_like(logits)
    d_log_r = torch.zeros(gene_loss.n_chunks(), *r.shape, dtype=r.dtype)
    gene_loss.negative_binomial_loss(
        _array(logits), _array(bias), _array(library[:, 0].contiguous()),
        counts.counts.numpy(), counts.gene.numpy(), counts.cell_pointer.numpy(),
        r.numpy(), group.numpy(), rising, digamma, _array(weight.contiguous()),
        loss.numpy(), _array(gradient), d_log_r.numpy(),
    )  # fmt: skip
    return loss, gradient, d_log_r.sum(dim=0)


def protein_mixture_loss(
    y: Tensor,
    measured: Tensor | None,
    log_background: Tensor,
    factor: Tensor,
    logit: Tensor,
    log_r: Tensor,
    group: Tensor,
) -> Tensor:
    """Return ``-log p(y)`` summed over measured proteins, (B,); see `kernels.protein_terms`."""
    loss: Tensor = _ProteinMixtureLoss.apply(
        y, measured, log_background, factor, logit, log_r, group
    )
    return loss


class _ProteinMixtureLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, y: Tensor, measured: Tensor | None, log_background: Tensor, factor: Tensor,
        logit: Tensor, log_r: Tensor, group: Tensor,
    ) -> Tensor:  # fmt: skip
        loss, derivatives = torch.empty_like(y[:, 0]), [torch.empty_like(y) for _ in range(4)]
        protein_terms.mixture_loss(
            _array(y), _mask(measured), _array(log_background), _array(factor), _array(logit),
            _array(log_r), _array(group), _array(loss), *map(_array, derivatives),
        )  # fmt: skip
        ctx.derivatives, ctx.group, ctx.log_r_shape = derivatives, group, log_r.shape
        return loss

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        by_background, by_factor, by_logit, by_log_r = (
            derivative * gradients[0][:, None] for derivative in ctx.derivatives
        )
        d_log_r = _sum_by_group(by_log_r, ctx.group, ctx.log_r_shape[0])
        return None, None, by_background, by_factor, by_logit, d_log_r, None


def background_divergence(
    measured: Tensor | None,
    mean: Tensor,
    scale: Tensor,
    prior_mean: Tensor,
    prior_log_scale: Tensor,
    panel: Tensor,
) -> Tensor:
    """Return the divergence of q(b | z) from its prior, summed over measured proteins, (B,)."""
    divergence: Tensor = _BackgroundDivergence.apply(
        measured, mean, scale, prior_mean, prior_log_scale, panel
    )
    return divergence


class _BackgroundDivergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, measured: Tensor | None, mean: Tensor, scale: Tensor, prior_mean: Tensor,
        prior_log_scale: Tensor, panel: Tensor,
    ) -> Tensor:  # fmt: skip
        divergence = torch.empty_like(mean[:, 0])
        derivatives = [torch.empty_like(scale) for _ in range(3)]
        protein_terms.background_divergence(
            _mask(measured), _array(mean), _array(scale), _array(prior_mean),
            _array(prior_log_scale), _array(panel), _array(divergence), *map(_array, derivatives),
        )  # fmt: skip
        ctx.derivatives, ctx.panel, ctx.n_panels = derivatives, panel, len(prior_mean)
        return divergence

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        by_mean, by_scale, by_prior_log_scale = (
            derivative * gradients[0][:, None] for derivative in ctx.derivatives
        )
        d_prior_mean = -_sum_by_group(by_mean, ctx.panel, ctx.n_panels)
        d_prior_log_scale = _sum_by_group(by_prior_log_scale, ctx.panel, ctx.n_panels)
        return None, by_mean, by_scale, d_prior_mean, d_prior_log_scale, None


def _sum_by_group(value: Tensor, group: Tensor, n_groups: int) -> Tensor:
    """Sum the rows of ``value`` (B, T) by group, giving (groups, T)."""
    if n_groups == 1:
        return value.sum(dim=0, keepdim=True)
    return value.new_zeros(n_groups, value.shape[1]).index_add(0, group, value)


def _mask(measured: Tensor | None) -> np.ndarray:
    return np.empty((0, 0), dtype=np.bool_) if measured is None else measured.numpy()


def _array(tensor: Tensor) -> np.ndarray:
    """Return a tensor as an array that shares its memory; bfloat16 as uint16."""
    tensor = tensor.detach()
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
