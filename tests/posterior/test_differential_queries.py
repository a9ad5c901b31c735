"""Differential expression as people ask for it."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from mudata import MuData
from scipy.stats import spearmanr

import totalvi
from counts import N_GENES, N_PROTEINS, SMALL, annotated
from totalvi.errors import NotTrainedError

CALLS = "is_de_fdr_0.05"


def fitted(mdata: MuData, **options: Any) -> totalvi.Model:
    model = totalvi.Model(mdata, **(SMALL | {"batch_key": "batch"} | options))
    model.train(max_epochs=3, progress=False)
    return model


@pytest.fixture(scope="module")
def mdata() -> MuData:
    return annotated()


@pytest.fixture(scope="module")
def model(mdata: MuData) -> totalvi.Model:
    return fitted(mdata)


def sorted_rows(table: pd.DataFrame) -> pd.DataFrame:
    keys = ["comparison", "modality", "feature"]
    return table.reset_index().astype(dict.fromkeys(keys, str)).sort_values(keys, ignore_index=True)


@pytest.mark.parametrize("unit", ["groups", "cells"])
def test_one_row_a_comparison_and_feature(model: totalvi.Model, unit: str) -> None:
    table = model.differential_expression(groupby="cell_type", unit=unit)
    assert len(table) == 3 * (N_GENES + N_PROTEINS)
    assert table["comparison"].unique().tolist() == [f"type_{k} vs Rest" for k in range(3)]
    assert not sorted_rows(table).duplicated(["comparison", "modality", "feature"]).any()
    assert set(table["modality"]) == {"rna", "protein"}
    numbers = table.select_dtypes("number")
    assert np.isfinite(numbers).all(axis=None)
    np.testing.assert_allclose(table["proba_de"] + table["proba_not_de"], 1)
    assert (table["lfc_ci_low"] <= table["lfc_median"]).all()
    assert (table["lfc_median"] <= table["lfc_ci_high"]).all()
    for _, rows in table.groupby("comparison", observed=True):
        assert (np.diff(rows["proba_de"]) <= 1e-6).all()
        if unit == "groups":
            assert rows["proba_not_de"][rows[CALLS]].mean() <= 0.05 or not rows[CALLS].any()
    assert (CALLS in table) is (unit == "groups")


def test_raw_means_and_fractions(model: totalvi.Model, mdata: MuData) -> None:
    table = model.differential_expression(groupby="cell_type", group1="type_1", group2="type_0")
    for place, group in ((1, "type_1"), (2, "type_0")):
        cells = (mdata.obs["cell_type"] == group).to_numpy()
        for name, modality in (("rna", "rna"), ("prot", "protein")):
            rows = table[table["modality"] == modality]
            counts = mdata[name].to_df()[cells][rows.index]
            np.testing.assert_allclose(rows[f"raw_mean{place}"], counts.mean(), rtol=1e-5)
            fraction = (counts > 0).mean()
            np.testing.assert_allclose(rows[f"non_zeros_proportion{place}"], fraction)
    bare = model.differential_expression(groupby="cell_type", group1="type_1", all_stats=False)
    assert not [name for name in bare if name.startswith(("raw", "non_zeros"))]


def test_a_gene_and_a_protein_may_share_a_name() -> None:
    mdata = annotated()
    mdata["prot"].var_names = [*mdata["rna"].var_names[:2], *mdata["prot"].var_names[2:]]
    table = fitted(mdata).differential_expression(groupby="cell_type", group1="type_0")
    shared = table.loc[mdata["rna"].var_names[0]]
    assert sorted(shared["modality"]) == ["protein", "rna"]
    rna, protein = (shared[shared["modality"] == name].iloc[0] for name in ("rna", "protein"))
    cells = (mdata.obs["cell_type"] == "type_0").to_numpy()
    assert rna["raw_mean1"] == pytest.approx(mdata["rna"].X[cells, 0].mean(), rel=1e-5)
    assert protein["raw_mean1"] == pytest.approx(mdata["prot"].X[cells, 0].mean(), rel=1e-5)


def test_a_failed_fit_answers_nothing(mdata: MuData) -> None:
    untrained = totalvi.Model(mdata, **SMALL)
    with pytest.raises(NotTrainedError, match="not been trained"):
        untrained.differential_expression(groupby="cell_type")
    broken = fitted(mdata)
    with torch.no_grad():
        broken.module.decoder.gene_head.weight.fill_(torch.nan)
    for unit in ("groups", "cells"):
        with pytest.raises(NotTrainedError, match="not finite"):
            broken.differential_expression(groupby="cell_type", unit=unit)


@pytest.mark.parametrize("unit", ["groups", "cells"])
def test_the_same_seed_gives_the_same_table(model: totalvi.Model, unit: str) -> None:
    first, again, other = (
        model.differential_expression(groupby="cell_type", unit=unit, seed=seed)
        for seed in (0, 0, 1)
    )
    pd.testing.assert_frame_equal(first, again)
    assert not np.array_equal(sorted_rows(first)["lfc_mean"], sorted_rows(other)["lfc_mean"])
    small = model.differential_expression(groupby="cell_type", unit=unit, batch_size=9)
    for column in ("lfc_mean", "proba_de", "scale1"):
        np.testing.assert_allclose(
            sorted_rows(small)[column], sorted_rows(first)[column], rtol=1e-3, atol=0.02
        )


def test_ways_to_name_the_same_groups(model: totalvi.Model, mdata: MuData) -> None:
    mask = (mdata.obs["cell_type"] == "type_2").to_numpy()
    by_column = model.differential_expression(groupby="cell_type", group1="type_2")
    for idx1 in (mask, np.flatnonzero(mask), "cell_type == 'type_2'"):
        same = model.differential_expression(idx1=idx1)
        for column in ("lfc_mean", "proba_de", "raw_mean2"):
            np.testing.assert_allclose(
                sorted_rows(same)[column], sorted_rows(by_column)[column], atol=1e-9
            )


def test_swapped_groups_have_opposite_effects(model: totalvi.Model) -> None:
    there, back = (
        model.differential_expression(groupby="cell_type", group1=a, group2=b)
        for a, b in (("type_0", "type_1"), ("type_1", "type_0"))
    )
    a, b = sorted_rows(there), sorted_rows(back)
    np.testing.assert_allclose(a["lfc_mean"], -b["lfc_mean"], atol=1e-6)
    np.testing.assert_allclose(a["proba_de"], b["proba_de"], atol=1e-6)


def test_columns_added_after_the_fit_and_new_data(
    model: totalvi.Model, mdata: MuData, tmp_path: Path
) -> None:
    mdata.obs["leiden"] = np.where(np.arange(120) < 50, "a", "b")
    table = model.differential_expression(groupby="leiden")
    assert table["comparison"].unique().tolist() == ["a vs Rest", "b vs Rest"]
    loaded = totalvi.Model.load(model.save(tmp_path / "model"))
    other = annotated(60)
    other.obs["half"] = ["x", "y"] * 30
    assert len(loaded.differential_expression(other, groupby="half")) == 2 * (N_GENES + N_PROTEINS)


def test_vanilla(model: totalvi.Model) -> None:
    table = model.differential_expression(groupby="cell_type", mode="vanilla")
    np.testing.assert_allclose(table["proba_m1"] + table["proba_m2"], 1)
    odds = np.log(table["proba_m1"] / table["proba_m2"])
    usual = np.abs(odds) < 20
    np.testing.assert_allclose(table["bayes_factor"][usual], odds[usual], rtol=1e-3)
    assert "proba_de" not in table


def test_groups_without_a_common_batch_are_warned_of(model: totalvi.Model) -> None:
    with pytest.warns(UserWarning, match="no batch in common"):
        model.differential_expression(groupby="batch")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.differential_expression(groupby="batch", batch_correction=True)
        model.differential_expression(groupby="cell_type")


def test_batches_to_decode_into(model: totalvi.Model) -> None:
    ask = {"groupby": "cell_type", "group1": "type_0", "batch_correction": True}
    both = model.differential_expression(**ask)
    named = model.differential_expression(**ask, batchid1=["batch_1", "batch_0"])
    one = model.differential_expression(**ask, batchid1="batch_1", batchid2=["batch_1"])
    a, b, c = (sorted_rows(table)["scale1"] for table in (both, named, one))
    np.testing.assert_allclose(a, b, rtol=1e-5)
    assert not np.allclose(a, c, rtol=1e-3)


@pytest.mark.parametrize("unit", ["groups", "cells"])
def test_a_protein_that_a_group_did_not_measure(unit: str) -> None:
    mdata = annotated(n_unmeasured=2)
    missing = mdata["prot"].var_names[np.isnan(mdata["prot"].X).any(axis=0)]
    model = fitted(mdata)
    with pytest.warns(UserWarning, match="no batch in common"):
        table = model.differential_expression(groupby="batch", unit=unit)
    rows = table[table["modality"] == "protein"].loc[missing]
    assert rows[["proba_de", "lfc_mean"]].isna().all(axis=None)
    assert unit == "cells" or not rows[CALLS].any()
    others = table.drop(index=missing)
    assert np.isfinite(others.select_dtypes("number")).all(axis=None)
    by_type = model.differential_expression(groupby="cell_type", unit=unit)
    assert by_type["proba_de"].notna().all()
    imputed = model.differential_expression(groupby="batch", unit=unit, batch_correction=True)
    assert imputed.loc[missing, "proba_de"].notna().all()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({}, "give one of them"),
        ({"groupby": "cell_type", "idx1": [0]}, "give one of them"),
        ({"groupby": "cell_typ"}, 'did you mean "cell_type"'),
        ({"groupby": "cell_type", "group1": "type_9"}, "group1 is 'type_9'"),
        ({"groupby": "cell_type", "idx2": [0]}, "idx2 goes with idx1"),
        ({"idx1": [0], "group1": "type_0"}, "categories of groupby"),
        ({"groupby": "cell_type", "mode": "delta"}, "mode is 'delta'"),
        ({"groupby": "cell_type", "unit": "cell"}, "unit is 'cell'"),
        ({"groupby": "cell_type", "delta": -1}, "delta is -1"),
        ({"groupby": "cell_type", "fdr_target": 5}, "fdr_target is 5"),
        ({"groupby": "cell_type", "protein_prior_count": 0}, "protein_prior_count is 0"),
        ({"groupby": "cell_type", "pseudocounts": "auto"}, "pseudocounts is 'auto'"),
        ({"groupby": "cell_type", "n_samples": 0}, "n_samples is 0"),
        ({"groupby": "cell_type", "batchid1": "batch_0"}, "batch_correction=True"),
        (
            {"groupby": "cell_type", "batch_correction": True, "batchid1": "bacth_0"},
            'did you mean "batch_0',
        ),
        (
            {
                "groupby": "cell_type",
                "batch_correction": True,
                "batchid1": "batch_0",
                "batchid2": "batch_1",
            },
            "give both the same",
        ),
    ],
)
def test_wrong_arguments(model: totalvi.Model, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model.differential_expression(**wrong)


@pytest.mark.parametrize(
    "options",
    [
        {"gene_likelihood": "zinb", "latent_distribution": "ln", "library": "latent"},
        {"protein_efficiency": True, "gene_dispersion": "gene-batch"},
        {"size_factor_key": "size_factor", "protein_dispersion": "protein-batch"},
    ],
)
def test_every_kind_of_model_answers(mdata: MuData, options: dict[str, Any]) -> None:
    network = {k: options[k] for k in ("protein_efficiency",) if k in options}
    named = {k: v for k, v in options.items() if k not in network}
    model = fitted(mdata, **named, **network)
    for more in ({}, {"scale_protein": True, "include_protein_background": True}):
        table = model.differential_expression(
            groupby="cell_type", sample_protein_mixing=True, delta=None, **more
        )
        assert np.isfinite(table.select_dtypes("number")).all(axis=None)


def simulated_rates(seed: int) -> dict[str, float]:
    """Realised false discovery rate, power at 2-fold and slope, each type against the rest."""
    mdata = totalvi.simulate(1500, 400, 15, n_cell_types=5, seed=seed)
    model = totalvi.Model(mdata)
    model.train(max_epochs=120, progress=False)
    table = model.differential_expression(groupby="cell_type")
    genes = table[table["modality"] == "rna"]
    truth = []
    rho = pd.DataFrame(mdata["rna"].layers["denoised"], columns=mdata["rna"].var_names, dtype=float)
    for first, rows in genes.groupby("group1", observed=True, sort=False):
        inside = (mdata.obs["cell_type"] == first).to_numpy()
        means = [rho[cells].mean()[rows.index] for cells in (inside, ~inside)]
        c = rows["pseudocounts"].to_numpy()
        truth.append(np.log2(means[0] + c) - np.log2(means[1] + c))
    effect = np.concatenate(truth)
    calls = genes[CALLS].to_numpy()
    return {
        "false": (calls & (np.abs(effect) < 0.25)).sum() / calls.sum(),
        "power": calls[np.abs(effect) >= 1].mean(),
        "slope": np.polyfit(effect, genes["lfc_mean"], 1)[0],
    }


@pytest.mark.slow
def test_simulated_truth() -> None:
    rates = pd.DataFrame([simulated_rates(seed) for seed in (1, 2)]).mean()
    assert rates["false"] <= 0.08
    assert rates["power"] >= 0.8
    assert 0.9 <= rates["slope"] <= 1.1


MARKERS: dict[str, tuple[set[str], set[str], int]] = {  # proteins, genes, and how far up those are
    "B": ({"CD19"}, {"MS4A1", "CD79A"}, 20),
    "NK": ({"CD56"}, {"NKG7", "GNLY"}, 30),  # CD8 T cells have NKG7 too
    "CD4 T": ({"CD3", "CD4"}, {"IL7R", "CD40LG"}, 100),  # CD8 T cells are most of the rest
    "CD8 T": ({"CD8a"}, {"CD8A", "CD8B"}, 20),  # most of the rest are T cells, with CD3 too
    "CD14 monocytes": ({"CD14"}, {"LYZ", "CD14"}, 20),
    "CD16 monocytes": ({"CD16"}, {"FCGR3A", "LST1"}, 20),
}


def gated(protein: pd.DataFrame) -> np.ndarray:
    """Return the cell type of each cell by gates on its protein counts; "" where none fits."""
    y = np.log10(1 + protein.rename(columns=lambda name: name.split("_")[0]))
    b = (y["CD19"] > 2) & (y["CD3"] < 2)
    t = (y["CD3"] > 2.5) & (y["CD19"] < 1.5)
    nk = (y["CD56"] > 2) & (y["CD3"] < 2) & (y["CD14"] < 2) & (y["CD19"] < 1.5)
    myeloid = (y["CD3"] < 2) & (y["CD19"] < 1.5) & (y["CD56"] < 2)
    gates = {
        "B": b,
        "NK": nk,
        "CD4 T": t & (y["CD4"] > 2.5) & (y["CD8a"] < 2),
        "CD8 T": t & (y["CD8a"] > 2.5) & (y["CD4"] < 2),
        "CD14 monocytes": myeloid & (y["CD14"] > 2.3) & (y["CD16"] < 2),
        "CD16 monocytes": myeloid & (y["CD14"] < 2.3) & (y["CD16"] > 2.3) & (y["CD4"] > 1.8),
    }
    label = np.full(len(y), "", dtype=object)
    for name, cells in gates.items():
        label[cells] = name
    return label


@pytest.mark.slow
def test_textbook_markers_lead_on_real_cells(shared: Path) -> None:
    mdata = totalvi.read(shared / "data" / "pbmc10k.h5mu")
    model = totalvi.Model(mdata)
    model.train(max_epochs=12, early_stopping=False, progress=False)
    label = gated(mdata["prot"].to_df())
    mdata.obs["gate"] = pd.Categorical(label, categories=[*MARKERS])
    table = model.differential_expression(groupby="gate")
    for group, (proteins, genes, rank) in MARKERS.items():
        assert (label == group).sum() > 30
        rising = table[(table["group1"] == group) & table[CALLS] & (table["lfc_median"] > 0)]
        rising = rising.sort_values("lfc_median", ascending=False)
        top = {name: rows.index for name, rows in rising.groupby("modality", observed=True)}
        leading = {name.split("_")[0] for name in top["protein"][:3]}
        assert proteins <= leading, (group, leading)
        assert genes <= set(top["rna"][:rank]), (group, [*top["rna"][:rank]])
    other = model.differential_expression(groupby="gate", seed=1)
    for group in MARKERS:
        a, b = (sorted_rows(t[t["group1"] == group])["lfc_mean"] for t in (table, other))
        assert spearmanr(a, b).statistic >= 0.99
