"""The product of the encoder's first layer with the RNA counts."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from totalvi.nn.cpu import counts_product as counts_kernels
from totalvi.nn.cpu.dispatch import as_array
from totalvi.nn.sparse import SparseCounts


def transformed_counts(x: SparseCounts, scale: bool, log: bool) -> Tensor:
    """Return what the encoder sees of the non-zero counts, (nnz,); see `Encoder`."""
    value = torch.empty_like(x.counts)
    counts_kernels.transform(
        x.counts.numpy(), x.cell_pointer.numpy(), x.n_genes, scale, log, value.numpy()
    )
    return value


def input_product(value: Tensor, x: SparseCounts, weight: Tensor, bfloat16: bool) -> Tensor:
    """Multiply the sparse (B, G) matrix of ``value`` at ``x``'s places by ``weight`` (G, H).

    In bfloat16 the matrix is made dense: the matrix unit is faster than leaving out the zeros.
    """
    product: Tensor = _InputProduct.apply(value, x, weight, bfloat16)
    return product


class _InputProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, x: SparseCounts, weight: Tensor, bfloat16: bool) -> Tensor:
        ctx.value, ctx.x = value, x
        if bfloat16:
            ctx.dense = torch.empty(x.shape, dtype=torch.bfloat16)
            counts_kernels.scatter(
                value.numpy(), x.gene.numpy(), x.cell_pointer.numpy(), as_array(ctx.dense)
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
    @once_differentiable
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
