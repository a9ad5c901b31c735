"""The card of a reference says what queries of its held-out cells would be told."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import totalvi
from counts import SMALL, annotated, described
from totalvi.data.cells import Annotation
from totalvi.mapping.reference_card import Minified, labels_to_keep, minify

pytestmark = pytest.mark.filterwarnings("ignore:From 0.4:FutureWarning")


@pytest.fixture(scope="module")
def model() -> totalvi.Model:
    mdata = annotated(400, n_batches=1)
    model = totalvi.Model(mdata[:350].copy(), **SMALL)
    model.train(max_epochs=20, train_size=0.6, validation_size=0.2, accelerator="cpu")
    return model


@pytest.fixture(scope="module")
def found(model: totalvi.Model) -> Minified:
    return minify(model)


def test_accuracy_is_that_which_a_query_is_told(model: totalvi.Model, found: Minified) -> None:
    new = annotated(400, n_batches=1)[350:].copy()
    for how, data in (("rna_and_proteins", new), ("rna", new["rna"].copy())):
        query = model.map_query(data)
        transfer = model.transfer_labels(query, "cell_type")
        about = found.card["labels"]["cell_type"]
        assert about[f"accuracy_{how}"] == pytest.approx(transfer.held_out_accuracy)
        assert about[f"calibration_error_{how}"] == pytest.approx(
            transfer.held_out_calibration_error, abs=1e-6
        )
    reliability = model.get_query_reliability(query, n_samples=25).droplevel("panel")
    card = pd.DataFrame.from_dict(found.card["imputed_proteins"], orient="index")
    assert list(card.index) == list(model.schema.protein_names)
    np.testing.assert_allclose(
        card[["pearson", "rmse"]].astype(float), reliability[["pearson", "rmse"]], atol=1e-4
    )


def test_it_says_what_the_data_and_the_fit_are(model: totalvi.Model, found: Minified) -> None:
    card = found.card
    assert card["cells"] == 350
    assert card["genes"] == len(model.schema.gene_names)
    assert card["fit"]["training_cells"] == len(model.split.train)
    assert card["fit"]["epochs"] == 20
    n_held_out = len(model.split.validation) + len(model.split.test)
    assert card["cells_with_counts"] == len(found.kept) == n_held_out
    assert f"labels of {n_held_out}" in card["measured"]
    assert "The fit saw" not in card["measured"]


def test_a_fit_that_held_no_cell_out_says_so() -> None:
    model = totalvi.Model(annotated(150), **SMALL)
    model.train(max_epochs=1, train_size=1.0, accelerator="cpu")
    card = minify(model).card
    assert card["imputed_proteins"] == {}
    assert "The fit saw the cells" in card["measured"]
    assert card["labels"]


def test_columns_of_few_values_are_kept() -> None:
    data = described(600)
    rng = np.random.default_rng(0)
    obs = pd.DataFrame(index=data.cell_names)
    obs["at_most"] = np.arange(600) % 255
    obs["too_many"] = np.arange(600) % 256
    obs["numbers"] = rng.normal(size=600)
    obs["known"] = np.where(np.arange(600) < 300, None, "B cell")
    obs["truth"] = rng.random(600) < 0.5
    kept = labels_to_keep(replace(data, annotation=Annotation.of_table(obs)))
    assert list(kept) == ["at_most", "known", "truth"]
    assert (kept["known"].codes == np.where(np.arange(600) < 300, -1, 0)).all()
    # together at most 5 bytes a cell
    many = pd.DataFrame({f"c{i}": rng.integers(0, 250, 600) for i in range(9)}, data.cell_names)
    kept = labels_to_keep(replace(data, annotation=Annotation.of_table(many)))
    assert 4 <= len(kept) <= 6
