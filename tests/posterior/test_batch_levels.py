"""The level of a batch's protein counts, and predictions of what it lacks at that level."""

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from mudata import MuData
from scipy import stats

import totalvi
from counts import SMALL
from totalvi.posterior.batch_levels import _through, log1p_at_level, predictive_level

SHOWN = ["antigen0", "antigen2", "antigen4"]
HIDDEN = ["antigen1", "antigen3", "antigen5"]


def interval(log_ratios: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
    mean, scale, df = predictive_level(log_ratios)
    lower, upper = stats.t.interval(share, df, mean, scale)
    return lower, upper


def test_an_antibody_that_failed_moves_nothing_among_many() -> None:
    ratios = np.log(3) + 0.1 * np.random.default_rng(0).normal(size=15)
    mean, scale, df = predictive_level(np.append(ratios, -8.0))
    assert (mean, scale, df) == predictive_level(ratios)
    assert mean == pytest.approx(np.log(3), abs=0.06)


@pytest.mark.parametrize("n_proteins", [3, 5, 7, 10, 14])
@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_the_interval_of_a_further_protein_holds_its_share(n_proteins: int, share: float) -> None:
    levels = np.random.default_rng(1).normal(0.7, 0.5, size=(4000, n_proteins + 1))
    limits = np.array([interval(row[:-1], share) for row in levels])
    inside = (levels[:, -1] >= limits[:, 0]) & (levels[:, -1] <= limits[:, 1])
    assert inside.mean() == pytest.approx(share, abs=0.025)


def test_logarithms_at_a_level_are_those_of_scaled_counts() -> None:
    counts = np.array([[0.0, 0.3, 7.0, 900.0]])
    found = log1p_at_level(np.log1p(counts), np.log([[3.0, 0.3, 1.0, 0.3]]))
    np.testing.assert_allclose(found, np.log1p(counts * [3.0, 0.3, 1.0, 0.3]))


def stained(share: float) -> tuple[MuData, pd.DataFrame]:
    """Return two batches of the same cells, the second thinned and without three of its proteins."""
    mdata = totalvi.simulate(2400, 60, 6, n_cell_types=3, store_truth=False, seed=5)
    mdata["prot"].var_names = mdata["prot"].var_names.str.replace("protein_", "antigen")
    second = np.random.default_rng(0).random(2400) < 0.5
    counts = mdata["prot"].X.astype(float)
    counts[second] = np.random.default_rng(1).binomial(counts[second].astype(int), share)
    truth = pd.DataFrame(counts, mdata.obs_names, mdata["prot"].var_names).loc[second, HIDDEN]
    columns = mdata["prot"].var_names.get_indexer(HIDDEN)
    counts[np.ix_(second, columns)] = np.nan
    mdata["prot"].X = counts.astype(np.float32)
    mdata.obs["batch"] = np.where(second, "second", "first")
    mdata.update()
    return mdata, truth


@pytest.fixture(scope="module", params=[0.3, 1.0])
def joint(request: pytest.FixtureRequest) -> tuple[float, totalvi.Model, pd.DataFrame]:
    """The share of the second batch's counts that is kept, a fit of both, and what it would count."""
    mdata, truth = stained(request.param)
    model = totalvi.Model(mdata, batch_key="batch", **SMALL)
    model.train(max_epochs=40, train_size=0.7, accelerator="cpu", progress=False)
    return request.param, model, truth


def of_second(model: totalvi.Model) -> np.ndarray:
    return np.flatnonzero(model._training_data().batch == 1)


def test_hidden_proteins_are_predicted_at_the_level_of_those_shown(
    joint: tuple[float, totalvi.Model, pd.DataFrame], tmp_path: Path
) -> None:
    share, model, truth = joint
    asked = {"indices": of_second(model), "protein_list": HIDDEN, "n_samples": 50}
    own = model.impute_proteins(**asked)
    stored = anndata.read_zarr(model.impute_proteins(**asked, out=tmp_path / "z") / "levels")
    np.testing.assert_allclose(stored.X, own.levels, rtol=1e-6)
    level = own.levels.loc[("second", "first")]
    assert level["n_proteins"] == len(SHOWN)
    assert level["level"] == pytest.approx(share, rel=0.25)
    assert level["lower"] < level["level"] < level["upper"]
    held = (truth >= own.lower) & (truth <= own.upper)
    assert 0.84 < held.mean(axis=None) < 0.97
    logs = np.log1p(truth)
    assert abs((own.log1p - logs).mean(axis=None)) < 0.2
    if share < 1:
        other = model.impute_proteins(own_level=False, **asked)
        assert len(other.levels) == 0
        assert (other.log1p - logs).mean(axis=None) > 0.5
        assert ((truth >= other.lower) & (truth <= other.upper)).mean(axis=None) < 0.75


def test_decoded_into_a_named_batch_the_level_is_of_that_batch(
    joint: tuple[float, totalvi.Model, pd.DataFrame],
) -> None:
    _, model, _ = joint
    asked = {"indices": of_second(model), "protein_list": HIDDEN, "n_samples": 5}
    named = model.impute_proteins(transform_batch="first", **asked)
    pd.testing.assert_frame_equal(
        named.mean, model.impute_proteins(own_level=False, **asked).mean, rtol=1e-5
    )
    own = model.impute_proteins(transform_batch="first", own_level=True, **asked)
    level = own.levels.loc[("second", "first"), "level"]
    unstacked = {"calibrated": False, **asked}
    at_own = model.impute_proteins(**unstacked).mean
    at_first = model.impute_proteins(own_level=False, **unstacked).mean
    np.testing.assert_allclose(at_own, level * at_first, rtol=1e-4)


@pytest.mark.parametrize("factor", [0.3, pytest.param(1 / 0.3, marks=pytest.mark.slow)])
def test_a_mapped_query_is_predicted_at_its_own_level(factor: float) -> None:
    mdata, truth = stained(min(factor, 1.0))
    second = (mdata.obs["batch"] == "second").to_numpy()
    reference = totalvi.simulate(2400, 60, 6, n_cell_types=3, store_truth=False, seed=5)[~second]
    reference = reference.copy()
    reference["prot"].var_names = mdata["prot"].var_names
    if factor > 1:
        counts = np.asarray(reference["prot"].X).astype(int)
        thinned = np.random.default_rng(2).binomial(counts, 1 / factor)
        reference["prot"].X = thinned.astype(np.float32)
    model = totalvi.Model(reference, **SMALL)
    model.train(max_epochs=60, train_size=0.7, accelerator="cpu", progress=False)
    query = MuData(
        {"rna": mdata["rna"][second].copy(), "prot": mdata["prot"][second, SHOWN].copy()}
    )
    mapped = model.map_query(query)
    own = mapped.impute_proteins(protein_list=HIDDEN, n_samples=50)
    # the few epochs leave what is shown and what is hidden alike too low, which a level makes good
    assert own.levels["level"].item() == pytest.approx(factor, rel=0.5)
    held = (truth.to_numpy() >= own.lower) & (truth.to_numpy() <= own.upper)
    assert 0.84 < held.mean(axis=None) < 0.98
    alone = model.map_query(MuData({"rna": query["rna"]}))
    imputed = alone.impute_proteins(protein_list=HIDDEN, n_samples=5)
    assert imputed.levels["n_proteins"].item() == 0
    assert np.isnan(imputed.levels["level"].item())


def test_a_level_follows_through_another_batch() -> None:
    """Over "late", of which it knows one protein, a query's level follows from that over "early"."""
    mdata, truth = stained(0.3)
    names = np.array(mdata["prot"].var_names)
    batch = mdata.obs["batch"].to_numpy(object)
    batch[(batch == "first") & (np.arange(mdata.n_obs) % 2 == 0)] = "late"
    batch[batch == "first"] = "early"
    mdata.obs["batch"] = batch
    counts = mdata["prot"].X
    counts[np.ix_(batch == "late", np.flatnonzero(np.isin(names, SHOWN[1:])))] = np.nan
    late = batch == "late"
    counts[late] = np.where(np.isnan(counts[late]), np.nan, 2 * counts[late])
    model = totalvi.Model(mdata, batch_key="batch", **SMALL)
    model.train(max_epochs=40, train_size=0.7, accelerator="cpu", progress=False)
    second = np.flatnonzero(batch == "second")
    own = model.impute_proteins(indices=second, protein_list=HIDDEN, n_samples=20, calibrated=False)
    levels = own.levels.loc["second"]
    assert levels.loc["early", "n_proteins"] == 3
    assert levels.loc["late", "n_proteins"] == 1
    assert levels.loc["early", "level"] == pytest.approx(0.3, rel=0.3)
    assert levels.loc["late", "level"] == pytest.approx(0.15, rel=0.3)
    error = own.log1p.to_numpy() - np.log1p(truth.to_numpy())
    assert abs(error.mean()) < 0.25


def test_one_protein_that_both_measured_carries_a_level_over() -> None:
    expected = np.array([np.nan, 8.0, 3.0])
    other = np.array([5.0, 4.0, np.nan])
    assert _through((-1.2, 0.1, 5.0, 6), expected, other) == (-1.2 + np.log(2), 0.1, 5.0)
    assert _through((-1.2, 0.1, 5.0, 6), expected, other * np.nan) is None


def test_cells_of_one_query_batch_with_two_panels_are_at_one_level() -> None:
    """The batch's own weights are the reference's, so that it has a level over itself as well."""
    mdata, truth = stained(0.3)
    second = (mdata.obs["batch"] == "second").to_numpy()
    cells = totalvi.simulate(2400, 60, 6, n_cell_types=3, store_truth=False, seed=5)
    cells["prot"].var_names = mdata["prot"].var_names
    reference = cells[~second].copy()
    reference.obs["panel"] = "whole"
    model = totalvi.Model(reference, panel_key="panel", **SMALL)
    model.train(max_epochs=60, train_size=0.7, accelerator="cpu", progress=False)
    proteins, rna = mdata["prot"][second].copy(), mdata["rna"][second].copy()
    panel = np.where(np.arange(second.sum()) % 2, "lacks", "whole")
    columns = proteins.var_names.get_indexer(HIDDEN)
    proteins.X[np.ix_(panel == "whole", columns)] = truth.to_numpy()[panel == "whole"]
    query = MuData({"rna": rna, "prot": proteins})
    query.obs["panel"] = panel
    mapped = model.map_query(query)
    lacks = np.flatnonzero(panel == "lacks")
    own = mapped.impute_proteins(indices=lacks, protein_list=HIDDEN, n_samples=20)
    assert own.levels.index.is_unique
    assert (own.levels["n_proteins"] >= 3).all()
    assert own.levels["level"].to_numpy() == pytest.approx(0.3, rel=0.5)
    expected = truth.to_numpy()[lacks].mean()
    assert own.mean.to_numpy().mean() == pytest.approx(expected, rel=0.3)


def test_a_query_of_two_batches_is_predicted_from_the_other_one_too() -> None:
    """Both are stained at .3; the first also shows what the second lacks."""
    mdata, truth = stained(0.3)
    second = (mdata.obs["batch"] == "second").to_numpy()
    reference = totalvi.simulate(2400, 60, 6, n_cell_types=3, store_truth=False, seed=5)[~second]
    reference = reference.copy()
    reference["prot"].var_names = mdata["prot"].var_names
    model = totalvi.Model(reference, **SMALL)
    model.train(max_epochs=60, train_size=0.7, accelerator="cpu", progress=False)
    proteins = mdata["prot"][second].copy()
    lane = np.where(np.arange(second.sum()) % 2, "lacks", "whole")
    columns = proteins.var_names.get_indexer(HIDDEN)
    proteins.X[np.ix_(lane == "whole", columns)] = truth.to_numpy()[lane == "whole"]
    query = MuData({"rna": mdata["rna"][second].copy(), "prot": proteins})
    query.obs["lane"] = lane
    mapped = model.map_query(query, batch_key="lane")
    lacks = np.flatnonzero(lane == "lacks")
    own = mapped.impute_proteins(indices=lacks, protein_list=HIDDEN, n_samples=20)
    assert len(own.levels) == 2
    assert own.levels["level"].to_numpy() == pytest.approx(0.3, rel=0.5)
    expected = truth.to_numpy()[lacks]
    assert own.mean.to_numpy().mean() == pytest.approx(expected.mean(), rel=0.3)
    of_none = model.map_query(query, batch_key="lane", train=True, max_epochs=1)
    trained = of_none.impute_proteins(indices=lacks, protein_list=HIDDEN, n_samples=5)
    assert np.isfinite(trained.levels["level"]).all()


def test_a_minified_reference_knows_no_level_of_its_own_cells(tmp_path: Path) -> None:
    mdata, _ = stained(0.3)
    model = totalvi.Model(mdata[:600].copy(), batch_key="batch", **SMALL)
    model.train(max_epochs=2, accelerator="cpu", progress=False)
    small = totalvi.Model.load(model.save(tmp_path / "small.totalvi", minified=True))
    imputed = small.impute_proteins(n_samples=2, calibrated=False)
    assert len(imputed.levels) == 0


def test_isotype_controls_alone_tell_the_level() -> None:
    mdata = totalvi.simulate(1500, 40, 6, n_cell_types=3, store_truth=False, seed=5)
    controls = [f"{name} isotype control" for name in ("IgG1", "IgG2a", "IgG2b")]
    mdata["prot"].var_names = ["antigen0", "antigen1", "antigen2", *controls]
    mdata["prot"].var["control"] = [False] * 3 + [True] * 3
    second = np.random.default_rng(0).random(1500) < 0.5
    counts = mdata["prot"].X.astype(float)
    counts[second] = np.random.default_rng(1).binomial(counts[second].astype(int), 0.3)
    counts[np.ix_(second, range(3))] = np.nan
    mdata["prot"].X = counts.astype(np.float32)
    mdata.obs["batch"] = np.where(second, "second", "first")
    mdata.update()
    model = totalvi.Model(mdata, batch_key="batch", **SMALL)
    model.train(max_epochs=2, accelerator="cpu", progress=False)
    level = model.impute_proteins(n_samples=5).levels.loc[("second", "first")]
    assert level["n_proteins"] == 3
    assert level["level"] == pytest.approx(0.3, rel=0.1)
    means = mdata["prot"].to_df()[controls].groupby(second).mean()
    expected = predictive_level(np.log(means.loc[True] / means.loc[False]).to_numpy())
    assert np.log(level["level"]) == pytest.approx(expected[0], rel=1e-5)
