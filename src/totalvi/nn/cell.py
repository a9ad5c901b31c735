"""The cells of a minibatch: sparse RNA counts, context, and products that are computed on demand."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Self

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F


class CellContext(NamedTuple):
    """Batch, panel, label and covariates of B cells.

    Parameters
    ----------
    batch, panel, label
        Integer codes, shape (B,); ``label`` is None if there are no labels.
    categorical
        Codes of further categorical covariates, shape (B, covariates), or None.
    continuous
        Continuous covariates, shape (B, covariates), or None.
    library_size
        The observed library size or size factor, shape (B, 1); None if it is latent.
    log_level
        A sample of each protein's log staining level, shape (B, T); None: 0, the average cell's.
    """

    batch: Tensor
    panel: Tensor
    label: Tensor | None = None
    categorical: Tensor | None = None
    continuous: Tensor | None = None
    library_size: Tensor | None = None
    log_level: Tensor | None = None

    def codes(self, *, categorical: bool = True) -> list[Tensor]:
        """Return the codes of the batch and, if wanted, of the categorical covariates, each (B,)."""
        others = self.categorical if categorical else None
        return [self.batch, *(() if others is None else others.unbind(dim=1))]

    def in_batch(self, code: int | None) -> "CellContext":
        """Return the context as if every cell came from the batch ``code``; None: its own."""
        return self if code is None else self._replace(batch=torch.full_like(self.batch, code))

    def take_cells(self, rows: Tensor) -> "CellContext":
        """Return the context of the cells at ``rows``."""
        return CellContext(*(None if part is None else part[rows] for part in self))  # type: ignore[arg-type]

    def repeat(self, n_samples: int) -> "CellContext":
        """Return the context of ``n_samples`` copies of the cells, one copy after the other."""
        parts = (
            None if part is None else part.repeat(n_samples, *[1] * (part.dim() - 1))
            for part in self
        )
        return CellContext(*parts)  # type: ignore[arg-type]


def one_hot_columns(
    codes: Sequence[Tensor], n_categories: Sequence[int], dtype: torch.dtype
) -> Tensor | None:
    """Return the one-hot columns of all covariates with more than one category, concatenated."""
    columns = [F.one_hot(code, n) for code, n in zip(codes, n_categories, strict=True) if n > 1]
    return torch.cat(columns, dim=1).to(dtype) if columns else None


def one_hot_width(n_categories: Sequence[int]) -> int:
    """Return the number of columns that ``one_hot_columns`` makes."""
    return sum(n for n in n_categories if n > 1)


@dataclass(frozen=True)
class SparseCounts:
    """Non-zero RNA counts of B cells and G genes, ordered by cell.

    Parameters
    ----------
    counts
        The non-zero counts, shape (nnz,).
    gene
        The gene of each count, shape (nnz,), integers.
    cell_pointer
        Start of each cell's counts, and the end, shape (B + 1,), 64-bit integers.
    n_genes
        G.
    """

    counts: Tensor
    gene: Tensor
    cell_pointer: Tensor
    n_genes: int

    @property
    def shape(self) -> tuple[int, int]:
        """(cells, genes)."""
        return len(self.cell_pointer) - 1, self.n_genes

    @property
    def device(self) -> torch.device:
        """The device of the counts."""
        return self.counts.device

    @cached_property
    def cell(self) -> Tensor:
        """The cell (row) of each count, shape (nnz,)."""
        cells = torch.arange(self.shape[0], device=self.device)
        return cells.repeat_interleave(self.cell_pointer.diff(), output_size=len(self.counts))

    @cached_property
    def by_gene(self) -> Tensor:
        """The order that sorts the counts by gene, shape (nnz,)."""
        return torch.argsort(self.gene, stable=True)

    @cached_property
    def gene_pointer(self) -> Tensor:
        """The start of each gene's counts in this order, and the end, shape (G + 1,)."""
        return _pointer(self.gene, self.n_genes)

    def to(self, device: torch.device | str) -> "SparseCounts":
        """Return the counts on ``device``."""
        counts, gene, pointer = (
            part.to(device, non_blocking=part.is_pinned())
            for part in (self.counts, self.gene, self.cell_pointer)
        )
        return SparseCounts(counts, gene, pointer, self.n_genes)

    def pin_memory(self) -> "SparseCounts":
        """Return the counts in pinned memory, from which a GPU copies."""
        counts, gene, pointer = (
            part.pin_memory() for part in (self.counts, self.gene, self.cell_pointer)
        )
        return SparseCounts(counts, gene, pointer, self.n_genes)

    def check(self) -> None:
        """Raise ValueError unless pointers and genes are within bounds, as fast loops do not check."""
        n, pointer = len(self.counts), self.cell_pointer
        rises = int(pointer[0]) == 0 and int(pointer[-1]) == n and bool((pointer.diff() >= 0).all())
        if not (rises and len(self.gene) == n):
            raise ValueError(
                f"Sparse counts hold {n} counts, {len(self.gene)} genes, and cell_pointer from "
                f"{int(pointer[0])} to {int(pointer[-1])}; allowed are as many genes as counts, and a "
                "cell_pointer that rises from 0 to their number."
            )
        if n and not (int(self.gene.min()) >= 0 and int(self.gene.max()) < self.n_genes):
            raise ValueError(
                f"Sparse counts hold genes from {int(self.gene.min())} to {int(self.gene.max())}; "
                f"allowed are 0 to {self.n_genes - 1}."
            )

    def sum_by_cell(self, value: Tensor) -> Tensor:
        """Sum ``value`` (nnz,) over each cell's non-zero counts, giving (B,)."""
        total = torch.zeros(self.shape[0], dtype=value.dtype, device=value.device)
        return total.index_add(0, self.cell, value)

    def to_dense(self) -> Tensor:
        """Return the counts as a dense tensor (B, G)."""
        dense = torch.zeros(self.shape, dtype=self.counts.dtype, device=self.device)
        dense[self.cell, self.gene] = self.counts
        return dense


class LinearProduct(NamedTuple):
    """The inputs and weights of a linear layer, which are multiplied on demand.

    Parameters
    ----------
    x
        (..., B, inputs).
    weight, bias
        (inputs, outputs) and (outputs,).
    covariates, covariate_weight
        (..., B, columns) and (columns, outputs), or None.
    """

    x: Tensor
    weight: Tensor
    bias: Tensor
    covariates: Tensor | None
    covariate_weight: Tensor | None

    def value(self) -> Tensor:
        """Return ``x W + covariates V + b``, (..., B, outputs)."""
        if self.x.dim() == 2:
            result = torch.addmm(self.bias, self.x, self.weight)
        else:
            result = self.x @ self.weight + self.bias
        if self.covariates is None or self.covariate_weight is None:
            return result
        return result + self.covariates @ self.covariate_weight

    def take_cells(self, rows: Tensor) -> Self:
        """Return the product of the cells at ``rows``."""
        covariates = None if self.covariates is None else self.covariates[..., rows, :]
        return self._replace(x=self.x[..., rows, :], covariates=covariates)

    def unflatten(self, sizes: tuple[int, ...]) -> Self:
        """Return the same product for cells in an array of shape ``sizes``."""
        covariates = self.covariates
        if covariates is not None:
            covariates = torch.unflatten(covariates, 0, sizes)
        return self._replace(x=torch.unflatten(self.x, 0, sizes), covariates=covariates)


def sparse_counts(dense: Tensor) -> SparseCounts:
    """Return the non-zero entries of ``dense`` (B, G).

    Examples
    --------
    >>> import torch
    >>> counts = sparse_counts(torch.tensor([[0.0, 3.0], [1.0, 0.0]]))
    >>> counts.counts.tolist(), counts.gene.tolist(), counts.cell.tolist()
    ([3.0, 1.0], [1, 0], [0, 1])
    """
    cell, gene = dense.nonzero(as_tuple=True)
    return SparseCounts(dense[cell, gene], gene, _pointer(cell, dense.shape[0]), dense.shape[1])


def of_some_cells(x: Tensor | SparseCounts, kept: Tensor) -> Tensor | SparseCounts:
    """Return the counts without those of cells that are not ``kept``, (B,).

    Examples
    --------
    >>> import torch
    >>> counts = sparse_counts(torch.tensor([[0.0, 3.0], [1.0, 0.0]]))
    >>> of_some_cells(counts, torch.tensor([False, True])).to_dense().tolist()
    [[0.0, 0.0], [1.0, 0.0]]
    """
    if not isinstance(x, SparseCounts):
        return torch.where(kept[:, None], x, torch.zeros_like(x))
    length = torch.where(kept, x.cell_pointer.diff(), 0)
    stored = kept[x.cell]
    pointer = F.pad(length.cumsum(0), (1, 0))
    return SparseCounts(x.counts[stored], x.gene[stored], pointer, x.n_genes)


def take_cells(x: Tensor | SparseCounts, rows: Tensor) -> Tensor | SparseCounts:
    """Return the counts of the cells at ``rows``, ascending, without what other cells hold."""
    if not isinstance(x, SparseCounts):
        return x[rows]
    kept = torch.zeros(x.shape[0], dtype=torch.bool, device=x.device)
    kept[rows] = True
    some = of_some_cells(x, kept)
    assert isinstance(some, SparseCounts)
    pointer = F.pad(some.cell_pointer.diff()[rows].cumsum(0), (1, 0))
    return SparseCounts(some.counts, some.gene, pointer, x.n_genes)


def sparse_product(value: Tensor, counts: SparseCounts, weight: Tensor) -> Tensor:
    """Multiply the sparse (B, G) matrix with ``value`` at the positions of ``counts`` by ``weight``.

    Parameters
    ----------
    value
        Entries of the matrix in the order of ``counts.counts``, shape (nnz,); they get no gradient.
    weight
        Shape (G, H).

    Returns
    -------
    Shape (B, H).
    """
    return _apply_sparse_product(value, counts, weight)


class _SparseProduct(torch.autograd.Function):
    """A sparse product: both directions are sums of weighted rows, fast with ``embedding_bag``."""

    @staticmethod
    def forward(ctx: FunctionCtx, value: Tensor, counts: SparseCounts, weight: Tensor) -> Tensor:
        ctx.value, ctx.counts = value, counts  # type: ignore[attr-defined]
        return _weighted_row_sums(weight, counts.gene.long(), counts.cell_pointer, value)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[None, None, Tensor]:
        value, counts = ctx.value, ctx.counts  # type: ignore[attr-defined]
        order = counts.by_gene
        weight_gradient = _weighted_row_sums(
            gradient.contiguous(), counts.cell[order], counts.gene_pointer, value[order]
        )
        return None, None, weight_gradient


_apply_sparse_product: Callable[..., Tensor] = _SparseProduct.apply


def _weighted_row_sums(rows: Tensor, index: Tensor, pointer: Tensor, value: Tensor) -> Tensor:
    return F.embedding_bag(
        index,
        rows,
        pointer,
        mode="sum",
        per_sample_weights=value.to(rows.dtype),
        include_last_offset=True,
    )


def _pointer(group: Tensor, n_groups: int) -> Tensor:
    sizes = torch.bincount(group, minlength=n_groups)
    return F.pad(sizes.cumsum(0), (1, 0))
