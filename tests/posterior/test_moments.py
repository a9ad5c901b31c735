"""Sums over strata against dense NumPy arithmetic on the same samples."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import expit, logit
from scipy.stats import nbinom, norm

from counts import N_GENES, N_PROTEINS, SMALL, described, question
from totalvi.data.cells import CiteData
from totalvi.fit.batches import minibatch
from totalvi.nn.v06 import TOTALVI
from totalvi.posterior.differential.moments import (
    _GENES_AT_A_TIME,
    ScaleQuery,
    StratumMoments,
    _add_scale,
    add_moments,
    batch_weights,
    scales,
)
from totalvi.posterior.draws import ProteinScale

CELLS = np.arange(0, 120, 2)
STRATUM = np.arange(120) % 3
MEASURED = np.ones((2, N_PROTEINS), dtype=bool)


@pytest.fixture(scope="module")
def data() -> CiteData:
    return described()


def module(**options: Any) -> TOTALVI:
    generator = torch.Generator().manual_seed(0)
    arguments = {"library": "observed", "background_scale": "softplus", **SMALL, **options}
    network = TOTALVI(N_GENES, N_PROTEINS, 2, generator=generator, **arguments).eval()
    if network.log_efficiency is not None:
        with torch.no_grad():
            network.log_efficiency.normal_(generator=generator)
    return network


def sums(
    data: CiteData,
    network: TOTALVI,
    n_samples: int = 1,
    batch_size: int = 1000,
    cells: np.ndarray = CELLS,
    codes: tuple[int, ...] = (),
) -> StratumMoments:
    total = StratumMoments.zeros(3, N_GENES, N_PROTEINS)
    asked = question(
        data, network, cells, 1,
        batch_size=batch_size, n_samples=n_samples, transform_batch=(None, *codes),
    )  # fmt: skip
    add_moments(total, asked, STRATUM, ScaleQuery(ProteinScale(), batch_weights(MEASURED, codes)))
    return total


def by_stratum(values: np.ndarray) -> np.ndarray:
    return np.stack([values[STRATUM[CELLS] == s].sum(axis=0) for s in range(3)])


CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "nb": {},
    "zinb": {"reconstruction_loss_gene": "zinb"},
    "dispersion by batch": {"gene_dispersion": "gene-batch", "protein_dispersion": "protein-batch"},
    "efficiency": {"protein_efficiency": True},
    "latent library": {"library": "latent"},
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_sums_are_those_of_dense_arithmetic(data: CiteData, name: str) -> None:
    network = module(**CONFIGURATIONS[name])
    ours = sums(data, network, batch_size=17)
    batch = minibatch(data, network, CELLS)
    with torch.no_grad():
        query = ScaleQuery(ProteinScale(), batch_weights(MEASURED, ()))
        (sample,) = scales(question(data, network, CELLS, 1), batch, query)
        own = sample.own
        genes = network.genes(own.decoded, own.library_size, own.context)
        r = genes.log_r.exp().numpy().astype(float)
        protein_r = own.proteins.log_r.exp().numpy()
    h = sample.rna.numpy().astype(float)
    x, y = data.rna.rows(CELLS).toarray(), data.protein.rows(CELLS)
    mu = own.library_size.numpy() * h
    w = 1 / (1 + mu / r)
    kept = np.ones_like(mu)
    if own.decoded.dropout_logit is not None:
        dropped = expit(own.decoded.dropout_logit.detach().numpy().astype(float))
        zero = (1 - dropped) * nbinom.pmf(0, r, r / (r + mu))
        kept = zero / (dropped + zero)
    expected = {"total": h, "square": h**2, "counted": w * x, "expected": kept * w * mu}
    for field, value in expected.items():
        np.testing.assert_allclose(getattr(ours.rna, field), by_stratum(value), rtol=2e-4)
    np.testing.assert_allclose(ours.library_size, by_stratum(own.library_size.numpy())[:, 0])

    efficiency = 1.0
    if network.log_efficiency is not None:
        efficiency = network.log_efficiency[batch.context.batch].exp().detach().numpy()
    log_background = own.decoded.background_mean.numpy().astype(float)
    deviation = own.decoded.background_scale.numpy().astype(float) * np.ones_like(log_background)
    factor = own.decoded.foreground_factor.numpy().astype(float)
    pi = own.proteins.background_probability().numpy().astype(float)
    protein_r = protein_r.astype(float) * np.ones_like(pi)
    node = np.linspace(-30, 30, 3001)  # counts far out need it
    share = norm.pdf(node) / norm.pdf(node).sum()
    means = np.exp(log_background + deviation * node[:, None, None]) * efficiency
    scale = (1 - pi) * np.exp(log_background + deviation**2 / 2) * factor
    like, weights, expected = [], [], []
    for of_component in (1.0, factor):
        mean = of_component * means
        probability = nbinom.pmf(y, protein_r, protein_r / (protein_r + mean))
        like.append(np.tensordot(share, probability, 1))
        average = np.tensordot(share, mean, 1)
        variance = np.tensordot(share, mean + mean**2 / protein_r, 1)
        variance += np.tensordot(share, mean**2, 1) - average**2
        expected.append(average)
        weights.append(average / variance)  # the mean over the variance of the counts
    q = expit(np.log(like[1]) - np.log(like[0]) + logit(1 - pi))
    w, mean = weights[1], expected[1]
    fields = {
        "total": scale,
        "square": scale**2,
        "counted": q * w * y,
        "expected": q * w * mean,
        "excess": q * ((w * (y - mean)) ** 2 - w * mean),
        "present": q,
        "prior": 1 - pi,
        "informed": (q - (1 - pi)) ** 2,
        "missing": q * (1 - q),
        "noise": mean / w,
    }
    for field, value in fields.items():
        np.testing.assert_allclose(
            getattr(ours.foreground, field), by_stratum(value), rtol=2e-3, atol=2e-3
        )
    noise = by_stratum(expected[0] / weights[0])
    np.testing.assert_allclose(ours.background.noise, noise, rtol=2e-3)
    both = ours.foreground.present + ours.background.present
    np.testing.assert_allclose(both, ours.foreground.n_cells)


def test_samples_are_averaged_and_minibatches_change_nothing(data: CiteData) -> None:
    network = module()
    once, few = sums(data, network, 5), sums(data, network, 5, batch_size=7)
    single = sums(data, network)
    for part in ("rna", "foreground", "background"):
        for a, b in zip(getattr(once, part), getattr(few, part), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
        np.testing.assert_array_equal(getattr(once, part).n_cells, getattr(single, part).n_cells)
    np.testing.assert_allclose(once.library_size, single.library_size)
    assert not np.allclose(once.rna.total, single.rna.total, rtol=1e-6)
    np.testing.assert_allclose(once.rna.total, single.rna.total, rtol=0.5)


def test_decoding_into_a_batch_leaves_what_counts_say(data: CiteData) -> None:
    network = module()
    own, other = sums(data, network), sums(data, network, codes=(0, 1))
    for a, b in ((own.rna, other.rna), (own.foreground, other.foreground)):
        np.testing.assert_allclose(a.counted, b.counted, rtol=1e-5)
        np.testing.assert_allclose(a.expected, b.expected, rtol=1e-5)
        assert not np.allclose(a.total, b.total, rtol=1e-3)
    in_first = np.flatnonzero(data.batch == 0)
    same = sums(data, network, codes=(0,), cells=in_first)
    alone = sums(data, network, cells=in_first)
    np.testing.assert_allclose(same.rna.total, alone.rna.total, rtol=1e-6)


def test_unmeasured_proteins_have_no_part(data: CiteData) -> None:
    mask = np.ones((2, N_PROTEINS), dtype=bool)
    mask[1, 2] = False
    network = module(protein_batch_mask=mask)
    ours = sums(data, network)
    n_measuring = by_stratum((data.batch[CELLS] == 0)[:, None].astype(float))[:, 0]
    np.testing.assert_array_equal(ours.foreground.n_cells[:, 2], n_measuring)
    first = sums(data, network, cells=CELLS[data.batch[CELLS] == 0])
    for field in ("total", "counted", "expected", "present"):
        a, b = (getattr(part.foreground, field)[:, 2] for part in (ours, first))
        np.testing.assert_allclose(a, b, rtol=1e-5)
    imputed = sums(data, network, codes=(0,))
    np.testing.assert_array_equal(imputed.foreground.n_cells[:, 2], imputed.rna.n_cells[:, 0])
    np.testing.assert_allclose(imputed.foreground.counted, ours.foreground.counted, rtol=1e-5)


def test_strata_add_up(data: CiteData) -> None:
    total = sums(data, module())
    joined = total.sum(np.array([[0], [2]]))
    np.testing.assert_allclose(joined.rna.total[0], total.rna.total[[0, 2]].sum(axis=0))
    side_by_side = total.sum(np.array([[0, 2]]))
    np.testing.assert_array_equal(side_by_side.rna.total, total.rna.total[[0, 2]])


@pytest.mark.parametrize(
    "n_genes", [_GENES_AT_A_TIME - 1, _GENES_AT_A_TIME, 2 * _GENES_AT_A_TIME + 1]
)
def test_all_genes_are_summed_however_many_are_taken_at_a_time(n_genes: int) -> None:
    scale = np.random.default_rng(0).random((40, n_genes)).astype(np.float32)
    stratum = np.arange(40) % 2
    total, square = np.zeros((2, n_genes)), np.zeros((2, n_genes))
    _add_scale(scale, stratum, 0.5, total, square)
    for s in range(2):
        of_stratum = scale[stratum == s].astype(float)
        np.testing.assert_allclose(total[s], 0.5 * of_stratum.sum(axis=0))
        np.testing.assert_allclose(square[s], 0.5 * (of_stratum**2).sum(axis=0))
