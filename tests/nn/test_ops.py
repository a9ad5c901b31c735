"""Each operation's fast form against its readable one: values and gradients."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch
from scipy import sparse
from torch import Tensor, nn

from totalvi.nn import ops
from totalvi.nn.cell import LinearProduct, SparseCounts, sparse_counts
from totalvi.nn.cpu.gene_rows import take_rows
from totalvi.nn.likelihoods import Dispersion, GeneLikelihood, ProteinMixture

N_CELLS, N_GENES, N_PROTEINS, N_HIDDEN = 23, 70, 6, 8
GROUP = torch.arange(N_CELLS) % 2
Shapes = list[tuple[int, ...]]


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator)


def rna(dtype: torch.dtype) -> SparseCounts:
    x = torch.poisson(normal(N_CELLS, N_GENES, seed=8).exp(), torch.Generator().manual_seed(7))
    x[2], x[:, 4], x[0, 0], x[1, 1] = 0, 0, 400, 1.5  # no counts, a large one, and a fraction
    return sparse_counts(x.to(dtype))


def proteins(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return counts, NaN where they are not measured, and which are."""
    generator = torch.Generator().manual_seed(6)
    y = torch.poisson(normal(N_CELLS, N_PROTEINS).exp() * 9, generator).to(dtype)
    measured = torch.rand(N_CELLS, N_PROTEINS, generator=generator) < 0.7
    return y.masked_fill(~measured, torch.nan), measured


def first_layer(weight: Tensor, *, fast: bool) -> Tensor:
    x = rna(weight.dtype)
    value = ops.encoder_input(x, scale=True, log=True, fast=fast)
    return ops.counts_product(value, x, weight, fast=fast, bfloat16=False)


def hidden(x: Tensor, weight: Tensor, bias: Tensor, *, fast: bool) -> Tensor:
    batch_norm = nn.BatchNorm1d(N_HIDDEN, momentum=0.1).to(x.dtype)
    del batch_norm.weight, batch_norm.bias
    batch_norm.weight, batch_norm.bias = weight, bias  # type: ignore[assignment]
    result = ops.hidden(x, batch_norm, 0.0, None, fast=fast)
    assert batch_norm.running_mean is not None
    return result + batch_norm.running_mean  # the running statistics must be the same too


def rna_loss(
    x: Tensor, weight: Tensor, bias: Tensor, by_covariate: Tensor, log_library: Tensor, log_r: Tensor,
    dropout_weight: Tensor | None = None, *, fast: bool,
) -> Tensor:  # fmt: skip
    covariates = nn.functional.one_hot(GROUP, 2).to(x)
    dropout = None
    if dropout_weight is not None:
        dropout = LinearProduct(x, dropout_weight, bias, covariates, by_covariate)
    genes = GeneLikelihood(
        logit=LinearProduct(x, weight, bias, covariates, by_covariate),
        dropout=dropout,
        library_size=(5 + log_library).exp(),
        dispersion=Dispersion(log_r, GROUP if len(log_r) == 2 else torch.zeros_like(GROUP)),
        softplus=False,
    )
    return ops.gene_loss(rna(x.dtype), genes, fast=fast, bfloat16=False)


def protein_loss(
    log_background: Tensor, log_factor: Tensor, logit: Tensor, log_r: Tensor, *, fast: bool
) -> Tensor:
    y, measured = proteins(logit.dtype)
    mixture = ProteinMixture(
        log_background, 1 + log_factor.exp(), logit, Dispersion(log_r, GROUP % len(log_r))
    )
    return ops.protein_loss(y, mixture, measured, fast=fast)


def divergence(
    mean: Tensor, log_scale: Tensor, prior_mean: Tensor, prior_log_scale: Tensor, *, fast: bool
) -> Tensor:
    _, measured = proteins(mean.dtype)
    prior = prior_mean, prior_log_scale
    return ops.background_divergence(mean, log_scale.exp(), *prior, GROUP, measured, fast=fast)


class Operation(NamedTuple):
    function: Callable[..., Tensor]
    shapes: Shapes


HEAD: Shapes = [(N_CELLS, N_HIDDEN), (N_HIDDEN, N_GENES), (N_GENES,), (2, N_GENES), (N_CELLS, 1)]
WIDE = (N_CELLS, N_PROTEINS)
OPERATIONS = {
    "counts_product": Operation(first_layer, [(N_GENES, N_HIDDEN)]),
    "hidden": Operation(hidden, [(N_CELLS, N_HIDDEN), (N_HIDDEN,), (N_HIDDEN,)]),
    "gene_loss": Operation(rna_loss, [*HEAD, (1, N_GENES)]),
    "gene_loss, r by group": Operation(rna_loss, [*HEAD, (2, N_GENES)]),
    "gene_loss, zinb": Operation(rna_loss, [*HEAD, (1, N_GENES), (N_HIDDEN, N_GENES)]),
    "gene_loss, zinb, r by group": Operation(rna_loss, [*HEAD, (2, N_GENES), (N_HIDDEN, N_GENES)]),
    "protein_loss": Operation(protein_loss, [WIDE, WIDE, WIDE, (1, N_PROTEINS)]),
    "protein_loss, r by group": Operation(protein_loss, [WIDE, WIDE, WIDE, (2, N_PROTEINS)]),
    "protein_loss, samples": Operation(protein_loss, [(4, *WIDE), WIDE, WIDE, (2, N_PROTEINS)]),
    "background_divergence": Operation(divergence, [WIDE, WIDE, (2, N_PROTEINS), (2, N_PROTEINS)]),
}


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("equal_weights", [True, False], ids=["equal", "unequal"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-8), (torch.float32, 1e-4)])
def test_fast_equals_readable(
    name: str, equal_weights: bool, dtype: torch.dtype, tolerance: float
) -> None:
    function, shapes = OPERATIONS[name]
    found = []
    for fast in (True, False):
        leaves = [
            normal(*shape, seed=i).to(dtype).requires_grad_() for i, shape in enumerate(shapes)
        ]
        value = function(*leaves, fast=fast)
        weight = torch.ones_like(value) if equal_weights else normal(*value.shape, seed=9).to(dtype)
        found.append([value.detach(), *torch.autograd.grad((value * weight).sum(), leaves)])
    for ours, expected in zip(*found, strict=True):
        assert float(expected.abs().max()) > 0
        assert float((ours - expected).abs().max() / expected.abs().max()) < tolerance


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_hidden_layer_at_rest(dtype: torch.dtype, tolerance: float) -> None:
    x = normal(N_CELLS, N_HIDDEN).to(dtype)
    batch_norm = nn.BatchNorm1d(N_HIDDEN).to(dtype)
    batch_norm(3 * x + 2)
    batch_norm.eval()
    with torch.no_grad():
        ours, expected = (ops.hidden(x, batch_norm, 0.3, None, fast=fast) for fast in (True, False))
    torch.testing.assert_close(ours, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("softplus", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_proportions_are_added(softplus: bool, dtype: torch.dtype, tolerance: float) -> None:
    x, weight, bias, by_covariate, log_scale = (
        normal(*shape, seed=i).to(dtype) for i, shape in enumerate(HEAD)
    )
    covariates = nn.functional.one_hot(GROUP, 2).to(x)
    logit = LinearProduct(x, weight, bias, covariates, by_covariate)
    totals = [normal(N_CELLS, N_GENES, seed=7).to(dtype) for _ in range(2)]
    for total, fast in zip(totals, (True, False), strict=True):
        ops.add_proportions(logit, log_scale.exp(), total, softplus=softplus, fast=fast)
    torch.testing.assert_close(*totals, rtol=tolerance, atol=tolerance)
    proportions = nn.functional.softplus(logit.value()) if softplus else logit.value().softmax(1)
    before = normal(N_CELLS, N_GENES, seed=7).to(dtype)
    torch.testing.assert_close(
        totals[1], before + log_scale.exp() * proportions, rtol=tolerance, atol=tolerance
    )


@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("log", [True, False])
def test_encoder_input_of_sparse_counts_is_that_of_dense_ones(scale: bool, log: bool) -> None:
    x = rna(torch.float64)
    dense = ops.encoder_input(x.to_dense(), scale=scale, log=log, fast=False)
    for fast in (True, False):
        value = ops.encoder_input(x, scale=scale, log=log, fast=fast)
        torch.testing.assert_close(value, dense[x.cell, x.gene])
    assert int((dense != 0).sum()) == len(x.counts)


@pytest.mark.parametrize("rows", [[], [3], [5, 0, 5, 2], list(range(N_CELLS))])
def test_rows_taken_are_those_of_scipy(rows: list[int]) -> None:
    counts = sparse.csr_matrix(rna(torch.float32).to_dense().numpy())
    chosen = np.array(rows, dtype=np.int64)
    expected = counts[chosen]
    data, column = np.empty_like(expected.data), np.empty_like(expected.indices)
    pointer = expected.indptr.astype(np.int64)
    take_rows(counts.data, counts.indices, counts.indptr, chosen, data, column, pointer)
    np.testing.assert_array_equal(data, expected.data)
    np.testing.assert_array_equal(column, expected.indices)
