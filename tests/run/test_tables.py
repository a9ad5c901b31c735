"""Tables against pandas."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from mudata import MuData
from scipy import sparse, stats
from sklearn.metrics import roc_auc_score

from totalvi.posterior.antibody_separation import antibody_separation
from totalvi.run.results import cell_table, cluster_table
from totalvi.run.tables import expression_by_group, protein_table

rng = np.random.default_rng(0)
N_CELLS = 40
CELLS = pd.Index([f"cell{i}" for i in range(N_CELLS)])
BATCH = pd.Series(np.repeat(["x", "y"], 20), index=CELLS)
CLUSTER = pd.Categorical((np.arange(N_CELLS) % 3).astype(str))
RAW = rng.poisson(20.0, (N_CELLS, 3)).astype(np.float32)
RAW[:20, 2] = np.nan
DENOISED = rng.gamma(2.0, 10.0, (N_CELLS, 3))
PROBABILITY = rng.random((N_CELLS, 3))
PROBABILITY[:, 1] = 0.0
NAMES = ["CD3", "CD4", "CD8"]


@pytest.mark.parametrize("batch", [None, BATCH])
def test_cells_have_their_totals_and_places(batch: pd.Series | None) -> None:
    rna = rng.poisson(1.0, (N_CELLS, 7))
    umap, latent = rng.normal(size=(N_CELLS, 2)), rng.normal(size=(N_CELLS, 12))
    table = cell_table(CELLS, batch, CLUSTER, umap, latent, sparse.csr_matrix(rna), RAW)
    assert table.index.equals(CELLS)
    assert table["batch"].tolist() == (["all cells"] * 40 if batch is None else BATCH.tolist())
    np.testing.assert_array_equal(table["rna_total"], rna.sum(axis=1))
    np.testing.assert_allclose(table["protein_total"], np.nansum(RAW, axis=1))
    np.testing.assert_array_equal(table[["umap_1", "umap_2"]], umap)
    np.testing.assert_array_equal(table.filter(like="latent_"), latent)
    assert table.columns[-1] == "latent_12"
    assert "latent_01" in table


def test_means_of_proteins_leave_out_unmeasured_cells() -> None:
    separation = antibody_separation(RAW, PROBABILITY, NAMES)
    table = protein_table(separation, RAW, DENOISED, PROBABILITY)
    np.testing.assert_allclose(table["raw_mean"], np.nanmean(RAW, axis=0))
    in_foreground = PROBABILITY > 0.5
    assert table["denoised_foreground_mean"]["CD3"] == pytest.approx(
        DENOISED[in_foreground[:, 0], 0].mean()
    )
    assert np.isnan(table["denoised_foreground_mean"]["CD4"])
    assert table["denoised_foreground_mean"]["CD8"] == pytest.approx(
        DENOISED[20:, 2][in_foreground[20:, 2]].mean()
    )
    assert table.columns[-1] == "warning"


def test_clusters_have_their_sizes_batches_and_means() -> None:
    table = cluster_table(CLUSTER, BATCH, DENOISED, NAMES)
    assert table["cells"].to_dict() == {"0": 14, "1": 13, "2": 13}
    assert table["percent_of_cells"].sum() == pytest.approx(100)
    np.testing.assert_array_equal(
        table["cells_in_batch_x"] + table["cells_in_batch_y"], table["cells"]
    )
    np.testing.assert_allclose(
        table.loc["1", [f"denoised_{n}" for n in NAMES]].astype(float),
        DENOISED[CLUSTER == "1"].mean(axis=0),
    )
    assert not cluster_table(CLUSTER, None, DENOISED, NAMES).filter(like="batch").size


def test_clusters_average_the_cells_that_measured_a_protein() -> None:
    denoised = np.where(np.isnan(RAW), np.nan, DENOISED)
    denoised[CLUSTER == "2", 0] = np.nan
    table = cluster_table(CLUSTER, BATCH, denoised, NAMES)
    some = (CLUSTER == "1") & (BATCH == "y").to_numpy()
    assert table.loc["1", "denoised_CD8"] == pytest.approx(DENOISED[some, 2].mean())
    assert np.isnan(table.loc["2", "denoised_CD3"])


def test_separation_is_that_of_the_components_where_probabilities_follow_the_counts() -> None:
    """Cells called by their own counts have other counts, even where the components overlap."""
    draws = np.random.default_rng(1)
    for means, separates in (((10.0, 12.0), False), ((10.0, 80.0), True)):
        foreground = draws.random(4000) < 0.4
        counts = draws.poisson(np.where(foreground, means[1], means[0]))
        joint = [w * stats.poisson.pmf(counts, m) for w, m in zip((0.6, 0.4), means, strict=True)]
        probability = joint[1] / (joint[0] + joint[1])
        table = antibody_separation(counts[:, None].astype(float), probability[:, None], ["CD3"])
        truth = roc_auc_score(foreground, counts)
        assert table["auroc"].item() == pytest.approx(truth, abs=0.02)
        assert (table["warning"].item() == "") == separates


def test_certain_cells_are_compared_as_they_are() -> None:
    counts, foreground = RAW[:, [0]], PROBABILITY[:, 0] > 0.5
    table = antibody_separation(counts, foreground[:, None].astype(float), ["CD3"])
    assert table["auroc"].item() == pytest.approx(roc_auc_score(foreground, counts[:, 0]))
    medians = [np.median(np.log1p(counts[of, 0])) for of in (foreground, ~foreground)]
    assert table["log1p_median_difference"].item() == pytest.approx(medians[0] - medians[1])


class Asked:
    """Notes what a model would be asked to compare."""

    groups: list[str] | None = None

    def differential_expression(self, cells: MuData, **asked: Any) -> pd.DataFrame:
        self.groups, self.n_cells = asked["group1"], cells.n_obs
        assert asked["groupby"] in cells.obs
        return pd.DataFrame({"lfc_mean": [0.0]})


@pytest.mark.parametrize("is_held_out", [False, True])
def test_groups_are_compared_that_have_enough_cells_with_rna(is_held_out: bool) -> None:
    names = np.array(["many", "few", "undecided", "no RNA"])
    group = pd.Categorical(np.repeat(names, [20, 4, 10, 6]))
    counts = np.ones((N_CELLS, 2), np.float32)
    counts[34:] = 0
    cells = MuData({"rna": AnnData(sparse.csr_matrix(counts))})
    model: Any = Asked()
    for fewest, compared in ((1, {"many", "few"}), (5, {"many"}), (20, {"many"})):
        table = expression_by_group(model, cells, group, is_held_out=is_held_out, fewest=fewest)
        assert table is not None
        assert set(model.groups) == compared
        assert model.n_cells == (34 if is_held_out else N_CELLS)
        words = "held-out counts" if is_held_out else "counts that the clusters were found in"
        assert table["tested_on"].tolist() == [words]
        assert list(cells.obs) == []
    alone = expression_by_group(model, cells, group, is_held_out=is_held_out, fewest=21)
    assert alone is None
    one = group.remove_categories(["few", "undecided"])  # others lack RNA
    assert expression_by_group(model, cells, one, is_held_out=is_held_out) is None
