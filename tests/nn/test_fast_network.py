"""A network with compiled loops against the same network without: every term and every gradient."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from totalvi.data.io.read import read
from totalvi.nn.cell import CellContext, SparseCounts, sparse_counts
from totalvi.nn.config import Normalization
from totalvi.nn.v06 import TOTALVI

CASES: dict[str, dict[str, Any]] = {
    "default": {},
    "observed library": {"library": "observed"},
    "size factor": {"library": "size_factor"},
    "dispersions by batch": {
        "library": "observed",
        "gene_dispersion": "gene-batch",
        "protein_dispersion": "protein-batch",
    },
    "dispersions by label": {
        "gene_dispersion": "gene-label",
        "protein_dispersion": "protein-label",
        "protein_efficiency": True,
    },
    "panels": {"protein_batch_mask": [[True] * 9, [True] * 5 + [False] * 4], "library": "observed"},
    "zinb": {"reconstruction_loss_gene": "zinb", "n_layers_encoder": 2, "n_layers_decoder": 2},
    "scaled input": {"scale_input": True, "encoder_architecture": "direct"},
    "plain input": {"log_variational": False, "background_scale": "softplus"},
    "layer norm": {"normalization": "layer", "library": "observed"},
    "samples of the background": {
        "background_samples": 5,
        "protein_batch_mask": [[True] * 9, [True] * 5 + [False] * 4],
    },
    "staining level": {"staining_level": True, "background_samples": 3},
    "staining level, panels": {
        "staining_level": True,
        "protein_efficiency": True,
        "protein_batch_mask": [[True] * 9, [True] * 5 + [False] * 4],
    },
}
# a bias before batch normalisation has no effect: its gradient is nothing but rounding
WITHOUT_EFFECT = ("linear.bias", "others.bias", "rest.0.bias")


def counts(dtype: torch.dtype, n_cells: int = 50, n_genes: int = 120) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(n_genes, generator=generator).exp()
    x = torch.poisson(means.expand(n_cells, -1), generator=generator)
    x[:, 0] += 1
    x[3, 5], x[4, 6] = 2000, 1.5  # a large count, and one with a fraction
    levels = (torch.randn(9, generator=generator) * 2 + 3).exp()
    y = torch.poisson(levels * torch.rand(n_cells, 9, generator=generator), generator=generator)
    return x.to(dtype), y.to(dtype)


def terms_and_gradients(
    x: Tensor | SparseCounts, y: Tensor, fused: bool, weight: Tensor, options: dict[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    small = {"n_hidden": 32, "n_latent": 6, "dropout_rate_encoder": 0, "dropout_rate_decoder": 0}
    generator = torch.Generator().manual_seed(1)
    network = TOTALVI(
        x.shape[1], y.shape[1], 2, 2, **(small | options), fused=fused, generator=generator
    )
    network.to(y.dtype).train()
    group = torch.arange(len(y)) % 2
    prior = torch.full((len(y), 1), 5.0, dtype=y.dtype), torch.full((len(y), 1), 0.3, dtype=y.dtype)
    size_factor = torch.linspace(0.5, 2, len(y), dtype=y.dtype)[:, None]
    extras = {"size_factor": size_factor} if options.get("library") == "size_factor" else {}
    terms = network(
        x, y, *prior, group, group.flip(0), generator=torch.Generator().manual_seed(5), **extras
    )
    total = sum(((term * part).sum() for term, part in zip(terms, weight, strict=True)))
    assert isinstance(total, Tensor)
    total.backward()
    gradients = {
        name: parameter.grad
        for name, parameter in network.named_parameters()
        if parameter.grad is not None and not name.endswith(WITHOUT_EFFECT)
    }
    buffers = {
        name: buffer for name, buffer in network.named_buffers() if buffer.is_floating_point()
    }
    return terms._asdict(), gradients, buffers


def assert_same(
    ours: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float, message: str
) -> None:
    assert set(ours) == set(expected), message
    for name, value in expected.items():
        largest = max(float(value.detach().abs().max()), 1e-12)
        error = float((ours[name].detach().double() - value.detach().double()).abs().max())
        assert error <= tolerance * largest, f"{message} {name}: {error / largest}"


@pytest.mark.parametrize("equal_weights", [True, False], ids=["equal", "unequal"])
@pytest.mark.parametrize("dense", [True, False], ids=["dense", "sparse"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-8), (torch.float32, 2e-4)])
def test_fused_equals_reference(
    case: str, dense: bool, equal_weights: bool, dtype: torch.dtype, tolerance: float
) -> None:
    x, y = counts(dtype)
    weight = torch.full((5, len(y)), 0.7, dtype=dtype)
    if not equal_weights:
        weight = torch.rand(5, len(y), generator=torch.Generator().manual_seed(2)).to(dtype)
    options = CASES[case]
    ours = terms_and_gradients(sparse_counts(x), y, True, weight, options)
    expected = terms_and_gradients(x if dense else sparse_counts(x), y, False, weight, options)
    for what, mine, reference in zip(("term", "gradient", "buffer"), ours, expected, strict=True):
        assert_same(mine, reference, tolerance, f"{case}: {what}")


@pytest.mark.parametrize(
    ("n_cells", "n_genes"), [(5, 63), (15, 64), (17, 65), (16, 511), (17, 513), (65, 130)]
)
def test_whatever_blocks_the_loops_take(n_cells: int, n_genes: int) -> None:
    """Of 16 and 64 chunks of cells, 64 and 512 genes, and up to 16 tabled counts."""
    x, y = counts(torch.float64, n_cells, n_genes)
    weight = torch.rand(5, n_cells, generator=torch.Generator().manual_seed(2)).double()
    ours = terms_and_gradients(sparse_counts(x), y, True, weight, {})
    expected = terms_and_gradients(x, y, False, weight, {})
    for what, mine, reference in zip(("term", "gradient", "buffer"), ours, expected, strict=True):
        assert_same(mine, reference, 1e-8, what)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("n_layers_decoder", [1, 2, 3])
@pytest.mark.parametrize("normalization", ["batch", "layer", "none"])
def test_proteins_decoded_without_genes(
    normalization: Normalization, n_layers_decoder: int, fused: bool
) -> None:
    network = TOTALVI(
        20, 9, 3, n_hidden=16, n_latent=4, normalization=normalization, fused=fused,
        n_layers_decoder=n_layers_decoder, n_continuous_covariates=1,
        reconstruction_loss_gene="zinb", generator=torch.Generator().manual_seed(1),
    ).eval()  # fmt: skip
    generator = torch.Generator().manual_seed(2)
    for buffer in network.decoder.buffers():
        if buffer.is_floating_point():  # moments of batch normalisation that differ by trunk
            buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
    batch = torch.arange(12) % 3
    context = CellContext(batch, batch, continuous=torch.randn(12, 1, generator=generator))
    z = torch.randn(12, 4, generator=generator)
    with torch.inference_mode():
        whole, proteins = (network.decode(z, context, genes=genes) for genes in (True, False))
        for name in (
            "background_mean",
            "background_scale",
            "foreground_factor",
            "background_logit",
        ):
            torch.testing.assert_close(getattr(proteins, name), getattr(whole, name))
        torch.testing.assert_close(proteins.dropout_logit, whole.dropout_logit)
    assert proteins.gene_product is None


@pytest.mark.parametrize("library", ["latent", "observed"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-8), (torch.float32, 1e-3)])
def test_real_counts(shared: Path, library: str, dtype: torch.dtype, tolerance: float) -> None:
    mdata = read(shared / "data" / "bmmc_134proteins.h5mu")
    x = torch.as_tensor(mdata["rna"].X[:80].toarray()).to(dtype)
    y = torch.as_tensor(mdata["prot"].to_df()[:80].to_numpy()).to(dtype)
    weight = torch.ones(5, len(y), dtype=dtype)
    options = {"library": library, "scale_input": True, "background_scale": "softplus"}
    ours = terms_and_gradients(sparse_counts(x), y, True, weight, options)
    expected = terms_and_gradients(x, y, False, weight, options)
    for what, mine, reference in zip(("term", "gradient", "buffer"), ours, expected, strict=True):
        assert_same(mine, reference, tolerance, what)
