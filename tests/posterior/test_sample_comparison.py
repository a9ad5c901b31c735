"""Comparisons of groups over samples, as people ask for them."""

import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
from mudata import MuData

import totalvi
from counts import SMALL
from totalvi.errors import DataError
from totalvi.posterior.differential.comparison import group_level
from totalvi.posterior.differential.moments import Moments, StratumMoments
from totalvi.posterior.differential.sample_comparison import sample_levels

N_GENES, N_PROTEINS, N_DONORS = 40, 8, 6
CALLS = "is_de_fdr_0.05"
ASK: dict[str, Any] = {
    "condition_key": "condition",
    "group2": "control",
    "sample_key": "donor",
    "progress": False,
}


def with_donors(**given: Any) -> MuData:
    """Counts of six donors, three of a condition each, some of whose annotation the tests need."""
    mdata = totalvi.simulate(480, N_GENES, N_PROTEINS, n_cell_types=2, seed=2, **given)
    rng = np.random.default_rng(0)
    donor = rng.integers(N_DONORS, size=480)
    if given.get("n_batches"):
        donor = 2 * rng.integers(3, size=480) + mdata.obs["batch"].cat.codes.to_numpy()
    mdata.obs["donor"] = [f"d{k}" for k in donor]
    mdata.obs["condition"] = np.where(donor % 2 == 0, "case", "control")
    mdata.obs["crossed"] = np.where(rng.random(480) < 0.5, "after", "before")
    mdata.obs["sample"] = mdata.obs["donor"] + "_" + mdata.obs["crossed"]
    mdata.obs["age"] = 30.0 + 7 * (donor // 2)
    mdata.obs["sex"] = np.where(donor // 2 == 0, "f", "m")
    return mdata


def fitted(mdata: MuData, **options: Any) -> totalvi.Model:
    model = totalvi.Model(mdata, **(SMALL | options))
    model.train(max_epochs=3, progress=False)
    return model


@pytest.fixture(scope="module")
def mdata() -> MuData:
    return with_donors()


@pytest.fixture(scope="module")
def model(mdata: MuData) -> totalvi.Model:
    return fitted(mdata)


def sorted_rows(table: pd.DataFrame) -> pd.DataFrame:
    keys = ["comparison", "modality", "feature"]
    return table.reset_index().astype(dict.fromkeys(keys, str)).sort_values(keys, ignore_index=True)


def test_conditions_within_cell_types(model: totalvi.Model) -> None:
    table = model.differential_expression(groupby="cell_type", **ASK)
    assert len(table) == 2 * (N_GENES + N_PROTEINS)
    assert list(table["within"].unique()) == ["type_0", "type_1"]
    assert table["comparison"].unique().tolist() == [
        "case vs control in type_0",
        "case vs control in type_1",
    ]
    known = table.dropna(subset="p_value")
    assert (known["lfc_ci_low"] < known["lfc_mean"]).all()
    assert (known["lfc_mean"] < known["lfc_ci_high"]).all()
    assert (known["p_adjusted"] >= known["p_value"]).all()
    assert (table["n_samples1"] == 3).all()
    assert "samples" in table.attrs["inference"]
    counted = table["raw_mean1"] + table["raw_mean2"] > 1
    assert table["p_value"][counted & (table["modality"] == "rna")].notna().all()


def test_inference_without_samples_is_about_these_cells(model: totalvi.Model) -> None:
    table = model.differential_expression(groupby="condition", group1="case", progress=False)
    assert "these cells" in table.attrs["inference"]


def test_no_effect_is_called_where_cells_alone_would_be(model: totalvi.Model) -> None:
    over_samples = model.differential_expression(**ASK)
    assert not over_samples[CALLS].any()


def test_names_and_order_of_samples_do_not_count(model: totalvi.Model, mdata: MuData) -> None:
    before = sorted_rows(model.differential_expression(**ASK))
    mdata.obs["other"] = mdata.obs["donor"].map(lambda name: f"{9 - int(name[1])} {name}")
    after = sorted_rows(model.differential_expression(**(ASK | {"sample_key": "other"})))
    pd.testing.assert_frame_equal(before, after, rtol=1e-6)


def test_swapped_groups_have_opposite_effects(model: totalvi.Model) -> None:
    one = sorted_rows(model.differential_expression(**ASK))
    other = sorted_rows(model.differential_expression(**(ASK | {"group2": "case"})))
    np.testing.assert_allclose(one["lfc_mean"], -other["lfc_mean"], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(one["p_value"], other["p_value"], rtol=1e-5)


def test_samples_with_cells_of_both_groups_are_paired(model: totalvi.Model) -> None:
    table = model.differential_expression(
        groupby="crossed", group1="after", sample_key="donor", progress=False
    )
    by_block = model.differential_expression(
        groupby="crossed", group1="after", sample_key="sample", block_key="donor", progress=False
    )
    for column in ("lfc_mean", "lfc_se", "p_value", "df"):
        np.testing.assert_allclose(
            sorted_rows(table)[column], sorted_rows(by_block)[column], rtol=1e-6
        )
    apart = model.differential_expression(
        groupby="crossed", group1="after", sample_key="sample", progress=False
    )
    assert not np.allclose(sorted_rows(table)["lfc_se"], sorted_rows(apart)["lfc_se"])


def test_cell_types_are_compared_within_samples(model: totalvi.Model) -> None:
    table = model.differential_expression(
        groupby="cell_type", group1="type_0", sample_key="donor", progress=False
    )
    assert table[CALLS].mean() > 0.1
    assert (table["n_samples1"] == N_DONORS).all()


def test_covariates_take_degrees_of_freedom(model: totalvi.Model) -> None:
    plain = sorted_rows(model.differential_expression(**ASK))
    with_age = sorted_rows(model.differential_expression(**ASK, covariate_keys=["age"]))
    both = sorted_rows(model.differential_expression(**ASK, covariate_keys=["age", "sex"]))
    assert not np.allclose(plain["lfc_se"], with_age["lfc_se"])
    assert not np.allclose(with_age["lfc_se"], both["lfc_se"])


def test_a_covariate_that_is_the_condition_is_warned_of(
    model: totalvi.Model, mdata: MuData
) -> None:
    mdata.obs["site"] = mdata.obs["condition"].map({"case": "A", "control": "B"})
    with (
        pytest.warns(UserWarning, match="cannot be told from"),
        pytest.raises(DataError, match="case and control"),
    ):
        model.differential_expression(**ASK, covariate_keys=["site"])


def test_small_samples_are_left_out(model: totalvi.Model, mdata: MuData) -> None:
    cells = ~((mdata.obs["donor"] == "d0") & (np.arange(480) > 60))
    few = model.differential_expression(idx1=cells, **ASK, min_cells=20)
    assert (few["n_samples1"] == 2).all()
    assert (few["n_samples2"] == 3).all()


def test_batches_of_conditions_are_warned_of_and_others_are_in_the_design() -> None:
    data = with_donors(n_batches=2)
    confounded = fitted(data, batch_key="batch")
    with pytest.warns(UserWarning, match=r"by any method.*would take out both"):
        confounded.differential_expression(**ASK)
    data.obs["run"] = np.where(data.obs["donor"].isin(["d0", "d1", "d2"]), "1", "2")
    crossed = fitted(data, batch_key="run")
    of_samples = fitted(data, batch_key="donor")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with_batches = crossed.differential_expression(**ASK)
        of_samples.differential_expression(**ASK)
    assert with_batches["p_value"].notna().any()


def test_a_panel_that_one_sample_lacks() -> None:
    data = with_donors()
    data["prot"].X[np.ix_((data.obs["donor"] == "d0").to_numpy(), [1])] = np.nan
    data.obs["panel"] = np.where(data.obs["donor"] == "d0", "small", "large")
    table = fitted(data, panel_key="panel").differential_expression(**ASK)
    rows = table[table["modality"] == "protein"]
    missing = rows.loc[data["prot"].var_names[1]]
    assert (missing["n_samples1"], missing["n_samples2"]) == (2, 3)
    assert np.isfinite(missing["p_value"])
    assert (rows.drop(index=data["prot"].var_names[1])["n_samples1"] == 3).all()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sample_key": "doner"}, r"sample_key is 'doner'.*donor"),
        ({"condition_key": "treatment"}, "condition_key is 'treatment'"),
        ({"group1": "cases"}, "group1 is 'cases'"),
        ({"block_key": "crossed"}, "one value for each sample"),
        ({"covariate_keys": ["crossed"]}, "one value for each sample"),
        ({"min_cells": 200}, "two or more in each"),
        ({"sample_key": "condition"}, "two or more in each"),
        ({"delta": 0.5}, "delta is 0.5"),
        ({"mode": "vanilla"}, "mode is 'vanilla'"),
        ({"unit": "cells"}, "unit is 'cells'"),
        ({"idx2": [1, 2]}, "idx2 does not go with condition_key"),
        ({"sample_key": None}, "give sample_key too"),
        ({"sample_key": ["donor"]}, "name of one column"),
        ({"groupby": "condition"}, "groupby and condition_key are both 'condition'"),
        ({"groupby": "donor"}, "two or more in each"),
        ({"block_key": "donor"}, "leave out one of these"),
        ({"covariate_keys": "donors"}, "covariate_keys is 'donors'"),
        ({"fdr_target": 1.5}, "fdr_target"),
    ],
)
def test_what_cannot_be_compared(model: totalvi.Model, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model.differential_expression(**(ASK | given))


@pytest.mark.parametrize(
    ("column", "group1", "names"),
    [
        ("flag", True, ("True", "False")),
        ("number", 1, ("1", "0")),
        ("with_gaps", 1, ("1.0", "0.0")),
        ("with_gaps", "0", ("0.0", "1.0")),
        ("with spaces", "with drug", ("with drug", "no drug")),
        ("with spaces", "no drug", ("no drug", "with drug")),  # against the other, not itself
        ("unused", "with drug", ("with drug", "no drug")),
    ],
)
def test_conditions_of_all_types(
    model: totalvi.Model, mdata: MuData, column: str, group1: object, names: tuple[str, str]
) -> None:
    case = (mdata.obs["condition"] == "case").to_numpy()
    words = np.where(case, "with drug", "no drug")
    mdata.obs["flag"], mdata.obs["number"] = case, case.astype(int)
    mdata.obs["with_gaps"] = pd.Series(case.astype(float), mdata.obs_names).mask(
        mdata.obs["donor"] == "d5"
    )
    mdata.obs["with spaces"] = words
    mdata.obs["unused"] = pd.Categorical(words, ["no cell", "no drug", "with drug"])
    ask = ASK | {"condition_key": column, "group2": None}
    table = model.differential_expression(group1=group1, **ask)  # type: ignore[arg-type]
    assert (table["group1"].iloc[0], table["group2"].iloc[0]) == names
    assert table["n_samples2"].max() >= 2
    assert table["p_value"].notna().any()


def test_a_covariate_may_be_a_date_or_one_name(model: totalvi.Model, mdata: MuData) -> None:
    mdata.obs["day"] = pd.Timestamp("2024-02-01") + pd.to_timedelta(mdata.obs["age"], unit="D")
    by_age = model.differential_expression(**ASK, covariate_keys="age")
    by_day = model.differential_expression(**ASK, covariate_keys=["day"])
    for column in ("lfc_mean", "lfc_se", "p_value"):
        np.testing.assert_allclose(
            sorted_rows(by_age)[column], sorted_rows(by_day)[column], rtol=1e-5, atol=1e-7
        )
    assert by_age["design"].unique().tolist() == ["unpaired + covariates"]
    assert by_age["df_residual"].max() == 3


def test_samples_of_both_groups_stay_paired_in_blocks(model: totalvi.Model) -> None:
    ask: dict[str, Any] = {"groupby": "crossed", "group1": "after", "sample_key": "donor"}
    paired = model.differential_expression(**ask, progress=False)
    in_blocks = model.differential_expression(**ask, block_key="sex", progress=False)
    np.testing.assert_allclose(
        sorted_rows(paired)["lfc_se"], sorted_rows(in_blocks)["lfc_se"], rtol=1e-6
    )
    assert paired["design"].unique().tolist() == ["paired"]
    assert (paired["df_residual"].dropna() == N_DONORS - 1).all()
    assert in_blocks["design"].unique().tolist() == ["paired, in blocks"]


def test_batches_of_groups_are_warned_of_where_samples_span_several() -> None:
    """Lanes that hold one condition only, be it in all lanes of a donor or within each donor."""
    data = with_donors(n_batches=2)
    of_case = (data.obs["condition"] == "case").to_numpy()
    lane = np.where(data.obs["crossed"] == "after", "1", "2")
    data.obs["lane"] = np.where(of_case, "case ", "control ") + pd.Series(lane, data.obs_names)
    data.obs["stray"] = data.obs["lane"].mask(np.arange(480) == np.argmax(of_case), "control 1")
    data.obs["visit"] = lane
    by_visit = fitted(data, batch_key="visit")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        by_visit.differential_expression(**ASK)
    for batch_key in ("lane", "stray"):
        model = fitted(data, batch_key=batch_key)
        with pytest.warns(UserWarning, match="by any method"):
            table = model.differential_expression(**ASK)
        assert table["design"].unique().tolist() == ["unpaired, confounded with batches"]
        with pytest.warns(UserWarning, match="by any method"):
            model.differential_abundance(groupby="cell_type", **ASK)
    with pytest.warns(UserWarning, match="only after or only before"):
        by_visit.differential_expression(**(ASK | {"condition_key": "crossed", "group2": "before"}))


def test_levels_of_samples_are_those_of_groups_of_their_own() -> None:
    rng = np.random.default_rng(1)
    parts = [Moments(*(rng.uniform(1, 20, (4, n)) for _ in Moments._fields)) for n in (3, 2, 2)]
    parts = [part._replace(square=part.total**2 / part.n_cells + 1) for part in parts]
    level = sample_levels(StratumMoments(*parts, np.ones(4)), scale_protein=False)
    for k in range(4):
        rna, foreground, background = (
            group_level(part.sum(np.array([[k]])), np.ones((1, part.total.shape[1])))
            for part in parts
        )
        np.testing.assert_allclose(level.mean[k, :3], rna.mean)
        np.testing.assert_allclose(level.variance[k, :3], rna.variance)
        np.testing.assert_allclose(level.mean[k, 3:], foreground.mean + background.mean)
    shares = sample_levels(StratumMoments(*parts, np.ones(4)), scale_protein=True)
    np.testing.assert_allclose(shares.mean[:, 3:].sum(axis=1), 1)
