"""Regression with and without a kernel, distances that are learnt, and RNA predicted from proteins."""

from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse
from scipy.spatial.distance import cdist, pdist

from totalvi.data.cells import CiteData
from totalvi.data.counts import evenly_spaced
from totalvi.fit.minibatch import Minibatch

if TYPE_CHECKING:
    from sklearn.kernel_approximation import Nystroem

N_NEIGHBOURS = 15
_N_LANDMARKS = 500  # cells whose kernel with the others stands for that of all pairs
_CELLS_OF_A_DISTANCE = 300  # the width of the kernel follows from pairs of so many
_N_ROUNDS, _CELLS_OF_A_GRADIENT = 2, 1000  # in which distances are learnt, from so many cells
_PROTEIN_COMPONENTS = 50
_MOST_WITH_BOTH = 5000  # cells of which genes are held as arrays
_PENALTIES = np.logspace(-6, 0, 13)  # relative to the largest squared singular value


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
        self.can_predict = bool(len(self._proteins)) and len(cells) > N_NEIGHBOURS
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
        search = NearestNeighbors(n_neighbors=N_NEIGHBOURS, algorithm="brute").fit(self._scores)
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
