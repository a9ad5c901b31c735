"""`Model.gate` on simulated cells: who they are, and what is not told for want of which marker."""

import numpy as np
import pytest
from mudata import MuData

import totalvi
from totalvi.posterior.gates.hierarchy import HierarchyError

GATES = totalvi.parse_hierarchy("""
T: CD3+ CD19-
CD4 T: T > CD4+ CD8-
CD8 T: T > CD8+ CD4-
B: (CD19+ else CD20+) CD3-
NK: CD56+ CD3-
""")
MEANS = {  # counts of CD3, CD4, CD8a, CD19 by type
    "CD4 T": (150, 120, 0, 0),
    "CD8 T": (150, 0, 200, 0),
    "B": (0, 0, 0, 90),
}


def blood(n_cells: int = 240, *, seed: int = 0) -> MuData:
    """Three types of cells, with genes that follow the type, and a background of 3 counts."""
    rng = np.random.default_rng(seed)
    mdata = totalvi.simulate(n_cells=n_cells, n_genes=30, n_proteins=4, seed=seed)
    types = np.array(list(MEANS))[np.arange(n_cells) % 3]
    mean = np.array([MEANS[name] for name in types])
    counts = rng.poisson(mean * rng.gamma(10, 0.1, mean.shape)) + rng.poisson(3.0, mean.shape)
    mdata["prot"].X = counts.astype(np.float32)
    mdata["prot"].var_names = ["CD3_TotalSeqB", "CD4.1", "anti-human CD8", "CD19"]
    genes = rng.poisson(0.5 + 5.0 * (np.arange(30) % 3 == np.arange(n_cells)[:, None] % 3))
    mdata["rna"].X = genes.astype(np.float32)
    mdata.update()
    mdata.obs["type"] = types
    return mdata


@pytest.fixture(scope="module")
def model() -> totalvi.Model:
    model = totalvi.Model(blood(), n_hidden=32, n_latent=4)
    model.train(max_epochs=40, accelerator="cpu", progress=False)
    return model


def test_cells_are_named_and_memberships_are_probabilities(model: totalvi.Model) -> None:
    gating = model.gate(hierarchy=GATES, n_samples=5)
    types = model._training_data().cell_names.to_series().index
    truth = blood().obs["type"].reindex(types)
    assert (gating.population.astype(str).to_numpy() == truth.to_numpy()).mean() > 0.95
    values = gating.memberships.drop(columns="NK")
    assert values.notna().all(axis=None)
    assert values.ge(0).all(axis=None)
    assert values.le(1).all(axis=None)
    assert (values["CD4 T"] <= values["T"]).all()


def test_two_names_of_one_antigen_are_measured_by_one_antibody(model: totalvi.Model) -> None:
    hierarchy = totalvi.parse_hierarchy("first: CD8+\nsecond: CD8a+")
    gating = model.gate(hierarchy=hierarchy, n_samples=2)
    assert gating.markers["feature"].tolist() == ["anti-human CD8"] * 2
    assert gating.populations["wanting"].tolist() == ["", ""]


def test_it_says_what_measures_a_marker_and_what_is_wanting(model: totalvi.Model) -> None:
    gating = model.gate(hierarchy=GATES, n_samples=2)
    features = gating.markers["feature"].to_dict()
    assert features == {
        "CD3": "CD3_TotalSeqB", "CD19": "CD19", "CD4": "CD4.1", "CD8": "anti-human CD8",
        "CD20": "", "CD56": "",
    }  # fmt: skip
    assert gating.populations["wanting"].to_dict()["NK"] == "CD56"
    assert gating.populations["wanting"].to_dict()["B"] == ""
    told_by = gating.populations["told_by"].to_dict()
    assert told_by["NK"] == "CD3"
    assert told_by["CD4 T"].split(", ")[0] == "CD4"
    assert "CD20" not in told_by["B"]
    nk = gating.memberships["NK"]
    is_t = gating.memberships["T"] > 0.99
    assert nk[~is_t].isna().all()  # CD3- cells might be
    assert (nk[is_t] == 0).all()  # CD3+ cells are not, whatever CD56 is
    assert gating.markers.loc["CD3", "positive"] > 5


def test_a_marker_taken_away_leaves_undecided_what_it_decided() -> None:
    mdata = blood()
    mdata = MuData({"rna": mdata["rna"].copy(), "prot": mdata["prot"][:, [0, 1, 3]].copy()})
    model = totalvi.Model(mdata, n_hidden=32, n_latent=4)
    model.train(max_epochs=40, accelerator="cpu", progress=False)
    gating = model.gate(hierarchy=GATES, n_samples=5)
    truth = blood().obs["type"].to_numpy()
    named = gating.population.astype(str).to_numpy()
    assert gating.populations.loc["CD8 T", "wanting"] == "CD8"
    assert set(named[truth != "B"]) <= {"T", "undecided"}
    assert (named[truth == "B"] == "B").mean() > 0.95


def test_a_hierarchy_by_name_or_not_at_all(model: totalvi.Model) -> None:
    assert "CD4 naive" in model.gate(hierarchy="blood", n_samples=1).memberships
    with pytest.raises(HierarchyError, match="did you mean"):
        model.gate(hierarchy="bloood")


def test_markers_that_nothing_measures_leave_all_untold(model: totalvi.Model) -> None:
    gating = model.gate(hierarchy=totalvi.parse_hierarchy("A: CD99+\nB: gene:ABSENT+"), n_samples=2)
    assert gating.memberships.isna().all(axis=None)
    assert gating.populations["wanting"].tolist() == ["CD99", "gene:ABSENT"]


@pytest.mark.parametrize("mean_count", [1.0, 3.0])  # all foreground, none foreground
def test_a_failed_antibody_leaves_its_populations_untold_or_to_others(mean_count: float) -> None:
    counts = blood(600, seed=3)
    values = np.array(counts["prot"].X)
    values[:, 0] = np.random.default_rng(0).poisson(mean_count, counts.n_obs)  # CD3
    counts["prot"].X = values
    model = totalvi.Model(counts, n_hidden=32, n_latent=4)
    model.train(max_epochs=40, accelerator="cpu", progress=False)
    hierarchy = totalvi.parse_hierarchy("""
    T: CD3+
    not B: CD19-
    T by others: (CD3+ else CD4+ or CD8+) CD19-
    B: CD19+ CD3-?
    """)
    gating = model.gate(hierarchy=hierarchy, n_samples=5)
    note = gating.markers["note"].to_dict()
    assert note["CD3"] in {"no positive cells", "does not separate"}
    assert (note["CD4"], note["CD19"]) == ("", "")
    assert gating.memberships["T"].isna().mean() > 0.95
    assert gating.populations["wanting"]["T"] == f"CD3 ({note['CD3']})"
    assert gating.populations["wanting"].drop("T").tolist() == ["", "", ""]
    is_b = (counts.obs["type"] == "B").to_numpy()
    for population, truth in {"T by others": ~is_b, "B": is_b}.items():
        assert ((gating.memberships[population] > 0.5) == truth).mean() > 0.98
