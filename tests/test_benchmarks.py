"""What the benchmarks import exists, so that a script that nobody ran for long still starts; and the
parts of the comparison with other methods that need neither data nor other programs."""

import ast
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import anndata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from mudata import MuData

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def imported(script: Path) -> Iterator[tuple[str, str]]:
    for node in ast.walk(ast.parse(script.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "totalvi":
            for alias in node.names:
                yield str(node.module), alias.name


# scripts named same_* also run on earlier versions
@pytest.mark.parametrize(
    "script",
    [path for path in sorted(BENCHMARKS.rglob("*.py")) if not path.name.startswith("same_")],
    ids=lambda path: path.stem,
)
def test_names_that_a_benchmark_imports_exist(script: Path) -> None:
    lacking = [
        f"{module}.{name}"
        for module, name in imported(script)
        if not hasattr(importlib.import_module(module), name)
        and importlib.util.find_spec(f"{module}.{name}") is None
    ]
    assert lacking == []


def test_names_are_found_in_scripts() -> None:
    names = {name for script in BENCHMARKS.rglob("*.py") for name in imported(script)}
    assert {("totalvi.fit.loop", "Fit"), ("totalvi.processes", "launch")} <= names


@pytest.fixture
def field(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The parts of the comparison with other methods, which need no other program."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    names = ("field", "field_mosaic", "field_page", "field_peers")
    return SimpleNamespace(**{name: importlib.import_module(name) for name in names})


def test_a_perfect_prediction_of_proteins_has_perfect_scores(field: SimpleNamespace) -> None:
    truth = np.random.default_rng(0).poisson([1, 4, 30], (50, 3)).astype(float)
    scores = field.field.scores_of(np.log1p(truth), truth, truth)
    assert scores["rmse"] == 0
    assert scores["by protein"] == [1, 1, 1]
    for name in ("spearman", "spearman of faint", "pearson of logs", "counts", "per cell"):
        assert scores[name] == pytest.approx(1)


def test_a_protein_predicted_as_a_constant_is_worth_nothing(field: SimpleNamespace) -> None:
    truth = np.random.default_rng(0).poisson(9, (50, 2)).astype(float)
    constant = np.ones_like(truth)
    assert field.field.scores_of(constant, constant, truth)["by protein"] == [0, 0]


def test_regression_and_neighbours_do_not_see_hidden_proteins(field: SimpleNamespace) -> None:
    rng = np.random.default_rng(0)
    rna = AnnData(rng.poisson(2, (120, 60)).astype(np.float32))
    counts = rng.poisson(5, (120, 4)).astype(np.float32)
    hidden = np.arange(120) % 3 == 0
    changed = np.where(hidden[:, None], 99, counts)
    found, again = (
        field.field.simple(field.field.Hidden(MuData({"rna": rna}), proteins, hidden))
        for proteins in (counts, changed)
    )
    assert set(found) == {"ridge", "neighbours"}
    for name, (predicted, seconds) in found.items():
        assert predicted.shape == (40, 4)
        assert seconds >= 0
        np.testing.assert_array_equal(predicted, again[name][0])


def test_scvi_tools_does_not_get_hidden_proteins(field: SimpleNamespace, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    data = MuData({"rna": AnnData(rng.poisson(2, (6, 3)).astype(np.float32))})
    hidden = np.array([True, False, True, False, False, True])
    data.obs["panel"] = np.where(hidden, "hidden", "measured")
    counts = rng.poisson(5, (6, 2)) + 1
    field.field_peers.write_partly_hidden(data, counts, hidden, tmp_path / "cells.h5ad")
    written = anndata.read_h5ad(tmp_path / "cells.h5ad")
    proteins = written.obsm["protein_expression"]
    assert (proteins[hidden] == 0).all()
    np.testing.assert_array_equal(proteins[~hidden], counts[~hidden])
    np.testing.assert_array_equal(written.obs["panel"] == "hidden", hidden)


@pytest.mark.parametrize(
    ("python", "script", "limit", "said"),
    [
        ("no/such/python", "", 60, "not installed"),
        (sys.executable, "import a_peer_that_nobody_has", 60, "not installed"),
        (sys.executable, "raise ValueError('no | cells')", 60, "failed: ValueError: no / cells"),
        (sys.executable, "raise SystemExit(3)", 60, "failed: ended with 3"),
        (sys.executable, "import time; time.sleep(600)", 1, "failed: no answer after 1 s"),
    ],
)
def test_a_peer_without_an_answer_is_said_in_words(
    field: SimpleNamespace, tmp_path: Path, python: str, script: str, limit: float, said: str
) -> None:
    (tmp_path / "peer.py").write_text(script)
    answer = tmp_path / "answer.npz"
    question = field.field_peers.Question(tmp_path / "peer.py", tmp_path / "cells", answer, ())
    assert field.field_peers.ask(python, question, limit=limit) == said


def test_the_answer_of_a_peer_is_asked_for_once(field: SimpleNamespace, tmp_path: Path) -> None:
    script = "import sys, numpy as np; np.savez(sys.argv[2], mean=[float(sys.argv[4])])"
    (tmp_path / "peer.py").write_text(script)
    for seed in ("7", "8"):  # the second finds the first answer
        question = field.field_peers.Question(
            tmp_path / "peer.py", tmp_path / "cells", tmp_path / "answer.npz", ("--seed", seed)
        )
        assert field.field_peers.ask(sys.executable, question, limit=60)["mean"] == [7]


def test_the_table_has_means_over_seeds_and_names_what_failed(field: SimpleNamespace) -> None:
    rows = [
        {"data": "wnn", "method": "ridge", "seed": 0, "rmse": 0.5},
        {"data": "wnn", "method": "ridge", "seed": 1, "rmse": 0.7},
        {"data": "wnn", "method": "scvi-tools", "seed": 0, "failed": "not installed"},
        {"data": "mosaic", "method": "scmidas", "seed": 0, "labels p1": 0.9, "note": "short"},
    ]
    assert field.field_page.table(rows) == [
        "| data | method | seeds | rmse | labels p1 | note |",
        "|---|---|---|---|---|---|",
        "| wnn | ridge | 2 | 0.600 ± 0.141 |  |  |",
        "| wnn | scvi-tools | 0 |  |  | not installed |",
        "| mosaic | scmidas | 1 |  | 0.900 | short |",
    ]


def test_a_joint_space_that_mixes_donors_has_right_labels(field: SimpleNamespace) -> None:
    labels = np.tile(np.repeat(["T", "B"], 40), 3)
    donors = np.repeat(["p1_0", "p2_0", "p3_0"], 80)
    obs = pd.DataFrame({"batch": donors, "celltype": labels})
    data = AnnData(np.zeros((240, 1)), obs.set_axis(obs.index.astype(str)))
    space = np.random.default_rng(0).normal(size=(240, 2)) + 20 * (labels == "T")[:, None]
    row = field.field_mosaic.by_donor(data, space)
    assert row["labels p1"] == row["labels p2"] == 1
    assert row["mixing p1"] == pytest.approx(0.5, abs=0.1)
    apart = field.field_mosaic.by_donor(data, space + 100 * (donors == "p2_0")[:, None])
    assert apart["mixing p2"] == 0


def test_the_protein_that_is_worst_against_ridge_is_found(field: SimpleNamespace) -> None:
    rows = [
        {"method": "totalvi", "by protein": [0.5, 0.25, 0.75]},
        {"method": "ridge", "by protein": [0.25, 0.75, 0.5]},
        {"method": "scvi-tools", "failed": "not installed"},
    ]
    found = field.field.against_ridge(rows)
    assert [row.get("worst against ridge") for row in found] == [-0.5, None, None]
