"""simulate_blood: the cells carry what its table says, and the names mean what they should."""

import numpy as np
import pandas as pd
import pytest

from totalvi.data.io.features import are_controls
from totalvi.data.panels.antibody_names import matched_pairs
from totalvi.data.simulate_blood import DONORS, DOUBLET, TABLES, simulate_blood
from totalvi.errors import DataError
from totalvi.posterior.gates.hierarchy import read_hierarchy


@pytest.fixture(scope="module")
def blood():
    return simulate_blood(6000, share_of_doublets=0.1, seed=2)


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return pd.read_csv(TABLES / "cell_types.tsv", sep="\t", comment="#", na_values=".")


def by_type(adata, cell_type: pd.Series) -> pd.DataFrame:
    counts = adata.X if isinstance(adata.X, np.ndarray) else adata.X.toarray()
    means = pd.DataFrame(counts, columns=adata.var_names).groupby(cell_type.to_numpy())
    return means.mean()


def test_same_seed_same_counts(blood):
    again = simulate_blood(6000, share_of_doublets=0.1, seed=2)
    other = simulate_blood(6000, share_of_doublets=0.1, seed=3)
    assert (again["rna"].X != blood["rna"].X).nnz == 0
    assert (again["prot"].X == blood["prot"].X).all()
    assert again.obs.equals(blood.obs)
    assert (other["prot"].X != blood["prot"].X).any()


def test_types_are_populations_of_the_hierarchy(blood):
    populations = {population.name for population in read_hierarchy("blood").populations}
    assert set(blood.obs["cell_type"].cat.categories) - populations == {DOUBLET}


def test_proteins_are_those_of_the_table(blood, table):
    wanted = table[table["kind"] == "protein"].set_index("name").iloc[:, 2:]
    seen = by_type(blood["prot"], blood.obs["cell_type"])
    assert list(wanted.index) == list(blood["prot"].var_names)
    for name, factors in wanted.iterrows():
        carried = factors.notna()
        lacking = seen.loc[factors.index[~carried], name] if (~carried).any() else None
        if not carried.any():
            assert lacking.max() < 1.5 * lacking.min()
            continue
        ratio = seen.loc[factors.index[carried], name] / lacking.median()
        np.testing.assert_allclose(ratio, factors[carried].astype(float), rtol=0.35)


def test_genes_are_those_of_the_table(blood, table):
    wanted = table[table["kind"] == "gene"].set_index("name").iloc[:, 2:].fillna(1.0)
    seen = by_type(blood["rna"], blood.obs["cell_type"]).loc[wanted.columns, wanted.index]
    varies = wanted.max(axis=1) >= 10
    highest = wanted[varies].eq(wanted[varies].max(axis=1), axis=0)
    lowest = wanted[varies].eq(1.0)
    low = seen.T[varies].where(lowest).mean(axis=1)
    assert (seen.T[varies].where(highest).min(axis=1) > 3 * low).all()


def test_proportions_are_those_of_the_table(blood, table):
    shares = table.loc[table["kind"] == "share"].iloc[0, 3:].astype(float)
    singlets = blood.obs[~blood.obs["doublet"]]
    seen = 100 * singlets["cell_type"].value_counts(normalize=True)[shares.index]
    assert (seen - shares).abs().max() < 5
    assert singlets["donor"].cat.categories.tolist() == list(DONORS[:2])
    assert blood.obs["donor"].value_counts().tolist() == [3000, 3000]


def test_doublets_hold_the_counts_of_two_cells(blood):
    obs = blood.obs
    assert obs["doublet"].sum() == 600
    assert (obs["cell_type"] == DOUBLET).equals(obs["doublet"])
    assert ((obs["doublet_of"] == "") == ~obs["doublet"]).all()
    means = by_type(blood["prot"], obs["cell_type"])
    pairs = obs.loc[obs["doublet"], "doublet_of"].str.split(" + ", regex=False, expand=True)
    expected = means.loc[pairs[0]].to_numpy() + means.loc[pairs[1]].to_numpy()
    seen = blood["prot"].X[obs["doublet"]]
    np.testing.assert_allclose(seen.mean(axis=0), expected.mean(axis=0), rtol=0.15)
    alike = [np.corrcoef(seen[:, t], expected[:, t])[0, 1] for t in range(seen.shape[1])]
    assert np.median(alike) > 0.6
    sizes = np.asarray(blood["rna"].X.sum(axis=1)).ravel()
    assert sizes[obs["doublet"]].mean() == pytest.approx(2 * sizes[~obs["doublet"]].mean(), rel=0.1)


def test_the_isotype_control_is_known_by_its_name_and_the_antigens_by_their_genes(blood):
    prot, rna = blood["prot"], blood["rna"]
    names = prot.var_names[are_controls(prot.var, None, "the data")]
    assert names.tolist() == ["IgG1_control"]
    paired = {protein for protein, _ in matched_pairs(prot.var_names, rna.var_names)}
    without = set(prot.var_names) - paired
    assert without == {"CD45RA", "CD45RO", "IgG1_control"}  # isoforms of one gene
    assert rna.shape[1] == len(set(rna.var_names)) == 500


def test_the_failed_antibody_has_a_gene_that_is_expressed(blood):
    gene = by_type(blood["rna"], blood.obs["cell_type"])["CCR7"]
    protein = by_type(blood["prot"], blood.obs["cell_type"].where(~blood.obs["doublet"]))["CD197"]
    assert gene["CD4 naive"] > 5 * gene["CD8 effector"]
    assert protein["CD4 naive"] == pytest.approx(protein["CD8 effector"], rel=0.2)


def test_patients_differ_by_what_their_table_says_and_by_nothing_else():
    cells = simulate_blood(26_000, n_donors=26, n_patients=13, share_of_doublets=0.0, seed=4)
    assert cells.obs.groupby("donor", observed=True)["condition"].nunique().tolist() == [1] * 26
    is_patient = cells.obs["condition"] == "patient"
    assert sorted(cells.obs.loc[is_patient, "donor"].unique()) == list(DONORS[13:])
    changes = pd.read_csv(TABLES / "patients.tsv", sep="\t", comment="#")
    share = cells.obs.groupby("condition", observed=True)["cell_type"].value_counts().unstack()
    times = (share.loc["patient"] / share.loc["healthy"]).drop(DOUBLET, errors="ignore")
    expected = changes[changes["kind"] == "share"].set_index("type")["times"].reindex(times.index)
    assert np.log2(times / expected.fillna(1.0)).dropna().abs().max() < 0.6
    for kind, modality in (("protein", "prot"), ("gene", "rna")):
        healthy = by_type(cells[~is_patient][modality], cells.obs.loc[~is_patient, "cell_type"])
        patients = by_type(cells[is_patient][modality], cells.obs.loc[is_patient, "cell_type"])
        changed = np.log2((patients + 1e-9) / (healthy + 1e-9))
        for row in changes[changes["kind"] == kind].itertuples():
            assert changed.loc[row.type, row.name] == pytest.approx(np.log2(row.times), abs=0.7)
            changed.loc[row.type, row.name] = np.nan
        assert np.nanmedian(changed.abs()) < 0.25


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"n_cells": 0}, "n_cells"),
        ({"share_of_doublets": 1.5}, "share_of_doublets"),
        ({"n_donors": 27}, "n_donors"),
        ({"n_patients": 3}, "n_patients"),
    ],
)
def test_arguments_out_of_range_are_named(arguments, named):
    with pytest.raises(DataError, match=named):
        simulate_blood(**{"n_cells": 50} | arguments)
