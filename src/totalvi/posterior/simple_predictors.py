"""Proteins predicted from RNA, and RNA from proteins, without a model: by ridge and by neighbours.

Regression on many components of RNA still orders faint proteins, on which a model gives up. A Gaussian
kernel lets it follow what is not linear in them, as differences between cell types are. Which cells are
near is learnt from the proteins, since most directions of RNA say little of them.
"""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import svds
from scipy.spatial.distance import cdist, pdist

from totalvi.data.cells import CiteData
from totalvi.data.counts import evenly_spaced
from totalvi.fit.minibatch import Minibatch
from totalvi.fit.plan import Split

if TYPE_CHECKING:
    from sklearn.kernel_approximation import Nystroem

_N_COMPONENTS, _N_NEIGHBOURS = 100, 15
_SIZE_SCALE = 0.3  # the standard deviation of cell size, beside a direction, whose length is 1
_N_LANDMARKS = 500  # cells whose kernel with the others stands for that of all pairs
_CELLS_OF_A_DISTANCE = 300  # the width of the kernel follows from pairs of so many
_N_ROUNDS, _CELLS_OF_A_GRADIENT = 2, 1000  # in which distances are learnt, from so many cells
_PROTEIN_COMPONENTS = 50
_MOST_WITH_BOTH = 5000  # cells of which genes are held as arrays
_MOST_CELLS = 10_000  # of the training data; these are enough for components, ridge and neighbours
_FEWEST_TRAINED = 20  # with fewer cells that measured a protein, nothing is regressed on them
_PENALTIES = np.logspace(-6, 0, 13)  # relative to the largest squared singular value


class RnaCoordinates:
    """Where cells are in their RNA: the direction of 100 components, and how large a cell is.

    RNA is divided by the cell's total and logged; its first components are centred by batch and divided
    by their length. The logarithm of the total, which these forget, is centred by batch too: larger
    cells carry more of most proteins. Its standard deviation is 0.3, beyond three of which none lies.

    Parameters
    ----------
    data
        Cells that the model was fitted to; at most 10,000 are used, in memory or from disk.
    """

    def __init__(self, data: CiteData) -> None:
        self.data = data
        self.cells = evenly_spaced(np.flatnonzero(data.has_rna), _MOST_CELLS)
        counts = data.rna.rows(self.cells)
        self._median = float(np.median(np.asarray(counts.sum(axis=1))))
        logs = log_normalised(counts, self._median)
        n_components = min(_N_COMPONENTS, min(logs.shape) - 1)
        start = np.ones(min(logs.shape))  # a fixed start makes the components repeatable
        self._loadings = svds(logs, k=n_components, v0=start)[2].T
        scores, batch = self._scores(counts), data.batch[self.cells]
        self._centre = np.tile(scores.mean(axis=0), (len(data.schema.batch_names), 1))
        for code in np.unique(batch):
            self._centre[code] = scores[batch == code].mean(axis=0)
        self._size_deviation = max(float((scores - self._centre[batch])[:, -1].std()), 1e-9)
        self.of_cells = self._coordinates(scores, batch)

    def of_batch(self, batch: Minibatch) -> np.ndarray:
        """Return the coordinates of the cells of a minibatch, (B, components + 1)."""
        x = batch.x
        parts = (part.cpu().numpy() for part in (x.counts, x.gene, x.cell_pointer))
        scores = self._scores(sparse.csr_matrix(tuple(parts), shape=x.shape))
        return self._coordinates(scores, batch.context.batch.cpu().numpy())

    def _scores(self, counts: sparse.csr_matrix) -> np.ndarray:
        """Return components, and log(1 + total) as the last column."""
        total = np.asarray(counts.sum(axis=1), dtype=np.float64)
        logs = log_normalised(counts, self._median)
        return np.hstack([logs @ self._loadings, np.log1p(total).reshape(-1, 1)])

    def _coordinates(self, scores: np.ndarray, batch: np.ndarray) -> np.ndarray:
        centred = scores - self._centre[batch]
        length = np.linalg.norm(centred[:, :-1], axis=1, keepdims=True)
        deviations = np.clip(centred[:, -1:] / self._size_deviation, -3, 3)
        return np.hstack([centred[:, :-1] / np.maximum(length, 1e-12), _SIZE_SCALE * deviations])


class _Fitted(NamedTuple):
    """What predicts the proteins that the same cells measured.

    Parameters
    ----------
    columns
        Positions of these proteins.
    mapping
        Takes coordinates to those in which near cells have alike proteins.
    places, logs
        Of the cells that measured them: their coordinates there, and log(1 + count).
    kernel
        Gives cells, from their places, the features that are regressed on.
    weights, intercept
        Of the ridge regression.
    """

    columns: np.ndarray
    mapping: np.ndarray
    places: np.ndarray
    logs: np.ndarray
    kernel: "Nystroem"
    weights: np.ndarray
    intercept: np.ndarray

    def predict(self, coordinates: np.ndarray) -> np.ndarray:
        """Return log(1 + count) by ridge regression and by neighbours, (2, N, proteins)."""
        from sklearn.neighbors import NearestNeighbors  # which takes a second to load

        places = coordinates @ self.mapping
        search = NearestNeighbors(n_neighbors=_N_NEIGHBOURS, algorithm="brute").fit(self.places)
        near = search.kneighbors(places, return_distance=False)
        by_ridge = self.kernel.transform(places) @ self.weights + self.intercept
        return np.stack([by_ridge, self.logs[near].mean(axis=1)])


class RnaPredictors:
    """Kernel ridge regression and means of neighbours, of log(1 + count) on where a cell is in RNA.

    Distances are learnt from all proteins that the same cells measured, whichever are wanted.

    Parameters
    ----------
    coordinates
        Of the cells that the model was fitted to.
    split
        Tells which cells trained the model, whose proteins are learnt from. None: all cells are.
    """

    def __init__(self, coordinates: RnaCoordinates, split: Split | None = None) -> None:
        self._coordinates = coordinates
        data, cells, of_cells = coordinates.data, coordinates.cells, coordinates.of_cells
        if split is not None:
            trained = np.isin(cells, split.train)
            cells, of_cells = cells[trained], of_cells[trained]
        measured = np.array(data.schema.panel_measured, dtype=bool)[data.panel[cells]]
        self._n_proteins = measured.shape[1]
        patterns, pattern = np.unique(measured, axis=1, return_inverse=True)
        self._fitted: list[_Fitted] = []
        for code, knows in enumerate(patterns.T):
            if knows.sum() < _FEWEST_TRAINED:
                continue
            columns = np.flatnonzero(np.ravel(pattern) == code)
            values = np.log1p(data.protein.rows(cells[knows])[:, columns])
            mapping = learned_map(of_cells[knows], values)
            places = of_cells[knows] @ mapping
            kernel = gaussian_kernel(places)
            found = ridge(kernel.transform(places), values)
            self._fitted.append(_Fitted(columns, mapping, places, values, kernel, *found))

    def predict(self, batch: Minibatch) -> np.ndarray:
        """Return log(1 + count) by ridge and neighbours, (2, B, T); NaN where none trained."""
        coordinates = self._coordinates.of_batch(batch)
        predicted = np.full((2, len(coordinates), self._n_proteins), np.nan)
        for fitted in self._fitted:
            predicted[:, :, fitted.columns] = fitted.predict(coordinates)
        return predicted


class ProteinPredictors:
    """Ridge regression and means of neighbours, both of log(1 + RNA) on components of the proteins.

    RNA is divided by the cell's total, times a common size. Of the proteins, the 50 first components of
    log(1 + count), centred by batch, of the cells that trained the model and have both.

    Parameters
    ----------
    data
        Cells that the model was fitted to; of those that have both, at most 5,000 are used.
    training
        Positions of those that trained it.
    genes
        Positions of the wanted genes.
    proteins
        Which proteins the panel measured that lacks RNA, (T,).
    size
        Library size to which RNA is scaled.

    Attributes
    ----------
    has_both
        Which panels measured RNA and some of these proteins.
    can_predict
        Whether more than 15 training cells have both.
    """

    def __init__(
        self,
        data: CiteData,
        training: np.ndarray,
        genes: np.ndarray,
        proteins: np.ndarray,
        size: float,
    ) -> None:
        by_panel = np.array(data.schema.panel_measured, dtype=bool)
        self.has_both = data.schema.measured_rna & by_panel[:, proteins].any(axis=1)
        shared = by_panel[self.has_both].all(axis=0) if self.has_both.any() else proteins
        self._proteins = np.flatnonzero(proteins & shared)
        cells = training[self.has_both[data.panel[training]]]
        cells = evenly_spaced(np.sort(cells), _MOST_WITH_BOTH)
        self.can_predict = bool(len(self._proteins)) and len(cells) > _N_NEIGHBOURS
        if not self.can_predict:
            return
        knows = np.all(by_panel[:, self._proteins], axis=1)
        with_proteins = evenly_spaced(np.flatnonzero(knows[data.panel]), _MOST_WITH_BOTH)
        of_all = self._logs(data.protein.rows(with_proteins))
        batch = data.batch[with_proteins]
        self._centre = np.tile(of_all.mean(axis=0), (len(data.schema.batch_names), 1))
        for code in np.unique(batch):
            self._centre[code] = of_all[batch == code].mean(axis=0)
        self._loadings = np.linalg.svd(of_all - self._centre[batch], full_matrices=False)[2]
        self._loadings = self._loadings[:_PROTEIN_COMPONENTS].T
        self._scores = self._scored(data.protein.rows(cells), data.batch[cells])
        self._values = log_normalised(data.rna.rows(cells), size)[:, genes].toarray()
        self._weights, self._intercept = ridge(self._scores, self._values)

    def _logs(self, protein: np.ndarray) -> np.ndarray:
        logs: np.ndarray = np.log1p(protein[:, self._proteins].astype(np.float64))
        return logs

    def _scored(self, protein: np.ndarray, batch: np.ndarray) -> np.ndarray:
        scores: np.ndarray = (self._logs(protein) - self._centre[batch]) @ self._loadings
        return scores

    def predict(self, batch: Minibatch) -> np.ndarray:
        """Return log(1 + RNA) by ridge regression and by neighbours, (2, B, genes)."""
        from sklearn.neighbors import NearestNeighbors  # which takes a second to load

        scores = self._scored(batch.y.cpu().numpy(), batch.context.batch.cpu().numpy())
        search = NearestNeighbors(n_neighbors=_N_NEIGHBOURS, algorithm="brute").fit(self._scores)
        near = search.kneighbors(scores, return_distance=False)
        by_ridge = scores @ self._weights + self._intercept
        return np.stack([by_ridge, self._values[near].mean(axis=1)])


def learned_map(coordinates: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return a symmetric matrix that maps cells to where the near ones have alike values, (D, D).

    A kernel ridge regression tells which directions matter: those along which its predictions change.
    The squared distance of two cells becomes (x - y)' M (x - y), where M is the square root of the
    mean outer product of the gradients, each of a value in its standard deviations. The regression is
    repeated with that distance (recursive feature machines; Radhakrishnan et al., Science 2024).

    Parameters
    ----------
    coordinates
        Of N cells, (N, D).
    values
        What is predicted, (N, t).

    Examples
    --------
    >>> coordinates = np.random.default_rng(0).normal(size=(300, 3))
    >>> mapping = learned_map(coordinates, coordinates[:, :1])
    >>> mapping.diagonal().argmax(), bool(mapping[0, 0] > 5 * mapping[1, 1])
    (np.int64(0), True)
    """
    deviation = values.std(axis=0)
    deviation = np.where(deviation > 1e-9, deviation, 1)
    mapping = np.eye(coordinates.shape[1])
    for _ in range(_N_ROUNDS):
        places = coordinates @ mapping
        kernel = gaussian_kernel(places)
        weights = ridge(kernel.transform(places), values)[0] / deviation
        some = places[evenly_spaced(np.arange(len(places)), _CELLS_OF_A_GRADIENT)]
        outer = mapping @ outer_gradients(some, kernel, weights) @ mapping
        eigenvalues, vectors = np.linalg.eigh(outer)
        if eigenvalues.max() < 1e-18:  # nothing is predicted from any direction
            break
        share = np.maximum(eigenvalues, 0) / eigenvalues.sum()
        mapping = (vectors * share**0.25) @ vectors.T
    return mapping


def outer_gradients(places: np.ndarray, kernel: "Nystroem", weights: np.ndarray) -> np.ndarray:
    """Return the mean outer product of gradients of what weights on a kernel predict, (D, D)."""
    landmarks, of_landmarks = kernel.components_, kernel.normalization_.T @ weights
    closeness = np.exp(-kernel.gamma * cdist(places, landmarks, "sqeuclidean"))
    outer = np.zeros((places.shape[1],) * 2)
    for column in of_landmarks.T:
        share = closeness * column
        gradient = 2 * kernel.gamma * (share @ landmarks - places * share.sum(axis=1)[:, None])
        outer += gradient.T @ gradient
    return outer / len(places)


def gaussian_kernel(places: np.ndarray) -> "Nystroem":
    """Return what gives cells features whose products are a Gaussian kernel.

    The kernel is exp(-d^2 / m), with d the distance of two cells and m the median of d^2. The features
    approximate it by its values at 500 of the cells (Williams and Seeger, 2000).

    Parameters
    ----------
    places
        Of cells from which the width and these 500 are taken, (N, D).

    Examples
    --------
    >>> places = np.random.default_rng(0).normal(size=(40, 3))
    >>> features = gaussian_kernel(places).transform(places)
    >>> features.shape, bool(np.allclose((features**2).sum(axis=1), 1))
    ((40, 40), True)
    """
    from sklearn.kernel_approximation import Nystroem  # which takes a second to load

    some = evenly_spaced(np.arange(len(places)), _CELLS_OF_A_DISTANCE)
    width = max(float(np.median(pdist(places[some], "sqeuclidean"))), 1e-9)
    n_landmarks = min(_N_LANDMARKS, len(places))
    return Nystroem(gamma=1 / width, n_components=n_landmarks, random_state=0).fit(places)


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
    values = values.astype(np.float64)  # as residuals of a close fit are small differences
    centre, mean = scores.mean(axis=0), values.mean(axis=0)
    centred = scores - centre
    # some times faster than a singular value decomposition; no penalty is near its rounding errors
    squares, vectors = np.linalg.eigh(centred.T @ centred)
    squares = np.maximum(squares, 0)
    product = vectors.T @ (centred.T @ (values - mean))
    total = ((values - mean) ** 2).sum(axis=0)
    # rows: penalties, columns: directions
    inverse = 1 / (squares + _PENALTIES[:, None] * max(squares[-1], 1e-12))
    kept = squares * inverse
    residual = total - (inverse * (2 - kept)) @ product**2
    freedom = np.maximum(len(scores) - 1 - kept.sum(axis=1), 1e-9)
    best = np.argmin(residual / freedom[:, None] ** 2, axis=0)
    weights = vectors @ (inverse[best].T * product)
    return weights, mean - centre @ weights
