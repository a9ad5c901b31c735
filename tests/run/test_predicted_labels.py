"""`totalvi run --labels KEY --unlabeled NAME` predicts labels, from the command line to the tables."""

from pathlib import Path

import mudata
import numpy as np
import pandas as pd
import pytest

import totalvi
from totalvi.cli.main import execute
from totalvi.figures.png_figures import umap_by_category
from totalvi.mapping.label_prediction import UNLIKE_ALL
from totalvi.run.pipeline import to_do
from totalvi.run.results import ResultsFile

pytestmark = pytest.mark.filterwarnings("ignore:From 0.4:FutureWarning")


def partly_labelled(path: Path) -> pd.Series:
    """Write cells of which three in ten have a label, and return the truth."""
    mdata = totalvi.simulate(n_cells=300, n_genes=60, n_proteins=8, n_cell_types=3, seed=7)
    truth = mdata.obs["cell_type"].astype(str)
    known = np.random.default_rng(0).random(300) < 0.3
    labels = truth.where(known, np.nan)
    labels.iloc[:5] = "?"
    mdata.obs["known"] = labels
    mdata.write(path)
    return truth


def test_a_run_predicts_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = partly_labelled(tmp_path / "cells.h5mu")
    command = ["run", str(tmp_path / "cells.h5mu"), "-o", str(tmp_path / "out"), "--epochs", "30"]
    assert execute([*command, "--labels", "known", "--unlabeled", "?"]) == 0, (
        capsys.readouterr().err
    )
    obs = mudata.read_h5mu(tmp_path / "out" / "results.h5mu").obs
    predicted = obs["predicted_label"].astype(str)
    assert (predicted == truth.reindex(obs.index)).mean() > 0.9
    assert obs["label_probability"].between(0, 1).all()
    assert obs["unlike_all_probability"].between(0, 1).all()
    tables = tmp_path / "out" / "tables"
    labels = pd.read_csv(tables / "labels.csv", index_col="label")
    assert list(labels.index) == ["type_0", "type_1", "type_2", UNLIKE_ALL]
    assert labels["predicted"].sum() + labels["known"].sum() == 300
    cells = pd.read_csv(tables / "label_probabilities.csv.gz", index_col="cell")
    assert cells["known"].sum() == labels["known"].sum()
    np.testing.assert_allclose(cells.filter(regex="^probability_").sum(axis=1), 1, atol=1e-4)
    features = pd.read_csv(tables / "deciding_features.csv")
    assert (features.groupby("label").size() == 20).all()
    assert (tmp_path / "out" / "report.html").is_file()


def test_too_few_labels_are_refused_before_the_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    partly_labelled(tmp_path / "cells.h5mu")
    mdata = mudata.read_h5mu(tmp_path / "cells.h5mu")
    mdata.obs["few"] = ["T", "B"] + ["?"] * 298
    mdata.write(tmp_path / "cells.h5mu")
    command = ["run", str(tmp_path / "cells.h5mu"), "-o", str(tmp_path / "out")]
    assert execute([*command, "--labels", "few", "--unlabeled", "?"]) == 2
    assert "label at least 10 cells, with two or more labels" in capsys.readouterr().err
    assert execute([*command, "--unlabeled", "?"]) == 2
    assert "give --labels as well" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_cells_without_a_label_are_drawn_apart() -> None:
    places = np.random.default_rng(0).normal(0, 1, (30, 2))
    labels = pd.Series(["B", "T", None] * 10)
    axes = umap_by_category(places, labels, name="known").axes[0]
    entries = [text.get_text() for text in axes.get_legend().get_texts()]
    assert entries == ["B (10)", "T (10)", "no value (10)"]
    assert sorted(text.get_text() for text in axes.texts) == ["B", "T"]


def test_predictions_do_not_replace_the_labels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    partly_labelled(tmp_path / "cells.h5mu")
    command = ["run", str(tmp_path / "cells.h5mu"), "-o", str(tmp_path / "out")]
    assert execute([*command, "--labels", "predicted_label", "--unlabeled", "?"]) == 2
    assert "rename the column" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_only_the_lost_results_file_had_is_made_again(tmp_path: Path) -> None:
    lost = ResultsFile(tmp_path, on_disk=False)
    wanted = to_do({"failed": ["results file"]}, lost)
    assert {"results file", "populations", "labels"} <= wanted
    (tmp_path / "results.h5mu").touch()
    assert to_do({"failed": ["figures"]}, lost) == {"figures"}
