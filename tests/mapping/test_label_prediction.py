"""Labels that are known of some cells: the fit, predictions, new cells, errors, deciding features."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from mudata import MuData
from sklearn.metrics import roc_auc_score

import totalvi
from totalvi.errors import DataError
from totalvi.mapping.label_prediction import UNLIKE_ALL

pytestmark = pytest.mark.filterwarnings("ignore:From 0.4:FutureWarning")
SMALL = {"n_hidden": 32, "n_latent": 6, "batch_key": "batch"}


def cells(seed: int = 0) -> MuData:
    """Simulate four types in two batches; of the labels of three types, a fifth is known."""
    mdata = totalvi.simulate(
        n_cells=500, n_genes=80, n_proteins=8, n_batches=2, n_cell_types=4, seed=7
    )
    truth = mdata.obs["cell_type"].astype(str)
    known = (np.random.default_rng(seed).random(500) < 0.2) & (truth != "type_3").to_numpy()
    mdata.obs["known"] = truth.where(known, "Unknown")
    mdata.obs["truth"] = truth
    return mdata


@pytest.fixture(scope="module")
def mdata() -> MuData:
    return cells()


@pytest.fixture(scope="module")
def model(mdata: MuData) -> totalvi.Model:
    model = totalvi.Model(mdata, labels_key="known", unlabeled_category="Unknown", **SMALL)
    model.train(max_epochs=40, progress=False)
    return model


def test_a_fit_does_not_see_labels_that_are_known_of_some(
    mdata: MuData, model: totalvi.Model
) -> None:
    plain = totalvi.Model(mdata, **SMALL)
    plain.train(max_epochs=40, progress=False)
    np.testing.assert_array_equal(
        plain.get_latent_representation(), model.get_latent_representation()
    )
    by_argument = plain.predict(labels=mdata.obs["known"].replace("Unknown", np.nan))
    pd.testing.assert_frame_equal(by_argument.probabilities, model.predict().probabilities)


def test_labels_are_predicted_and_the_left_out_type_is_unlike(
    mdata: MuData, model: totalvi.Model
) -> None:
    found, truth = model.predict(), mdata.obs["truth"].to_numpy()
    of_known_types = truth != "type_3"
    best = found.probabilities.idxmax(axis=1).to_numpy()
    assert (best == truth)[of_known_types].mean() > 0.95
    assert list(found.probabilities) == ["type_0", "type_1", "type_2"]
    np.testing.assert_allclose(found.probabilities.sum(axis=1), 1)
    assert roc_auc_score(~of_known_types, found.unlike["unlikeness"]) > 0.97
    called = (found.labels == UNLIKE_ALL).to_numpy()
    assert called[~of_known_types].mean() > 0.6
    assert called[of_known_types].mean() < 0.05
    np.testing.assert_array_equal(found.known, mdata.obs["known"] != "Unknown")
    assert found.held_out_accuracy > 0.9
    assert 0 <= found.held_out_calibration_error < 0.1


def test_missing_labels_are_unlabelled_as_well(mdata: MuData, model: totalvi.Model) -> None:
    missing = mdata["rna"].copy(), mdata["prot"].copy()
    other = MuData({"rna": missing[0], "prot": missing[1]})
    other.obs = mdata.obs.copy()
    other.obs["known"] = other.obs["known"].replace("Unknown", np.nan)
    other.obs.iloc[3, other.obs.columns.get_loc("known")] = "Unknown"
    built = totalvi.Model(other, labels_key="known", unlabeled_category="Unknown", **SMALL)
    assert built.schema.label_names == ()
    assert "known" in built.schema.columns.labels_key


def test_some_cells_and_saved_models_get_the_same_answers(
    mdata: MuData, model: totalvi.Model, tmp_path: Path
) -> None:
    found = model.predict()
    some = model.predict(indices=[3, 70, 5])
    pd.testing.assert_frame_equal(some.probabilities, found.probabilities.iloc[[3, 70, 5]])
    pd.testing.assert_series_equal(some.labels, found.labels.iloc[[3, 70, 5]])
    model.save(tmp_path / "model")
    again = totalvi.Model.load(tmp_path / "model", mdata)
    assert again.schema.columns.unlabeled_category == "Unknown"
    pd.testing.assert_frame_equal(again.predict().unlike, found.unlike)


def test_new_cells_are_placed_beside_the_training_cells(
    mdata: MuData, model: totalvi.Model
) -> None:
    new = mdata[100:300].copy()
    del new.obs["known"]  # new cells need no column of labels
    truth = mdata.obs["truth"].to_numpy()[100:300]
    known_types = truth != "type_3"
    query = model.map_query(new)
    for found in (model.predict(new), model.predict(query)):
        assert len(found.labels) == 200
        assert not found.known.any()
        best = found.probabilities.idxmax(axis=1).to_numpy()
        assert (best == truth)[known_types].mean() > 0.95
        assert roc_auc_score(~known_types, found.unlike["unlikeness"]) > 0.95
    rna_alone = model.predict(model.map_query(new["rna"].copy()))
    best = rna_alone.probabilities.idxmax(axis=1).to_numpy()
    assert (best == truth)[known_types].mean() > 0.8
    with pytest.raises(ValueError, match="ask the reference"):
        query.predict()


def test_a_minified_reference_says_that_it_lacks_counts(
    model: totalvi.Model, tmp_path: Path
) -> None:
    model.save(tmp_path / "reference.totalvi", minified=True)
    reference = totalvi.Model.load(tmp_path / "reference.totalvi")
    with pytest.raises(DataError, match="counts"):
        reference.predict()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["a"] * 5 + [None] * 495, 'labels labels 5 cells \\(with "a"\\); label at least 10'),
        (["a"] * 400 + [None] * 100, "two or more labels"),
        ([None] * 500, "labels labels no cell; label"),
        (["a", "b"] * 3 + [None] * 494, "6 cells"),
    ],
)
def test_too_few_labels_are_refused(
    labels: list[str | None], message: str, mdata: MuData, model: totalvi.Model
) -> None:
    with pytest.raises(DataError, match=message):
        model.predict(labels=labels)
    data = MuData({"rna": mdata["rna"].copy(), "prot": mdata["prot"].copy()})
    data.obs["batch"], data.obs["few"] = mdata.obs["batch"], labels
    with pytest.raises(DataError, match="label at least 10 cells, with two or more labels"):
        totalvi.Model(data, labels_key="few", unlabeled_category="Unknown", **SMALL)


def test_wrong_arguments_are_refused(mdata: MuData, model: totalvi.Model) -> None:
    with pytest.raises(ValueError, match="'knwon', which is no column"):
        model.predict(labels="knwon")
    with pytest.raises(ValueError, match=r'unlabeled_category="Unknown".*give labels_key'):
        totalvi.Model(mdata, unlabeled_category="Unknown")
    with pytest.raises(ValueError, match="needs the label of every cell"):
        totalvi.Model(
            mdata, labels_key="known", unlabeled_category="Unknown", gene_dispersion="gene-label"
        )
    with pytest.raises(ValueError, match="rename it"):
        model.predict(labels=mdata.obs["truth"].replace("type_0", UNLIKE_ALL))
    with pytest.raises(TypeError, match=r"predict\(\).probabilities has them"):
        model.predict(soft=True)
    plain = totalvi.Model(mdata, **SMALL)
    plain.train(max_epochs=1, progress=False)
    with pytest.raises(ValueError, match="No labels are known; give labels_key to Model"):
        plain.predict()


def test_deciding_features_are_those_that_separate_the_counts(
    mdata: MuData, model: totalvi.Model
) -> None:
    table = model.get_deciding_features()
    assert set(table["label"]) == {"type_0", "type_1", "type_2"}
    assert (table.groupby("label").size() == 88).all()
    truth, rna = mdata.obs["truth"].to_numpy(), mdata["rna"].to_df()
    share = rna.div(rna.sum(axis=1), axis=0)
    values = pd.concat([share, mdata["prot"].to_df()], axis=1)
    inside = truth != "type_3"
    for name, part in table.groupby("label"):
        assert part["nats"].is_monotonic_decreasing
        own = (truth == name)[inside]
        apart = values[inside].apply(lambda x, own=own: abs(roc_auc_score(own, x) - 0.5))
        by_feature = part.set_index("feature")["nats"]
        apart = apart[by_feature.index]
        assert apart.corr(by_feature) > 0.6
        assert apart.iloc[:5].mean() > 4 * apart.iloc[15:].mean()
        top = part.iloc[0]
        more = values.loc[truth == name, top["feature"]].mean() > values[top["feature"]].mean()
        assert (top["mean"] > top["mean_of_others"]) == more


def test_what_is_no_label_is_no_label_anywhere() -> None:
    cells = totalvi.simulate_blood(150, seed=3)
    labels = cells.obs["cell_type"].astype(object)
    labels[::3], labels[1::3] = "Unknown", " "
    cells.obs["known"] = labels
    model = totalvi.Model(
        cells, labels_key="known", unlabeled_category="Unknown", n_hidden=16, n_latent=4
    )
    model.train(max_epochs=2, progress=False)
    found = model.predict()
    names = set(cells.obs["cell_type"])
    assert found.known.sum() == 50
    assert set(found.probabilities) <= names
    query = model.map_query(cells[:30].copy())
    assert set(model.transfer_labels(query, "known").probabilities) <= names
    # the cells of the fit given again are those of the fit, and a series may have any order
    pd.testing.assert_frame_equal(model.predict(cells).probabilities, found.probabilities)
    reversed_order = model.predict(labels=labels[::-1])
    pd.testing.assert_frame_equal(reversed_order.probabilities, found.probabilities)


def test_a_category_that_no_cell_has_is_said() -> None:
    cells = totalvi.simulate(60, 20, 4, seed=1)
    cells.obs["known"] = ["Unknown"] * 20 + ["a", "b"] * 20
    found = totalvi.check(cells, labels_key="known", unlabeled_category="unknown")
    said = [f.message for f in found if f.code == "labels_category"]
    assert len(said) == 1
    assert 'did you mean "Unknown"' in said[0]
    alone = totalvi.check(cells, unlabeled_category="Unknown")
    assert [f.code for f in alone if f.severity == "error"] == ["labels_key_missing"]


def test_deciding_features_count_the_cells_that_were_measured() -> None:
    cells = totalvi.simulate(200, 30, 6, n_batches=2, n_unmeasured=2, seed=4, store_truth=False)
    model = totalvi.Model(cells, batch_key="batch", n_hidden=16, n_latent=4)
    model.train(max_epochs=3, progress=False)
    table = model.get_deciding_features(labels="cell_type").query("modality == 'protein'")
    measured = np.isfinite(cells["prot"].X)
    lacking = [
        str(n) for n, m in zip(cells["prot"].var_names, measured.T, strict=True) if not m.all()
    ]
    assert lacking
    overall = np.nanmean(cells["prot"].X, axis=0)
    for name, mean in zip(cells["prot"].var_names, overall, strict=True):
        rows = table[table["feature"] == name]
        assert rows["mean_of_others"].mean() > 0.6 * mean
