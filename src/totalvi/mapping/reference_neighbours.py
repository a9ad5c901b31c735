"""Find the nearest reference cells of query cells, and of held-out reference cells to calibrate on.

Results about a query are calibrated on held-out cells of the reference. These are encoded with the
genes and panel of the query, and compared with the same reference cells.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from scipy import sparse

from totalvi.data.cells import CiteData
from totalvi.data.counts import CountsInMemory, evenly_spaced
from totalvi.fit.plan import Split
from totalvi.nn.network import Network
from totalvi.posterior.latent import LatentDistribution, latent_distribution
from totalvi.posterior.noise import CellNoise
from totalvi.posterior.question import Question
from totalvi.posterior.unmeasured import always_shown, fill_unmeasured

_LEAST_HELD_OUT, _MOST_HELD_OUT = 100, 5000
_CELLS_FOR_SHIFT, _POINTS_FOR_SHIFT, _SHIFT_ROUNDS, _NEAR = 600, 1000, 4, 0.75
_LEAST_LIKE_DEEP = 200  # held-out cells of about a cell's depth, with which it is compared
_PAIRS_AT_ONCE = 65_536  # pairs of cells that are compared at a time


class Nearest(NamedTuple):
    """The k points nearest to each of N, the nearest first.

    Attributes
    ----------
    points
        Their positions, (N, k).
    distances
        Their distances, (N, k).
    """

    points: np.ndarray
    distances: np.ndarray


def nearest(asked: np.ndarray, points: np.ndarray, n_neighbours: int) -> Nearest:
    """Return the ``points`` that are nearest to each point of ``asked``.

    The search compares all pairs, so the result is exact and needs no seed. It takes about 2 s of one
    core for a billion pairs of 20 dimensions, and memory only for the result.

    Parameters
    ----------
    asked
        Shape (N, dimensions).
    points
        Shape (M, dimensions).
    n_neighbours
        Number of neighbours; at most all points.

    Examples
    --------
    >>> points = np.array([[0.0], [1.0], [5.0]])
    >>> nearest(np.array([[4.0]]), points, 2).points
    array([[2, 1]])
    """
    from sklearn.neighbors import NearestNeighbors  # which takes a second to load

    search = NearestNeighbors(n_neighbors=min(n_neighbours, len(points)), algorithm="brute")
    distances, found = search.fit(points).kneighbors(asked)
    return Nearest(found, distances)


def nearest_to_each(points: np.ndarray, n_neighbours: int) -> Nearest:
    """Return the points nearest to each point: first itself, at distance 0, then others.

    Parameters
    ----------
    points
        Shape (N, dimensions).
    n_neighbours
        Number of neighbours, including the point itself.

    Examples
    --------
    >>> nearest_to_each(np.array([[0.0], [1.0], [5.0], [5.0]]), 2).points.tolist()
    [[0, 1], [1, 0], [2, 3], [3, 2]]
    """
    found = nearest(points, points, n_neighbours)
    # If points coincide, others may come before the point itself, or leave no room for it.
    own = np.arange(len(points))
    is_own = found.points == own[:, None]
    place = np.where(is_own.any(axis=1), is_own.argmax(axis=1), found.points.shape[1] - 1)
    found.points[own, place] = found.points[:, 0]
    found.points[:, 0] = own
    found.distances[:, 0] = 0
    return found


class Neighbours(NamedTuple):
    """The k reference cells nearest to each of N cells.

    Parameters
    ----------
    cells
        Positions among the reference cells, (N, k).
    log_overlap
        Log of the integral of q(u | cell) q(u | reference cell), (N, k): the probability density that
        both have the same latent state.
    """

    cells: np.ndarray
    log_overlap: np.ndarray


def cells_to_calibrate(
    split: Split | None, usable: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Return usable reference cells to calibrate on: held-out cells, if there are enough.

    Otherwise a tenth of the usable cells (at least 100, at most half) is drawn.
    """
    n_cells = len(usable)
    if split is not None and sum(map(len, split)) == n_cells:
        cells = np.concatenate([split.validation, split.test])
        cells = cells[usable[cells]]
        if len(cells) >= _LEAST_HELD_OUT:
            return np.sort(rng.permutation(cells)[:_MOST_HELD_OUT])
    cells = np.flatnonzero(usable)
    n_wanted = min(max(len(cells) // 10, _LEAST_HELD_OUT), len(cells) // 2, _MOST_HELD_OUT)
    return np.sort(rng.choice(cells, n_wanted, replace=False))


def as_the_query(
    held_out: CiteData,
    query: CiteData,
    module: Network,
    missing_genes: tuple[str, ...],
    thinning: np.random.Generator | None = None,
) -> Iterator[tuple[int, np.ndarray, CiteData]]:
    """Yield each panel of the query, and the held-out cells as if measured with this panel.

    Also yield which held-out cells these are: those with RNA in the genes of the query. With
    ``thinning``, RNA deeper than the query's is thinned to its depth.
    """
    panels = np.array(held_out.schema.panel_measured)
    known, shown = panels[held_out.panel], always_shown(module, panels, held_out.panel)
    rna = held_out.rna.read()
    if missing_genes:
        keep = ~np.isin(query.schema.gene_names, missing_genes)
        rna = sparse.csr_matrix(rna.multiply(keep[None]), dtype=np.float32)
        rna.eliminate_zeros()
    protein, own_size = held_out.protein.read(), held_out.library_size
    by_counts = query.schema.columns.size_factor_key is None
    if by_counts:
        own_size = np.asarray(rna.sum(axis=1), dtype=np.float32).ravel()
    for panel in np.unique(query.panel):
        measured = np.array(query.schema.panel_measured[panel])
        as_deep, library_size = rna, own_size
        if thinning is not None and by_counts and (own_size > 0).any():
            share = np.median(query.library_size[query.panel == panel]) / np.median(own_size)
            as_deep = thinned(rna, float(share), thinning)
            library_size = np.asarray(as_deep.sum(axis=1), dtype=np.float32).ravel()
        as_query = replace(
            held_out,
            schema=query.schema,
            rna=CountsInMemory(as_deep),
            protein=CountsInMemory(np.where(measured & known, protein, np.float32(0))),
            panel=np.full_like(held_out.panel, panel),
            library_size=library_size,
        )
        kept = np.flatnonzero(library_size > 0)
        as_query = as_query.in_memory(kept)
        fill_unmeasured(module, as_query, (shown & ~measured)[kept])
        yield int(panel), kept, as_query


def thinned(counts: sparse.csr_matrix, share: float, rng: np.random.Generator) -> sparse.csr_matrix:
    """Return counts of which each molecule is kept with probability ``share``; all of them from 1.

    Examples
    --------
    >>> counts = sparse.csr_matrix([[100.0, 0.0, 900.0]])
    >>> bool(400 < thinned(counts, 0.5, np.random.default_rng(0)).sum() < 600)
    True
    """
    if share >= 1:
        return counts
    kept = counts.copy()
    kept.data = rng.binomial(np.rint(counts.data).astype(np.int64), share).astype(np.float32)
    kept.eliminate_zeros()
    return kept


def encode(module: Network, data: CiteData, cells: np.ndarray) -> LatentDistribution:
    """Return q(u | cell) of the cells at these positions."""
    no_samples = CellNoise(0)  # the distribution does not need them
    return latent_distribution(Question(module, data, cells, no_samples, progress=False))


class Reference:
    """Reference cells to compare others with.

    Parameters
    ----------
    latent
        q(u | cell) of each reference cell.
    n_neighbors
        Number of neighbours of a cell.
    """

    def __init__(self, latent: LatentDistribution, n_neighbors: int) -> None:
        self.latent, self.n_neighbors = latent, n_neighbors

    def neighbours(self, cells: LatentDistribution) -> Neighbours:
        """Return the reference cells nearest to each cell."""
        found = nearest(cells.mean, self.latent.mean, self.n_neighbors).points
        log_overlap = np.empty(found.shape, dtype=np.float32)
        step = max(_PAIRS_AT_ONCE // found.shape[1], 1)
        for start in range(0, len(found), step):
            rows = slice(start, start + step)
            variance = cells.variance[rows, None] + self.latent.variance[found[rows]]
            squared = (cells.mean[rows, None] - self.latent.mean[found[rows]]) ** 2
            log_overlap[rows] = -0.5 * (squared / variance + np.log(variance)).sum(axis=2)
        return Neighbours(found, log_overlap)

    def distance(self, mean: np.ndarray) -> np.ndarray:
        """Return the mean distance of each point to its nearest reference cells, (N,)."""
        result: np.ndarray = nearest(mean, self.latent.mean, self.n_neighbors).distances.mean(
            axis=1
        )
        return result

    def common_shift(self, mean: np.ndarray, held_out: np.ndarray) -> np.ndarray:
        """Return the shift of the latent space that most of some cells share, (dimensions,).

        It is the median displacement from the mean of a cell's nearest reference cells, less that of
        held-out cells, over the three quarters of the cells that are nearest to the reference. As a
        shifted cell has other neighbours than it should, this is repeated without the shift, four
        times, on at most 600 cells and 1,000 reference cells. ``mean`` and ``held_out`` are the latent
        means of the cells and of the held-out cells, (N, dimensions).
        """
        points = self.latent.mean
        points = points[evenly_spaced(np.arange(len(points)), _POINTS_FOR_SHIFT)]
        k = min(self.n_neighbors, len(points))
        squares = (points**2).sum(axis=1)

        def displacement(cells: np.ndarray) -> np.ndarray:
            squared = squares - 2 * cells @ points.T  # less the cell's own square
            found = np.argpartition(squared, k - 1, axis=1)[:, :k]
            away = cells - points[found].mean(axis=1)
            own = (cells**2).sum(axis=1, keepdims=True)
            squared = own + np.take_along_axis(squared, found, axis=1)
            distance = np.sqrt(np.maximum(squared, 0)).mean(axis=1)
            near = distance <= np.quantile(distance, _NEAR)
            middle: np.ndarray = np.median(away[near], axis=0)
            return middle

        some = mean[evenly_spaced(np.arange(len(mean)), _CELLS_FOR_SHIFT)]
        usual = displacement(held_out[evenly_spaced(np.arange(len(held_out)), _CELLS_FOR_SHIFT)])
        shift: np.ndarray = np.zeros_like(
            points[0]
        )  # a search among numbers of another type takes far longer
        for _ in range(_SHIFT_ROUNDS):
            shift += displacement(some - shift) - usual
        return shift


_TEMPERATURES = np.geomspace(0.5, 100, 16)
_DOUBTS = np.array([1e-3, 3e-3, 1e-2, 3e-2, 0.1])
_BINS = 15


class Calibration(NamedTuple):
    """Parameters that turn weights of neighbours into probabilities.

    Parameters
    ----------
    temperature
        Weights are the overlap of the posteriors to the power 1 / temperature.
    doubt
        Share of the probability that is spread over the labels by their frequency.
    """

    temperature: float
    doubt: float


def label_probabilities(
    neighbours: Neighbours, code: np.ndarray, n_labels: int, calibration: Calibration
) -> np.ndarray:
    """Return the probability of each label for each cell, (N, labels).

    Parameters
    ----------
    code
        Label of each reference cell, (reference cells,).
    """
    log_weight = neighbours.log_overlap.astype(np.float64) / calibration.temperature
    weight = np.exp(log_weight - log_weight.max(axis=1, keepdims=True))
    weight /= weight.sum(axis=1, keepdims=True)
    n_cells = len(weight)
    cell = np.repeat(np.arange(n_cells), weight.shape[1])
    place = cell * n_labels + code[neighbours.cells].ravel()
    votes = np.bincount(place, weight.ravel(), minlength=n_cells * n_labels)
    frequency = np.bincount(code, minlength=n_labels) / len(code)
    shares = votes.reshape(n_cells, n_labels)
    result: np.ndarray = (1 - calibration.doubt) * shares + calibration.doubt * frequency
    return result


def calibrate(
    neighbours: Neighbours, code: np.ndarray, truth: np.ndarray, n_labels: int
) -> Calibration:
    """Choose temperature and doubt that make the labels of held-out cells most probable.

    Parameters
    ----------
    neighbours
        Neighbours of the held-out cells.
    code, truth
        Labels of the reference cells, and of the held-out cells.
    """
    best, lowest = Calibration(1.0, float(_DOUBTS[0])), np.inf
    for temperature in _TEMPERATURES:
        shares = label_probabilities(neighbours, code, n_labels, Calibration(temperature, 0.0))
        frequency = np.bincount(code, minlength=n_labels) / len(code)
        right, expected = shares[np.arange(len(truth)), truth], frequency[truth]
        for doubt in _DOUBTS:
            chance = np.maximum((1 - doubt) * right + doubt * expected, 1e-12)
            loss = -float(np.log(chance).mean())
            if loss < lowest:
                best, lowest = Calibration(float(temperature), float(doubt)), loss
    return best


def calibration_error(probabilities: np.ndarray, truth: np.ndarray) -> float:
    """Return the expected calibration error of the most probable label.

    It is the difference between the label's probability and how often the label is correct,
    averaged over 15 bins of equally many cells.

    Examples
    --------
    >>> sure = np.array([[0.9, 0.1]] * 10)
    >>> round(calibration_error(sure, np.array([0] * 9 + [1])), 3)
    0.0
    """
    top, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == truth
    order = np.argsort(top, kind="stable")
    if len(order) < _BINS * 10:
        return float(abs(top.mean() - right.mean()))
    gaps = [
        len(cells) * abs(top[cells].mean() - right[cells].mean())
        for cells in np.array_split(order, _BINS)
    ]
    return float(sum(gaps) / len(order))


def tail_probability(distance: np.ndarray, held_out: np.ndarray) -> np.ndarray:
    """Return the share of held-out cells that are at least as far away, counting the cell itself, (N,).

    It is a conformal p-value: of cells from the same distribution as the held-out ones, a share of
    at most p has a value of p or less, for any distribution (Vovk, Gammerman and Shafer, 2005).

    Examples
    --------
    >>> tail_probability(np.array([0.0, 2.5, 9.0]), np.array([1.0, 2.0, 3.0]))
    array([1.  , 0.5 , 0.25])
    """
    n_nearer = np.searchsorted(np.sort(held_out), distance, side="left")
    result: np.ndarray = (1 + len(held_out) - n_nearer) / (1 + len(held_out))
    return result


def tail_within_depth(
    distance: np.ndarray, depth: np.ndarray, held_out: np.ndarray, held_out_depth: np.ndarray
) -> np.ndarray:
    """Return `tail_probability` among the held-out cells of about the same depth, (N,).

    They are the third, and at least 200, of the M held-out cells, with these distances and depths,
    that are next to the cell in the order of their depths.

    Examples
    --------
    >>> depth = np.repeat([1000, 9000], 600)
    >>> distance = depth / 1000 + np.random.default_rng(0).random(1200)
    >>> p = tail_within_depth(np.array([1.5, 9.5, 9.5]), np.array([999, 9001, 999]), distance, depth)
    >>> p.round(1)
    array([0.5, 0.5, 0. ])
    """
    order = np.argsort(held_out_depth, kind="stable")
    sizes, held_out = held_out_depth[order], held_out[order]
    width = min(max(len(order) // 3, _LEAST_LIKE_DEEP), len(order))
    step = max(width // 8, 1)  # few windows, so that each is sorted once
    first = (np.searchsorted(sizes, depth) - width // 2) // step * step
    first = np.clip(first, 0, len(order) - width)
    result = np.empty(len(distance))
    for start in np.unique(first):
        cells = first == start
        result[cells] = tail_probability(distance[cells], held_out[start : start + width])
    return result
