"""Sparse minibatches and their product with weights against dense ones."""

from typing import Any

import pytest
import torch
from torch import Tensor

from counts import minibatch
from totalvi.nn.cell import SparseCounts, sparse_counts, sparse_product
from totalvi.nn.v06 import TOTALVI


def with_empty_parts() -> Tensor:
    x = minibatch(9, 13)[0]
    x[3], x[:, 5] = 0, 0  # a cell and a gene without counts
    return x


@pytest.mark.parametrize("x", [with_empty_parts(), torch.zeros(3, 4), torch.ones(1, 2)])
def test_round_trip_and_sums(x: Tensor) -> None:
    counts = sparse_counts(x)
    assert counts.shape == tuple(x.shape)
    assert torch.equal(counts.to_dense(), x)
    assert torch.equal(counts.sum_by_cell(counts.counts), x.sum(dim=1))
    assert torch.equal(counts.to("cpu").counts, counts.counts)
    assert len(counts.counts) == int((x != 0).sum())
    for gene in range(x.shape[1]):
        places = counts.by_gene[counts.gene_pointer[gene] : counts.gene_pointer[gene + 1]]
        assert (counts.gene[places] == gene).all()


@pytest.mark.parametrize("x", [with_empty_parts(), torch.zeros(3, 13)])
def test_product_and_its_gradient_match_dense(x: Tensor) -> None:
    counts = sparse_counts(x.double())
    weight = torch.randn(13, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    dense_weight = weight.clone().requires_grad_()
    weight.requires_grad_()
    value = torch.log1p(counts.counts)
    ours = sparse_product(value, counts, weight)
    dense = torch.log1p(x.double()) @ dense_weight
    torch.testing.assert_close(ours, dense)
    scale = torch.arange(1.0, ours.numel() + 1).view_as(ours)
    (ours * scale).sum().backward()
    (dense * scale).sum().backward()
    torch.testing.assert_close(weight.grad, dense_weight.grad)


def test_product_gradcheck() -> None:
    counts: SparseCounts = sparse_counts(with_empty_parts().double())
    weight = torch.randn(13, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda w: sparse_product(counts.counts, counts, w), weight)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gene": torch.tensor([0, 13])}, "genes from 0 to 13; allowed are 0 to 12"),
        ({"gene": torch.tensor([-1, 2])}, "genes from -1 to 2"),
        ({"gene": torch.tensor([1])}, "2 counts, 1 genes"),
        ({"cell_pointer": torch.tensor([0, 1, 3])}, "cell_pointer from 0 to 3"),
        ({"cell_pointer": torch.tensor([1, 1, 2])}, "cell_pointer from 1 to 2"),
        ({"cell_pointer": torch.tensor([0, 3, 2])}, "rises from 0"),
    ],
)
def test_places_out_of_bounds_never_reach_a_compiled_loop(
    changes: dict[str, Any], message: str
) -> None:
    parts: dict[str, Any] = {
        "counts": torch.ones(2),
        "gene": torch.tensor([0, 12], dtype=torch.int32),
        "cell_pointer": torch.tensor([0, 1, 2]),
        "n_genes": 13,
    }
    module = TOTALVI(13, 2, n_hidden=4, n_latent=2, library="observed").eval()
    module(SparseCounts(**parts), torch.ones(2, 2))
    with pytest.raises(ValueError, match=message):
        module(SparseCounts(**(parts | changes)), torch.ones(2, 2))
