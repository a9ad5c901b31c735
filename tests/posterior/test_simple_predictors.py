"""Regression with a Gaussian kernel, and distances that are learnt."""

import numpy as np
import pytest
from scipy import sparse
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import Ridge

from totalvi.posterior.simple_predictors import (
    gaussian_kernel,
    learned_map,
    log_normalised,
    outer_gradients,
    ridge,
)


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


def test_the_penalty_does_not_follow_from_rounding() -> None:
    """As many features as cells can fit the values exactly, which rounding must not decide."""
    rng = np.random.default_rng(7)
    places, values = rng.normal(size=(200, 20)), rng.normal(size=(200, 30)).astype(np.float32)
    features = gaussian_kernel(places).transform(places)
    weights, intercept = ridge(features, values)
    expected, expected_intercept = ridge(features, values.astype(np.float64))
    np.testing.assert_array_equal(weights, expected)
    np.testing.assert_array_equal(intercept, expected_intercept)
    assert (features @ weights + intercept).std() < 0.6  # of noise, little is fitted


def test_features_have_the_kernel_as_products_where_all_cells_are_landmarks() -> None:
    rng = np.random.default_rng(1)
    places, others = rng.normal(size=(60, 4)), rng.normal(size=(20, 4))
    kernel = gaussian_kernel(places)
    between = ((others[:, None] - places[None]) ** 2).sum(axis=2)
    within = ((places[:, None] - places[None]) ** 2).sum(axis=2)
    width = np.median(within[np.triu_indices(60, 1)])
    np.testing.assert_allclose(
        kernel.transform(others) @ kernel.transform(places).T, np.exp(-between / width), atol=1e-6
    )


def test_regression_on_the_features_is_kernel_ridge() -> None:
    rng = np.random.default_rng(2)
    places, others = rng.normal(size=(50, 3)), rng.normal(size=(10, 3))
    values = np.sin(3 * places[:, :1])
    kernel = gaussian_kernel(places)
    x, of_others = kernel.transform(places), kernel.transform(others)
    weights = Ridge(0.1, fit_intercept=False).fit(x, values[:, 0]).coef_
    expected = KernelRidge(alpha=0.1, kernel="precomputed").fit(x @ x.T, values[:, 0])
    np.testing.assert_allclose(of_others @ weights, expected.predict(of_others @ x.T), atol=1e-8)


def predicted(places: np.ndarray, values: np.ndarray, others: np.ndarray) -> np.ndarray:
    kernel = gaussian_kernel(places)
    weights, intercept = ridge(kernel.transform(places), values)
    return np.asarray(kernel.transform(others) @ weights + intercept)


def test_what_is_not_linear_is_learnt() -> None:
    rng = np.random.default_rng(3)
    places, others = rng.normal(size=(2000, 3)), rng.normal(size=(500, 3))

    def value(places: np.ndarray) -> np.ndarray:
        return np.asarray(np.prod(np.sign(places[:, :2]), axis=1))[:, None]

    found = predicted(places, value(places), others)
    weights, intercept = ridge(places, value(places))
    linear = others @ weights + intercept
    error = ((found - value(others)) ** 2).mean()
    assert error < 0.5 * ((linear - value(others)) ** 2).mean()


def test_distances_are_learnt_along_what_values_depend_on() -> None:
    """Of 30 directions two matter, in a rotated space; mapped cells are predicted far better."""
    rng = np.random.default_rng(4)
    rotation = np.linalg.qr(rng.normal(size=(30, 30)))[0]
    hidden, of_others = rng.normal(size=(1500, 30)), rng.normal(size=(500, 30))

    def values(hidden: np.ndarray) -> np.ndarray:
        return np.stack([np.sin(2 * hidden[:, 0]), 9 * np.abs(hidden[:, 1])], axis=1)

    cells, others = hidden @ rotation, of_others @ rotation
    mapping = learned_map(cells, values(hidden))
    np.testing.assert_allclose(mapping, mapping.T, atol=1e-12)
    turned = rotation @ mapping @ rotation.T
    length = np.linalg.norm(turned, axis=0)
    assert length[:2].min() > 2 * length[2:].max()
    errors = [
        ((predicted(x, values(hidden), y) - values(of_others)) ** 2).mean(axis=0)
        for x, y in ((cells, others), (cells @ mapping, others @ mapping))
    ]
    assert (errors[1] < 0.5 * errors[0]).all()


def test_gradients_are_those_of_finite_differences() -> None:
    rng = np.random.default_rng(5)
    places, weights = rng.normal(size=(40, 3)), rng.normal(size=(40, 2))
    kernel, step = gaussian_kernel(places), 1e-5
    some = places[:7]
    gradient = [
        (kernel.transform(some + shift) - kernel.transform(some - shift)) @ weights / (2 * step)
        for shift in step * np.eye(3)
    ]
    expected = np.einsum("dnt,ent->de", gradient, gradient) / 7
    found = outer_gradients(some, kernel, weights)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-8)


def test_units_of_values_do_not_matter_for_distances() -> None:
    rng = np.random.default_rng(6)
    cells = rng.normal(size=(200, 4))
    values = np.stack([cells[:, 0], cells[:, 1], np.ones(200)], axis=1)  # the last is constant
    scaled = values * np.array([1, 100, 1])
    mapping = learned_map(cells, values)
    np.testing.assert_allclose(mapping, learned_map(cells, scaled), atol=1e-6)
    np.testing.assert_array_equal(learned_map(cells, values[:, 2:]), np.eye(4))


@pytest.mark.parametrize("n_cells", [2, 3])
def test_few_or_equal_cells_have_features(n_cells: int) -> None:
    kernel = gaussian_kernel(np.ones((n_cells, 4)))
    assert np.isfinite(kernel.transform(np.zeros((1, 4)))).all()


def test_counts_are_normalised_by_their_total() -> None:
    counts = sparse.csr_matrix([[1.0, 3.0], [0.0, 0.0]])
    logs = log_normalised(counts, 8.0).toarray()
    np.testing.assert_allclose(logs, [[np.log(3), np.log(7)], [0, 0]])
