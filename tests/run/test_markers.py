"""Markers against independent rank-sum tests."""

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from scipy.stats import false_discovery_control, mannwhitneyu, norm

from totalvi.run.tables import COLUMNS, marker_table, rank_sum_scores

rng = np.random.default_rng(0)
N_CELLS = 150
CLUSTER = pd.Categorical(rng.choice(["0", "1", "2"], N_CELLS, p=[0.5, 0.3, 0.2]))
RNA = rng.poisson(0.4, (N_CELLS, 12)).astype(np.float64)
RNA[CLUSTER == "1", 3] += rng.poisson(3, (CLUSTER == "1").sum())
RNA[:, 5] = 0
RNA[:, 6] = 2
GENES = [f"gene{i}" for i in range(12)]
PROTEINS = ["CD3", "CD19"]
DENOISED = rng.gamma(1.0, 20.0, (N_CELLS, 2)) * np.where(CLUSTER == "2", 9, 1)[:, None]
FOREGROUND = rng.random((N_CELLS, 2))
COUNTS = rng.poisson(DENOISED).astype(np.float64)


def table(**options: int) -> pd.DataFrame:
    rna = sparse.csr_matrix(RNA)
    return marker_table(CLUSTER, rna, GENES, COUNTS, DENOISED, FOREGROUND, PROTEINS, **options)


def test_scores_and_p_values_are_those_of_mann_whitney() -> None:
    scores = rank_sum_scores(sparse.csc_matrix(RNA), CLUSTER.codes, 3)
    for group in range(3):
        inside = CLUSTER.codes == group
        for gene in range(12):
            x, y = RNA[inside, gene], RNA[~inside, gene]
            if len(np.unique(RNA[:, gene])) == 1:
                assert scores[group, gene] == 0
                continue
            known = mannwhitneyu(x, y, method="asymptotic", use_continuity=False)
            mean = len(x) * len(y) / 2
            z = np.sign(known.statistic - mean) * np.abs(scores[group, gene])
            assert scores[group, gene] == pytest.approx(z)
            assert 2 * norm.sf(abs(scores[group, gene])) == pytest.approx(known.pvalue)


def test_table_holds_each_protein_and_the_best_genes_by_cluster() -> None:
    found = table(n_genes=5)
    assert found.columns.tolist() == COLUMNS
    sizes = found.groupby(["modality", "cluster"], observed=True).size()
    assert sizes.to_dict() == {
        (modality, cluster): size
        for modality, size in (("protein", 2), ("rna", 5))
        for cluster in ("0", "1", "2")
    }
    genes = found[(found.modality == "rna") & (found.cluster == "1")]
    assert genes.feature.iloc[0] == "gene3"
    assert genes.log2_fold_change.iloc[0] > 1
    assert (np.diff(genes.score) <= 0).all()
    proteins = found[(found.modality == "protein") & (found.cluster == "2")]
    assert (proteins.score > 3).all()


def test_fractions_and_fold_changes_are_those_of_the_cells() -> None:
    found = table(n_genes=12)
    total = RNA.sum(axis=1)
    scaled = RNA * (np.median(total) / total)[:, None]
    for row in found.itertuples():
        inside = row.cluster == CLUSTER
        if row.modality == "rna":
            values, pseudocount = scaled[:, GENES.index(row.feature)], 0.01
            present = values > 0
        else:
            values, pseudocount = DENOISED[:, PROTEINS.index(row.feature)], 1.0
            present = FOREGROUND[:, PROTEINS.index(row.feature)] > 0.5
        assert row.fraction_in == pytest.approx(present[inside].mean())
        assert row.fraction_out == pytest.approx(present[~inside].mean())
        ratio = (values[inside].mean() + pseudocount) / (values[~inside].mean() + pseudocount)
        assert row.log2_fold_change == pytest.approx(np.log2(ratio), abs=1e-5)
    one = found[(found.modality == "rna") & (found.cluster == "0")]
    np.testing.assert_allclose(one.adjusted_p, false_discovery_control(one.p))


def test_cells_whose_panel_lacks_a_protein_do_not_count_for_it() -> None:
    """What the model imputes there, however high, is no measurement of the cluster."""
    unmeasured = rng.random(N_CELLS) < 0.4
    counts, denoised, foreground = COUNTS.copy(), DENOISED.copy(), FOREGROUND.copy()
    counts[unmeasured, 0] = np.nan
    counts[CLUSTER == "1", 1] = np.nan
    denoised[unmeasured, 0], foreground[unmeasured, 0] = 1e6, 1.0
    rna = sparse.csr_matrix(RNA)
    found = marker_table(CLUSTER, rna, GENES, counts, denoised, foreground, PROTEINS)
    proteins = found[found.modality == "protein"].set_index(["feature", "cluster"])
    for cluster in ("0", "1", "2"):
        inside, outside = ((cluster == CLUSTER) == of for of in (True, False))
        row = proteins.loc[("CD3", cluster)]
        means = [DENOISED[cells & ~unmeasured, 0].mean() for cells in (inside, outside)]
        assert row.log2_fold_change == pytest.approx(np.log2((means[0] + 1) / (means[1] + 1)))
        for cells, fraction in ((inside, row.fraction_in), (outside, row.fraction_out)):
            assert fraction == pytest.approx((FOREGROUND[cells & ~unmeasured, 0] > 0.5).mean())
    lacking = proteins.loc[("CD19", "1")]
    assert np.isnan(lacking[["log2_fold_change", "fraction_in"]].to_list()).all()
    assert lacking.fraction_out == pytest.approx((FOREGROUND[CLUSTER != "1", 1] > 0.5).mean())
    assert np.isfinite(proteins.loc[("CD19", "0"), "log2_fold_change"])


def test_one_cluster_has_no_markers() -> None:
    one = pd.Categorical(["0"] * N_CELLS)
    found = marker_table(one, sparse.csr_matrix(RNA), GENES, COUNTS, DENOISED, FOREGROUND, PROTEINS)
    assert found.empty
    assert found.columns.tolist() == COLUMNS


def test_a_cluster_of_one_cell_gives_finite_numbers() -> None:
    lone = pd.Categorical(["1"] + ["0"] * (N_CELLS - 1))
    found = marker_table(
        lone, sparse.csr_matrix(RNA), GENES, COUNTS, DENOISED, FOREGROUND, PROTEINS
    )
    assert np.isfinite(found.select_dtypes("number").to_numpy()).all()


def test_proteins_are_tested_on_their_counts() -> None:
    """Denoised values that part the clusters by themselves are no evidence."""
    n_cells = 4000
    cluster = pd.Categorical(rng.choice(["0", "1", "2", "3"], n_cells))
    counts = rng.poisson(3.0, (n_cells, 200)).astype(np.float64)
    denoised = 1.0 + 0.1 * cluster.codes[:, None] + 0.01 * rng.random((n_cells, 200))
    names = [f"isotype{i}" for i in range(200)]
    found = marker_table(
        cluster, sparse.csr_matrix((n_cells, 1)), ["gene"], counts, denoised, 0 * counts, names
    )
    of_proteins = found[found.modality == "protein"]
    assert 0.03 < (of_proteins.p < 0.05).mean() < 0.07
    assert (of_proteins.adjusted_p < 0.05).mean() < 0.01


def test_batches_are_each_compared_within_themselves() -> None:
    """Batches of other levels, and of other shares of the clusters, make no marker."""
    n_cells = 2000
    batch = np.repeat([0, 1], n_cells // 2)
    cluster = pd.Categorical(np.where(rng.random(n_cells) < 0.2 + 0.6 * batch, "a", "b"))
    counts = rng.poisson(2.0 + 20 * batch[:, None], (n_cells, 300)).astype(np.float64)
    counts[batch == 0, :100] = np.nan
    names = [f"protein{i}" for i in range(300)]
    rna, genes = sparse.csr_matrix((n_cells, 1)), ["gene"]
    given = (cluster, rna, genes, counts, np.ones_like(counts), np.ones_like(counts), names)
    within = marker_table(*given, batch=batch).query("modality == 'protein'")
    assert 0.02 < (within.p < 0.05).mean() < 0.08
    across = marker_table(*given).query("modality == 'protein'").set_index("feature")
    assert (across.p[names[100:]] < 1e-10).all()
    alone = within[within.cluster == "a"].set_index("feature")
    inside = (batch == 1) & (cluster == "a")
    outside = (batch == 1) & (cluster == "b")
    known = mannwhitneyu(
        counts[inside, 0], counts[outside, 0], method="asymptotic", use_continuity=False
    )
    assert alone.p["protein0"] == pytest.approx(known.pvalue)
