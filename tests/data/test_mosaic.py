"""Cells that lack RNA or proteins: how they are recognised, joined and counted."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from mudata import MuData

import totalvi
from totalvi.data.columns import Columns
from totalvi.data.describe import describe
from totalvi.data.mosaic import union_of_cells
from totalvi.errors import DataError
from totalvi.nn.cell import CellContext

N_GENES, N_PROTEINS = 30, 5


def parts(n_cells: int, rna: slice, protein: slice) -> MuData:
    """Modalities that hold different cells of one experiment."""
    both = totalvi.simulate(n_cells=n_cells, n_genes=N_GENES, n_proteins=N_PROTEINS, seed=1)
    mdata = MuData({"rna": both["rna"][rna].copy(), "prot": both["prot"][protein].copy()})
    for adata in mdata.mod.values():
        adata.obs = adata.obs[[]]
    return mdata


def names(start: int, stop: int) -> pd.Index:
    return pd.Index([f"cell_{i}" for i in range(start, stop)])


@pytest.mark.parametrize(
    ("rna", "protein", "wanted", "is_mosaic"),
    [
        (names(0, 100), names(0, 100), None, False),
        (names(0, 100), names(5, 105), None, False),  # lists that nearly agree
        (names(0, 100), names(5, 105), True, True),
        (names(0, 60), names(40, 100), None, True),
        (names(0, 60), names(40, 100), False, False),
        (names(0, 100), names(0, 40), None, True),
        (names(0, 100), names(0, 9), None, False),  # a list that no filter has seen
        (names(0, 60), names(60, 100), None, False),  # nothing tells how they belong together
    ],
)
def test_few_cells_in_both_are_a_mosaic(
    rna: pd.Index, protein: pd.Index, wanted: bool | None, is_mosaic: bool
) -> None:
    assert (union_of_cells(rna, protein, wanted) is not None) == is_mosaic


def test_a_mosaic_needs_cells_that_have_both() -> None:
    with pytest.raises(DataError, match="only 0 cells of 100 have both"):
        union_of_cells(names(0, 60), names(60, 100), True)


def test_each_cell_keeps_its_counts() -> None:
    mdata = parts(100, slice(0, 60), slice(40, 100))
    joined = totalvi.mosaic(mdata)
    kinds = joined.obs["measured_modalities"].to_numpy()
    assert pd.Series(kinds).value_counts().to_dict() == {"both": 20, "rna": 40, "prot": 40}
    rna = joined["rna"].to_df()
    pd.testing.assert_frame_equal(
        rna.loc[mdata["rna"].obs_names], mdata["rna"].to_df(), check_dtype=False
    )
    assert (rna[kinds == "prot"] == 0).all(axis=None)
    protein = joined["prot"].to_df()
    pd.testing.assert_frame_equal(
        protein.loc[mdata["prot"].obs_names], mdata["prot"].to_df(), check_dtype=False
    )
    assert protein[kinds == "rna"].isna().all(axis=None)


def test_a_file_of_different_cells_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "cells.h5mu"
    parts(100, slice(0, 70), slice(30, 100)).write(path)
    assert totalvi.read(path).n_obs == 100
    assert totalvi.read(path, mosaic=False).n_obs == 40
    said = [finding.message for finding in totalvi.check(path)]
    assert "40 cells have RNA and proteins, 30 RNA alone and 30 proteins alone." in said
    assert any("of which 40 are in both; all were taken" in message for message in said)


def test_panels_follow_what_was_measured_where_batches_do_not() -> None:
    mdata = parts(100, slice(0, 60), slice(40, 100))
    schema = describe(mdata, Columns()).schema
    assert schema.panel_names == ("both", "prot", "rna")
    assert schema.measured_rna.tolist() == [True, False, True]
    mdata.obs["batch"] = totalvi.mosaic(mdata).obs["measured_modalities"].reindex(mdata.obs_names)
    schema = describe(mdata, Columns(batch_key="batch")).schema
    assert schema.panel_names == ()
    assert schema.panel_measured_rna == (True, False, True)


def test_the_library_size_of_cells_without_rna_is_the_usual_one() -> None:
    data = describe(parts(100, slice(0, 60), slice(40, 100)), Columns())
    known = data.library_size[data.has_rna]
    np.testing.assert_allclose(data.library_size[~data.has_rna], np.exp(np.log(known).mean()), 1e-5)


def test_a_panel_measures_rna_in_all_of_its_cells() -> None:
    mdata = totalvi.mosaic(parts(100, slice(0, 40), slice(0, 100)))
    mdata.obs["lane"] = np.resize(["a", "b"], mdata.n_obs)
    with pytest.raises(DataError, match=re.escape('"a" holds cells with RNA and cells with')):
        describe(mdata, Columns(batch_key="lane", panel_key="lane"))


def test_cells_said_to_lack_rna_have_no_counts() -> None:
    mdata = totalvi.simulate(n_cells=60, n_genes=N_GENES, n_proteins=N_PROTEINS, seed=1)
    mdata.obs["measured_modalities"] = np.resize(["both", "prot"], 60)
    codes = [finding.code for finding in totalvi.check(mdata) if finding.severity == "error"]
    assert "rna_of_cell_without" in codes
    mdata.obs["measured_modalities"] = "RNA"
    assert [finding.code for finding in totalvi.check(mdata)] == ["counts_not_found"]


def test_antibodies_alone_are_joined_with_others() -> None:
    whole = totalvi.simulate(n_cells=90, n_genes=N_GENES, n_proteins=N_PROTEINS, seed=1)
    whole.obs = whole.obs[[]]
    antibodies = AnnData(
        whole["prot"].X[60:],
        obs=pd.DataFrame(index=whole.obs_names[60:]),
        var=pd.DataFrame({"feature_types": "Antibody Capture"}, index=whole["prot"].var_names),
    )
    both = MuData({name: whole[name][:40].copy() for name in ("rna", "prot")})
    rna = MuData({"rna": whole["rna"][40:60].copy()})
    joined = totalvi.concat({"cite": both, "rna": rna, "adt": antibodies})
    kinds = joined.obs["measured_modalities"].astype(str)
    assert kinds.value_counts().to_dict() == {"both": 40, "prot": 30, "rna": 20}
    model = totalvi.Model(joined, batch_key="batch", panel_key="panel", n_hidden=8, n_latent=2)
    assert dict(zip(model.schema.panel_names, model.schema.panel_measured_rna, strict=True)) == {
        "cite": True,
        "rna": True,
        "adt": False,
    }
    with pytest.raises(DataError, match="no data set has RNA"):
        totalvi.concat({"a": antibodies, "b": antibodies})


SMALL = {"batch_key": "batch", "n_hidden": 8, "n_latent": 2}


def test_the_encoder_of_a_mosaic_does_not_see_the_batch() -> None:
    cells = totalvi.mosaic(parts(100, slice(0, 60), slice(40, 100)))
    cells.obs["batch"] = cells.obs["measured_modalities"]
    model = totalvi.Model(cells, **SMALL)
    model.train(max_epochs=1, progress=False)
    x = torch.poisson(torch.full((3, N_GENES), 2.0))
    y = torch.zeros(3, N_PROTEINS)
    panel = torch.full((3,), model.schema.batch_names.index("rna"))
    own = CellContext(panel, panel)
    with torch.no_grad():
        states = [model.module.encode(x, y, context).qz_m for context in (own, own.in_batch(0))]
    assert states[0].equal(states[1])
    assert totalvi.Model(cells, encoder_batch=True, **SMALL).module.encoder_batch


def test_without_a_mosaic_a_fit_is_that_of_an_encoder_that_sees_the_batch() -> None:
    mdata = totalvi.simulate(
        n_cells=60, n_genes=N_GENES, n_proteins=N_PROTEINS, n_batches=2, seed=1
    )
    mdata["prot"].X[30:, 0] = np.nan
    mdata.obs["panel"] = np.repeat(["x", "y"], 30)
    models = [
        totalvi.Model(mdata, panel_key="panel", **SMALL, **options)
        for options in ({}, {"encoder_batch": True})
    ]
    for model in models:
        model.train(max_epochs=2, progress=False)
    first, second = (model.module.state_dict() for model in models)
    assert first.keys() == second.keys()
    assert all(first[name].equal(second[name]) for name in first)
