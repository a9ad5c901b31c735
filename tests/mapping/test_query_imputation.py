"""Proteins that a mapped query lacks, predicted together with regression on cells of its reference."""

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from mudata import MuData

import totalvi
from counts import SMALL, annotated
from totalvi.errors import DataError, DataWarning

ASKED = {"n_samples": 20, "progress": False}


@pytest.fixture(scope="module")
def cells() -> MuData:
    return totalvi.simulate(900, 120, 8, n_cell_types=4, seed=2)


@pytest.fixture(scope="module")
def of_type(cells: MuData) -> np.ndarray:
    """Which cells are of one type, and no other is in the query."""
    types = cells.obs["cell_type"].astype(str)
    return (types == types.value_counts().index[0]).to_numpy()


@pytest.fixture(scope="module")
def is_query(of_type: np.ndarray) -> np.ndarray:
    return of_type & (np.random.default_rng(0).random(len(of_type)) < 0.7)


@pytest.fixture(scope="module")
def reference(cells: MuData, is_query: np.ndarray) -> totalvi.Model:
    model = totalvi.Model(cells[~is_query].copy(), n_hidden=32, n_latent=6)
    model.train(max_epochs=60, accelerator="cpu", progress=False)
    return model


@pytest.fixture(scope="module")
def query(cells: MuData, is_query: np.ndarray, reference: totalvi.Model) -> totalvi.Model:
    return reference.map_query(cells["rna"][is_query].copy())


def error(imputed: pd.DataFrame, cells: MuData, is_query: np.ndarray) -> float:
    logs = np.log1p(cells["prot"].to_df()[is_query])
    return float(((imputed - logs) ** 2).to_numpy().mean() ** 0.5)


def test_a_query_of_one_type_is_predicted_as_that(
    cells: MuData, is_query: np.ndarray, reference: totalvi.Model, query: totalvi.Model
) -> None:
    """Better than the mean of all types, and not worse than by the model alone."""
    imputed = reference.impute_query(query, n_samples=50, progress=False)
    alone = query.impute_proteins(calibrated=False, n_samples=50, progress=False)
    counts = cells["prot"].to_df()
    of_all = np.log1p(counts[~is_query]).mean()
    found = error(imputed.log1p, cells, is_query)
    assert found < 0.8 * error(alone.log1p * 0 + of_all, cells, is_query)
    assert found < 1.03 * error(alone.log1p, cells, is_query)
    totals = counts[is_query].sum()
    off, alone_off = (np.abs(np.log(one.mean.sum() / totals)).mean() for one in (imputed, alone))
    assert off < 0.6 * alone_off
    inside = (counts[is_query] >= imputed.lower) & (counts[is_query] <= imputed.upper)
    assert 0.84 < inside.to_numpy().mean() < 0.96


def test_it_is_the_models_where_the_reference_has_too_few_cells() -> None:
    mdata = annotated()
    model = totalvi.Model(mdata[:30].copy(), **SMALL)
    model.train(max_epochs=2, accelerator="cpu", train_size=0.6, progress=False)
    assert len(model.split.train) < 20
    few = model.map_query(mdata["rna"][80:].copy())
    found = model.impute_query(few, **ASKED)
    alone = few.impute_proteins(calibrated=False, **ASKED)
    for part in ("mean", "sd", "log1p", "foreground_probability"):
        pd.testing.assert_frame_equal(getattr(found, part), getattr(alone, part))


def test_what_the_query_measured_is_predicted_by_its_model() -> None:
    """Without cells held out, which it does not need."""
    mdata = annotated()
    model = totalvi.Model(mdata[:80].copy(), **SMALL)
    model.train(max_epochs=1, accelerator="cpu", train_size=1.0, progress=False)
    query = model.map_query(mdata[80:].copy())
    found = model.impute_query(query, **ASKED)
    assert not found.lacking.any(axis=None)
    expected = query.impute_proteins(calibrated=False, **ASKED).log1p
    pd.testing.assert_frame_equal(found.log1p, expected)


def test_the_foreground_probability_is_that_of_the_state(query: totalvi.Model) -> None:
    imputed = query.impute_proteins(calibrated=False, **ASKED)
    expected = query.get_protein_foreground_probability(
        given_counts=False, unmeasured="impute", **ASKED
    )
    pd.testing.assert_frame_equal(
        imputed.foreground_probability, expected, rtol=1e-4, check_dtype=False
    )


def test_reliability_compares_what_is_stacked(
    reference: totalvi.Model, query: totalvi.Model
) -> None:
    table = reference.get_query_reliability(query, **ASKED)
    assert {"model_pearson", "ridge_pearson", "neighbours_pearson", "model_is_best"} <= set(table)
    best = table[["model_pearson", "ridge_pearson", "neighbours_pearson"]].max(axis=1)
    assert table["pearson"].mean() > best.mean() - 0.03


def test_some_cells_and_proteins_are_those_of_all(
    reference: totalvi.Model, query: totalvi.Model
) -> None:
    whole = reference.impute_query(query, **ASKED)
    names = query.schema.protein_names[3:1:-1]
    some = reference.impute_query(query, np.arange(5), protein_list=names, **ASKED)
    for part in ("mean", "log1p", "lower", "upper"):
        expected = getattr(whole, part).iloc[:5][list(names)]
        pd.testing.assert_frame_equal(getattr(some, part), expected, rtol=1e-5)


def test_it_is_written_in_parts(
    reference: totalvi.Model, query: totalvi.Model, tmp_path: Path
) -> None:
    expected = reference.impute_query(query, **ASKED)
    path = reference.impute_query(query, out=tmp_path / "imputed.zarr", **ASKED)
    for part in ("log1p", "upper", "foreground_probability"):
        stored = anndata.read_zarr(path / part).to_df()
        pd.testing.assert_frame_equal(
            stored, getattr(expected, part), check_dtype=False, check_names=False, rtol=1e-5
        )


def test_genes_that_the_query_lacks_are_not_counted_as_zero(
    cells: MuData, is_query: np.ndarray, reference: totalvi.Model
) -> None:
    """Regression on the genes that are there predicts about as well as on all."""
    rna = cells["rna"][is_query]
    kept = np.random.default_rng(1).random(rna.n_vars) < 0.6
    with pytest.warns(UserWarning, match="lacks"):
        fewer = reference.map_query(rna[:, kept].copy())
    found = reference.impute_query(fewer, **ASKED)
    whole = reference.impute_query(reference.map_query(rna.copy()), **ASKED)
    assert error(found.log1p, cells, is_query) < 1.15 * error(whole.log1p, cells, is_query)


def test_a_query_loaded_with_one_of_its_batches_answers(tmp_path: Path) -> None:
    mdata = annotated()
    model = totalvi.Model(mdata[:80].copy(), batch_key="batch", **SMALL)
    model.train(max_epochs=2, accelerator="cpu", train_size=0.6, progress=False)
    rna = mdata["rna"][80:].copy()
    rna.obs = mdata.obs.iloc[80:]
    query = model.map_query(rna)
    whole = model.impute_query(query, **ASKED)
    last = (rna.obs["batch"] == "batch_1").to_numpy()
    loaded = totalvi.Model.load(query.save(tmp_path / "query"), rna[last].copy())
    found = model.impute_query(loaded, **ASKED)
    assert (found.mean.index == whole.mean.index[last]).all()
    assert np.isfinite(found.mean.to_numpy()).all()


def test_the_level_is_not_that_of_a_poor_fit(cells: MuData) -> None:
    """Half of the cells count as the other half does, whatever the model expects."""
    model = totalvi.Model(cells[::2].copy(), n_hidden=32, n_latent=6)
    model.train(max_epochs=40, accelerator="cpu", progress=False)
    others = cells[1::2]
    hidden, bias = list(others["prot"].var_names[5:]), []
    logs = np.log1p(others["prot"].to_df()[hidden])
    for shown in ({}, {"prot": others["prot"][:, :5].copy()}):
        query = model.map_query(MuData({"rna": others["rna"].copy(), **shown}))
        found = model.impute_query(query, n_samples=50, progress=False)
        bias.append((found.log1p[hidden] - logs).mean())
    alone = query.impute_proteins(calibrated=False, n_samples=50, progress=False)
    level, of_alone = (
        each.levels.xs("all cells", level="decoded")["level"].item() for each in (found, alone)
    )
    assert abs(np.log(level)) < 0.1 < abs(np.log(of_alone))
    assert np.abs(bias[1] - bias[0]).max() < 0.1


def test_other_cells_than_the_references_do_not_stand_for_it(
    cells: MuData, is_query: np.ndarray, tmp_path: Path, reference: totalvi.Model
) -> None:
    path = reference.save(tmp_path / "reference.totalvi")
    own = cells[~is_query].copy()
    with pytest.warns(DataWarning, match="not those of the fit in their order"):
        other = totalvi.Model.load(path, own[::-1].copy())
    query = other.map_query(cells["rna"][is_query].copy())
    with pytest.raises(DataError, match="not the cells that the model was fitted to"):
        other.impute_query(query, **ASKED)
    with pytest.raises(DataError, match="stacked=False"):
        other.get_imputation_reliability(n_samples=2)
    assert len(other.get_imputation_reliability(indices=range(50), stacked=False, n_samples=2))


def test_cells_are_decoded_again_only_where_a_level_is_known(
    reference: totalvi.Model, query: totalvi.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def again(*arguments: object) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr("totalvi.posterior.stacking.predicted_proteins", again)
    assert reference.impute_query(query, indices=range(5), **ASKED).levels["level"].isna().all()


def test_what_cannot_be_asked_is_refused(
    cells: MuData, reference: totalvi.Model, query: totalvi.Model
) -> None:
    with pytest.raises(ValueError, match="give what map_query returned"):
        reference.impute_query(reference)
    with pytest.raises(ValueError, match="interval is 1"):
        reference.impute_query(query, interval=1)
    model = totalvi.Model(cells[:60].copy(), **SMALL)
    model.train(max_epochs=1, accelerator="cpu", train_size=1.0, progress=False)
    rna = cells["rna"][60:80]
    mapped = model.map_query(AnnData(rna.X, obs=rna.obs[[]], var=rna.var[[]]))
    with pytest.raises(DataError, match="held out no cell"):
        model.impute_query(mapped, **ASKED)
