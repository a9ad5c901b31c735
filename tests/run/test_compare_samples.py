"""Conditions compared over samples, as a run and a command write and report them."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import totalvi
from totalvi.cli.main import execute
from totalvi.errors import DataError
from totalvi.report.build import build_report
from totalvi.run.compare_samples import shown_conditions
from totalvi.run.run import run

CALLED = "is_de_fdr_0.05"
TABLES = {
    *("conditions.csv.gz", "condition_samples.csv"),
    *("condition_abundance.csv", "condition_power.csv.gz"),
}


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight donors; those on the drug have 16 times the counts of one protein."""
    data = totalvi.simulate(
        480, 40, 6, n_cell_types=2, n_isotype_controls=0, batch_effect=0.0, seed=5
    )
    donor = np.random.default_rng(0).integers(8, size=480)
    data.obs["donor"] = [f"donor_{k}" for k in donor]
    data.obs["treatment"] = np.where(donor % 2 == 0, "drug", "none")
    data.obs["half"] = np.where(donor < 4, "first", "second")
    data.obs["age"] = 20.0 + donor
    counts = np.asarray(data["prot"].X)
    counts[donor % 2 == 0, 0] *= 16
    data["prot"].X = counts
    path = tmp_path_factory.mktemp("input") / "cells.h5mu"
    data.write(path)
    return path


@pytest.fixture(scope="module")
def folder(cells: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("run") / "out"
    keys: dict[str, Any] = {"sample_key": "donor", "condition_key": "treatment"}
    run(cells, made, max_epochs=8, resolution=0.2, progress=False, **keys)
    return made


def tables_of(folder: Path) -> dict[str, pd.DataFrame]:
    return {
        name.split(".")[0]: pd.read_csv(folder / "tables" / name, index_col=0) for name in TABLES
    }


def test_a_run_writes_tables_figure_and_a_section(folder: Path) -> None:
    assert {path.name for path in (folder / "tables").iterdir()} >= TABLES
    assert (folder / "figures" / "power_by_samples.png").is_file()
    page = build_report(folder).read_text(encoding="utf-8")
    assert "Conditions compared over samples" in page
    assert "This is about these cells" in page


def test_the_command_compares_again_and_shows_each_donor(folder: Path) -> None:
    options = ["--sample", "donor", "--condition", "treatment", "--against", "none"]
    assert execute(["compare", str(folder), *options, "--groupby", "cell_type"]) == 0
    tables = tables_of(folder)
    changed = tables["conditions"].loc["protein_0"]
    assert (changed["group1"] == "drug").all()
    assert changed["lfc_mean"].max() > 2  # where cells carry it
    shown = shown_conditions(tables)
    assert shown is not None
    assert shown["designs"] == ["unpaired"]
    row = next(row for row in shown["rows"] if row["name"] == "protein_0")
    assert len(row["dots"]) == 8
    places = [[dot["place"] for dot in row["dots"] if dot["group"] == k] for k in (0, 1)]
    assert min(places[0]) > max(places[1])
    assert [row["name"] for row in shown["abundance"]] == ["type_0", "type_1"]
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "donor_3, none:" in page


def test_rows_have_dots_where_none_is_called_and_confounded_batches_are_said(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--sample", "donor", "--condition", "half", "--covariate", "age"]
    assert execute(["compare", str(folder), *options]) == 0
    assert "(unpaired + covariates)" in capsys.readouterr().out
    tables = tables_of(folder)
    shown = shown_conditions(tables)
    assert shown is not None
    assert shown["n_called"] == 0
    assert len(shown["rows"]) == 10
    assert all(row["dots"] for row in shown["rows"])
    path = folder / "tables" / "conditions.csv.gz"
    assert "confounded" not in (folder / "report.html").read_text(encoding="utf-8")
    tables["conditions"].assign(design="unpaired, confounded with batches").to_csv(path)
    page = build_report(folder).read_text(encoding="utf-8")
    assert "Conditions are confounded with batches" in page


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sample", "doner"], "--sample is 'doner'; did you mean \"donor\""),
        (["--condition", "treated"], "--condition is 'treated'; did you mean \"treatment\""),
        (["--against", "placebo"], "--against is 'placebo'"),
        (["--group", "placebo"], "--group is 'placebo'"),
        (["--groupby", "celltype"], "--groupby is 'celltype'; did you mean \"cell_type\""),
        (["--groupby", "treatment"], "--groupby and --condition are both 'treatment'"),
        (["--block", "donor"], "leave out one of these"),
        (["--covariate", "ages"], "--covariate is 'ages'; did you mean \"age\""),
    ],
)
def test_wrong_columns_of_a_comparison(
    folder: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    asked = ["compare", str(folder), "--sample", "donor", "--condition", "treatment", *options]
    assert execute(asked) == 2
    assert message in capsys.readouterr().err


def test_what_was_not_compared_is_not_shown() -> None:
    assert shown_conditions({}) is None


def test_wrong_columns_are_refused_before_the_fit(cells: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="condition_key is compared over samples; give sample_key"):
        run(cells, tmp_path / "a", condition_key="treatment")
    with pytest.raises(DataError, match="sample_key is 'doner'"):
        run(cells, tmp_path / "b", sample_key="doner", condition_key="treatment", progress=False)


def test_samples_without_conditions_are_counted(cells: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(cells, out, sample_key="donor", max_epochs=1, hierarchy="none", progress=False)
    counted = pd.read_csv(out / "tables" / "doublets.csv", dtype=str)
    donors = set(totalvi.read(cells).obs["donor"].astype(str))
    assert set(counted.loc[counted["of"] == "sample", "group"]) == donors
    assert not (out / "tables" / "conditions.csv.gz").exists()


def test_too_few_samples_are_a_warning_of_a_run(cells: Path, tmp_path: Path) -> None:
    keys: dict[str, Any] = {"sample_key": "treatment", "condition_key": "treatment"}
    made = run(cells, tmp_path / "out", max_epochs=1, progress=False, **keys)
    assert any("conditions were not compared" in text for text in made.record["warnings"])
    assert not (tmp_path / "out" / "tables" / "conditions.csv.gz").exists()


def test_only_the_folder_of_a_run_is_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--sample", "donor", "--condition", "treatment"]
    assert execute(["compare", str(tmp_path), *options]) == 2
    assert "no folder of `totalvi run`" in capsys.readouterr().err
