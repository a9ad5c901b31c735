"""Tables of a fitted model: its proteins, their background, and what marks its clusters."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from mudata import MuData
from scipy import sparse
from scipy.stats import false_discovery_control, norm

from totalvi.data.background.ambient import AMBIENT
from totalvi.errors import listed
from totalvi.posterior.gates.memberships import UNDECIDED
from totalvi.run.count_splitting import with_rna

if TYPE_CHECKING:
    from totalvi.model import Model

_GROUP = "__totalvi_group__"  # a column of obs while groups are compared


def protein_table(
    separation: pd.DataFrame,
    raw: np.ndarray,
    denoised: np.ndarray,
    foreground_probability: np.ndarray,
) -> pd.DataFrame:
    """Return one row for each protein: its means, and how well its antibody separates.

    Parameters
    ----------
    separation
        From :func:`totalvi.posterior.antibody_separation.antibody_separation`.
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


def _mean_where(values: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Return the mean of each column over the marked rows, NaN if there are none."""
    n_cells = where.sum(axis=0)
    sums = np.where(where, values, 0.0).sum(axis=0, dtype=np.float64)
    means: np.ndarray = np.divide(sums, n_cells, out=np.full(len(sums), np.nan), where=n_cells > 0)
    return means


def expression_by_group(
    model: "Model", cells: MuData, group: pd.Categorical, *, is_held_out: bool, fewest: int = 1
) -> pd.DataFrame | None:
    """Return the differential expression of each group of cells against the others.

    Parameters
    ----------
    cells
        Those of the model, some of them, or these with counts that are held out.
    group
        Of each cell. Groups of fewer cells with RNA than ``fewest``, and "undecided", are only among
        the others.

    Returns
    -------
    As :meth:`totalvi.Model.differential_expression`, with the column ``tested_on``. None where no
    group can be compared.
    """
    sizes = group[np.asarray(cells["rna"].X.sum(axis=1)).ravel() > 0].value_counts()
    enough = sizes.index[(sizes >= fewest) & (sizes.index != UNDECIDED)]
    if not len(enough) or (sizes > 0).sum() < 2:
        return None
    cells.obs[_GROUP] = group
    try:
        table = model.differential_expression(
            with_rna(cells) if is_held_out else cells,
            groupby=_GROUP, group1=[str(name) for name in enough], progress=False,
        )  # fmt: skip
    finally:
        del cells.obs[_GROUP]
    return table.assign(tested_on=tested_on(is_held_out))


def tested_on(is_held_out: bool) -> str:
    """Return in a few words which counts clusters are tested on, for the tables that test them."""
    return "held-out counts" if is_held_out else "counts that the clusters were found in"


def background_tables(model: "Model", mdata: MuData) -> tuple[dict[str, pd.DataFrame], list[str]]:
    """Return tables of the empty droplets and isotype controls, where there are any, and warnings.

    ``ambient``: what the droplets hold; ``isotype_controls`` and ``background``: how the estimated
    background agrees with the controls, by control and by protein.
    """
    tables, warnings = {}, []
    if AMBIENT in mdata.uns:
        tables["ambient"] = _with_deviation(mdata.uns[AMBIENT].set_index("protein"), model)
        warnings = [
            finding.message
            for finding in model.findings
            if finding.code == "empty_droplets_agreement" and finding.severity == "warning"
        ]
    if not model.schema.control_names:
        return tables, warnings
    check = model.check_isotype_controls()
    tables |= {"isotype_controls": check.controls, "background": check.proteins}
    high = check.proteins.index[check.proteins["warning"] != ""]
    if len(high):
        warnings.append(
            f"{len(high)} of {len(check.proteins)} proteins: the background is far above the isotype "
            f"controls, {listed(high)}; it may be signal that most cells have, see "
            "tables/background.csv."
        )
    return tables, warnings


def _with_deviation(ambient: pd.DataFrame, model: "Model") -> pd.DataFrame:
    """Add the log of the fitted background, and by how much its profile deviates from the droplets'."""
    data, module, schema = model._training_data(), model.module, model.schema
    scale = module.background_prior_log_scale.exp()
    log_mean = (module.background_prior_mean + scale**2 / 2).detach().cpu().numpy()
    parts = []
    for batch, rows in ambient.groupby("batch", sort=False):
        cells = np.array(schema.batch_names)[data.batch] == batch
        panels = np.unique(data.panel[cells] if cells.any() else data.panel)
        of_panels = pd.Series(log_mean[panels].mean(axis=0), index=list(schema.protein_names))
        own = of_panels.reindex(rows.index).to_numpy()
        away = own - rows["log_mean"].to_numpy()
        parts.append(rows.assign(log_background=own, deviation=away - np.nanmedian(away)))
    return pd.concat(parts)


GENES_PER_CLUSTER = 100
GENES_AT_A_TIME = 256
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
    protein_counts: np.ndarray,
    denoised_protein: np.ndarray,
    foreground_probability: np.ndarray,
    protein_names: Sequence[str],
    batch: np.ndarray | None = None,
    n_genes: int = GENES_PER_CLUSTER,
) -> pd.DataFrame:
    """Return the features that mark each cluster against all other cells.

    Genes are tested on raw counts scaled to the median library size. Proteins are tested on raw counts,
    each batch within itself: denoised values follow the latent space in which the clusters were found,
    so that any protein would seem to mark them. Where clusters were found in the same counts, and cut
    one population of cells, rather than part two, p is too small; see `totalvi.split_counts`.

    Parameters
    ----------
    cluster
        Cluster of each cell.
    rna
        Raw counts, shape (n_cells, n_genes).
    gene_names, protein_names
        Names of the columns.
    protein_counts, denoised_protein, foreground_probability
        Shape (n_cells, n_proteins); counts are NaN where they were not measured, and what the others
        hold there does not count.
    batch
        Code of each cell's batch; None: there is one.
    n_genes
        Genes kept for each cluster, those of the highest score; all proteins are kept.

    Returns
    -------
    pandas.DataFrame
        Sorted by modality, cluster and falling score; columns ``modality`` ("rna" or "protein"),
        ``feature``, ``cluster``, ``log2_fold_change`` of the mean of scaled counts
        (genes) or denoised counts (proteins), with a pseudocount of 0.01 or 1; ``score``, the
        standardised rank sum; ``p`` and ``adjusted_p``
        (Benjamini-Hochberg within modality and cluster); ``fraction_in`` and ``fraction_out``:
        of the cells in the cluster and outside, with a count (genes) or with a foreground
        probability above one half (proteins). Fold change and fractions of a protein are over the
        cells that measured it, and NaN where there is none in the cluster or outside. Empty with
        one cluster.
    """
    if len(cluster.categories) < 2:
        return pd.DataFrame(columns=COLUMNS)
    total = np.maximum(np.asarray(rna.sum(axis=1), dtype=np.float64).ravel(), 1.0)
    n_clusters = len(cluster.categories)
    blocks = (
        (rank_sum_scores(values, cluster.codes, n_clusters), values, expressed)
        for values, expressed in _scaled_blocks(rna, np.median(total) / total)
    )
    size = np.bincount(cluster.codes, minlength=n_clusters)[:, None]
    genes = _marks(cluster, blocks, size, gene_names, GENE_PSEUDOCOUNT)
    scores = _scores_within_batches(protein_counts, cluster.codes, n_clusters, batch)
    measured = ~np.isnan(protein_counts)
    denoised = _clean(sparse.csc_matrix(np.where(measured, denoised_protein, 0)))
    foreground = sparse.csc_matrix(measured & (foreground_probability > 0.5))
    proteins = _marks(
        cluster,
        [(scores, denoised, foreground)],
        _sums(cluster, sparse.csc_matrix(measured)),
        protein_names,
        PROTEIN_PSEUDOCOUNT,
    )
    genes = genes.groupby("cluster", observed=True, sort=False).head(n_genes)
    table = pd.concat([genes.assign(modality="rna"), proteins.assign(modality="protein")])
    return table[COLUMNS].reset_index(drop=True)


def _scaled_blocks(
    counts: sparse.csr_matrix, factor: np.ndarray
) -> Iterator[tuple[sparse.csc_matrix, sparse.csc_matrix]]:
    """Yield some genes after the other: counts times each cell's factor, and which there are."""
    for first in range(0, counts.shape[1], GENES_AT_A_TIME):
        block = _clean(counts[:, first : first + GENES_AT_A_TIME].tocsc())
        expressed = block > 0
        block.data *= factor[block.indices]
        yield block, expressed


def _clean(values: sparse.csc_matrix) -> sparse.csc_matrix:
    """Return float64 without stored zeros."""
    values = values.astype(np.float64)
    values.eliminate_zeros()
    return values


def rank_sum_scores(values: sparse.csc_matrix, group: np.ndarray, n_groups: int) -> np.ndarray:
    """Return standardised Wilcoxon rank sums of each group against all others, corrected for ties.

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
    return _standardised(*_rank_sums(values, group, n_groups))


def _scores_within_batches(
    counts: np.ndarray, group: np.ndarray, n_groups: int, batch: np.ndarray | None
) -> np.ndarray:
    """Return rank sums of each batch within itself, added up and standardised (van Elteren, 1960).

    Of each batch the cells count that measured the protein.
    """
    excess, variance = np.zeros((2, n_groups, counts.shape[1]))
    batch = np.zeros(len(group), dtype=np.int64) if batch is None else batch
    for cells in (np.flatnonzero(batch == code) for code in np.unique(batch)):
        measured = ~np.isnan(counts[cells])
        for pattern in np.unique(measured, axis=1).T:
            some, features = cells[pattern], (measured == pattern[:, None]).all(axis=0)
            values = _clean(sparse.csc_matrix(counts[np.ix_(some, features)]))
            of_batch, its_variance = _rank_sums(values, group[some], n_groups)
            excess[:, features] += of_batch / (len(some) + 1)
            variance[:, features] += its_variance / (len(some) + 1) ** 2
    return _standardised(excess, variance)


def _standardised(excess: np.ndarray, variance: np.ndarray) -> np.ndarray:
    scores: np.ndarray = np.divide(
        excess, np.sqrt(variance), out=np.zeros(excess.shape), where=variance > 0
    )
    return scores


def _rank_sums(
    values: sparse.csc_matrix, group: np.ndarray, n_groups: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return how far each group's rank sum is above chance, and its variance by chance."""
    n_cells, n_features = values.shape
    size = np.bincount(group, minlength=n_groups).astype(np.float64)
    excess, variance = np.zeros((2, n_groups, n_features))
    for feature in range(n_features):
        stored = slice(values.indptr[feature], values.indptr[feature + 1])
        cells = group[values.indices[stored]]
        ranks, n_tied = _ranks(values.data[stored])
        n_zero = n_cells - len(ranks)
        n_stored = np.bincount(cells, minlength=n_groups)
        of_stored = np.bincount(cells, weights=n_zero + ranks, minlength=n_groups)
        rank_sum = of_stored + (size - n_stored) * (n_zero + 1) / 2
        ties = np.append(n_tied, n_zero).astype(np.float64)
        untied = 1 - (ties**3 - ties).sum() / max(float(n_cells) ** 3 - n_cells, 1.0)
        variance[:, feature] = untied * size * (n_cells - size) * (n_cells + 1) / 12
        excess[:, feature] = rank_sum - size * (n_cells + 1) / 2
    return excess, variance


def _ranks(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the rank of each value from 1, the mean rank where they tie, and the sizes of ties.

    Examples
    --------
    >>> _ranks(np.array([5.0, 1.0, 5.0]))
    (array([2.5, 1. , 2.5]), array([1, 2]))
    """
    order = np.argsort(values)
    ordered = values[order]
    begins = np.append(True, ordered[1:] != ordered[:-1])[: len(values)]
    n_tied = np.diff(np.append(np.flatnonzero(begins), len(values)))
    mean_rank = np.cumsum(n_tied) - (n_tied - 1) / 2
    ranks = np.empty(len(values))
    ranks[order] = np.repeat(mean_rank, n_tied)
    return ranks, n_tied


def _marks(
    cluster: pd.Categorical,
    blocks: Iterable[tuple[np.ndarray, sparse.csc_matrix, sparse.csc_matrix]],
    n_measured: np.ndarray,
    names: Sequence[str],
    pseudocount: float,
) -> pd.DataFrame:
    """Return one row for each cluster and feature, by falling score within the cluster.

    ``blocks`` are scores and values of the next features, and in which cells they are present;
    ``n_measured`` cells of each cluster measured each feature, or all features, (clusters, 1).
    """
    n_groups = len(cluster.categories)
    parts = [
        (scores, _sums(cluster, values), _sums(cluster, expressed))
        for scores, values, expressed in blocks
    ]
    scores, total, n_expressing = (
        np.concatenate(part, axis=1) for part in zip(*parts, strict=True)
    )
    mean_in, mean_out = _in_and_out(total, n_measured)
    fraction_in, fraction_out = _in_and_out(n_expressing, n_measured)
    p = 2 * norm.sf(np.abs(scores))
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


def _sums(cluster: pd.Categorical, values: sparse.csc_matrix) -> np.ndarray:
    """Return the sum of each feature over the cells of each cluster."""
    member = sparse.csr_array(
        (np.ones(len(cluster)), (cluster.codes, np.arange(len(cluster)))),
        shape=(len(cluster.categories), len(cluster)),
    )
    return np.asarray((member @ values.astype(np.float64)).todense())


def _in_and_out(total: np.ndarray, n_cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the means of each feature in each cluster and outside it; NaN: over no cell."""
    sums = (total, total.sum(axis=0) - total)
    sizes = (n_cells, n_cells.sum(axis=0) - n_cells)
    inside, outside = (
        part / np.where(n > 0, n, np.nan) for part, n in zip(sums, sizes, strict=True)
    )
    return inside, outside
