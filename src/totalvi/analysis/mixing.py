"""How well the latent space mixes the batches."""

import numpy as np
import pandas as pd

from totalvi.neighbours import nearest

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
    latent
        Latent representation, shape (n_cells, n_latent).
    batch
        Batch of each cell.
    seed
        Of the sample of cells that is taken of more than 50,000.

    Returns
    -------
    pandas.DataFrame
        Indexed by batch: ``cells``; ``percent_other_neighbors``; ``percent_other_by_chance``; and
        ``mixing``, their ratio: 1 as if batches were dealt out at random, 0 apart. NaN with one
        batch.

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
