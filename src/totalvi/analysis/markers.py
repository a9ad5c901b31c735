"""Genes and proteins that mark a cluster, by Wilcoxon rank-sum tests on sparse counts."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import sparse
from scipy.stats import false_discovery_control, norm, rankdata

GENES_PER_CLUSTER = 100
GENE_PSEUDOCOUNT = 0.01
PROTEIN_PSEUDOCOUNT = 1.0
COLUMNS = [
    "modality",
    "feature",
    "cluster",
    "log2_fold_change",
    "score",
    "p",
    "adjusted_p",
    "fraction_in",
    "fraction_out",
]


def marker_table(
    cluster: pd.Categorical,
    rna: sparse.csr_matrix,
    gene_names: Sequence[str],
    denoised_protein: np.ndarray,
    foreground_probability: np.ndarray,
    protein_names: Sequence[str],
    n_genes: int = GENES_PER_CLUSTER,
) -> pd.DataFrame:
    """Table the features that mark each cluster against all other cells.

    Genes are tested on raw counts scaled to the median library size, proteins on denoised counts.

    Parameters
    ----------
    cluster
        Cluster of each cell.
    rna
        Raw counts, shape (n_cells, n_genes).
    gene_names, protein_names
        Names of the columns.
    denoised_protein, foreground_probability
        Shape (n_cells, n_proteins).
    n_genes
        Genes kept for each cluster, those of the highest score; all proteins are kept.

    Returns
    -------
    pandas.DataFrame
        Sorted by modality, cluster and falling score; columns ``modality`` ("rna" or "protein"),
        ``feature``, ``cluster``, ``log2_fold_change`` of the mean, with a pseudocount of 0.01
        (genes) or 1 (proteins); ``score``, the standardised rank sum; ``p`` and ``adjusted_p``
        (Benjamini-Hochberg within modality and cluster); ``fraction_in`` and ``fraction_out``:
        of the cells in the cluster and outside, with a count (genes) or with a foreground
        probability above one half (proteins). Empty with one cluster.
    """
    if len(cluster.categories) < 2:
        return pd.DataFrame(columns=COLUMNS)
    total = np.maximum(np.asarray(rna.sum(axis=1), dtype=np.float64).ravel(), 1.0)
    scaled = sparse.diags_array(np.median(total) / total) @ rna
    genes = _test(cluster, scaled, rna > 0, gene_names, GENE_PSEUDOCOUNT)
    proteins = _test(
        cluster,
        sparse.csr_matrix(denoised_protein),
        sparse.csr_matrix(foreground_probability > 0.5),
        protein_names,
        PROTEIN_PSEUDOCOUNT,
    )
    genes = genes.groupby("cluster", observed=True, sort=False).head(n_genes)
    table = pd.concat([genes.assign(modality="rna"), proteins.assign(modality="protein")])
    return table[COLUMNS].reset_index(drop=True)


def rank_sum_scores(values: sparse.csc_matrix, group: np.ndarray, n_groups: int) -> np.ndarray:
    """Standardised Wilcoxon rank sums of each group against all others, corrected for ties.

    Only stored values are ranked: all zeros tie below them.

    Parameters
    ----------
    values
        Non-negative, shape (n_cells, n_features), without stored zeros.
    group
        Group of each cell, 0 to ``n_groups - 1``.

    Returns
    -------
    numpy.ndarray
        Shape (n_groups, n_features); 0 where all values of a feature are the same.
    """
    n_cells, n_features = values.shape
    size = np.bincount(group, minlength=n_groups).astype(np.float64)
    scores = np.zeros((n_groups, n_features))
    for feature in range(n_features):
        stored = slice(values.indptr[feature], values.indptr[feature + 1])
        cells, ranks = group[values.indices[stored]], rankdata(values.data[stored])
        n_zero = n_cells - len(ranks)
        n_stored = np.bincount(cells, minlength=n_groups)
        of_stored = np.bincount(cells, weights=n_zero + ranks, minlength=n_groups)
        rank_sum = of_stored + (size - n_stored) * (n_zero + 1) / 2
        ties = np.append(np.unique(ranks, return_counts=True)[1], n_zero).astype(np.float64)
        untied = 1 - (ties**3 - ties).sum() / max(float(n_cells) ** 3 - n_cells, 1.0)
        variance = untied * size * (n_cells - size) * (n_cells + 1) / 12
        excess = rank_sum - size * (n_cells + 1) / 2
        np.divide(excess, np.sqrt(variance), out=scores[:, feature], where=variance > 0)
    return scores


def _test(
    cluster: pd.Categorical,
    values: sparse.csr_matrix,
    expressed: sparse.csr_matrix,
    names: Sequence[str],
    pseudocount: float,
) -> pd.DataFrame:
    """One row for each cluster and feature, by falling score within the cluster."""
    n_groups = len(cluster.categories)
    columns = values.tocsc().astype(np.float64)
    columns.eliminate_zeros()
    scores = rank_sum_scores(columns, cluster.codes, n_groups)
    p = 2 * norm.sf(np.abs(scores))
    mean_in, mean_out = _means(cluster, columns)
    fraction_in, fraction_out = _means(cluster, expressed)
    tables = []
    for group in range(n_groups):
        order = np.argsort(-scores[group], kind="stable")
        tables.append(
            pd.DataFrame(
                {
                    "feature": np.asarray(names, dtype=object)[order],
                    "cluster": cluster.categories[group],
                    "log2_fold_change": np.log2(
                        (mean_in[group] + pseudocount) / (mean_out[group] + pseudocount)
                    )[order],
                    "score": scores[group][order],
                    "p": p[group][order],
                    "adjusted_p": false_discovery_control(p[group])[order],
                    "fraction_in": fraction_in[group][order],
                    "fraction_out": fraction_out[group][order],
                }
            )
        )
    return pd.concat(tables, ignore_index=True)


def _means(
    cluster: pd.Categorical, values: sparse.csr_matrix | sparse.csc_matrix
) -> tuple[np.ndarray, np.ndarray]:
    """Mean of each feature in each cluster, and in all cells outside it."""
    member = sparse.csr_array(
        (np.ones(len(cluster)), (cluster.codes, np.arange(len(cluster)))),
        shape=(len(cluster.categories), len(cluster)),
    )
    sums = np.asarray((member @ values.astype(np.float64)).todense())
    size = np.bincount(cluster.codes, minlength=len(cluster.categories))[:, None]
    return sums / size, (sums.sum(axis=0) - sums) / np.maximum(len(cluster) - size, 1)
