"""Products in bfloat16 are those of float32 up to the digits that bfloat16 has."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from totalvi.nn.cell import LinearProduct, sparse_counts
from totalvi.nn.cpu import gene_rows
from totalvi.nn.cpu.gene_loss import gene_head_loss
from totalvi.nn.cpu.gene_rows import input_product, transformed_counts
from totalvi.nn.layers import Activation, ParallelHiddenLayer

N_CELLS, N_GENES, N_HIDDEN = 64, 300, 40
X = torch.poisson(torch.full((N_CELLS, N_GENES), 0.8), generator=torch.Generator().manual_seed(0))
COUNTS = sparse_counts(X)


def weights(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).mul(0.1).requires_grad_()


def distance(ours: Tensor | None, expected: Tensor | None) -> float:
    assert ours is not None
    assert expected is not None
    return float((ours - expected).norm() / expected.norm())


def both(
    loss: Callable[[bool, list[Tensor]], Tensor], shapes: list[tuple[int, ...]]
) -> list[float]:
    """Distances of value and gradients."""
    results = []
    for bfloat16 in (False, True):
        leaves = [weights(*shape) for shape in shapes]
        value = loss(bfloat16, leaves)
        value.sum().backward()
        results.append([value.detach(), *(leaf.grad for leaf in leaves)])
    return [distance(ours, expected) for expected, ours in zip(*results, strict=True)]


def test_input_product() -> None:
    value = transformed_counts(COUNTS, True, True)
    scale = torch.linspace(-1, 1, N_HIDDEN)
    distances = both(
        lambda bfloat16, leaves: input_product(value, COUNTS, leaves[0], bfloat16) * scale,
        [(N_GENES, N_HIDDEN)],
    )
    assert 1e-5 < max(distances) < 0.01


@pytest.mark.parametrize("matrix_unit", [False, True])
def test_few_counts_are_multiplied_in_bfloat16_only_by_a_matrix_unit(
    matrix_unit: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gene_rows, "processor_has", lambda _: matrix_unit)
    few = sparse_counts(X * (X > 2))
    assert len(few.counts) < 0.1 * X.numel()
    distances = both(
        lambda bfloat16, leaves: input_product(few.counts, few, leaves[0], bfloat16),
        [(N_GENES, N_HIDDEN)],
    )
    if matrix_unit:
        assert 1e-5 < max(distances) < 0.01
    else:
        assert max(distances) == 0
    weight = weights(N_GENES, N_HIDDEN)
    ours = input_product(few.counts, few, weight, True)
    expected = torch.where(X > 2, X, 0.0) @ weight
    assert distance(ours, expected) < (0.01 if matrix_unit else 1e-5)


def test_gene_loss() -> None:
    def loss(bfloat16: bool, leaves: list[Tensor]) -> Tensor:
        x, weight, bias, log_r = leaves
        head = LinearProduct(x, weight, bias, None, None)
        group = torch.zeros(N_CELLS, dtype=torch.long)
        library = X.sum(dim=1, keepdim=True)
        return gene_head_loss(head, None, COUNTS, library, log_r, group, bfloat16)

    shapes = [(N_CELLS, N_HIDDEN), (N_HIDDEN, N_GENES), (N_GENES,), (1, N_GENES)]
    distances = both(loss, shapes)
    assert distances[0] < 1e-4  # errors of the logits average out
    assert 1e-5 < max(distances[1:]) < 0.01


def test_gene_loss_with_covariates() -> None:
    def loss(bfloat16: bool, leaves: list[Tensor]) -> Tensor:
        x, weight, bias, covariate_weight, log_r = leaves
        covariates = torch.eye(3)[torch.arange(N_CELLS) % 3]
        head = LinearProduct(x, weight, bias, covariates, covariate_weight)
        group = torch.zeros(N_CELLS, dtype=torch.long)
        library = X.sum(dim=1, keepdim=True)
        return gene_head_loss(head, None, COUNTS, library, log_r, group, bfloat16)

    shapes = [(N_CELLS, N_HIDDEN), (N_HIDDEN, N_GENES), (N_GENES,), (3, N_GENES), (1, N_GENES)]
    assert 1e-5 < max(both(loss, shapes)) < 0.01


def test_parallel_hidden_layer() -> None:
    n_parallel = 2
    activation = Activation(n_parallel * N_HIDDEN, "none", 0.0, n_parallel)
    layer = ParallelHiddenLayer(N_HIDDEN, n_parallel, 0, activation)

    def loss(bfloat16: bool, leaves: list[Tensor]) -> Tensor:
        layer.bfloat16_products = bfloat16
        hidden = torch.func.functional_call(layer, {"weight": leaves[1]}, (leaves[0], None))
        return hidden * torch.linspace(0.5, 1, hidden.shape[1])

    shapes = [(N_CELLS, n_parallel * N_HIDDEN), (n_parallel, N_HIDDEN, N_HIDDEN)]
    distances = both(loss, shapes)
    assert min(distances) > 1e-5
    assert max(distances) < 0.06  # some values pass 0, where the gradient jumps
