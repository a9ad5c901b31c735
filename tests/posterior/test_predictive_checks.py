"""Predictive checks against brute force, and calibrated where the model is true."""

import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import sparse, special, stats

from counts import N_GENES, N_PROTEINS, SMALL, annotated, described, parameters_of, question
from totalvi.data.cells import CiteData
from totalvi.data.columns import Columns
from totalvi.data.counts import CountsInMemory
from totalvi.data.describe import describe
from totalvi.data.simulate import simulate
from totalvi.fit.batches import minibatch
from totalvi.nn.v06 import TOTALVI
from totalvi.posterior.draws import GeneParameters, draws
from totalvi.posterior.noise import CellNoise
from totalvi.posterior.predictive import predictive_counts
from totalvi.posterior.predictive_checks import (
    LEVELS,
    FeatureChecks,
    interval_coverage,
    predictive_checks,
    quantile_coverage,
)

GENES, PROTEINS = np.arange(N_GENES), np.arange(N_PROTEINS)
CELLS = np.arange(0, 120, 3)
STANDARD = torch.linspace(-30, 30, 1201).double()[
    :, None, None
]  # values of a standard normal variable
LOG_WEIGHT = STANDARD.square().mul(-0.5).log_softmax(dim=0).numpy()


def module(data: CiteData, **options: Any) -> TOTALVI:
    arguments = {"library": "observed", "background_scale": "softplus", **SMALL, **options}
    return TOTALVI(
        len(data.schema.gene_names),
        len(data.schema.protein_names),
        len(data.schema.batch_names),
        protein_batch_mask=data.schema.panel_measured,
        generator=torch.Generator().manual_seed(0),
        **arguments,
    ).eval()


# ------------------------------------------------------------------------------------- intervals


@pytest.mark.parametrize("n_samples", [1, 9, 100])
@pytest.mark.parametrize("mean", [0.02, 1.0, 50.0])
def test_coverage_is_the_level_when_counts_are_exchangeable(mean: float, n_samples: int) -> None:
    rng = np.random.default_rng(0)
    drawn = rng.negative_binomial(2, 2 / (2 + mean), (n_samples + 1, 40_000))
    below, equal = ranks(drawn[0], drawn[1:])
    for level in LEVELS:
        covered = interval_coverage(below, equal, n_samples, level)
        assert ((covered >= 0) & (covered <= 1 + 1e-12)).all()
        assert abs(covered.mean() - level) < 5 * covered.std() / 200 + 1e-12


def test_coverage_tells_a_wrong_spread() -> None:
    rng = np.random.default_rng(0)
    drawn, observed = rng.poisson(20, (99, 10_000)), rng.negative_binomial(2, 2 / 22, 10_000)
    assert interval_coverage(*ranks(observed, drawn), 99, 0.95).mean() < 0.7
    assert interval_coverage(*ranks(drawn[0], 2 * drawn[1:]), 98, 0.95).mean() < 0.3
    too_wide = rng.negative_binomial(2, 2 / 22, (99, 10_000))
    assert interval_coverage(*ranks(drawn[0], too_wide), 99, 0.5).mean() > 0.8


@pytest.mark.parametrize("n_samples", [1, 7, 100, 200])
@pytest.mark.parametrize("level", LEVELS)
def test_quantile_coverage_is_that_of_numpy(n_samples: int, level: float) -> None:
    rng = np.random.default_rng(0)
    drawn = rng.poisson(3, (n_samples + 1, 3000))
    tail = (1 - level) / 2
    lower, upper = np.quantile(
        drawn[1:], [round(tail, 12), round(1 - tail, 12)], axis=0, method="inverted_cdf"
    )
    expected = (drawn[0] >= lower) & (drawn[0] <= upper)
    ours = quantile_coverage(*ranks(drawn[0], drawn[1:]), n_samples, level)
    assert np.array_equal(ours, expected)


def ranks(observed: np.ndarray, drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return (drawn < observed).sum(axis=0), (drawn == observed).sum(axis=0)


# ------------------------------------------------------------------------------ against brute force


@pytest.mark.parametrize("likelihood", ["nb", "zinb"])
def test_checks_are_those_of_all_samples_held_at_once(likelihood: str) -> None:
    data = describe(annotated(n_unmeasured=2), Columns(batch_key="batch"))
    network = module(data, reconstruction_loss_gene=likelihood)
    measured = np.array(data.schema.panel_measured)[data.panel[CELLS]]
    assert not measured.all()
    genes, proteins, n_samples = np.array([20, 3, 11, 0]), np.array([5, 0, 4, 1]), 30
    asked = question(data, network, CELLS, 2, batch_size=13, n_samples=n_samples)
    ours = predictive_checks(asked, genes, proteins)
    with torch.no_grad():
        batch = minibatch(data, network, CELLS)
        rna, protein = predictive_counts(asked, batch, genes, proteins)
    densities = predictive_density(data, network, n_samples)
    drawn_rna = np.stack([counts.toarray() for counts in rna])
    observed = data.rna.rows(CELLS).toarray()[:, genes]
    everywhere = np.ones(observed.shape, dtype=bool)
    agree(ours[0], observed, drawn_rna, everywhere, densities[0][:, genes])
    agree(
        ours[1],
        data.protein.rows(CELLS)[:, proteins],
        protein,
        measured[:, proteins],
        densities[1][:, proteins],
    )


def predictive_density(
    data: CiteData, network: TOTALVI, n_samples: int
) -> tuple[np.ndarray, np.ndarray]:
    """log E[p(count)] of genes and proteins by scipy's distributions."""
    batch = minibatch(data, network, CELLS)
    rna, protein = data.rna.rows(CELLS).toarray(), data.protein.rows(CELLS)
    by_gene, by_protein = [], []
    with torch.no_grad():
        for draw in draws(network, batch, n_samples, CellNoise(2)):
            px_, py_ = parameters_of(network, draw)
            log_prob = log_pmf(rna, px_["rate"], px_["r"])
            if "dropout" in px_:
                dropout = px_["dropout"].sigmoid().double().numpy()
                log_prob = np.log(dropout * (rna == 0) + (1 - dropout) * np.exp(log_prob))
            by_gene.append(log_prob)
            pi = py_["mixing"].sigmoid().double().numpy()
            # b is integrated by the rule of trapezoids: beta, in units of that at the sample of b
            sampled = draw.proteins.log_background
            expected = draw.decoded.background_mean + draw.decoded.background_scale * STANDARD
            beta = (expected - sampled).exp()
            background = np.log(pi) + log_pmf(protein, py_["rate_back"] * beta, py_["r"])
            foreground = np.log1p(-pi) + log_pmf(protein, py_["rate_fore"] * beta, py_["r"])
            log_prob = np.logaddexp(background, foreground) + LOG_WEIGHT
            by_protein.append(special.logsumexp(log_prob, axis=0))
    genes, proteins = (special.logsumexp(by, axis=0) for by in (by_gene, by_protein))
    return genes - np.log(n_samples), proteins - np.log(n_samples)


def log_pmf(counts: np.ndarray, mean: torch.Tensor, r: torch.Tensor) -> np.ndarray:
    m, n = mean.double().numpy(), r.double().numpy()
    return stats.nbinom.logpmf(counts, n, n / (n + m))


def agree(
    ours: FeatureChecks,
    observed: np.ndarray,
    drawn: np.ndarray,
    measured: np.ndarray,
    log_density: np.ndarray,
) -> None:
    for f in range(observed.shape[1]):
        of = measured[:, f]
        y, samples = observed[of, f], drawn[:, of, f].astype(np.float64)
        assert ours.n_cells[f] == of.sum()
        expected = {
            "observed_mean": y.mean(),
            "observed_cv": y.std() / y.mean(),
            "observed_zero_fraction": (y == 0).mean(),
            "predicted_mean": samples.mean(),
            "predicted_cv": np.mean([s.std() / s.mean() for s in samples if s.any()]),
            "predicted_zero_fraction": (samples == 0).mean(),
            "mae": np.abs(samples.mean(axis=0) - y).mean(),
            "log_likelihood": log_density[of, f].mean(),
        }
        for name, value in expected.items():
            np.testing.assert_allclose(getattr(ours, name)[f], value, rtol=1e-4, err_msg=name)
        below, equal = ranks(y, samples)
        for row, level in enumerate(LEVELS):
            covered = interval_coverage(below, equal, len(samples), level).mean()
            np.testing.assert_allclose(ours.coverage[row, f], covered)
            covered = quantile_coverage(below, equal, len(samples), level).mean()
            np.testing.assert_allclose(ours.quantile_coverage[row, f], covered)


def test_a_protein_that_no_cell_measured_has_no_checks() -> None:
    data = describe(annotated(n_unmeasured=2), Columns(batch_key="batch"))
    network = module(data)
    cells = np.flatnonzero(data.batch == 1)
    unmeasured = ~np.array(data.schema.panel_measured)[1]
    asked = question(data, network, cells, batch_size=50, n_samples=3)
    _, proteins = predictive_checks(asked, GENES, PROTEINS)
    assert np.array_equal(proteins.n_cells == 0, unmeasured)
    for values in (proteins.mae, proteins.coverage[0], proteins.log_likelihood):
        assert np.array_equal(np.isnan(values), unmeasured)


@pytest.mark.parametrize("zero_inflated", [False, True])
@pytest.mark.parametrize("by_cell", [False, True])
def test_gene_log_probabilities_are_scipys(zero_inflated: bool, by_cell: bool) -> None:
    rng = np.random.default_rng(0)
    counts = rng.poisson(0.7, (9, 11)).astype(np.float64)
    log_mean, logit = rng.normal(0, 2, (2, 9, 11))
    log_r = rng.normal(0, 1.5, (9 if by_cell else 1, 11))
    r, mean = np.exp(log_r), np.exp(log_mean)
    expected = stats.nbinom.logpmf(counts, r, r / (r + mean))
    if zero_inflated:
        dropout = special.expit(logit)
        expected = np.log(dropout * (counts == 0) + (1 - dropout) * np.exp(expected))
    parameters = GeneParameters(
        torch.tensor(log_mean), torch.tensor(log_r), torch.tensor(logit) if zero_inflated else None
    )
    ours = parameters.log_prob(torch.tensor(counts))
    np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-6, atol=1e-9)


# ----------------------------------------------------------------------------- where the model is true


@pytest.mark.parametrize("likelihood", ["nb", "zinb"])
def test_intervals_are_calibrated_on_counts_of_the_model_itself(likelihood: str) -> None:
    """A decoder blind to z says the same of every cell: NumPy can draw from it, without our code."""
    rng = np.random.default_rng(0)
    n_cells = 400
    data = described(n_cells, size_factor_key="size_factor")
    network = module(
        data,
        library="size_factor",
        reconstruction_loss_gene=likelihood,
        protein_efficiency=True,
        gene_dispersion="gene-batch",
    )
    make_blind(network, rng)
    with torch.no_grad():
        batch = minibatch(data, network, np.arange(n_cells))
        (draw,) = draws(network, batch, 1, CellNoise(0))
        px_, py_ = parameters_of(network, draw)
    rna = negative_binomial(rng, px_["rate"], px_["r"])
    if "dropout" in px_:
        rna[rng.random(rna.shape) < px_["dropout"].sigmoid().numpy()] = 0
    noise = torch.tensor(rng.normal(size=(n_cells, N_PROTEINS)))
    beta = (py_["back_alpha"] + py_["back_beta"] * noise).exp() * py_["efficiency"].detach()
    is_background = torch.tensor(rng.random((n_cells, N_PROTEINS))) < py_["mixing"].sigmoid()
    mean = torch.where(is_background, beta, beta * py_["fore_scale"])
    protein = negative_binomial(rng, mean, py_["r"])

    true_counts = replace(
        data,
        rna=CountsInMemory(sparse.csr_matrix(rna, dtype=np.float32)),
        protein=CountsInMemory(protein.astype(np.float32)),
    )
    asked = question(true_counts, network, np.arange(n_cells), 1, batch_size=134, n_samples=100)
    for checks in predictive_checks(asked, GENES, PROTEINS):
        for row, level in enumerate(LEVELS):
            error = np.sqrt(level * (1 - level) / (n_cells * len(checks.mae)))
            assert abs(checks.coverage[row].mean() - level) < 5 * error
        assert 0.93 <= checks.coverage[2].mean() <= 0.97
        assert ((checks.coverage[2] > 0.89) & (checks.coverage[2] <= 1)).all()
        np.testing.assert_allclose(
            checks.predicted_zero_fraction, checks.observed_zero_fraction, atol=0.12
        )


def make_blind(network: TOTALVI, rng: np.random.Generator) -> None:
    """Let nothing but biases reach the decoder's heads."""
    decoder = network.decoder
    means = {
        decoder.gene_head: 0.0,
        decoder.dropout_head: -1.0,
        decoder.background_mean_head: 2.0,
        decoder.background_scale_head: -0.5,
        decoder.foreground_head: 8.0,
        decoder.background_logit_head: 0.0,
    }
    with torch.no_grad():
        for head, mean in means.items():
            if head is None:
                continue
            for parameter in head.parameters():
                parameter.zero_()
            head.bias.copy_(torch.tensor(mean + rng.normal(0, 1, len(head.bias))))
        assert network.log_efficiency is not None
        network.log_efficiency[1] = 1.5


def negative_binomial(rng: np.random.Generator, mean: Any, r: Any) -> np.ndarray:
    mean, r = (np.asarray(value.detach(), dtype=np.float64) for value in (mean, r))
    return rng.negative_binomial(np.broadcast_to(r, mean.shape), r / (r + mean)).astype(np.float64)


# ---------------------------------------------------------------------------------------- memory


def test_samples_are_not_held() -> None:
    n_cells, n_genes, n_samples = 300, 400, 100
    data = describe(simulate(n_cells, n_genes, 5, n_cell_types=2, store_truth=False), Columns())
    network = module(data)

    def peak(n_samples: int) -> int:
        cells = np.arange(n_cells)
        asked = question(data, network, cells, batch_size=100, n_samples=n_samples)
        tracemalloc.start()
        predictive_checks(asked, np.arange(n_genes), np.arange(5))
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(1)  # compiles
    # as 16-bit whole numbers the samples of one minibatch alone would take 8 MB, of all cells 24
    assert peak(n_samples) < 4.5e6
