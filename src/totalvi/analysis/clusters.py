"""Neighbours, clusters and a map of the cells in the latent space."""

import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import pandas as pd
import scanpy as sc
import torch
from anndata import AnnData

from totalvi.errors import DataError

NEIGHBORS = 15  # of a cell, itself included


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


def cluster_cells(latent: np.ndarray, *, resolution: float = 1.0, seed: int = 0) -> Clusters:
    """Cluster the cells with Leiden and lay them out with UMAP, both on one neighbour graph.

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
        raise DataError(f"{n_cells} cells are too few to cluster: give at least 5")
    cells = AnnData(obsm={"X_totalvi": np.asarray(latent, dtype=np.float32)})
    with warnings.catch_warnings(), _globals_kept():
        warnings.simplefilter("ignore")  # scanpy and UMAP warn of their own coming versions
        sc.pp.neighbors(
            cells, n_neighbors=min(NEIGHBORS, n_cells), use_rep="X_totalvi", random_state=seed
        )
        sc.tl.leiden(
            cells,
            resolution=resolution,
            flavor="igraph",
            n_iterations=2,
            directed=False,
            random_state=seed,
        )
        # A spectral start needs more cells than eigenvectors with room to spare.
        start = "spectral" if n_cells >= 50 else "random"
        sc.tl.umap(cells, init_pos=start, random_state=seed)
    return Clusters(_by_size(cells.obs["leiden"]), cells.obsm["X_umap"].astype(np.float32))


@contextmanager
def _globals_kept() -> Iterator[None]:
    # Leiden draws from Python's global generator, and numba's OpenMP pool, which UMAP starts, sets
    # the number of threads that torch shares with it.
    random_state, n_threads = random.getstate(), torch.get_num_threads()
    try:
        yield
    finally:
        random.setstate(random_state)
        torch.set_num_threads(n_threads)


def _by_size(cluster: pd.Series) -> pd.Categorical:
    """Rename clusters "0", "1", ... by falling size."""
    ranked = cluster.value_counts().index
    names = [str(rank) for rank in range(len(ranked))]
    return pd.Categorical(cluster.map(dict(zip(ranked, names, strict=True))), categories=names)
