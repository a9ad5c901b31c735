"""Stacks of the model, ridge regression and neighbours: weights, folds, and counts that move."""

from collections.abc import Callable

import numpy as np
import pytest
from scipy.optimize import minimize

import totalvi
from totalvi.posterior.protein_predictions import Predicted, _tilted
from totalvi.posterior.stacking import alone, cross_fitted, fitted_stack


def predictions(rng: np.random.Generator, n_cells: int, n_proteins: int) -> np.ndarray:
    return rng.gamma(2.0, 1.0, size=(3, n_cells, n_proteins))


@pytest.mark.parametrize("best", [0, 1, 2])
def test_the_predictor_that_is_right_gets_the_weight(best: int) -> None:
    rng = np.random.default_rng(best)
    given = predictions(rng, 4000, 3)
    stack = fitted_stack(given, np.expm1(given[best]))
    expected = np.zeros((3, 3))
    expected[best] = 1
    np.testing.assert_allclose(stack.weights, expected, atol=0.01)
    assert np.abs(stack.predict(given) - given[best]).max() < 0.2


def test_no_weight_is_negative() -> None:
    rng = np.random.default_rng(5)
    given = predictions(rng, 500, 2)
    logs = 0.5 * given[0] + 0.5 * given[1]
    logs[:, 1] = np.maximum(4 - given[1, :, 1], 0)  # of which ridge says the opposite
    stack = fitted_stack(given, np.expm1(logs))
    assert (stack.weights >= 0).all()
    assert stack.weights[1, 1] < 0.1 < stack.weights[1, 0]


def test_few_cells_follow_the_other_proteins() -> None:
    rng = np.random.default_rng(5)
    given = predictions(rng, 500, 3)
    observed = np.expm1(0.5 * given[0] + 0.5 * given[1])
    observed[6:, 2] = np.nan
    stack = fitted_stack(given, observed)
    np.testing.assert_allclose(stack.weights[:2], 0.5, atol=0.05)
    np.testing.assert_allclose(stack.weights[2], 0, atol=0.05)


def test_few_cells_of_one_protein_leave_the_weights_about_equal() -> None:
    rng = np.random.default_rng(6)
    given = predictions(rng, 6, 1)
    stack = fitted_stack(given, np.expm1(given[2]))
    np.testing.assert_allclose(stack.weights, 1 / 3, atol=0.1)


@pytest.mark.parametrize("n_cells", [40, 4000])
def test_weights_are_the_minimum_of_the_penalised_error(n_cells: int) -> None:
    """An independent minimiser finds the same weights of each protein, given those of all."""
    rng = np.random.default_rng(7)
    given = predictions(rng, n_cells, 5)
    truth = np.einsum("pnt,pt->nt", given, rng.dirichlet(np.ones(3), size=5).T)
    logs = np.maximum(truth + rng.normal(size=truth.shape), 0)
    stack = fitted_stack(given, np.expm1(logs))
    centred = given - given.mean(axis=1, keepdims=True)
    residual = logs - logs.mean(axis=0)
    variance = residual.var(axis=0)

    def best(error: Callable[[np.ndarray], float]) -> np.ndarray:
        found = minimize(error, np.full(3, 1 / 3), bounds=[(0, None)] * 3, tol=1e-12)
        return np.asarray(found.x)

    def shared_error(weights: np.ndarray) -> float:
        errors = ((residual - np.einsum("pnt,p->nt", centred, weights)) ** 2).sum(axis=0) / variance
        size = ((centred**2).mean(axis=1) / variance).sum(axis=1)
        return float(
            errors.sum() / 5 / n_cells + 50 / 5 / n_cells * (size / 5) @ (weights - 1 / 3) ** 2
        )

    shared = best(shared_error)
    for t in range(5):
        size = (centred[:, :, t] ** 2).mean(axis=1)

        def error(weights: np.ndarray, t: int = t, size: np.ndarray = size) -> float:
            errors = (residual[:, t] - weights @ centred[:, :, t]) ** 2
            return float(errors.mean() + 200 / n_cells * size @ (weights - shared) ** 2)

        np.testing.assert_allclose(stack.weights[:, t], best(error), atol=2e-3)


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


@pytest.mark.parametrize(("count", "n_cells"), [(2, 100), (5, 12), (2, 11)])
def test_a_constant_protein_does_not_decide_for_the_others(count: int, n_cells: int) -> None:
    rng = np.random.default_rng(8)
    given = predictions(rng, n_cells, 4)
    observed = np.expm1(given[1])
    expected = fitted_stack(given[:, :, :3], observed[:, :3]).weights
    observed[:, 3] = count
    stack = fitted_stack(given, observed)
    np.testing.assert_array_equal(stack.weights[:, :3], expected)
    np.testing.assert_array_equal(stack.weights[:, 3], [1, 0, 0])


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
    np.testing.assert_allclose(moved.mean[:, 1], 3 * predicted.mean[:, 1], rtol=0.05)
    np.testing.assert_allclose(moved.counts[:, 1].mean(axis=1), moved.mean[:, 1], rtol=0.01)
    np.testing.assert_allclose(moved.counts[:, 1].std(axis=1), moved.sd[:, 1], rtol=0.05)
    np.testing.assert_allclose(np.log1p(moved.counts).mean(axis=2)[:, 1], wanted[:, 1], atol=0.01)
    assert (moved.counts == np.round(moved.counts)).all()
    assert (np.diff(moved.counts, axis=2) >= 0).all()


def test_a_protein_that_is_more_often_foreground_stays_at_its_level() -> None:
    """Not by a shift, which would take foreground at 500 to three times as much."""
    rng = np.random.default_rng(4)
    drawn = np.where(rng.random((30, 1, 1000)) < 0.4, 500, 5)
    counts = np.sort(rng.poisson(drawn).astype(np.float32), axis=2)
    predicted = Predicted(counts.mean(axis=2), counts.std(axis=2), counts)
    often = 0.65
    wanted = often * np.log1p(counts[counts > 100]).mean()
    wanted += (1 - often) * np.log1p(counts[counts < 100]).mean()
    moved = predicted.moved_to(np.full((30, 1), wanted), rng.random((30, 1)))
    np.testing.assert_allclose(np.log1p(moved.counts).mean(axis=2), wanted, atol=0.02)
    np.testing.assert_allclose(moved.mean, often * 500 + (1 - often) * 5, rtol=0.02)
    np.testing.assert_allclose((moved.counts > 100).mean(), often, atol=0.01)
    assert np.abs(moved.counts[moved.counts > 100].mean() - 500) < 10


def test_weights_are_those_of_least_relative_entropy() -> None:
    """Found by another optimiser."""
    rng = np.random.default_rng(5)
    logs = np.sort(rng.normal(size=60))
    weights, rest = _tilted(logs, 0.3)
    assert rest == pytest.approx(0, abs=2e-3)
    constraints = [
        {"type": "eq", "fun": lambda p: p.sum() - 1},
        {"type": "eq", "fun": lambda p: p @ logs - logs.mean() - 0.3},
    ]
    found = minimize(
        lambda p: np.sum(p * np.log(60 * p)),
        np.full(60, 1 / 60),
        jac=lambda p: np.log(60 * p) + 1,
        bounds=[(1e-9, 1)] * 60,
        constraints=constraints,
        method="SLSQP",
        options={"ftol": 1e-12, "maxiter": 500},
    )
    assert found.success
    np.testing.assert_allclose(weights, found.x, atol=2e-4)


DRAWS = {
    "normal": np.random.default_rng(6).normal(size=100),
    "one foreground": np.array([0.0] * 99 + [np.log1p(300)]),
    "one zero": np.array([0.0] + [np.log1p(200)] * 49),
    "few foreground": np.log1p(np.array([0.0] * 47 + [50.0, 70.0, 100.0])),
    "faint": np.log1p(np.sort(np.random.default_rng(7).poisson(0.05, 100).astype(float))),
    "two levels": np.array([1.0] * 60 + [6.0] * 40),
    "all but equal": np.array([3.0, 3.1]),
}


@pytest.mark.parametrize("draws", DRAWS)
def test_the_further_the_mean_moves_the_further_weights_go(draws: str) -> None:
    """They reach the mean where half of the counts keep their weight, and no further."""
    logs = np.sort(DRAWS[draws])
    for direction in (-1, 1):
        before = 0.0
        for size in np.linspace(0.02, 3, 40) * logs.std():
            weights, rest = _tilted(logs, direction * size)
            moved, effective = size - direction * rest, 1 / (weights**2).sum()
            assert weights.sum() == pytest.approx(1)
            assert moved == pytest.approx(direction * (weights @ logs - logs.mean()), abs=1e-9)
            assert moved >= before - 2e-3 * logs.std()
            assert moved <= size + 2e-3 * logs.std()
            assert effective >= 0.5 * len(logs) * (1 - 1e-9)
            reached = moved == pytest.approx(size, abs=2e-3 * logs.std())
            farthest = (logs[0], logs[-1])[direction > 0]
            most = direction * (farthest - logs.mean())
            assert reached or effective < 0.51 * len(logs) or moved > 0.99 * most
            before = moved


@pytest.mark.parametrize("counts", [[0, 0, 0], [5], [0, 2**24], [7, 7]])
def test_a_few_counts_or_equal_ones_move(counts: list[int]) -> None:
    of_one = np.array(counts, dtype=np.float32).reshape(1, 1, -1)
    predicted = Predicted(of_one.mean(axis=2), of_one.std(axis=2), of_one)
    for shift in (-30.0, -0.5, 0.5, 5.0):
        wanted = np.maximum(predicted.log1p_mean() + shift, 0)
        moved = predicted.moved_to(wanted, np.full((1, 1), 0.3))
        assert np.isfinite(moved.counts).all()
        assert np.isfinite(moved.mean).all()
        assert (moved.counts >= 0).all()


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


def test_a_protein_is_predicted_alike_whichever_others_are_asked_for() -> None:
    mdata = totalvi.simulate(400, 40, 6, n_batches=2, n_unmeasured=3, store_truth=False, seed=4)
    model = totalvi.Model(mdata, batch_key="batch", n_hidden=16, n_latent=4)
    model.train(max_epochs=2, train_size=0.5, progress=False)
    whole = model.impute_proteins(n_samples=10)
    lacked = list(whole.mean.columns[whole.lacking.any()])
    assert len(lacked) > 1
    some = model.impute_proteins(n_samples=10, protein_list=lacked[::-1][:2])
    for part, expected in zip(some[:-1], whole[:-1], strict=True):
        np.testing.assert_allclose(part, expected[list(part)], rtol=1e-5, atol=1e-5)
    table = model.get_imputation_reliability(n_samples=10)
    one = model.get_imputation_reliability(n_samples=10, protein_list=lacked[1:2])
    columns = one.select_dtypes("number").columns
    np.testing.assert_allclose(one[columns], table.loc[one.index, columns], rtol=1e-4, atol=1e-4)
