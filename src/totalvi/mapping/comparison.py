"""Query cells beside the reference cells nearest to them, and held-out reference cells likewise.

What is said of a query is calibrated on cells of the reference that it was not fitted to: they are
encoded with what the query has (its genes, its panel), and compared with the same reference cells.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from scipy import sparse

from totalvi.data.cite import CiteData
from totalvi.feed import minibatches
from totalvi.mapping.filling import always_shown, fill_unmeasured
from totalvi.module.fused.arrays import threads_of_torch
from totalvi.module.totalvi import TOTALVI
from totalvi.posterior.latent import LatentDistribution, latent_distribution
from totalvi.training.split import Split

_BATCH_SIZE = 1024
_LEAST_HELD_OUT, _MOST_HELD_OUT = 100, 5000
_EXACT_UP_TO = 20_000  # reference cells
_PAIRS_AT_ONCE = 65_536  # pairs of cells compared at a time


class Neighbours(NamedTuple):
    """The k reference cells nearest to each of N cells.

    Parameters
    ----------
    cells
        Positions among the reference cells compared with, (N, k).
    log_overlap
        log of the integral of q(u | cell) q(u | reference cell), (N, k): how probable it is that both
        have the same latent state.
    distance
        Distance of the posterior means, (N, k).
    """

    cells: np.ndarray
    log_overlap: np.ndarray
    distance: np.ndarray


def held_out_cells(split: Split | None, usable: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return usable reference cells to calibrate on: not trained on, where there are enough of these.

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
    held_out: CiteData, query: CiteData, module: TOTALVI, missing_genes: tuple[str, ...]
) -> Iterator[tuple[int, np.ndarray, CiteData]]:
    """Yield each panel of the query, and the held-out cells as if they had been measured with it.

    With them comes which of the held-out cells they are: those with RNA in the genes of the query.
    """
    panels = np.array(held_out.schema.panel_measured)
    known, shown = panels[held_out.panel], always_shown(module, panels, held_out.panel)
    rna = held_out.rna
    if missing_genes:
        keep = ~np.isin(query.schema.gene_names, missing_genes)
        rna = sparse.csr_matrix(rna.multiply(keep[None]), dtype=np.float32)
        rna.eliminate_zeros()
    library_size = held_out.library_size
    if query.schema.keys.size_factor_key is None:
        library_size = np.asarray(rna.sum(axis=1), dtype=np.float32).ravel()
    for panel in np.unique(query.panel):
        measured = np.array(query.schema.panel_measured[panel])
        alike = replace(
            held_out,
            schema=query.schema,
            rna=rna,
            protein=np.where(measured & known, held_out.protein, np.float32(0)),
            panel=np.full_like(held_out.panel, panel),
            library_size=library_size,
        )
        kept = np.flatnonzero(library_size > 0)
        alike = alike.in_memory(kept)
        fill_unmeasured(module, alike, (shown & ~measured)[kept])
        yield int(panel), kept, alike


def encode(module: TOTALVI, data: CiteData, cells: np.ndarray) -> LatentDistribution:
    """Return q(u | cell) of the cells at these positions."""
    with threads_of_torch():
        batches = minibatches(data, module, cells, _BATCH_SIZE)
        return latent_distribution(module, batches)


class Reference:
    """Reference cells that others are compared with.

    Parameters
    ----------
    latent
        q(u | cell) of each.
    n_neighbors
        How many neighbours a cell is given.
    seed
        Of the approximate search that is used with more than 20,000 reference cells.
    """

    def __init__(self, latent: LatentDistribution, n_neighbors: int, seed: int) -> None:
        self.latent = latent
        self.n_neighbors = min(n_neighbors, len(latent.mean))
        if len(latent.mean) <= _EXACT_UP_TO:
            from sklearn.neighbors import NearestNeighbors

            self._exact = NearestNeighbors(n_neighbors=self.n_neighbors).fit(latent.mean)
            self._approximate = None
        else:
            from pynndescent import NNDescent

            self._exact = None
            self._approximate = NNDescent(
                latent.mean, n_neighbors=max(self.n_neighbors, 15), random_state=seed
            )

    def neighbours(self, cells: LatentDistribution) -> Neighbours:
        """Return the reference cells nearest to each cell."""
        if self._exact is not None:
            found = self._exact.kneighbors(cells.mean, return_distance=False)
        else:
            assert self._approximate is not None
            found = self._approximate.query(cells.mean, k=self.n_neighbors)[0]
        log_overlap = np.empty(found.shape, dtype=np.float32)
        distance = np.empty(found.shape, dtype=np.float32)
        step = max(_PAIRS_AT_ONCE // found.shape[1], 1)
        for start in range(0, len(found), step):
            rows = slice(start, start + step)
            variance = cells.variance[rows, None] + self.latent.variance[found[rows]]
            squared = (cells.mean[rows, None] - self.latent.mean[found[rows]]) ** 2
            distance[rows] = np.sqrt(squared.sum(axis=2))
            log_overlap[rows] = -0.5 * (squared / variance + np.log(variance)).sum(axis=2)
        return Neighbours(found, log_overlap, distance)
