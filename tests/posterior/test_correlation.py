"""Correlations against scipy's and numpy's, and against the module's own denoised means."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from counts import N_GENES, N_PROTEINS, SMALL, denoised, described, question
from totalvi.data.cells import CiteData
from totalvi.fit.batches import minibatch
from totalvi.fit.minibatch import Minibatch
from totalvi.nn.v06 import TOTALVI
from totalvi.posterior.column_correlations import pairwise_pearson, pearson, spearman
from totalvi.posterior.correlation import Correlated, feature_correlations
from totalvi.posterior.draws import ProteinScale

CELLS = np.arange(80)
N_FEATURES = N_GENES + N_PROTEINS


@pytest.fixture(scope="module")
def data() -> CiteData:
    return described()


def module(**options: Any) -> TOTALVI:
    generator = torch.Generator().manual_seed(0)
    arguments = {"library": "observed", "background_scale": "softplus", **SMALL, **options}
    return TOTALVI(N_GENES, N_PROTEINS, 2, generator=generator, **arguments).eval()


def ask(
    data: CiteData,
    network: TOTALVI,
    batch_size: int = 30,
    seed: int = 0,
    n_samples: int = 1,
    transform_batch: tuple[int | None, ...] = (None,),
    cells: np.ndarray = CELLS,
    gene_partners: Callable[[Minibatch], Minibatch] | None = None,
    **given: Any,
) -> np.ndarray:
    wanted = Correlated(
        **({"genes": np.arange(N_GENES), "proteins": np.arange(N_PROTEINS)} | given)
    )
    asked = question(
        data, network, cells, seed,
        batch_size=batch_size, n_samples=n_samples, transform_batch=transform_batch,
    )  # fmt: skip
    return feature_correlations(asked, wanted, gene_partners)


def blocks(values: np.ndarray, size: int) -> Iterator[np.ndarray]:
    return (values[i : i + size] for i in range(0, len(values), size))


def skewed(n_cells: int = 300, n_features: int = 400, offset: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(0)
    common = rng.gamma(0.5, size=(n_cells, 1))
    values = rng.gamma(common * rng.uniform(0, 3, n_features) + 0.1) + offset
    values[values < 0.2 + offset] = offset  # ties
    return values.astype(np.float32)


@pytest.mark.parametrize("size", [1, 7, 299, 1000])
def test_pearson_of_blocks_is_that_of_the_whole(size: int) -> None:
    values = skewed()
    np.testing.assert_allclose(
        pearson(blocks(values, size), 400), np.corrcoef(values.T.astype(float)), atol=1e-5
    )


def test_pearson_does_not_lose_a_small_deviation_from_a_large_mean() -> None:
    values = skewed(n_features=20, offset=3e3)
    np.testing.assert_allclose(
        pearson(blocks(values, 64), 20), np.corrcoef(values.T.astype(float)), atol=1e-5
    )


def test_spearman_is_that_of_scipy() -> None:
    values = skewed()
    expected = stats.spearmanr(values).statistic
    np.testing.assert_allclose(spearman(blocks(values, 77), 400, 300), expected, atol=2e-6)


@pytest.mark.parametrize("constant", [0.0, 0.1, 1234.567])
def test_a_constant_feature_correlates_with_nothing(constant: float) -> None:
    values = skewed(n_features=4)
    values[:, 2] = constant
    for ours in (pearson(blocks(values, 50), 4), spearman(blocks(values, 50), 4, 300)):
        assert np.array_equal(ours[2], [0, 0, 1, 0])
        assert np.array_equal(ours, ours.T)


@pytest.mark.parametrize("codes", [(None,), (1,), (0, 1)])
@pytest.mark.parametrize("kind", ["spearman", "pearson"])
@pytest.mark.parametrize("log_transform", [False, True])
def test_without_dispersion_it_correlates_the_denoised_means(
    data: CiteData, codes: tuple[int | None, ...], kind: str, log_transform: bool
) -> None:
    """Gamma(r, r / mean) is its mean where r is without bound; background is drawn to be zero."""
    network = module()
    with torch.no_grad():
        network.gene_log_r.fill_(32)
        network.protein_log_r.fill_(32)
    expected = []
    for code in codes:
        asked = question(data, network, CELLS, n_samples=3, transform_batch=(code,))
        rna, protein = denoised(
            asked, library_size=500.0, scale=ProteinScale(sample_mixing=True), return_mean=False
        )
        for sample in np.concatenate([rna, protein], axis=2).astype(float):
            values = np.log1p(sample) if log_transform else sample
            by_kind = {"pearson": np.corrcoef(values.T), "spearman": stats.spearmanr(values)[0]}
            expected.append(by_kind[kind])
    ours = ask(
        data, network, transform_batch=codes, n_samples=3, correlation_type=kind,
        log_transform=log_transform, rna_size_factor=500.0,
    )  # fmt: skip
    np.testing.assert_allclose(ours, np.mean(expected, axis=0), atol=2e-3)


def test_the_spread_is_that_of_the_gamma_distribution(data: CiteData) -> None:
    """Correlations fall as dispersion rises: by r = 0.01 next to nothing is left."""
    network = module()
    # of proteins much of the spread is which cells are drawn to be background
    genes = slice(N_GENES), slice(N_GENES)
    off_diagonal = ~np.eye(N_GENES, dtype=bool)
    sizes = []
    for log_r in (32.0, 1.0, -1.0):
        with torch.no_grad():
            network.gene_log_r.fill_(log_r)
            network.protein_log_r.fill_(log_r)
        sizes.append(np.abs(ask(data, network, n_samples=2)[genes][off_diagonal]).mean())
    assert sizes[0] > 1.5 * sizes[1] > 1.5 * sizes[2]


@pytest.mark.parametrize("dispersion", ["batch", "label"])
def test_dispersions_by_group(dispersion: str) -> None:
    options: dict[str, Any] = {
        "gene_dispersion": f"gene-{dispersion}",
        "protein_dispersion": f"protein-{dispersion}",
        "n_labels": 3,
    }
    ours = ask(described(labels_key="cell_type"), module(**options))
    assert np.isfinite(ours).all()


@pytest.mark.parametrize("kind", ["spearman", "pearson"])
@pytest.mark.parametrize("log_transform", [False, True])
def test_one_sample_and_a_dispersion_that_gives_zeros_are_finite(
    data: CiteData, kind: str, log_transform: bool
) -> None:
    network = module()
    with torch.no_grad():
        network.gene_log_r.fill_(-200)
    ours = ask(data, network, n_samples=1, correlation_type=kind, log_transform=log_transform)
    assert np.isfinite(ours).all()
    assert np.abs(ours).max() <= 1


@pytest.mark.parametrize("kind", ["spearman", "pearson"])
def test_seed_and_minibatch_size(data: CiteData, kind: str) -> None:
    network = module()
    ours = ask(data, network, correlation_type=kind)
    np.testing.assert_allclose(
        ask(data, network, batch_size=7, correlation_type=kind), ours, atol=1e-3
    )
    assert np.array_equal(ours, ask(data, network, correlation_type=kind))
    assert not np.allclose(ours, ask(data, network, seed=1, correlation_type=kind), atol=1e-2)


def test_features_of_one_modality(data: CiteData) -> None:
    none = np.arange(0)
    assert ask(data, module(), genes=none).shape == (N_PROTEINS, N_PROTEINS)
    assert ask(data, module(), proteins=none).shape == (N_GENES, N_GENES)


def test_partners_give_the_genes_and_keep_gene_gene_correlations(data: CiteData) -> None:
    network = module()
    cells = np.arange(100)
    permuted = np.random.default_rng(0).permutation(100)

    def partners(batch: Minibatch) -> Minibatch:
        return minibatch(data, network, permuted[batch.cells])

    own = ask(data, network, cells=cells)
    control = ask(data, network, cells=cells, gene_partners=partners)
    np.testing.assert_allclose(control[:N_GENES, :N_GENES], own[:N_GENES, :N_GENES], atol=1e-4)
    np.testing.assert_allclose(control[N_GENES:, N_GENES:], own[N_GENES:, N_GENES:], atol=1e-4)
    assert not np.allclose(control[:N_GENES, N_GENES:], own[:N_GENES, N_GENES:], atol=0.05)


@pytest.mark.parametrize("size", [3, 50, 1000])
def test_pairs_are_correlated_over_the_rows_that_know_both(size: int) -> None:
    rng = np.random.default_rng(4)
    values = (rng.normal(size=(200, 6)) @ rng.normal(size=(6, 6)) + 1e3).astype(np.float32)
    values[:120, 1] = np.nan
    values[100:, 2] = np.nan
    values[:, 3] = 7
    values[1:, 4] = np.nan
    pearsons = pairwise_pearson(blocks(values, size), 6)
    spearmans = spearman(blocks(values, size), 6, 200)
    for i, j in [(0, 1), (0, 2), (0, 5), (1, 5), (2, 5)]:
        some = values[np.isfinite(values[:, [i, j]]).all(axis=1)][:, [i, j]].astype(float)
        assert pearsons[i, j] == pytest.approx(np.corrcoef(some.T)[0, 1], abs=1e-4)
        ranks = [stats.rankdata(values[np.isfinite(values[:, k]), k]) for k in (i, j)]
        of_row = [np.full(200, np.nan), np.full(200, np.nan)]
        for k, column, rank in zip((i, j), of_row, ranks, strict=True):
            column[np.isfinite(values[:, k])] = rank
        both = np.isfinite(of_row).all(axis=0)
        expected = np.corrcoef(np.array(of_row)[:, both])[0, 1]
        assert spearmans[i, j] == pytest.approx(expected, abs=1e-4)
    for found in (pearsons, spearmans):
        np.testing.assert_array_equal(found, found.T)
        assert np.isnan(found[1, 2])  # no row knows both
        assert np.isnan(found[4]).all()
        assert found[3, 0] == found[3, 1] == 0
        assert np.diagonal(found)[[0, 1, 2, 3, 5]].tolist() == [1] * 5


def test_without_gaps_pairs_are_correlated_as_all_columns_are() -> None:
    values = np.random.default_rng(5).gamma(2, 3, (300, 7)).astype(np.float32)
    np.testing.assert_allclose(
        pairwise_pearson(blocks(values, 64), 7), pearson(blocks(values, 64), 7), atol=1e-6
    )
