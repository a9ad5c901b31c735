"""Where cells are in their RNA, and proteins predicted from there by ridge and by neighbours."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from mudata import MuData
from scipy import sparse
from sklearn.neighbors import KNeighborsRegressor

import totalvi
from totalvi.data.cells import CiteData
from totalvi.fit.batches import minibatches
from totalvi.fit.minibatch import Minibatch
from totalvi.fit.plan import Split
from totalvi.posterior.rna_predictors import RnaCoordinates, RnaPredictors
from totalvi.posterior.simple_predictors import gaussian_kernel, ridge


@pytest.fixture(scope="module")
def counts() -> MuData:
    return totalvi.simulate(300, 40, 6, n_batches=2, n_unmeasured=2, store_truth=False, seed=4)


def described(mdata: MuData) -> CiteData:
    return totalvi.Model(mdata, batch_key="batch")._training_data()


def coordinates_of(mdata: MuData) -> RnaCoordinates:
    return RnaCoordinates.of_data(described(mdata))


def test_coordinates_are_directions_and_sizes_without_batches(counts: MuData) -> None:
    coordinates = coordinates_of(counts)
    batch = counts.obs["batch"].astype(str).to_numpy()
    total = np.log1p(np.asarray(counts["rna"].X.sum(axis=1)).ravel())
    for name in np.unique(batch):
        total[batch == name] -= total[batch == name].mean()
    direction, size = np.split(coordinates.of_cells, [-1], axis=1)
    np.testing.assert_allclose(np.linalg.norm(direction, axis=1), 1)
    expected = 0.3 * np.clip(total / total.std(), -3, 3)
    np.testing.assert_allclose(size[:, 0], expected, atol=1e-3)  # kept in float16


def test_depth_of_all_cells_changes_no_size(counts: MuData) -> None:
    deeper = counts.copy()
    deeper["rna"].X = counts["rna"].X * 3
    size = coordinates_of(counts).of_cells[:, -1]
    assert size.std() == pytest.approx(0.3, rel=0.05)
    np.testing.assert_allclose(coordinates_of(deeper).of_cells[:, -1], size, atol=0.01)


def all_cells(mdata: MuData) -> Minibatch:
    model = totalvi.Model(mdata, batch_key="batch")
    data = model._training_data()
    (batch,) = minibatches(data, model.module, np.arange(data.n_cells), data.n_cells)
    return batch


def test_cells_of_the_data_are_where_they_were(counts: MuData) -> None:
    coordinates = coordinates_of(counts)
    found = coordinates.of_batch(all_cells(counts))
    np.testing.assert_allclose(found[coordinates.cells], coordinates.of_cells, atol=1e-3)


def test_a_batch_of_one_kind_lies_where_that_kind_does(counts: MuData) -> None:
    """Its own mean as a centre would place it in the middle of all kinds."""
    coordinates = coordinates_of(counts)
    batch = all_cells(counts)
    in_first = batch.context.batch.numpy()[coordinates.cells] == 0
    ends = np.argsort(np.where(in_first, coordinates.of_cells[:, 0], np.inf))[:40]
    cells = coordinates.cells[ends]
    own = counts["rna"].X[cells].tocsr()
    deeper = coordinates.with_batch(own * 3, coordinates.centre[0])
    extended = coordinates.with_batch(own, coordinates.centre[0])
    code = len(coordinates.centre)
    as_new = batch._replace(
        context=batch.context._replace(batch=torch.full_like(batch.context.batch, code))
    )
    found, right = extended.of_batch(as_new)[cells], coordinates.of_cells[ends]
    np.testing.assert_allclose(found[:, :-1], right[:, :-1], atol=2e-3)
    assert np.abs(found[:, -1] - right[:, -1]).mean() < 0.15  # by neighbours of these cells
    depth = deeper.centre[-1, -1] - extended.centre[-1, -1]
    assert depth == pytest.approx(np.log(3), abs=0.1)
    assert np.linalg.norm(right[:, :-1].mean(axis=0)) > 0.1  # so that they are of one kind


def test_genes_that_were_not_measured_move_cells_little() -> None:
    counts = totalvi.simulate(400, 600, 6, store_truth=False, seed=5)
    coordinates = RnaCoordinates.of_data(described(counts))
    measured = np.flatnonzero(np.random.default_rng(0).random(600) < 0.7)
    without = counts.copy()
    keep = np.isin(np.arange(600), measured)
    without["rna"].X = sparse.csr_matrix(counts["rna"].X.multiply(keep[None]))
    batch, right = all_cells(without), coordinates.of_batch(all_cells(counts))
    chosen = coordinates.of_genes(measured)
    errors = [np.abs(each.of_batch(batch) - right).mean() for each in (chosen, coordinates)]
    assert errors[0] < 0.8 * errors[1]
    assert np.abs((chosen.of_batch(batch) - right)[:, -1]).mean() < 0.1  # the size of a cell


def test_all_genes_are_the_same_as_no_choice(counts: MuData) -> None:
    coordinates = coordinates_of(counts)
    chosen = coordinates.of_genes(np.arange(40))
    assert chosen.share == pytest.approx(1)
    np.testing.assert_allclose(chosen.projection, coordinates.projection, atol=2e-3)


def test_predictions_are_those_of_scikit_learn(counts: MuData) -> None:
    """From cells that trained, of the proteins that each measured."""
    data = described(counts)
    coordinates = RnaCoordinates.of_data(data)
    trained = np.arange(0, 300, 2)
    predictors = RnaPredictors.of_data(
        data, coordinates, Split(trained, np.arange(1, 300, 2), np.array([], dtype=np.int64))
    )
    by_ridge, by_neighbours = predictors.predict(all_cells(counts))
    places = coordinates.of_batch(all_cells(counts))
    measured = np.array(data.schema.panel_measured)[data.panel]
    for fitted in predictors.fitted:
        protein = fitted.columns[0]
        known = trained[measured[trained, protein]]
        np.testing.assert_array_equal(coordinates.cells[fitted.rows], known)
        own = coordinates.of_cells[known] @ fitted.mapping
        values = np.log1p(data.protein.rows(known)[:, fitted.columns])
        neighbours = KNeighborsRegressor(15, algorithm="brute").fit(own, values)
        expected = neighbours.predict(places @ fitted.mapping)
        np.testing.assert_allclose(by_neighbours[:, fitted.columns], expected, atol=2e-4)
        kernel = gaussian_kernel(own)
        weights, intercept = ridge(kernel.transform(own), values)
        expected = kernel.transform(places @ fitted.mapping) @ weights + intercept
        np.testing.assert_allclose(by_ridge[:, fitted.columns], expected, atol=1e-6)
    assert not np.isnan(by_ridge).any()


def test_arrays_give_the_same_predictors(counts: MuData) -> None:
    data, batch = described(counts), all_cells(counts)
    predictors = RnaPredictors.of_data(data, RnaCoordinates.of_data(data))
    arrays = predictors.arrays()
    again = RnaPredictors.of_arrays(arrays, data.schema)
    np.testing.assert_array_equal(again.predict(batch), predictors.predict(batch))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("coordinates.centre", lambda x: x[:, 1:]),
        ("coordinates.loadings", lambda x: x * np.nan),
        ("coordinates.mean_counts", lambda x: x[1:]),
        ("coordinates.centre", lambda x: x[1:]),
        ("0.rows", lambda x: x + 300),
        ("0.rows", lambda x: x.astype(float)),
        ("0.columns", lambda x: x + 6),
        ("0.weights", lambda x: x[1:]),
        ("0.logs", lambda x: x[1:]),
    ],
)
def test_damaged_arrays_are_refused(
    counts: MuData, name: str, change: Callable[[np.ndarray], np.ndarray]
) -> None:
    data = described(counts)
    arrays = RnaPredictors.of_data(data, RnaCoordinates.of_data(data)).arrays()
    with pytest.raises(ValueError, match="do not fit together"):
        RnaPredictors.of_arrays(arrays | {name: change(arrays[name])}, data.schema)
    del arrays[name]
    with pytest.raises(KeyError):
        RnaPredictors.of_arrays(arrays, data.schema)
