"""Tables of a fitted model: cells, proteins and clusters."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import sparse


def cell_table(
    cell_names: pd.Index,
    batch: pd.Series | None,
    cluster: pd.Categorical,
    umap: np.ndarray,
    latent: np.ndarray,
    rna: sparse.csr_matrix | np.ndarray,
    protein: np.ndarray,
) -> pd.DataFrame:
    """One row for each cell: batch, cluster, place on the map, latent coordinates, total counts.

    Parameters
    ----------
    cell_names, batch, cluster
        One for each cell; ``batch`` None when all cells are of one.
    umap, latent
        Shape (n_cells, 2) and (n_cells, n_latent).
    rna, protein
        Raw counts, cells x features; NaN proteins are unmeasured and not summed.
    """
    width = len(str(latent.shape[1]))
    columns: dict = {
        "batch": "all cells" if batch is None else np.asarray(batch),
        "cluster": cluster,
        "umap_1": umap[:, 0],
        "umap_2": umap[:, 1],
        "rna_total": np.asarray(rna.sum(axis=1)).ravel(),
        "protein_total": np.nansum(protein, axis=1),
    }
    columns |= {f"latent_{i + 1:0{width}}": latent[:, i] for i in range(latent.shape[1])}
    return pd.DataFrame(columns, index=pd.Index(cell_names, name="cell"))


def protein_table(
    separation: pd.DataFrame,
    raw: np.ndarray,
    denoised: np.ndarray,
    foreground_probability: np.ndarray,
) -> pd.DataFrame:
    """One row for each protein: its means and how well its antibody separates.

    Parameters
    ----------
    separation
        From :func:`totalvi.analysis.separation.antibody_separation`.
    raw, denoised, foreground_probability
        Shape (n_cells, n_proteins); means are over cells where ``raw`` is not NaN.

    Returns
    -------
    pandas.DataFrame
        ``separation`` with the columns ``raw_mean`` and ``denoised_foreground_mean`` (over cells
        with a foreground probability above one half).
    """
    measured = ~np.isnan(raw)
    foreground = measured & (foreground_probability > 0.5)
    means = {
        "raw_mean": _mean_where(raw, measured),
        "denoised_foreground_mean": _mean_where(denoised, foreground),
    }
    table = pd.concat([pd.DataFrame(means, index=separation.index), separation], axis=1)
    return table[[*(c for c in table if c != "warning"), "warning"]]


def cluster_table(
    cluster: pd.Categorical,
    batch: pd.Series | None,
    denoised: np.ndarray,
    protein_names: Sequence[str],
) -> pd.DataFrame:
    """One row for each cluster: size, cells from each batch, mean denoised proteins."""
    table = pd.DataFrame({"cells": cluster.value_counts()})
    table["percent_of_cells"] = 100 * table["cells"] / len(cluster)
    if batch is not None:
        batches = pd.crosstab(cluster, np.asarray(batch).astype(str))
        table = table.join(batches.add_prefix("cells_in_batch_"))
    means = pd.DataFrame(denoised, columns=list(protein_names)).groupby(np.asarray(cluster)).mean()
    return table.join(means.add_prefix("denoised_")).rename_axis("cluster")


def _mean_where(values: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Mean of each column over the marked rows, NaN where there are none."""
    n_cells = where.sum(axis=0)
    sums = np.where(where, values, 0.0).sum(axis=0, dtype=np.float64)
    return np.divide(sums, n_cells, out=np.full(len(sums), np.nan), where=n_cells > 0)
