"""Regression on RNA with a Gaussian kernel, and neighbours."""

import numpy as np
import pytest
from scipy import sparse
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import Ridge

from totalvi.posterior.rna_predictors import gaussian_features, log_normalised, ridge


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


def test_features_have_the_kernel_as_products_where_all_cells_are_landmarks() -> None:
    rng = np.random.default_rng(1)
    scores, others = rng.normal(size=(60, 4)), rng.normal(size=(20, 4))
    features = gaussian_features(scores)
    unit, unit_others = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (scores, others))
    between = ((unit_others[:, None] - unit[None]) ** 2).sum(axis=2)
    within = ((unit[:, None] - unit[None]) ** 2).sum(axis=2)
    width = np.median(within[np.triu_indices(60, 1)])
    np.testing.assert_allclose(
        features(others) @ features(scores).T, np.exp(-between / width), atol=1e-6
    )
    np.testing.assert_allclose(features(3 * others), features(others))  # depth does not matter


def test_regression_on_the_features_is_kernel_ridge() -> None:
    rng = np.random.default_rng(2)
    scores, others = rng.normal(size=(50, 3)), rng.normal(size=(10, 3))
    values = np.sin(3 * scores[:, :1])
    x, features = gaussian_features(scores)(scores), gaussian_features(scores)
    weights = Ridge(0.1, fit_intercept=False).fit(x, values[:, 0]).coef_
    expected = KernelRidge(alpha=0.1, kernel="precomputed").fit(x @ x.T, values[:, 0])
    np.testing.assert_allclose(
        features(others) @ weights, expected.predict(features(others) @ x.T), atol=1e-8
    )


def test_what_is_not_linear_is_learnt() -> None:
    rng = np.random.default_rng(3)
    scores, others = rng.normal(size=(2000, 3)), rng.normal(size=(500, 3))

    def value(scores: np.ndarray) -> np.ndarray:
        return np.asarray(np.prod(np.sign(scores[:, :2]), axis=1))[:, None]

    features = gaussian_features(scores)
    weights, intercept = ridge(features(scores), value(scores))
    found = features(others) @ weights + intercept
    linear_weights, linear_intercept = ridge(scores, value(scores))
    linear = others @ linear_weights + linear_intercept
    error = ((found - value(others)) ** 2).mean()
    assert error < 0.5 * ((linear - value(others)) ** 2).mean()


@pytest.mark.parametrize("n_cells", [2, 3])
def test_few_or_equal_cells_have_features(n_cells: int) -> None:
    features = gaussian_features(np.ones((n_cells, 4)))
    assert np.isfinite(features(np.zeros((1, 4)))).all()


def test_counts_are_normalised_by_their_total() -> None:
    counts = sparse.csr_matrix([[1.0, 3.0], [0.0, 0.0]])
    logs = log_normalised(counts, 8.0).toarray()
    np.testing.assert_allclose(logs, [[np.log(3), np.log(7)], [0, 0]])
