"""Proteins predicted from RNA without a model: by kernel ridge regression, and by neighbours.

Regression on many components of RNA still orders faint proteins, on which a model gives up. A Gaussian
kernel lets it follow what is not linear in them, as differences between cell types are. Which cells are
near is learnt from the proteins, since most directions of RNA say little of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, Self

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import svds
from scipy.spatial.distance import cdist

from totalvi.data.cells import CiteData, Schema
from totalvi.data.counts import evenly_spaced
from totalvi.fit.minibatch import Minibatch
from totalvi.fit.plan import Split
from totalvi.posterior.simple_predictors import (
    N_NEIGHBOURS,
    gaussian_kernel,
    learned_map,
    log_normalised,
    ridge,
)

_N_COMPONENTS = 100
_SIZE_SCALE = 0.3  # the standard deviation of cell size, beside a direction, whose length is 1
_RIDGE_OF_COMPONENTS = 1e-3  # beside the squares of loadings, which add up to 1
_MOST_CELLS = 10_000  # of the training data; these are enough for components, ridge and neighbours
_FEWEST_TRAINED = 20  # with fewer cells that measured a protein, nothing is regressed on them
_STEPS_OF_A_LOG = 4096
_DERIVED = (
    "projection",
    "share",
)  # of coordinates: they follow from the rest where all genes count


@dataclass(frozen=True)
class RnaCoordinates:
    """Where cells are in their RNA: the direction of 100 components, and how large a cell is.

    RNA is divided by the cell's total and logged; its first components are centred by batch and divided
    by their length. The logarithm of the total, which these forget, is centred by batch too: larger
    cells carry more of most proteins. Its standard deviation is 0.3, beyond three of which none lies.

    Parameters
    ----------
    cells
        Positions of the cells that they are of, at most 10,000 of the data's.
    loadings
        Of the components, (genes, components), float32.
    mean_counts
        Of each gene, (genes,).
    size
        Median of the cells' totals, to which RNA is scaled.
    centred
        Components of the cells, and the logarithm of their total, less their centre: (cells, components
        + 1), float16.
    centre
        Of each batch, (batches, components + 1).
    size_deviation
        Standard deviation of the logarithm of the total.
    projection, share
        What gives components from the genes that were measured, (genes, components), and the share of
        all counts that is expected in these.
    """

    cells: np.ndarray
    loadings: np.ndarray
    mean_counts: np.ndarray
    size: float
    centred: np.ndarray
    centre: np.ndarray
    size_deviation: float
    projection: np.ndarray
    share: float = 1.0

    @classmethod
    def of_data(cls, data: CiteData) -> Self:
        """Return the coordinates of cells that a model was fitted to, in memory or on disk."""
        cells = evenly_spaced(np.flatnonzero(data.has_rna), _MOST_CELLS)
        counts = data.rna.rows(cells)
        size = float(np.median(np.asarray(counts.sum(axis=1))))
        logs = log_normalised(counts, size)
        n_components = min(_N_COMPONENTS, min(logs.shape) - 1)
        start = np.ones(min(logs.shape))  # a fixed start makes the components repeatable
        loadings = svds(logs, k=n_components, v0=start)[2].T.astype(np.float32)
        scores, batch = _scores(counts, size, 1.0, loadings), data.batch[cells]
        centre = np.tile(scores.mean(axis=0), (len(data.schema.batch_names), 1))
        for code in np.unique(batch):
            centre[code] = scores[batch == code].mean(axis=0)
        centred = scores - centre[batch]
        deviation = max(float(centred[:, -1].std()), 1e-9)
        means = np.asarray(counts.mean(axis=0)).ravel()
        kept = centred.astype(np.float16)
        return cls(cells, loadings, means, size, kept, centre, deviation, loadings)

    def of_genes(self, genes: np.ndarray) -> Self:
        """Return the coordinates of cells in which only these genes were measured, by position.

        Components are those that explain these genes with the least squares.
        """
        known = self.loadings[genes].astype(np.float64)
        projection = np.zeros(self.loadings.shape)
        square = known.T @ known + _RIDGE_OF_COMPONENTS * np.eye(known.shape[1])
        projection[genes] = np.linalg.solve(square, known.T).T
        share = float(self.mean_counts[genes].sum() / self.mean_counts.sum())
        return replace(self, projection=projection, share=share)

    def with_batch(self, counts: sparse.csr_matrix, centre: np.ndarray) -> Self:
        """Return the coordinates with one batch more, the next after those of the data.

        Its cells may be of a few kinds alone, so that their mean is no centre of its components. That
        of the logarithm of the total, which depends on how deep a batch was sequenced, is such that its
        cells are as large, on average, as the cells of the data nearest to them in direction.

        Parameters
        ----------
        counts
            RNA of its cells, (N, genes), with N 1 or more.
        centre
            Of a batch that is like it, (components + 1,).
        """
        from sklearn.neighbors import NearestNeighbors  # which takes a second to load

        scores = _scores(counts, self.size, self.share, self.projection)
        search = NearestNeighbors(n_neighbors=min(N_NEIGHBOURS, len(self.cells)), algorithm="brute")
        search.fit(self.of_cells[:, :-1])
        near = search.kneighbors(self._directions(scores - centre)[:, :-1], return_distance=False)
        size = scores[:, -1].mean() - self.centred[near, -1].astype(np.float64).mean()
        return replace(self, centre=np.vstack([self.centre, [*centre[:-1], size]]))

    @property
    def of_cells(self) -> np.ndarray:
        """The coordinates of `cells`, (cells, components + 1)."""
        return self._directions(self.centred.astype(np.float64))

    def of_batch(self, batch: Minibatch) -> np.ndarray:
        """Return the coordinates of the cells of a minibatch, (B, components + 1)."""
        x = batch.x
        parts = (part.cpu().numpy() for part in (x.counts, x.gene, x.cell_pointer))
        counts = sparse.csr_matrix(tuple(parts), shape=x.shape)
        scores = _scores(counts, self.size, self.share, self.projection)
        return self._directions(scores - self.centre[batch.context.batch.cpu().numpy()])

    def _directions(self, centred: np.ndarray) -> np.ndarray:
        length = np.linalg.norm(centred[:, :-1], axis=1, keepdims=True)
        deviations = np.clip(centred[:, -1:] / self.size_deviation, -3, 3)
        return np.hstack([centred[:, :-1] / np.maximum(length, 1e-12), _SIZE_SCALE * deviations])


def _scores(
    counts: sparse.csr_matrix, size: float, share: float, projection: np.ndarray
) -> np.ndarray:
    """Return components, and log(1 + total) as the last column."""
    total = np.asarray(counts.sum(axis=1), dtype=np.float64) / share
    logs = log_normalised(counts, size * share)
    return np.hstack([logs @ projection.astype(np.float64), np.log1p(total).reshape(-1, 1)])


@dataclass(frozen=True)
class _Fitted:
    """What predicts the proteins that the same cells measured.

    Parameters
    ----------
    columns
        Positions of these proteins.
    rows
        Which of the coordinates' cells measured them and are learnt from.
    mapping
        Takes coordinates to those in which near cells have alike proteins.
    logs
        Of these cells, log(1 + count) in steps of 1/4,096, uint16.
    gamma, landmarks, weights, intercept
        Of the kernel ridge regression: the sum of weights times exp(-gamma d^2), with d the distances
        from the landmarks.
    """

    columns: np.ndarray
    rows: np.ndarray
    mapping: np.ndarray
    logs: np.ndarray
    gamma: float
    landmarks: np.ndarray
    weights: np.ndarray
    intercept: np.ndarray

    def predict(self, coordinates: np.ndarray, known: np.ndarray) -> np.ndarray:
        """Return log(1 + count) by ridge regression and by neighbours, (2, N, proteins).

        ``known`` are the coordinates of the cells learnt from.
        """
        from sklearn.neighbors import NearestNeighbors  # which takes a second to load

        places = coordinates @ self.mapping
        closeness = np.exp(-self.gamma * cdist(places, self.landmarks, "sqeuclidean"))
        search = NearestNeighbors(n_neighbors=N_NEIGHBOURS, algorithm="brute")
        search.fit(known[self.rows] @ self.mapping)
        near = search.kneighbors(places, return_distance=False)
        by_neighbours = (self.logs[near] / _STEPS_OF_A_LOG).mean(axis=1)
        return np.stack([closeness @ self.weights + self.intercept, by_neighbours])


@dataclass(frozen=True)
class RnaPredictors:
    """Kernel ridge regression and means of neighbours, of log(1 + count) on where a cell is in RNA.

    Parameters
    ----------
    coordinates
        Of the cells that the model was fitted to.
    n_proteins
        Number of all proteins.
    fitted
        What was learnt from cells that measured the same proteins.
    """

    coordinates: RnaCoordinates
    n_proteins: int
    fitted: tuple[_Fitted, ...]

    @classmethod
    def of_data(
        cls, data: CiteData, coordinates: RnaCoordinates, split: Split | None = None
    ) -> Self:
        """Return what is learnt from cells of the data.

        Distances are learnt from all proteins that the same cells measured, whichever are wanted.

        Parameters
        ----------
        split
            Tells which cells trained the model, whose proteins are learnt from. None: all cells are.
        """
        cells, of_cells = coordinates.cells, coordinates.of_cells
        trained = np.ones(len(cells), bool) if split is None else np.isin(cells, split.train)
        measured = np.array(data.schema.panel_measured, dtype=bool)[data.panel[cells]]
        measured &= trained[:, None]
        patterns, pattern = np.unique(measured, axis=1, return_inverse=True)
        fitted = []
        for code, knows in enumerate(patterns.T):
            if knows.sum() < _FEWEST_TRAINED:
                continue
            rows, columns = np.flatnonzero(knows), np.flatnonzero(np.ravel(pattern) == code)
            values = np.log1p(data.protein.rows(cells[rows])[:, columns])
            mapping = learned_map(of_cells[rows], values)
            places = of_cells[rows] @ mapping
            kernel = gaussian_kernel(places)
            weights, intercept = ridge(kernel.transform(places), values)
            steps = np.clip(np.rint(values * _STEPS_OF_A_LOG), 0, 65_535).astype(np.uint16)
            of_landmarks = kernel.normalization_.T @ weights
            about = float(kernel.gamma), kernel.components_, of_landmarks, intercept
            fitted.append(_Fitted(columns, rows, mapping, steps, *about))
        return cls(coordinates, measured.shape[1], tuple(fitted))

    @cached_property
    def _known(self) -> np.ndarray:
        return self.coordinates.of_cells

    def predict(self, batch: Minibatch) -> np.ndarray:
        """Return log(1 + count) by ridge and neighbours, (2, B, T); NaN where none trained."""
        coordinates = self.coordinates.of_batch(batch)
        predicted = np.full((2, len(coordinates), self.n_proteins), np.nan)
        for fitted in self.fitted:
            predicted[:, :, fitted.columns] = fitted.predict(coordinates, self._known)
        return predicted

    def arrays(self) -> dict[str, np.ndarray]:
        """Return what `of_arrays` makes the same predictors of, without projections on some genes."""
        parts = {f"coordinates.{name}": value for name, value in _stored(self.coordinates).items()}
        for number, fitted in enumerate(self.fitted):
            parts |= {f"{number}.{name}": value for name, value in _stored(fitted).items()}
        return {name: np.array(value, order="C") for name, value in parts.items()}

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, np.ndarray], schema: Schema) -> Self:
        """Return predictors of the genes, proteins and batches of ``schema`` from their arrays.

        Raises
        ------
        KeyError, ValueError
            When one is missing, or has another shape than the others ask for.
        """
        n_fitted = len({name.split(".")[0] for name in arrays}) - 1
        fitted = tuple(_Fitted(**_of(arrays, _Fitted, f"{i}.")) for i in range(n_fitted))
        about = _of(arrays, RnaCoordinates, "coordinates.")
        coordinates = RnaCoordinates(**about, projection=about["loadings"])
        n_cells, width = len(coordinates.cells), coordinates.loadings.shape[1] + 1
        right = (
            coordinates.centred.shape == (n_cells, width)
            and coordinates.centre.shape == (len(schema.batch_names), width)
            and coordinates.mean_counts.shape == (len(schema.gene_names),)
            and len(coordinates.loadings) == len(schema.gene_names)
        )
        n_proteins = len(schema.protein_names)
        for one in fitted:
            n_rows, n_columns, n_landmarks = len(one.rows), len(one.columns), len(one.landmarks)
            right &= one.mapping.shape == (width, width)
            right &= one.landmarks.shape == (n_landmarks, width)
            right &= one.logs.shape == (n_rows, n_columns) and n_rows >= N_NEIGHBOURS
            right &= one.weights.shape == (n_landmarks, n_columns)
            right &= one.intercept.shape == (n_columns,)
            for positions, n in ((one.rows, n_cells), (one.columns, n_proteins)):
                right &= positions.dtype == np.int64 and bool(
                    np.isin(positions, np.arange(n)).all()
                )
        if not right or not all(np.isfinite(array).all() for array in arrays.values()):
            raise ValueError("regression on RNA whose parts do not fit together.")
        return cls(coordinates, n_proteins, fitted)


def _stored(of: RnaCoordinates | _Fitted) -> dict[str, Any]:
    return {
        field.name: getattr(of, field.name) for field in fields(of) if field.name not in _DERIVED
    }


def _of(
    arrays: Mapping[str, np.ndarray], what: type[RnaCoordinates | _Fitted], prefix: str
) -> dict[str, Any]:
    """Return the arguments of ``what``; arrays of no dimension are numbers."""
    wanted = [field.name for field in fields(what) if field.name not in _DERIVED]
    found = {name: arrays[prefix + name] for name in wanted}
    return {name: value if value.ndim else value.item() for name, value in found.items()}
