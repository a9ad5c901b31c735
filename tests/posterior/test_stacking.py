"""Stacks of the model, ridge regression and neighbours: weights, folds, and counts that move."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge

import totalvi
from totalvi.posterior.protein_predictions import Predicted
from totalvi.posterior.stacking import alone, cross_fitted, fitted_stack, ridge


def predictions(rng: np.random.Generator, n_cells: int, n_proteins: int) -> np.ndarray:
    return rng.gamma(2.0, 1.0, size=(3, n_cells, n_proteins))


def test_ridge_is_that_of_one_of_the_penalties() -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(60, 8)) * np.linspace(3, 0.2, 8)
    values = scores @ rng.normal(size=(8, 2)) + rng.normal(size=(60, 2))
    weights, intercept = ridge(scores, values)
    largest = np.linalg.svd(scores - scores.mean(axis=0), compute_uv=False)[0] ** 2
    for t in range(2):
        fits = [Ridge(alpha=a * largest).fit(scores, values[:, t]) for a in np.logspace(-6, 0, 13)]
        same = [np.allclose(fit.coef_, weights[:, t], atol=1e-8) for fit in fits]
        assert sum(same) == 1
        assert fits[same.index(True)].intercept_ == pytest.approx(intercept[t])


@pytest.mark.parametrize("best", [0, 1, 2])
def test_the_predictor_that_is_right_gets_the_weight(best: int) -> None:
    rng = np.random.default_rng(best)
    given = predictions(rng, 4000, 3)
    stack = fitted_stack(given, np.expm1(given[best]))
    expected = np.full((3, 3), 50 / 3 / 4050)
    expected[best] = (4000 + 50 / 3) / 4050
    np.testing.assert_allclose(stack.weights, expected, atol=0.01)
    assert np.abs(stack.predict(given) - given[best]).max() < 0.2


def test_no_weight_is_negative_and_few_cells_follow_the_other_proteins() -> None:
    rng = np.random.default_rng(5)
    given = predictions(rng, 500, 4)
    logs = 0.5 * given[0] + 0.5 * given[1]
    logs[:, 3] = np.maximum(4 - given[1, :, 3], 0)  # of which ridge says the opposite
    observed = np.expm1(logs)
    observed[6:, 2] = np.nan
    stack = fitted_stack(given, observed)
    assert (stack.weights >= 0).all()
    assert stack.weights[1, 3] == 0
    np.testing.assert_allclose(stack.weights[:2, :2], 0.5, atol=0.1)
    some = fitted_stack(given[:, :, [2]], observed[:, [2]])
    np.testing.assert_array_equal(some.weights[:, 0], stack.weights[:, 2])
    np.testing.assert_allclose(stack.weights[:, 2], 1 / 3, atol=0.1)


def test_the_model_alone_predicts_what_nothing_else_does() -> None:
    rng = np.random.default_rng(1)
    given = predictions(rng, 50, 3)
    given[1:, :, 0] = np.nan  # no cell trained the others
    observed = np.expm1(given[2])
    observed[4:, 1] = np.nan  # too few cells tell
    observed[:, 2] = 3.0  # all the same
    stack = fitted_stack(given, observed)
    np.testing.assert_array_equal(stack.weights, alone(3).weights)
    np.testing.assert_array_equal(stack.predict(given), given[0])


def test_a_cell_has_no_part_in_its_own_prediction() -> None:
    rng = np.random.default_rng(2)
    given = predictions(rng, 60, 2)
    observed = np.expm1(given.mean(axis=0) + rng.normal(size=(60, 2)).clip(0))
    before = cross_fitted(given, observed)
    other = observed.copy()
    other[7] = 1000
    after = cross_fitted(given, other)
    np.testing.assert_array_equal(after[7], before[7])
    assert (after[8] != before[8]).all()


def test_counts_move_with_their_mean() -> None:
    rng = np.random.default_rng(3)
    counts = np.sort(rng.poisson(20, size=(40, 2, 400)).astype(np.float32), axis=2)
    predicted = Predicted(counts.mean(axis=2), counts.std(axis=2), counts)
    wanted = predicted.log1p_mean().astype(np.float64)
    wanted[:, 1] += np.log(3)
    moved = predicted.moved_to(wanted, rng.random((40, 2)))
    np.testing.assert_array_equal(moved.counts[:, 0], counts[:, 0])
    np.testing.assert_array_equal(moved.mean[:, 0], predicted.mean[:, 0])
    np.testing.assert_allclose(moved.mean[:, 1], 3 * predicted.mean[:, 1] + 2, rtol=1e-4)
    np.testing.assert_allclose(moved.counts[:, 1].mean(axis=1), moved.mean[:, 1], rtol=0.01)
    np.testing.assert_allclose(np.log1p(moved.counts).mean(axis=2)[:, 1], wanted[:, 1], atol=0.01)
    assert (moved.counts == np.round(moved.counts)).all()
    assert (np.diff(moved.counts, axis=2) >= 0).all()


def test_reliability_compares_the_three() -> None:
    """The columns are correlations of what `stacked=False` and others predict of the same cells."""
    mdata = totalvi.simulate(400, 40, 5, n_batches=2, n_unmeasured=2, store_truth=False, seed=4)
    model = totalvi.Model(mdata, batch_key="batch", n_hidden=16, n_latent=4)
    model.train(max_epochs=3, train_size=0.5, progress=False)
    table = model.get_imputation_reliability(n_samples=20)
    by_model = model.get_imputation_reliability(n_samples=20, stacked=False)
    np.testing.assert_allclose(table["model_pearson"], by_model["pearson"], atol=1e-5)
    others = table[["ridge_pearson", "neighbours_pearson"]].max(axis=1)
    assert (table["model_is_best"] == (table["model_pearson"] > others)).all()
    assert (table["rmse"] < by_model["rmse"]).all()  # three epochs leave much to the others
    assert "ridge_pearson" not in by_model
    some = model.get_imputation_reliability(indices=range(200), n_samples=20)
    assert {*some.columns} == {*table.columns}
