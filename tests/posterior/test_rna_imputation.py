"""RNA of cells with proteins alone: its intervals, and how far they can be trusted."""

import numpy as np
import pytest
from mudata import MuData
from scipy import sparse

import totalvi
from totalvi.posterior.protein_predictions import Predicted


@pytest.fixture(scope="module")
def whole() -> MuData:
    """Cells with RNA and proteins, the last third of which is given without its RNA."""
    return totalvi.simulate(n_cells=900, n_genes=60, n_proteins=12, n_cell_types=4, seed=3)


@pytest.fixture(scope="module")
def model(whole: MuData) -> totalvi.Model:
    given = whole.copy()
    has_rna = np.arange(900) < 600
    given.obs["measured_modalities"] = np.where(has_rna, "both", "prot")
    given["rna"].X = sparse.csr_matrix(sparse.csr_matrix(whole["rna"].X).multiply(has_rna[:, None]))
    model = totalvi.Model(given, n_hidden=32, n_latent=8, seed=0)
    model.train(max_epochs=60, train_size=0.7, progress=False)
    return model


def scaled_to(size: float, whole: MuData, genes: list[str]) -> np.ndarray:
    """The true counts of the cells without RNA at one library size, (300, genes)."""
    counts = sparse.csr_matrix(whole["rna"].X)[600:].toarray()
    scaled = counts * (size / counts.sum(axis=1, keepdims=True))
    return scaled[:, whole["rna"].var_names.get_indexer(genes)]


@pytest.mark.parametrize("interval", [0.5, 0.9])
def test_calibrated_intervals_hold_their_share(
    model: totalvi.Model, whole: MuData, interval: float
) -> None:
    asked = range(600, 900)
    imputed = model.impute_rna(indices=asked, interval=interval, n_samples=100)
    assert imputed.lacking.all()
    assert (imputed.lower <= imputed.upper).all(axis=None)
    size = np.exp(model.schema.library_log_mean[0])
    observed = np.round(scaled_to(size, whole, list(imputed.mean)))
    often = observed.mean(axis=0) >= 3  # of others most counts are 0, which every interval holds
    inside = (observed >= imputed.lower) & (observed <= imputed.upper)
    held = inside.to_numpy()[:, often].mean()
    assert often.sum() >= 5
    np.testing.assert_allclose(imputed.mean.sum(axis=1), size, rtol=1e-4)
    assert interval - 0.03 < held < interval + 0.1  # whole numbers hold some more


def test_calibration_changes_the_limits_alone(model: totalvi.Model) -> None:
    table = model.get_rna_reliability(interval=0.5, n_samples=100)
    assert table["n_cells"].between(60, 180).all()
    assert table["coverage"].mean() == pytest.approx(0.5, abs=0.08)
    assert {"ridge_pearson", "neighbours_pearson", "model_pearson"} <= set(table)
    same = model.impute_rna(indices=range(600, 620), calibrated=False, n_samples=50)
    changed = model.impute_rna(indices=range(600, 620), n_samples=50)
    np.testing.assert_array_equal(same.log1p, changed.log1p)
    np.testing.assert_array_equal(same.mean, changed.mean)
    assert (same.upper != changed.upper).any(axis=None)


def test_what_has_rna_and_what_is_not_corrected_is_the_models(model: totalvi.Model) -> None:
    alone = {"stacked": False, "calibrated": False, "n_samples": 20}
    measured = model.impute_rna(indices=range(20), n_samples=20)
    assert not measured.lacking.any()
    np.testing.assert_array_equal(
        measured.upper, model.impute_rna(indices=range(20), **alone).upper
    )


def test_ties_at_random_make_the_distribution_function_uniform() -> None:
    rng = np.random.default_rng(0)
    counts = rng.poisson(0.4, (2000, 3, 60)).astype(np.float32)
    counts.sort(axis=2)
    predicted = Predicted(counts.mean(axis=2), counts.std(axis=2), counts)
    observed = rng.poisson(0.4, (2000, 3)).astype(np.float64)
    below = predicted.distribution_function(observed, rng.random(observed.shape))
    for probability in (0.05, 0.5, 0.95):
        assert np.quantile(below, probability) == pytest.approx(probability, abs=0.02)
    halves = predicted.distribution_function(observed)
    assert np.quantile(halves, 0.05) > 0.2  # half of the zeros lie below every zero


def test_counts_that_move_keep_the_mean_they_are_moved_to() -> None:
    rng = np.random.default_rng(1)
    counts = np.sort(rng.poisson(6.0, (40, 5, 400)).astype(np.float32), axis=2)
    predicted = Predicted(counts.mean(axis=2), counts.std(axis=2), counts)
    wanted = predicted.log1p_mean() + 0.5
    wanted[:, 0] = predicted.log1p_mean()[:, 0]
    moved = predicted.moved_to(wanted, rng.random(wanted.shape))
    assert (np.diff(moved.counts, axis=2) >= 0).all()
    np.testing.assert_array_equal(moved.counts, np.floor(moved.counts))
    np.testing.assert_array_equal(moved.counts[:, 0], counts[:, 0])
    np.testing.assert_array_equal(moved.mean[:, 0], predicted.mean[:, 0])
    reached = np.log1p(moved.counts[:, 1:]).mean(axis=2)
    np.testing.assert_allclose(reached, wanted[:, 1:], atol=0.02)
    np.testing.assert_allclose(moved.counts.mean(axis=2), moved.mean, rtol=0.01)
    np.testing.assert_allclose(moved.counts.std(axis=2), moved.sd, rtol=0.05)
