"""Halves of counts: that they add up, that they are independent, and that runs test on the other."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mudata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse
from scipy.cluster.vq import kmeans2

import totalvi
from counts import annotated
from totalvi.errors import DataError
from totalvi.run.commands import load_with_counts
from totalvi.run.count_splitting import HELD_OUT, inverse_dispersions
from totalvi.run.gate_folder import _compared
from totalvi.run.run import repeat, run
from totalvi.run.tables import rank_sum_scores

# Of mudata, about a default that its next version changes.
pytestmark = pytest.mark.filterwarnings("ignore:From 0.4:FutureWarning")


def negative_binomial(
    rng: np.random.Generator, mean: np.ndarray, r: np.ndarray | float
) -> np.ndarray:
    return rng.poisson(mean * rng.standard_gamma(np.broadcast_to(r, mean.shape)) / r)


def test_halves_add_up_and_repeat() -> None:
    mdata = annotated(n_unmeasured=2)
    fitted, held_out = totalvi.split_counts(mdata, seed=3)
    for name in ("rna", "prot"):
        parts = [half[name].to_df().to_numpy() for half in (fitted, held_out)]
        whole = mdata[name].to_df().to_numpy()
        np.testing.assert_array_equal(parts[0] + parts[1], whole)
        assert np.nanmin(parts) == 0
        share = np.nansum(parts[0]) / np.nansum(whole)
        assert 0.45 < share < 0.55
        np.testing.assert_array_equal(np.isnan(parts[0]), np.isnan(whole))
        again, other = (totalvi.split_counts(mdata, seed=seed)[0][name].to_df() for seed in (3, 4))
        assert again.equals(fitted[name].to_df())
        assert not other.equals(again)
    assert fitted.obs.equals(mdata.obs)


def test_counts_are_found_where_a_model_finds_them() -> None:
    mdata = annotated()
    cells = AnnData(
        sparse.csr_matrix(mdata["rna"].X.shape, dtype=np.float32),
        obs=mdata.obs.copy(),
        var=mdata["rna"].var[[]],
        layers={"counts": mdata["rna"].X},
    )
    cells.obsm["adt"] = pd.DataFrame(
        mdata["prot"].X, index=cells.obs_names, columns=mdata["prot"].var_names
    )
    given = cells.copy()
    where = {"rna_layer": "counts", "protein_expression_obsm_key": "adt"}
    for half, expected in zip(
        totalvi.split_counts(cells, **where), totalvi.split_counts(mdata), strict=True
    ):
        for name in ("rna", "prot"):
            np.testing.assert_array_equal(half[name].to_df(), expected[name].to_df())
    assert (cells.layers["counts"] != given.layers["counts"]).nnz == 0


def test_controls_of_a_run_are_split_too() -> None:
    mdata = annotated()
    isotype = AnnData(mdata["prot"].X[:, :2].copy(), obs=mdata["prot"].obs)
    isotype.var_names = ["IgG1", "IgG2a"]
    both = mudata.MuData({**mdata.mod, "isotype": isotype})
    halves = [half["isotype"].X for half in totalvi.split_counts(both)]
    np.testing.assert_array_equal(halves[0] + halves[1], isotype.X)
    assert 0.4 < halves[0].sum() / isotype.X.sum() < 0.6


def test_fractions_are_refused() -> None:
    mdata = annotated()
    mdata["rna"].X.data[0] = 0.5
    with pytest.raises(DataError, match="fractional"):
        totalvi.split_counts(mdata)


def structured(
    rng: np.random.Generator, n_cells: int = 2000
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Counts and means of genes, two of which have a large share, along two programs; and their r."""
    loading = rng.normal(0, 0.4, (2, 150)) * (rng.random((2, 150)) < 0.3)
    level = rng.lognormal(0, 1, 150)
    level[:2] = level[2:].sum() / 4
    rho = level * np.exp(rng.normal(size=(n_cells, 2)) @ loading)
    size = 600 * rng.lognormal(0, 0.4, (n_cells, 1))
    mean = size * rho / rho.sum(axis=1, keepdims=True)
    r = rng.lognormal(1.2, 0.5, 150)
    return negative_binomial(rng, mean, r), mean, r


def test_dispersions_are_found_again() -> None:
    rng = np.random.default_rng(0)
    counts, mean, r = structured(rng)
    positive = rng.random((len(counts), 4)) < 0.4
    protein = negative_binomial(rng, np.where(positive, 400.0, 15.0), np.full(4, 8.0))
    protein = np.where(np.arange(len(counts))[:, None] % 7 == 0, np.nan, protein)
    found = inverse_dispersions(sparse.csr_matrix(counts), protein)
    ratio = np.log(found.rna / r)
    counted = mean.mean(axis=0) > 1
    assert np.median(ratio[counted]) == pytest.approx(0, abs=0.25)
    assert np.abs(ratio[counted]).mean() < 0.35
    assert np.abs(ratio[:2]).max() < 0.5  # of a quarter of all counts each
    alone = negative_binomial(rng, np.full((3000, 5), 60.0), np.full(5, 8.0))
    of_proteins = inverse_dispersions(sparse.csr_matrix(counts[:1500]), alone[:1500].astype(float))
    assert of_proteins.protein == pytest.approx(np.full(5, 8.0), rel=0.4)


def test_halves_share_nothing_but_the_means_of_the_cells() -> None:
    """Binomial halves would have a covariance of mean^2 / (4 r)."""
    rng = np.random.default_rng(1)
    counts, mean, r = structured(rng, 4000)
    cells = mudata.MuData(
        {
            "rna": AnnData(sparse.csr_matrix(counts.astype(np.float32))),
            "prot": AnnData(rng.poisson(20, (4000, 3)).astype(np.float32)),
        }
    )
    halves = [half["rna"].X.toarray() - mean / 2 for half in totalvi.split_counts(cells)]
    covariance = (halves[0] * halves[1]).mean(axis=0)
    of_binomial = (mean**2 / (4 * r)).mean(axis=0)
    counted = mean.mean(axis=0) > 1
    share = covariance[counted].sum() / of_binomial[counted].sum()
    assert abs(share) < 0.25
    variance = (halves[0] ** 2).mean(axis=0)[counted]
    assert np.median(
        variance / (mean / 2 + mean**2 / (2 * r)).mean(axis=0)[counted]
    ) == pytest.approx(1, abs=0.15)


def test_clusters_of_noise_have_no_markers_in_the_other_half() -> None:
    rng = np.random.default_rng(2)
    mean = 20 * rng.dirichlet(np.full(60, 2.0)) * 10
    counts = negative_binomial(rng, np.tile(mean, (1500, 1)), 2.0).astype(np.float32)
    cells = mudata.MuData(
        {
            "rna": AnnData(sparse.csr_matrix(counts)),
            "prot": AnnData(rng.poisson(20, (1500, 3)).astype(np.float32)),
        }
    )
    fitted, held_out = totalvi.split_counts(cells)
    _, group = kmeans2(np.log1p(fitted["rna"].X.toarray()), 2, seed=0, minit="++")
    scores = [
        np.abs(rank_sum_scores(half["rna"].X.tocsc().astype(float), group, 2)[0])
        for half in (fitted, held_out)
    ]
    assert (scores[0] > 1.96).mean() > 0.2
    assert scores[0].max() > 15
    assert (scores[1] > 1.96).mean() < 0.15
    assert scores[1].max() < 4


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("split")
    annotated(n_unmeasured=1).write(folder / "cells.h5mu")
    options = {"batch_key": "batch", "max_epochs": 2, "split_counts": True, "resolution": 3.0}
    return run(folder / "cells.h5mu", folder / "out", **options).folder


def test_a_run_keeps_both_halves_and_tests_on_the_other(made: Path) -> None:
    with mudata.set_options(pull_on_update=False):
        given = mudata.read_h5mu(made.parent / "cells.h5mu")
        results = mudata.read_h5mu(made / "results.h5mu")
    for name in ("rna", "prot"):
        part = results[name]
        whole = given[name].to_df().loc[part.obs_names, part.var_names]
        np.testing.assert_array_equal(part.to_df() + part.to_df(HELD_OUT), whole)
    markers = pd.read_csv(made / "tables" / "markers.csv")
    differences = pd.read_csv(made / "tables" / "differential_expression.csv.gz")
    for table in (markers, differences):
        assert table["tested_on"].unique().tolist() == ["held-out counts"]
    cluster = results.obs["leiden_totalvi"].astype(str)
    row = differences.iloc[0]
    counts = results["prot" if row["modality"] == "protein" else "rna"].to_df(HELD_OUT)
    inside = (cluster == str(row["group1"])).to_numpy()
    assert row["raw_mean1"] == pytest.approx(counts[row["feature"]][inside].mean(), rel=1e-4)


def test_populations_named_later_are_compared_by_the_other_half_too(made: Path) -> None:
    model, counts = load_with_counts(made, None)
    population = pd.Series(np.where(np.arange(counts.n_obs) % 2, "odd", "even"), counts.obs_names)
    named: Any = SimpleNamespace(gating=SimpleNamespace(population=population))
    table = _compared(model, counts, named, made)["population_expression"]
    assert table["tested_on"].unique().tolist() == ["held-out counts"]
    row = table[table["modality"] == "rna"].iloc[0]
    half = counts["rna"].to_df(HELD_OUT)[row.name]
    inside = (population == row["group1"]).to_numpy()
    assert row["raw_mean1"] == pytest.approx(half[inside].mean(), rel=1e-4)


def test_the_record_says_so_and_repeats_it(made: Path) -> None:
    record = json.loads((made / "run.json").read_text())
    assert record["arguments"]["split_counts"] is True
    assert any("one half of the counts" in note for note in record["notes"])
    again = repeat(made / "run.json", made.parent / "again").folder
    pd.testing.assert_frame_equal(
        *(pd.read_csv(folder / "tables" / "markers.csv") for folder in (made, again))
    )


def test_counts_on_disk_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="split_counts is for counts in memory"):
        run(tmp_path / "cells.zarr", tmp_path / "out", split_counts=True, on_disk=True)
