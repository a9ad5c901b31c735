"""Isotype controls stay out of the model, and check its background."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

import totalvi
from totalvi.errors import DataError
from totalvi.posterior.protein_background import isotype_check

pytestmark = pytest.mark.filterwarnings("ignore:From 0.4:FutureWarning")

SMALL = {"n_hidden": 16, "n_latent": 4}


@pytest.fixture(scope="module")
def cells():
    return totalvi.simulate(n_cells=80, n_genes=40, n_proteins=10, n_isotype_controls=2, seed=1)


@pytest.fixture(scope="module")
def model(cells):
    model = totalvi.Model(cells, **SMALL)
    model.train(max_epochs=2)
    return model


def test_controls_are_no_proteins_of_the_model(model) -> None:
    assert model.schema.control_names == ("isotype_0", "isotype_1")
    assert model.get_protein_background_mean().columns.tolist() == [
        f"protein_{i}" for i in range(8)
    ]
    with pytest.raises(ValueError, match="isotype_0"):
        model.get_protein_background_mean(protein_list=["isotype_0"])


def test_the_counts_of_controls_change_nothing(cells, model) -> None:
    other = cells.copy()
    other["prot"].X[:, 8:] += 50
    again = totalvi.Model(other, **SMALL)
    again.train(max_epochs=2)
    np.testing.assert_array_equal(
        again.get_latent_representation(), model.get_latent_representation()
    )


@pytest.mark.parametrize(
    ("given", "controls"),
    [((), ()), (["protein_3"], ("protein_3",)), (None, ("isotype_0", "isotype_1"))],
)
def test_the_user_decides(cells, given, controls) -> None:
    schema = totalvi.Model(cells, **SMALL, isotype_controls=given).schema
    assert schema.control_names == controls
    assert len(schema.protein_names) == 10 - len(controls)


def test_names_tell_controls_of_an_anndata(cells) -> None:
    adata = AnnData(cells["rna"].X.copy(), obs=cells.obs.copy())
    names = ["CD3", "CD4", "IgG1_control_TotalSeqB", "Rat IgG2b", "anti-human IgG Fc"]
    adata.obsm["adt"] = pd.DataFrame(cells["prot"].X[:, :5], index=adata.obs_names, columns=names)
    schema = totalvi.Model(adata, protein_expression_obsm_key="adt", **SMALL).schema
    assert schema.control_names == ("IgG1_control_TotalSeqB", "Rat IgG2b")


def test_wrong_controls_are_refused(cells) -> None:
    with pytest.raises(DataError, match='isotype_controls holds "CD99"'):
        totalvi.Model(cells, **SMALL, isotype_controls=["CD99"])
    with pytest.raises(DataError, match="none is left to model"):
        totalvi.Model(cells, **SMALL, isotype_controls=list(cells["prot"].var_names))
    free = totalvi.Model(cells, **SMALL, isotype_controls=())
    free.train(max_epochs=1)
    with pytest.raises(DataError, match="no isotype controls"):
        free.check_isotype_controls()


def test_saved_models_and_data_without_controls(cells, model, tmp_path: Path) -> None:
    model.save(tmp_path / "model")
    again = totalvi.Model.load(tmp_path / "model", cells)
    expected = model.check_isotype_controls()
    found = again.check_isotype_controls()
    pd.testing.assert_frame_equal(found.proteins, expected.proteins)
    without = totalvi.Model.load(tmp_path / "model")
    bare = cells.copy()
    bare.mod["prot"] = bare["prot"][:, :8].copy()
    bare.update()
    assert without.get_latent_representation(bare).shape == (80, 4)
    with pytest.raises(DataError, match="lack the isotype controls"):
        without.check_isotype_controls(bare)


def test_check_against_numpy() -> None:
    rng = np.random.default_rng(3)
    group = np.arange(400) % 2
    level = np.exp(rng.normal(size=400) + 2 * group)
    background = pd.DataFrame({"a": 2 * level, "b": rng.lognormal(size=400)})
    background.loc[:9, "a"] = np.nan
    controls = pd.DataFrame({"i": rng.poisson(level)})
    check = isotype_check(background, controls, group)
    logs = np.log1p(controls["i"].to_numpy(dtype=float))
    within = logs - np.array([logs[group == 0].mean(), logs[group == 1].mean()])[group]
    b = np.log(background["b"].to_numpy())
    b -= np.array([b[group == 0].mean(), b[group == 1].mean()])[group]
    assert check.proteins.loc["b", "correlation"] == pytest.approx(np.corrcoef(b, within)[0, 1])
    assert check.proteins.loc["a", "correlation"] > 0.7
    fold = np.log2(background["a"].mean() / controls["i"][10:].mean())
    assert check.proteins.loc["a", "log2_over_controls"] == pytest.approx(fold)
    flat = isotype_check(background, controls * 0, group)
    assert np.isnan(flat.controls["correlation"]).all()


def test_a_protein_is_compared_with_controls_of_its_species_and_class() -> None:
    cells = 50
    background = pd.DataFrame(
        30.0, index=range(cells), columns=["CD3 (mouse IgG1)", "CD44 (rat)", "CD5"]
    )
    controls = pd.DataFrame(
        {"Mouse IgG1 isotype": 1.0, "Mouse IgG2a isotype": 20.0, "Rat IgG2b isotype": 5.0},
        index=range(cells),
    )
    found = isotype_check(background, controls, np.zeros(cells, dtype=int)).proteins
    assert found["control_mean"].tolist() == [1, 5, 20]
    assert (found["warning"] != "").tolist() == [True, False, False]
