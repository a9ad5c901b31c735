"""Antibodies that separate, and those that do not."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

import totalvi
from totalvi.posterior.antibody_separation import antibody_separation

rng = np.random.default_rng(0)
N_CELLS = 200
STAINED = np.arange(N_CELLS) < 60


def one(raw: np.ndarray, probability: np.ndarray, control: bool = False) -> dict:
    table = antibody_separation(raw[:, None], probability[:, None], ["CD3"], [control])
    return table.loc["CD3"].to_dict()


@pytest.mark.parametrize(("mean", "warning"), [(200.0, ""), (14.0, "does not separate")])
def test_auroc_is_that_of_the_raw_counts(mean: float, warning: str) -> None:
    raw = rng.poisson(np.where(STAINED, mean, 12.0)).astype(float)
    found = one(raw, np.where(STAINED, 1.0, 0.0))
    assert found["auroc"] == pytest.approx(roc_auc_score(STAINED, raw))
    assert found["percent_foreground"] == pytest.approx(30.0)
    assert found["percent_ambiguous"] == 0
    assert found["warning"] == warning


@pytest.mark.parametrize(
    ("probability", "warning"), [(0.1, "no foreground"), (0.9, "no background")]
)
def test_cells_of_one_kind_are_told(probability: float, warning: str) -> None:
    found = one(rng.poisson(9.0, N_CELLS).astype(float), np.full(N_CELLS, probability))
    assert found["warning"] == warning
    assert np.isnan(found["auroc"])


@pytest.mark.parametrize(("share", "warning"), [(0.9, "no background"), (0.1, "no foreground")])
def test_of_few_cells_the_rarer_kind_is_lacking(share: float, warning: str) -> None:
    assert one(np.array([30.0, 40.0]), np.full(2, share))["warning"] == warning


def test_controls_should_stain_nothing() -> None:
    raw = rng.poisson(np.where(STAINED, 200.0, 12.0)).astype(float)
    assert one(raw, np.where(STAINED, 0.99, 0.02), control=True)["warning"] != ""
    assert one(raw, np.zeros(N_CELLS), control=True)["warning"] == ""


def test_unmeasured_cells_are_left_out() -> None:
    raw = rng.poisson(np.where(STAINED, 200.0, 12.0)).astype(float)
    probability = np.where(STAINED, 0.99, 0.02)
    part = slice(30, 150)
    masked = raw.copy()
    masked[:30] = masked[150:] = np.nan
    assert one(masked, probability) == one(raw[part], probability[part])
    assert one(np.full(N_CELLS, np.nan), probability)["warning"] == "not measured"


@pytest.mark.parametrize(
    ("high", "n_high", "warning"),
    [
        (100.0, 6, "few cells far above"),
        (8.0, 6, "does not separate"),
        (100.0, 3, "does not separate"),
    ],
)
def test_a_rare_stain_is_told_from_an_antibody_that_failed(
    high: float, n_high: int, warning: str
) -> None:
    rng = np.random.default_rng(0)
    raw = rng.poisson(1.0, 600).astype(float)
    raw[:n_high] = rng.poisson(high, n_high)
    foreground = (raw >= 1).astype(float)  # as of a model that splits the background
    foreground[raw == 1] = rng.uniform(0.3, 0.9, (raw == 1).sum())
    foreground[raw == 0] = 0.4
    table = antibody_separation(raw[:, None], foreground[:, None], ["TCRVd2"])
    assert table["warning"].tolist() == [warning]


@pytest.mark.parametrize("n_cells", [2000, 100_000])
def test_the_tail_of_a_wide_background_is_no_stain(n_cells: int) -> None:
    rng = np.random.default_rng(1)
    raw = rng.poisson(5 * rng.lognormal(0, 0.9, n_cells)).astype(float)
    table = antibody_separation(raw[:, None], rng.uniform(0.2, 0.8, (n_cells, 1)), ["CD3"])
    assert table["warning"].tolist() == ["does not separate"]


def test_the_query_is_the_table_of_counts_and_foreground() -> None:
    mdata = totalvi.simulate(n_cells=400, n_genes=60, n_proteins=8, seed=3)
    rng = np.random.default_rng(0)
    proteins = mdata["prot"]
    failed, unmeasured = proteins.var_names[0], proteins.var_names[1]
    proteins.X[:, 0] = rng.poisson(3.0, mdata.n_obs)
    proteins.X[:300, 1] = np.nan
    mdata.obs["panel"] = np.where(np.arange(mdata.n_obs) < 300, "short", "long")
    model = totalvi.Model(mdata, panel_key="panel", n_hidden=32, n_latent=5, seed=0)
    model.train(30, accelerator="cpu", progress=False)
    table = model.get_antibody_separation(n_samples=2)
    assert table.loc[failed, "warning"] != ""
    first = model.get_antibody_separation(indices=np.arange(300), n_samples=2)
    assert first.loc[unmeasured, "warning"] == "not measured"
    foreground = model.get_protein_foreground_probability(n_samples=2)
    counts = proteins.to_df()
    pd.testing.assert_frame_equal(
        table, antibody_separation(counts.to_numpy(), foreground.to_numpy(), list(counts))
    )
    some = model.get_antibody_separation(protein_list=[failed], n_samples=2)
    pd.testing.assert_frame_equal(some, table.loc[[failed]])
