"""Clusters and a map of the cells, both on one graph of neighbours in the latent space."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import igraph
import numpy as np
import pandas as pd
from scipy import sparse

from totalvi.errors import DataError
from totalvi.fit.batches import some_of_each
from totalvi.mapping.reference_neighbours import nearest, nearest_to_each
from totalvi.run.map_layout import lay_out, neighbour_weights

NEIGHBOURS = 15  # of a cell, itself included
LEIDEN_ITERATIONS = 2
MAP_CELLS = 100_000
"""Cells that are clustered and mapped at once; further ones join the nearest of them."""
AS_SCANPY = 8192
"""Cells up to which clusters are those of scanpy."""


class Clusters(NamedTuple):
    """Clusters and map of the cells.

    Attributes
    ----------
    labels
        One cluster for each cell, named ``"0"`` (the largest), ``"1"``, ...
    umap
        Shape (n_cells, 2), float32.
    """

    labels: pd.Categorical
    umap: np.ndarray


def cells_to_map(batch: pd.Series | None, n_cells: int) -> np.ndarray:
    """Return the cells that are clustered and mapped at once, ascending: `MAP_CELLS`, or all.

    They are spread evenly over each batch.

    Examples
    --------
    >>> cells_to_map(None, 3)
    array([0, 1, 2])
    """
    codes = np.zeros(n_cells) if batch is None else pd.factorize(batch)[0]
    return some_of_each(codes, -(-MAP_CELLS // len(np.unique(codes))))


def cluster_all(
    latent: np.ndarray, sample: np.ndarray, *, resolution: float = 1.0, seed: int = 0
) -> Clusters:
    """Cluster and map the cells of a sample, and assign all others to the nearest of them.

    Parameters
    ----------
    latent
        Latent representation of all cells, (n_cells, n_latent).
    sample
        From `cells_to_map`.
    resolution, seed
        As in `cluster_cells`.
    """
    latent = np.asarray(latent, dtype=np.float32)
    found = cluster_cells(latent[sample], resolution=resolution, seed=seed)
    return join_nearest(latent, sample, found)


def cluster_cells(latent: np.ndarray, *, resolution: float = 1.0, seed: int = 0) -> Clusters:
    """Cluster the cells with Leiden and lay them out with UMAP.

    Parameters
    ----------
    latent
        Latent representation, shape (n_cells, n_latent).
    resolution
        Higher gives more clusters.
    seed
        The same seed gives the same clusters and map.

    Raises
    ------
    DataError
        With fewer than 5 cells, which is too few for a map.
    """
    n_cells = len(latent)
    if n_cells < 5:
        raise DataError(f"{n_cells} cells are too few to cluster; give at least 5.")
    latent = np.asarray(latent, dtype=np.float32)
    weights = neighbour_weights(nearest_to_each(latent, NEIGHBOURS))
    # Each edge once is half the work: modularity is the same, though ties fall otherwise.
    edges = weights.tocoo() if n_cells <= AS_SCANPY else sparse.triu(weights, format="coo")
    return Clusters(_leiden(edges, resolution, seed), lay_out(latent, weights, seed))


def _leiden(graph: sparse.coo_matrix, resolution: float, seed: int) -> pd.Categorical:
    """Cluster the cells by modularity, and name clusters "0", "1", ... by falling size."""
    ends = zip(graph.row.tolist(), graph.col.tolist(), strict=True)  # faster than arrays
    edges = igraph.Graph(n=graph.shape[0], edges=ends)
    with _drawing_from(np.random.RandomState(seed)):
        membership = edges.community_leiden(
            objective_function="modularity",
            weights=graph.data,
            resolution=resolution,
            n_iterations=LEIDEN_ITERATIONS,
        ).membership
    return _by_size(pd.Series(membership).astype(str))


class _Bits:
    """A random number generator for igraph, like the one that scanpy gives it.

    Parameters
    ----------
    source
        Its state changes.
    """

    def __init__(self, source: np.random.RandomState) -> None:
        self._source = source

    def getrandbits(self, k: int) -> int:
        """Return ``k`` random bits."""
        return int(self._source.tomaxint()) & ((1 << k) - 1)

    def randint(self, first: int, last: int) -> int:
        """Return a random integer between both, which may be either."""
        return int(self._source.randint(first, last + 1))

    def random(self) -> float:
        """Return a random number from 0 to 1."""
        return float(self._source.random_sample())

    def gauss(self, mean: float, deviation: float) -> float:
        """Return a normal random number."""
        return float(self._source.normal(mean, deviation))


@contextmanager
def _drawing_from(source: np.random.RandomState) -> Iterator[None]:
    """Make igraph draw from ``source`` instead of Python's global generator."""
    igraph.set_random_number_generator(_Bits(source))
    try:
        yield
    finally:
        igraph.set_random_number_generator(random)


def _by_size(cluster: pd.Series) -> pd.Categorical:
    """Rename clusters "0", "1", ... by falling size."""
    ranked = cluster.value_counts().index
    names = [str(rank) for rank in range(len(ranked))]
    return pd.Categorical(cluster.map(dict(zip(ranked, names, strict=True))), categories=names)


def join_nearest(latent: np.ndarray, sample: np.ndarray, found: Clusters) -> Clusters:
    """Extend the clusters and map of a sample to all cells.

    A cell outside of the sample gets the cluster that most of its nearest sampled cells have, and the
    mean place of those.

    Parameters
    ----------
    latent
        Of all cells, (N, n_latent).
    sample
        Positions of the sampled cells, ascending.
    found
        Their clusters and map.
    """
    if len(sample) == len(latent):
        return found
    code = found.labels.codes.astype(np.int64).copy()
    codes, umap = np.empty(len(latent), dtype=np.int64), np.empty((len(latent), 2), np.float32)
    codes[sample], umap[sample] = code, found.umap
    others = np.setdiff1d(np.arange(len(latent)), sample)
    for some in np.array_split(others, -(-len(others) // 50_000)):
        near = nearest(latent[some], latent[sample], NEIGHBOURS).points
        votes = np.zeros((len(some), len(found.labels.categories)), dtype=np.int64)
        np.add.at(votes, (np.arange(len(some))[:, None], code[near]), 1)
        codes[some] = votes.argmax(axis=1)
        winners = code[near] == codes[some][:, None]
        umap[some] = (found.umap[near] * winners[..., None]).sum(axis=1)
        umap[some] /= winners.sum(axis=1, keepdims=True)
    return Clusters(pd.Categorical.from_codes(codes, dtype=found.labels.dtype), umap)


NEIGHBORS = 30
MAX_CELLS = 50_000  # searched among
MAX_ASKED = 5_000  # whose neighbours are counted


def batch_mixing(latent: np.ndarray, batch: pd.Series, seed: int = 0) -> pd.DataFrame:
    """Compare how often a cell's neighbours are of other batches with what chance would give.

    Among the 30 nearest cells in the latent space, the share from other batches is averaged over the
    cells of each batch. Chance gives the share of all cells that are from other batches. Batches that
    hold different cell types mix less than chance even when nothing technical is left.

    Parameters
    ----------
    latent, batch
        Latent representation, shape (n_cells, n_latent), and batch of each cell.
    seed
        Seed of the sample of cells, if there are more than 50,000.

    Returns
    -------
    pandas.DataFrame
        Indexed by batch: ``cells``; ``percent_other_neighbors``; ``percent_other_by_chance``; and
        ``mixing``, their ratio: 1 for random batches, 0 for separate ones. NaN with one batch.

    Examples
    --------
    >>> latent = np.random.default_rng(0).normal(size=(400, 3))
    >>> batch = pd.Series(np.arange(400) % 2)
    >>> batch_mixing(latent, batch)["mixing"].between(0.9, 1.1).all()
    np.True_
    """
    codes, names = pd.factorize(batch.astype(str), sort=True)
    rng = np.random.default_rng(seed)
    searched = np.sort(rng.permutation(len(codes))[:MAX_CELLS])
    asked = np.sort(rng.permutation(len(searched))[:MAX_ASKED])
    n_neighbors = min(NEIGHBORS, len(searched) - 1)
    found = nearest(latent[searched[asked]], latent[searched], n_neighbors + 1).points
    own = codes[searched][asked]
    is_other = codes[searched][found] != own[:, None]
    # The cell itself is among its neighbours, though not always first where cells coincide.
    observed = is_other.sum(axis=1) / n_neighbors
    n_cells = np.bincount(codes, minlength=len(names))
    n_asked = np.bincount(own, minlength=len(names))
    total = np.bincount(own, weights=observed, minlength=len(names))
    mean = np.divide(total, n_asked, out=np.full(len(names), np.nan), where=n_asked > 0)
    in_search = np.bincount(codes[searched], minlength=len(names))
    chance = (len(searched) - in_search) / max(len(searched) - 1, 1)
    return pd.DataFrame(
        {
            "cells": n_cells,
            "percent_other_neighbors": 100 * mean,
            "percent_other_by_chance": 100 * chance,
            "mixing": np.divide(mean, chance, out=np.full(len(names), np.nan), where=chance > 0),
        },
        index=pd.Index(names, name="batch"),
    )
