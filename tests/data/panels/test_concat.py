"""Joining data sets of different genes and panels, and models of what comes of it."""

import warnings
from pathlib import Path
from typing import Any

import anndata
import mudata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from mudata import MuData
from scipy import sparse
from scipy.stats import spearmanr

import totalvi
from counts import SMALL
from totalvi.data.checks import check_counts
from totalvi.data.columns import Columns
from totalvi.data.find import find_counts
from totalvi.errors import DataError
from totalvi.fit.batches import minibatch
from totalvi.model import Model

A_NAMES = ["CD3_TotalSeqB", "CD8a_TotalSeqB", "PD-1_TotalSeqB", "IgG1_control_TotalSeqB"]
B_NAMES = ["CD279", "HLA.DR", "CD8 (SK1)"]


def cite(names: list[str], n_cells: int = 30, n_genes: int = 20, seed: int = 0) -> MuData:
    """Counts of genes G0, G1, ..., and of the proteins named."""
    rng = np.random.default_rng(seed)
    cells = pd.DataFrame(index=[f"cell{i}" for i in range(n_cells)])
    rna = rng.poisson(1.0, (n_cells, n_genes)).astype(np.float32)
    rna[:, 0] += 1
    protein = rng.poisson(20.0, (n_cells, len(names))).astype(np.float32)
    with mudata.set_options(pull_on_update=False):
        mdata = MuData(
            {
                "rna": AnnData(
                    sparse.csr_matrix(rna),
                    obs=cells,
                    var=pd.DataFrame(index=[f"G{i}" for i in range(n_genes)]),
                ),
                "prot": AnnData(protein, obs=cells.copy(), var=pd.DataFrame(index=names)),
            }
        )
    mdata.obs["donor"] = rng.choice(["d1", "d2"], n_cells)
    return mdata


def rows(mdata: MuData, data_set: str) -> np.ndarray:
    return (mdata.obs["panel"] == data_set).to_numpy()


def test_counts_go_where_their_names_are():
    a, b = cite(A_NAMES), cite(B_NAMES, n_cells=12, n_genes=16, seed=1)
    shuffled = b["rna"][:, np.random.default_rng(0).permutation(16)].copy()
    with mudata.set_options(pull_on_update=False):
        b = MuData({"rna": shuffled, "prot": b["prot"]})
    joined = totalvi.concat({"A": a, "B": b})
    assert isinstance(joined["rna"].X, sparse.csr_matrix)
    assert joined["rna"].var_names.tolist() == [f"G{i}" for i in range(16)]
    assert joined["prot"].var_names.tolist() == [
        "CD3", "CD8a", "CD279", "IgG1 isotype control", "HLA-DR",
    ]  # fmt: skip
    for name, data_set, proteins in (
        ("A", a, ["CD3", "CD8a", "CD279", "IgG1 isotype control"]),
        ("B", b, ["CD279", "HLA-DR", "CD8a"]),
    ):
        own = rows(joined, name)
        rna = joined["rna"].to_df()[own]
        np.testing.assert_array_equal(rna, data_set["rna"].to_df()[rna.columns])
        protein = joined["prot"].to_df()[own]
        np.testing.assert_array_equal(protein[proteins], data_set["prot"].X)
        assert protein.drop(columns=proteins).isna().to_numpy().all()
    assert joined["prot"].var["measured_in"].tolist() == ["A", "A, B", "A, B", "A", "B"]
    assert joined["prot"].var["control"].tolist() == [False, False, False, True, False]


def test_cells_are_named_and_annotated():
    a, b = cite(A_NAMES), cite(B_NAMES, n_cells=12)
    b.obs["age"] = np.arange(12.0)
    a.obs["stage"], b.obs["stage"] = "late", 3  # texts and numbers
    a.obs["score"], b.obs["score"] = np.nan, 1.5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        joined = totalvi.concat({"A": a, "B": b})
    assert joined.obs_names.is_unique
    assert joined.obs_names[0] == "cell0-A"
    assert joined.obs["batch"].tolist() == ["A"] * 30 + ["B"] * 12
    assert joined.obs["donor"].tolist() == [*a.obs["donor"], *b.obs["donor"]]
    assert joined.obs["age"].isna().sum() == 30
    assert joined.obs["stage"].tolist() == ["late"] * 30 + ["3"] * 12


def test_joins_of_genes_and_proteins():
    data = {"A": cite(A_NAMES), "B": cite(B_NAMES, n_genes=16), "C": cite(A_NAMES)["rna"]}
    joined = totalvi.concat(data, genes="outer", proteins="inner")
    assert joined["rna"].n_vars == 20
    assert joined["rna"].X[rows(joined, "B")][:, 16:].nnz == 0
    assert joined["prot"].var_names.tolist() == ["CD8a", "CD279"]  # of those with proteins
    assert joined["prot"].var["measured_in"].tolist() == ["A, B", "A, B"]


def test_batches_within_data_sets():
    a, b = cite(A_NAMES), cite(B_NAMES)
    del b.obs["donor"]
    joined = totalvi.concat({"A": a, "B": b}, sub_batch_key="donor", batch_key="lane")
    assert set(joined.obs["lane"]) == {"A:d1", "A:d2", "B"}
    assert set(joined.obs["panel"]) == {"A", "B"}
    model = Model(joined, batch_key="lane", panel_key="panel", isotype_controls=(), **SMALL)
    assert model.schema.panel_names == ("A", "B")
    assert model.schema.batch_names == ("A:d1", "A:d2", "B")
    assert [sum(row) for row in model.schema.panel_measured] == [4, 3]


def test_a_data_set_whose_batches_differ_in_panel_has_a_panel_for_each():
    a = cite(A_NAMES)
    a = totalvi.declare_unmeasured(a, {"d2": ["CD3_TotalSeqB"]}, batch_key="donor")
    joined = totalvi.concat({"A": a, "B": cite(B_NAMES)}, sub_batch_key="donor")
    assert set(joined.obs["panel"]) == {"A:d1", "A:d2", "B"}
    assert joined["prot"].var.loc["CD3", "measured_in"] == "A:d1"
    schema = Model(joined, batch_key="batch", panel_key="panel", **SMALL).schema
    assert dict(zip(schema.panel_names, schema.panel_measured, strict=True))["A:d2"][0] is False


def test_annotation_is_not_overwritten():
    a, b = cite(A_NAMES), cite(B_NAMES)
    b.obs["batch"] = b.obs["donor"]
    with pytest.raises(DataError, match=r'"B" has a column "batch" .* sub_batch_key="batch"'):
        totalvi.concat({"A": a, "B": b})
    joined = totalvi.concat({"A": a, "B": b}, sub_batch_key="batch")
    assert set(joined.obs["batch"]) == {"A", "B:d1", "B:d2"}


def test_every_way_to_hold_proteins():
    a = cite(A_NAMES)
    in_obsm = a["rna"].copy()
    in_obsm.obsm["protein_counts"] = a["prot"].to_df()
    as_features = AnnData(
        sparse.hstack([a["rna"].X, sparse.csr_matrix(a["prot"].X)], format="csr"),
        obs=a.obs,
        var=pd.DataFrame(
            {"feature_types": ["Gene Expression"] * 20 + ["Antibody Capture"] * 4},
            index=[*a["rna"].var_names, *a["prot"].var_names],
        ),
    )
    joined = totalvi.concat({"mudata": a, "obsm": in_obsm, "features": as_features})
    for name in ("mudata", "obsm", "features"):
        own = rows(joined, name)
        np.testing.assert_array_equal(joined["prot"].X[own], a["prot"].X)
        np.testing.assert_array_equal(joined["rna"].X[own].toarray(), a["rna"].X.toarray())


def test_proteins_in_an_unknown_place_are_not_taken_for_none():
    a, b = cite(A_NAMES), cite(B_NAMES)
    hidden = b["rna"].copy()
    hidden.obsm["surface"] = b["prot"].to_df()
    with pytest.raises(
        DataError, match=r'data set "B": .* obsm\["surface"\] looks like antibody counts'
    ):
        totalvi.concat({"A": a, "B": hidden})
    joined = totalvi.concat({"A": a, "B": hidden}, protein_expression_obsm_key="surface")
    assert joined.uns["concat"]["data_sets"].loc["B", "n_proteins"] == 3
    with pytest.raises(ValueError, match="no data set has 'surfaec' in obsm; did you mean"):
        totalvi.concat({"A": a, "B": hidden}, protein_expression_obsm_key="surfaec")
    with mudata.set_options(pull_on_update=False):
        other = MuData({"rna": b["rna"], "adt": b["prot"]})
    with pytest.raises(DataError, match=r'data set "B": .* modality "adt" looks'):
        totalvi.concat({"A": a, "B": other})


def test_hashtags_are_left_out_and_recorded():
    a = cite([*A_NAMES, "Hashtag_1"])
    joined = totalvi.concat({"A": a, "B": cite(["Hashtag_1", "CD3"])})
    assert not joined["prot"].var_names.str.contains("ashtag").any()
    assert joined.uns["concat"]["data_sets"]["hashtags_left_out"].tolist() == ['"Hashtag_1"'] * 2


def test_nothing_is_written_into_the_data():
    a, b = cite(A_NAMES), cite(B_NAMES)
    before = a["prot"].to_df().copy(), a.obs.copy(), a["rna"].to_df().copy(), list(a.uns)
    joined = totalvi.concat({"A": a, "B": b})
    joined["rna"].X.data[:] = 9
    joined["prot"].X[:] = 9
    joined.obs["donor"] = "x"
    assert a["prot"].to_df().equals(before[0])
    assert a.obs.equals(before[1])
    assert a["rna"].to_df().equals(before[2])
    assert list(a.uns) == before[3]


def test_the_record_survives_a_file(tmp_path: Path):
    joined = totalvi.concat(
        {"A": cite(["CD11a/CD18", *A_NAMES]), "B": cite(B_NAMES)}, antibody_names={"HLA.DR": "mine"}
    )
    joined.write(tmp_path / "joined.h5mu")
    again = totalvi.read(tmp_path / "joined.h5mu")
    expected = joined.uns["concat"]
    table = again.uns["concat"]["antibodies"]
    assert table.astype(str).to_numpy().tolist() == expected["antibodies"].to_numpy().tolist()
    assert dict(zip(table["original"], table["harmonised"], strict=True))["HLA.DR"] == "mine"
    assert again.uns["concat"]["data_sets"]["n_cells"].to_dict() == {"A": 30, "B": 30}
    np.testing.assert_array_equal(again["prot"].X.toarray(), joined["prot"].X)
    schemas = [Model(m, batch_key="batch", **SMALL).schema for m in (joined, again)]
    assert schemas[0] == schemas[1]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"genes": "union"}, ValueError, "genes is 'union'; allowed are 'inner', 'outer'"),
        ({"proteins": "union"}, ValueError, "proteins is 'union'"),
        ({"panel_key": "batch"}, ValueError, 'both "batch"'),
        ({"sub_batch_key": "donr"}, ValueError, "no data set has 'donr'; did you mean \"donor\""),
        ({"antibody_names": {"CD999": "CD3"}}, ValueError, 'antibody_names holds "CD999"'),
        ({"rna_modality": "gex"}, DataError, 'data set "A": no modality "gex"'),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        totalvi.concat({"A": cite(A_NAMES), "B": cite(B_NAMES)}, **arguments)


def test_data_that_cannot_be_joined():
    a = cite(A_NAMES)
    with pytest.raises(ValueError, match="fewer than two data sets"):
        totalvi.concat({"A": a})
    with pytest.raises(DataError, match="no data set has any"):
        totalvi.concat({"A": a["rna"], "B": a["rna"]})
    with pytest.raises(DataError, match='none is in all data sets; proteins="outer"'):
        totalvi.concat({"A": a, "B": cite(["CD19"])}, proteins="inner")
    twice = cite(B_NAMES)["rna"].copy()
    twice.obs_names = ["cell0"] * 30
    with pytest.raises(DataError, match='data set "B" has several cells named "cell0"'):
        totalvi.concat({"A": a, "B": twice})
    missing = cite(B_NAMES)
    missing.obs["donor"] = pd.Series([None, *["d1"] * 29], index=missing.obs_names)
    with pytest.raises(DataError, match='data set "B" has no value for cell "cell0"'):
        totalvi.concat({"A": a, "B": missing}, sub_batch_key="donor")


@pytest.fixture(scope="module")
def halves() -> tuple[MuData, np.ndarray]:
    """Cells with proteins and cells without, and what the proteins of the latter would be."""
    with mudata.set_options(pull_on_update=False):
        full = totalvi.simulate(500, 80, 6, n_batches=1, n_cell_types=3, store_truth=False, seed=5)
        full.obs = full.obs.drop(columns="batch")
        known, hidden = full[:250].copy(), full[250:].copy()
    joined = totalvi.concat({"cite": known, "rna": hidden["rna"]})
    return joined, np.asarray(hidden["prot"].X)


@pytest.mark.parametrize("panel_key", [None, "panel"])
def test_cells_without_proteins_are_checked_and_known(halves, panel_key):
    joined, _ = halves
    findings = check_counts(
        find_counts(joined, Columns()), Columns(batch_key="batch", panel_key=panel_key)
    )
    assert all(finding.severity != "error" for finding in findings)
    note = next(finding for finding in findings if finding.code == "protein_unmeasured")
    assert '"rna", and to be imputed there: 6 of 6 proteins' in note.message
    assert not any(finding.code == "cell_without_protein" for finding in findings)
    schema = Model(joined, batch_key="batch", panel_key=panel_key, **SMALL).schema
    assert schema.panel_measured == ((True,) * 6, (False,) * 6)


@pytest.mark.parametrize(
    "options", [{}, {"protein_dispersion": "protein-batch", "panel_key": "panel"}]
)
def test_proteins_are_imputed_in_cells_without_any(halves, options):
    joined, truth = halves
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = Model(joined, batch_key="batch", **(SMALL | options))
        model.train(max_epochs=30, n_epochs_kl_warmup=10)
        own, imputed = (
            model.get_normalized_expression(
                indices=np.arange(250, 500),
                transform_batch=batch,
                unmeasured="impute",
                include_protein_background=True,
                n_samples=5,
            )[1]
            for batch in (None, "cite")
        )
    assert np.isfinite(imputed.to_numpy()).all()
    assert np.isfinite(own.to_numpy()).all()
    assert np.isfinite(model.history.filter(like="loss").to_numpy()).all()
    correlation = [spearmanr(truth[:, i], imputed.iloc[:, i])[0] for i in range(6)]
    assert np.mean(correlation) > 0.3
    level = np.log1p(imputed.to_numpy()).mean(axis=0) - np.log1p(truth).mean(axis=0)
    assert np.abs(level).mean() < 1.5


def test_a_panel_without_proteins_has_no_protein_loss(halves):
    joined, _ = halves
    model = Model(joined, batch_key="batch", **SMALL)
    assert model._data is not None
    batch = minibatch(model._data, model.module, np.arange(240, 260))
    terms = model.module.elbo(batch.x, batch.y, batch.context)
    for term in (terms.reconst_loss_protein, terms.kl_div_back_pro):
        assert (term[:10] != 0).all()
        assert (term[10:] == 0).all()
    assert (terms.reconst_loss_gene > 0).all()
    terms.reconst_loss_protein[10:].sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in model.module.parameters())


def test_public_data_sets_join(shared: Path):
    folder = shared / "data"
    ten, marrow = (
        totalvi.read(folder / "pbmc10k.h5mu"),
        totalvi.read(folder / "bmmc_134proteins.h5mu"),
    )
    eccite = anndata.read_h5ad(folder / "eccite_pbmc_49proteins.h5ad")
    five = anndata.read_h5ad(folder / "pbmc5k_rna.h5ad")
    joined = totalvi.concat({"ten": ten, "five": five})
    assert joined.shape == (6855 + 3994, 4000 + 14)
    assert np.isnan(joined["prot"].X[6855:]).all()
    with pytest.warns(UserWarning, match="are all against"):
        joined = totalvi.concat({"ten": ten, "eccite": eccite})
    assert joined["rna"].n_vars > 3800  # in spite of "hg19_" before the genes of one
    measured_in = joined["prot"].var["measured_in"]
    assert (measured_in == "ten, eccite").sum() == 10
    assert measured_in["CD279"] == "ten"
    assert measured_in["PD-1 (CD279)"] == measured_in["PD1 (CD279)"] == "eccite"
    with pytest.raises(DataError, match="shares only 260 of 1,000 genes"):
        totalvi.concat({"ten": ten, "marrow": marrow}, sub_batch_key="batch")
    with pytest.warns(UserWarning, match="CD274"):
        joined = totalvi.concat({"marrow": marrow, "eccite": eccite}, sub_batch_key="batch")
    assert set(joined.obs["batch"]) == {"marrow:s1d1", "marrow:s1d2", "eccite"}
    assert set(joined.obs["panel"]) == {"marrow", "eccite"}
