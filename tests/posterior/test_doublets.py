"""Doublets: the rate that scores tell, sums of cells, proteins that exclude each other, and a fit."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from mudata import MuData
from scipy import sparse
from sklearn.metrics import roc_auc_score

import totalvi
from totalvi.data.columns import Columns
from totalvi.data.describe import describe
from totalvi.errors import DataError
from totalvi.posterior.doublets import (
    draws_of_sums,
    exclusion,
    exclusion_weights,
    pairs_of_cells,
    summed,
    told_rate,
)


@pytest.mark.parametrize("rate", [0.02, 0.1, 0.3])
def test_rate_is_told_where_no_single_cell_is_like_a_doublet(rate: float) -> None:
    rng = np.random.default_rng(0)
    n = 20_000
    n_doublets = round(rate * n)
    cells = np.r_[rng.normal(0, 1, n - n_doublets), rng.normal(5, 1, n_doublets)]
    assert told_rate(cells, rng.normal(5, 1, n)) == pytest.approx(rate, rel=0.2)


def test_rate_is_an_upper_limit_where_single_cells_are_like_doublets() -> None:
    rng = np.random.default_rng(0)
    cells = np.r_[rng.normal(0, 1, 9_500), rng.normal(0.5, 1, 500)]
    assert told_rate(cells, rng.normal(0.5, 1, 10_000)) > 0.4


@pytest.mark.parametrize(("n_cells", "limit"), [(100, 0.062), (2000, 0.0031)])
def test_rate_is_not_0_where_no_cell_is_like_a_doublet(n_cells: int, limit: float) -> None:
    # the upper limit of a Poisson mean of which nothing was seen is 3.69; 60 % of the sums are above
    assert told_rate(np.zeros(n_cells), np.linspace(5, 6, 10_000)) == pytest.approx(limit, abs=1e-3)


def test_exclusion_is_the_log_of_how_rare_both_are() -> None:
    foreground = np.array([[1, 0, 1], [0, 1, 1], [1, 0, 1], [0, 1, 1], [1, 1, 1]], float)
    weights = exclusion_weights(foreground)
    assert weights[0, 1] == pytest.approx(np.log(0.6 * 0.6 / 0.2), rel=1e-4)
    np.testing.assert_allclose(weights[2], 0, atol=1e-5)  # what all cells carry excludes nothing
    by_hand = [
        sum(weights[s, t] * p[s] * p[t] for s in range(3) for t in range(s)) for p in foreground
    ]
    np.testing.assert_allclose(exclusion(foreground, weights), by_hand, rtol=1e-6, atol=1e-9)


def test_sums_of_few_cells_are_drawn_more_often() -> None:
    numbers = [draws_of_sums(n) for n in (50, 1365, 1366, 2048, 2049, 4096)]
    assert numbers == [3, 3, 2, 2, 1, 1]


def cells(n: int = 60, **options: Any) -> MuData:
    return totalvi.simulate(n_cells=n, n_genes=30, n_proteins=5, n_batches=2, seed=1, **options)


def test_sums_hold_the_counts_of_two_cells_of_a_batch() -> None:
    data = describe(cells(), Columns(batch_key="batch"))
    rng = np.random.default_rng(0)
    pairs = pairs_of_cells(data.batch, np.ones(60), 200, rng)
    assert (data.batch[pairs[:, 0]] == data.batch[pairs[:, 1]]).all()
    assert (pairs[:, 0] != pairs[:, 1]).all()
    rna, protein = data.rna.read(), data.protein.read()
    whole = summed(data, pairs, 1.0, rng)
    assert (whole.rna.read() != rna[pairs[:, 0]] + rna[pairs[:, 1]]).nnz == 0
    np.testing.assert_array_equal(whole.protein.read(), protein[pairs].sum(axis=1))
    np.testing.assert_array_equal(whole.library_size, whole.rna.read().sum(axis=1).A1)
    np.testing.assert_array_equal(whole.batch, data.batch[pairs[:, 0]])
    part = summed(data, pairs, 0.5, rng)
    kept = part.protein.read().sum() / whole.protein.read().sum()
    assert kept == pytest.approx(0.75, abs=0.03)
    assert (part.protein.read() <= whole.protein.read()).all()


def test_cells_without_weight_are_no_part_of_sums() -> None:
    weight = np.r_[np.zeros(30), np.ones(30)]
    pairs = pairs_of_cells(np.zeros(60, int), weight, 100, np.random.default_rng(0))
    assert pairs.min() >= 30


def with_doublets(mdata: MuData, n_doublets: int) -> tuple[MuData, np.ndarray]:
    """Return cells of which the last are sums of two of different types, which are taken out."""
    types = mdata.obs["cell_type"].cat.codes.to_numpy()
    pairs = np.random.default_rng(0).permutation(mdata.n_obs).reshape(-1, 2)
    first, second = pairs[types[pairs[:, 0]] != types[pairs[:, 1]]][:n_doublets].T
    alone = np.setdiff1d(np.arange(mdata.n_obs), np.r_[first, second])
    both = mdata[np.r_[alone, first]].copy()
    rna = sparse.vstack([mdata["rna"].X[alone], mdata["rna"].X[first] + mdata["rna"].X[second]])
    both["rna"].X = rna.tocsr()
    both["prot"].X[len(alone) :] += mdata["prot"].X[second]
    return both, np.arange(both.n_obs) >= len(alone)


@pytest.fixture(scope="module")
def spiked() -> tuple[totalvi.Model, np.ndarray]:
    mdata = totalvi.simulate(
        n_cells=500, n_genes=60, n_proteins=10, n_cell_types=4, median_library_size=300, seed=3
    )
    data, is_doublet = with_doublets(mdata, 25)
    model = totalvi.Model(data, n_hidden=32, n_latent=6)
    model.train(max_epochs=40, progress=False)
    return model, is_doublet


def test_doublets_of_two_types_are_found(spiked: tuple[totalvi.Model, np.ndarray]) -> None:
    model, is_doublet = spiked
    found = model.find_doublets(progress=False)
    assert roc_auc_score(is_doublet, found.cells["score"]) > 0.95
    called = found.cells["probability"] > 0.5
    assert called[is_doublet].mean() > 0.4
    assert called[~is_doublet].mean() < 0.05
    assert 0.02 < found.rate < 0.2


def test_a_rate_that_is_named_scales_the_probability(
    spiked: tuple[totalvi.Model, np.ndarray],
) -> None:
    model, _ = spiked
    low = model.find_doublets(rate=0.01, progress=False)
    high = model.find_doublets(rate=0.02, progress=False)
    assert low.rate == 0.01
    few = high.cells["probability"] < 1
    assert low.cells["probability"].mean() < high.cells["probability"].mean()
    assert (low.cells["probability"] <= 1).all()
    assert few.any()


def test_cells_beyond_the_pool_are_scored_like_those_in_it(
    spiked: tuple[totalvi.Model, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, is_doublet = spiked
    monkeypatch.setattr("totalvi.posterior.doublets._MOST_CELLS", 200)
    found = model.find_doublets(progress=False).cells
    assert found.index.equals(model._training_data().cell_names)
    assert roc_auc_score(is_doublet, found["score"]) > 0.9


def test_some_cells_have_the_numbers_that_they_have_among_all(
    spiked: tuple[totalvi.Model, np.ndarray],
) -> None:
    model, _ = spiked
    all_cells = model.find_doublets(progress=False).cells
    some = model.find_doublets(indices=[5, 2], progress=False).cells
    pd.testing.assert_frame_equal(some, all_cells.iloc[[5, 2]])


def test_wrong_rates_and_few_cells_are_refused(spiked: tuple[totalvi.Model, np.ndarray]) -> None:
    model, _ = spiked
    with pytest.raises(ValueError, match="rate"):
        model.find_doublets(rate=1.0)
    few = cells(40)
    small = totalvi.Model(few, n_hidden=8, n_latent=2)
    small.train(max_epochs=1, progress=False)
    with pytest.raises(DataError, match="40 cells"):
        small.find_doublets()
