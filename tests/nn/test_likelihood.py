"""The sparse RNA likelihood against the dense one, by value and gradient."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from counts import minibatch
from totalvi.data.io.read import read
from totalvi.nn.cell import sparse_counts
from totalvi.nn.ops import gene_reconstruction_loss


def parameters(
    n_cells: int, n_genes: int, r_rows: int, dtype: torch.dtype, zero_inflated: bool
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)

    def normal(*shape: int, scale: float) -> Tensor:
        return (torch.randn(shape, generator=generator, dtype=torch.float64) * scale).to(dtype)

    made = [normal(n_cells, n_genes, scale=2), normal(r_rows, n_genes, scale=4)]
    return [*made, normal(n_cells, n_genes, scale=6)] if zero_inflated else made


def value_and_gradients(
    x: Tensor, given: list[Tensor], sparse: bool
) -> tuple[Tensor, tuple[Tensor, ...]]:
    leaves = [tensor.clone().requires_grad_() for tensor in given]
    loss = gene_reconstruction_loss(sparse_counts(x) if sparse else x, *leaves)
    weight = torch.linspace(-1, 2, len(loss), dtype=loss.dtype)
    return loss.detach(), torch.autograd.grad((loss * weight).sum(), leaves)


@pytest.mark.parametrize("zero_inflated", [False, True], ids=["nb", "zinb"])
@pytest.mark.parametrize("by_cell", [False, True], ids=["r-by-gene", "r-by-cell"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-8), (torch.float32, 2e-4)], ids=["64", "32"]
)
def test_sparse_equals_dense(
    dtype: torch.dtype, tolerance: float, by_cell: bool, zero_inflated: bool
) -> None:
    x = minibatch(11, 17)[0].to(dtype)
    x[2], x[:, 4], x[5, 6] = 0, 0, 900
    given = parameters(11, 17, 11 if by_cell else 1, dtype, zero_inflated)
    ours, our_gradients = value_and_gradients(x, given, sparse=True)
    # the reference is computed in float64 from the same numbers
    expected, gradients = value_and_gradients(x.double(), [t.double() for t in given], sparse=False)
    torch.testing.assert_close(ours.double(), expected, rtol=tolerance, atol=tolerance)
    for ours_, expected_ in zip(our_gradients, gradients, strict=True):
        torch.testing.assert_close(ours_.double(), expected_, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("zero_inflated", [False, True], ids=["nb", "zinb"])
def test_real_counts(shared: Path, zero_inflated: bool) -> None:
    counts = read(shared / "data" / "bmmc_134proteins.h5mu")["rna"].X
    x = torch.as_tensor(np.asarray(counts[:40].todense(), dtype=np.float32))
    given = parameters(*x.shape, 1, torch.float32, zero_inflated)
    ours, our_gradients = value_and_gradients(x, given, sparse=True)
    expected, gradients = value_and_gradients(x.double(), [t.double() for t in given], sparse=False)
    torch.testing.assert_close(ours.double(), expected, rtol=1e-5, atol=1e-3)
    for ours_, expected_ in zip(our_gradients, gradients, strict=True):
        torch.testing.assert_close(ours_.double(), expected_, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("zero_inflated", [False, True], ids=["nb", "zinb"])
@pytest.mark.parametrize("r_rows", [1, 4])
def test_gradcheck(r_rows: int, zero_inflated: bool) -> None:
    x = minibatch(4, 5)[0].double()
    x[1] = 0
    given = [t.requires_grad_() for t in parameters(4, 5, r_rows, torch.float64, zero_inflated)]
    assert torch.autograd.gradcheck(
        lambda *p: gene_reconstruction_loss(sparse_counts(x), *p), given
    )


def test_gradient_at_large_inverse_dispersion_in_float32() -> None:
    """There NB is Poisson: the derivative by the log mean is mean - count, that by log r is none."""
    x = torch.tensor([[0.0, 1.0, 3.0]])
    log_mean = torch.tensor([[-2.0, 0.0, 1.0]])
    _, (by_mean, by_r) = value_and_gradients(
        x.repeat(2, 1), [log_mean.repeat(2, 1), torch.full((1, 3), 14.0)], sparse=True
    )
    torch.testing.assert_close(by_mean[1], 2 * (log_mean.exp() - x)[0], rtol=1e-3, atol=1e-4)
    assert by_r.abs().max() < 1e-2


def test_several_posterior_samples_gain_a_leading_axis() -> None:
    x = minibatch(6, 9)[0]
    for zero_inflated in (False, True):
        one, log_r, *logit = parameters(6, 9, 1, torch.float32, zero_inflated)
        several = torch.stack([one, one + 1])
        loss = gene_reconstruction_loss(sparse_counts(x), several, log_r, *logit)
        assert loss.shape == (2, 6)
        torch.testing.assert_close(
            loss[1], gene_reconstruction_loss(sparse_counts(x), one + 1, log_r, *logit)
        )
