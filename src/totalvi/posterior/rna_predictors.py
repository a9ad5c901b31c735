"""Proteins predicted from RNA without a model: by kernel ridge regression, and by neighbours.

Regression on many components of RNA still orders faint proteins, on which a model gives up. A Gaussian
kernel lets it follow what is not linear in them, as differences between cell types are.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import svds
from scipy.spatial.distance import pdist

from totalvi.data.cells import CiteData
from totalvi.data.counts import evenly_spaced
from totalvi.fit.minibatch import Minibatch
from totalvi.posterior.question import Features, Fitted

_N_COMPONENTS, _N_NEIGHBOURS = 50, 15
_N_LANDMARKS = 500  # cells whose kernel with the others stands for that of all pairs
_CELLS_OF_A_DISTANCE = 300  # the width of the kernel follows from pairs of so many
_MOST_CELLS = 10_000  # of the training data; these are enough for components, ridge and neighbours
_FEWEST_TRAINED = 20  # with fewer cells that measured a protein, nothing is regressed on them
_PENALTIES = np.logspace(-6, 0, 13)  # relative to the largest squared singular value


class _Fitted(NamedTuple):
    """What predicts the proteins that the same cells measured.

    Parameters
    ----------
    columns
        Positions of these proteins among the wanted ones.
    scores, logs
        Of the cells that measured them: components of RNA, and log(1 + count).
    features
        Gives cells, from their components, the features that are regressed on.
    weights, intercept
        Of the ridge regression.
    """

    columns: np.ndarray
    scores: np.ndarray
    logs: np.ndarray
    features: Callable[[np.ndarray], np.ndarray]
    weights: np.ndarray
    intercept: np.ndarray

    def predict(self, scores: np.ndarray) -> np.ndarray:
        """Return log(1 + count) by ridge regression and by neighbours, (2, N, proteins)."""
        from sklearn.neighbors import NearestNeighbors  # which takes a second to load

        search = NearestNeighbors(n_neighbors=_N_NEIGHBOURS, algorithm="brute").fit(self.scores)
        near = search.kneighbors(scores, return_distance=False)
        by_ridge = self.features(scores) @ self.weights + self.intercept
        return np.stack([by_ridge, self.logs[near].mean(axis=1)])


class RnaPredictors:
    """Kernel ridge regression and means of neighbours, of log(1 + count) on components of the RNA.

    RNA is divided by the cell's total and logged; its 50 first components are centred by batch. They
    are of all cells, the proteins of those that trained the model.

    Parameters
    ----------
    data
        Cells that the model was fitted to; at most 10,000 are used, in memory or from disk.
    training
        Positions of those that trained it.
    proteins
        Positions of the wanted proteins.
    """

    def __init__(self, data: CiteData, training: np.ndarray, proteins: np.ndarray) -> None:
        cells = evenly_spaced(np.flatnonzero(data.has_rna), _MOST_CELLS)
        counts = data.rna.rows(cells)
        self._size = float(np.median(np.asarray(counts.sum(axis=1))))
        logs = log_normalised(counts, self._size)
        n_components = min(_N_COMPONENTS, min(logs.shape) - 1)
        start = np.ones(min(logs.shape))  # a fixed start makes the components repeatable
        self._loadings = svds(logs, k=n_components, v0=start)[2].T
        self._n_proteins = len(proteins)
        scores, batch = logs @ self._loadings, data.batch[cells]
        self._centre = np.tile(scores.mean(axis=0), (len(data.schema.batch_names), 1))
        for code in np.unique(batch):
            self._centre[code] = scores[batch == code].mean(axis=0)
        trained = np.isin(cells, training)
        scores, cells = (scores - self._centre[batch])[trained], cells[trained]
        by_panel = np.array(data.schema.panel_measured, dtype=bool)[:, proteins]
        measured = by_panel[data.panel[cells]]
        patterns, pattern = np.unique(measured, axis=1, return_inverse=True)
        self._fitted: list[_Fitted] = []
        for code, knows in enumerate(patterns.T):
            if knows.sum() < _FEWEST_TRAINED:
                continue
            columns = np.flatnonzero(np.ravel(pattern) == code)
            values = np.log1p(data.protein.rows(cells[knows])[:, proteins[columns]])
            features = gaussian_features(scores[knows])
            found = ridge(features(scores[knows]), values)
            self._fitted.append(_Fitted(columns, scores[knows], values, features, *found))

    def predict(self, batch: Minibatch) -> np.ndarray:
        """Return log(1 + count) by ridge and neighbours, (2, B, proteins); NaN where none trained."""
        x = batch.x
        parts = (part.cpu().numpy() for part in (x.counts, x.gene, x.cell_pointer))
        logs = log_normalised(sparse.csr_matrix(tuple(parts), shape=x.shape), self._size)
        scores = logs @ self._loadings - self._centre[batch.context.batch.cpu().numpy()]
        predicted = np.full((2, len(scores), self._n_proteins), np.nan)
        for fitted in self._fitted:
            predicted[:, :, fitted.columns] = fitted.predict(scores)
        return predicted


def simple_predictors(
    model: Fitted, proteins: Features, data: CiteData | None = None, *, in_all: bool = False
) -> RnaPredictors:
    """Return what predicts proteins beside a model, from the cells that trained it, or from all.

    ``data`` are the training data where the model has none.
    """
    data = model._training_data() if data is None else data
    split = None if in_all else model.split
    training = np.arange(data.n_cells) if split is None else split.train
    return RnaPredictors(data, training, proteins.positions)


def gaussian_features(scores: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function that gives cells features whose products are a Gaussian kernel.

    The kernel is of the direction of their scores: exp(-d^2 / m), with d the distance of two directions
    and m the median of d^2. The features approximate it by its values at 500 of the cells (Williams
    and Seeger, 2000).

    Parameters
    ----------
    scores
        Of cells from which directions and width are taken, (N, components).

    Examples
    --------
    >>> scores = np.random.default_rng(0).normal(size=(40, 3))
    >>> features = gaussian_features(scores)(scores)
    >>> features.shape, bool(np.allclose((features**2).sum(axis=1), 1))
    ((40, 40), True)
    """
    from sklearn.kernel_approximation import Nystroem  # which takes a second to load

    given = _directions(scores)
    some = evenly_spaced(np.arange(len(given)), _CELLS_OF_A_DISTANCE)
    width = max(float(np.median(pdist(given[some], "sqeuclidean"))), 1e-9)
    n_landmarks = min(_N_LANDMARKS, len(given))
    kernel = Nystroem(gamma=1 / width, n_components=n_landmarks, random_state=0).fit(given)
    return lambda scores: np.asarray(kernel.transform(_directions(scores)))


def _directions(scores: np.ndarray) -> np.ndarray:
    """Return the scores divided by their length, (N, components)."""
    length = np.linalg.norm(scores, axis=1, keepdims=True)
    return np.asarray(scores / np.maximum(length, 1e-12))


def log_normalised(counts: sparse.csr_matrix, size: float) -> sparse.csr_matrix:
    """Return log(1 + count * size / total of the cell)."""
    total = np.asarray(counts.sum(axis=1), dtype=np.float64).ravel()
    factor = np.divide(size, total, out=np.zeros_like(total), where=total > 0)
    scaled = sparse.csr_matrix(sparse.diags_array(factor) @ counts.astype(np.float64))
    return scaled.log1p()


def ridge(scores: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return weights (components, t) and intercepts (t,) of a ridge regression for each column.

    The penalty of each is the one of 13 with the least generalised cross-validation error (Golub, Heath
    and Wahba, 1979).

    Parameters
    ----------
    scores
        Of N cells, (N, components).
    values
        What is predicted, (N, t).

    Examples
    --------
    >>> scores = np.random.default_rng(0).normal(size=(50, 2))
    >>> weights, intercept = ridge(scores, scores @ [[2.0], [0.0]] + 1)
    >>> weights.round(3).ravel().tolist(), intercept.round(3).tolist()
    ([2.0, 0.0], [1.0])
    """
    centre, mean = scores.mean(axis=0), values.mean(axis=0)
    left, singular, right = np.linalg.svd(scores - centre, full_matrices=False)
    along = left.T @ (values - mean)
    total = ((values - mean) ** 2).sum(axis=0)
    # rows: penalties, columns: components
    kept = singular**2 / (singular**2 + _PENALTIES[:, None] * max(singular[0] ** 2, 1e-12))
    residual = total - (2 * kept - kept**2) @ along**2
    freedom = np.maximum(len(scores) - 1 - kept.sum(axis=1), 1e-9)
    best = np.argmin(residual / freedom[:, None] ** 2, axis=0)
    inverse = np.divide(1, singular, out=np.zeros_like(singular), where=singular > 0)
    weights = right.T @ ((kept[best] * inverse).T * along)
    return weights, mean - centre @ weights
