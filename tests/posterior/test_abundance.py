"""Differential abundance over samples: uniform p-values, power, and what cannot be compared."""

from typing import Any

import numpy as np
import pytest
from mudata import MuData
from scipy import stats

import totalvi
from counts import SMALL
from totalvi.errors import DataError
from totalvi.posterior.abundance import log_odds_of_counts
from totalvi.posterior.differential.differential_tables import adjusted
from totalvi.posterior.differential.moderated import compare_samples

N_CELLS = 420
ASK: dict[str, Any] = {
    "sample_key": "donor",
    "condition_key": "condition",
    "group2": "control",
    "progress": False,
}


def counts_of_donors(
    rng: np.random.Generator, n: int, n_types: int, concentration: float, effect: float = 0.0
) -> np.ndarray:
    """Dirichlet-multinomial counts of n donors a side; the first type has an effect in the first n."""
    base = rng.dirichlet(np.full(n_types, 3.0))
    counts = np.empty((2 * n, n_types))
    for donor in range(2 * n):
        share = base * np.where(np.arange(n_types) == 0, 2.0 ** (effect * (donor < n)), 1)
        share = rng.dirichlet(concentration * share / share.sum())
        counts[donor] = rng.multinomial(int(rng.lognormal(5.5, 0.5)) + 30, share)
    return counts


def p_values(counts: np.ndarray) -> np.ndarray:
    n = len(counts) // 2
    design = np.column_stack([np.repeat([1.0, 0.0], n), np.ones(2 * n)])
    return compare_samples(*log_odds_of_counts(counts), design).p_value


@pytest.mark.parametrize("n", [3, 5, 8])
@pytest.mark.parametrize("concentration", [20.0, 200.0])
def test_null_p_values_are_uniform(n: int, concentration: float) -> None:
    rng = np.random.default_rng((n, int(concentration)))
    found = np.concatenate(
        [p_values(counts_of_donors(rng, n, 8, concentration)) for _ in range(200)]
    )
    assert stats.kstest(found, "uniform").statistic < 0.035  # a fifth of 1600 are independent
    assert (found < 0.05).mean() == pytest.approx(0.05, abs=0.02)


@pytest.mark.parametrize("ratio", [1, 5, 20])
def test_rare_types_do_not_differ_because_one_condition_has_more_cells(ratio: int) -> None:
    rng = np.random.default_rng(ratio)
    rare, common = [], []
    for _ in range(150):
        share = rng.dirichlet(np.full(12, 0.6))
        sizes = rng.lognormal(5.5, 0.4, 10) * np.repeat([ratio, 1], 5)
        counts = np.array(
            [rng.multinomial(int(n), rng.dirichlet(60 * share + 1e-12)) for n in sizes]
        )
        few = counts.sum(axis=0) < 10
        rare.append(p_values(counts)[few])
        common.append(p_values(counts)[~few])
    assert (np.concatenate(rare) < 0.05).mean() < 0.05
    assert (np.concatenate(common) < 0.05).mean() < 0.075


def test_a_type_that_doubles_is_found_with_enough_donors() -> None:
    rng = np.random.default_rng(0)
    power = [
        np.mean([adjusted(p_values(counts_of_donors(rng, n, 8, 200.0, 1.0)))[0] < 0.05
                 for _ in range(100)])
        for n in (3, 8)
    ]  # fmt: skip
    assert power[1] > 0.8
    assert power[1] > power[0]


@pytest.fixture(scope="module")
def mdata() -> MuData:
    """Six donors; in donors of "case", four in five cells are of the first type, elsewhere two."""
    data = totalvi.simulate(N_CELLS, 40, 8, n_cell_types=2, seed=3)
    rng = np.random.default_rng(1)
    first = (data.obs["cell_type"] == "type_0").to_numpy()
    case = rng.random(N_CELLS) < np.where(first, 0.8, 0.35)
    donor = np.where(case, 3, 0) + rng.integers(3, size=N_CELLS)
    data.obs["donor"] = [f"d{k}" for k in donor]
    data.obs["condition"] = np.where(case, "case", "control")
    data.obs["first"] = first
    return data


@pytest.fixture(scope="module")
def trained(mdata: MuData) -> totalvi.Model:
    model = totalvi.Model(mdata, **SMALL)
    model.train(max_epochs=40, accelerator="cpu", progress=False)
    return model


def test_types_are_compared_over_donors(trained: totalvi.Model, mdata: MuData) -> None:
    table = trained.differential_abundance(groupby="cell_type", **ASK)
    assert list(table.index) == ["type_0", "type_1"]
    row = table.loc["type_0"]
    share = mdata.obs.groupby("donor")["first"].mean()
    assert row["share1"] == pytest.approx(share[["d3", "d4", "d5"]].mean())
    assert row["share2"] == pytest.approx(share[["d0", "d1", "d2"]].mean())
    assert row["ci_low"] < row["log2_ratio"] < row["ci_high"]
    assert row["p_value"] < 0.05
    np.testing.assert_allclose(*table["log2_ratio"].abs(), rtol=1e-6)  # the odds of two types


def test_neighbourhoods_are_compared_over_donors(trained: totalvi.Model, mdata: MuData) -> None:
    table = trained.differential_abundance(**ASK)
    assert list(table.index) == list(mdata.obs_names)
    first = mdata.obs["first"].to_numpy()
    assert table["log2_ratio"][first].median() > 0.3
    assert table["log2_ratio"][~first].median() < -0.3


def test_types_with_hardly_any_cell_are_not_tested(trained: totalvi.Model, mdata: MuData) -> None:
    mdata.obs["with_rare"] = mdata.obs["cell_type"].astype(str)
    mdata.obs.iloc[:9, mdata.obs.columns.get_loc("with_rare")] = "rare"
    table = trained.differential_abundance(groupby="with_rare", **ASK)
    assert table["p_value"].isna().tolist() == [True, False, False]
    assert table.loc["rare", "share1"] + table.loc["rare", "share2"] > 0
    assert not table.loc["rare", "is_da_fdr_0.05"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"condition_key": None, "groupby": "cell_type"}, "give condition_key too"),
        ({"groupby": "types"}, "groupby is 'types'"),
        ({"groupby": "condition"}, "groupby and condition_key are both 'condition'"),
        ({"min_cells": 300}, "too few samples"),
        ({"sample_key": "condition"}, "too few samples"),
    ],
)
def test_what_cannot_be_compared(
    trained: totalvi.Model, given: dict[str, Any], message: str
) -> None:
    with pytest.raises((DataError, ValueError), match=message):
        trained.differential_abundance(**(ASK | given))
