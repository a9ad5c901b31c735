"""`totalvi run` and `totalvi demo` hand everything on and sum up."""

import inspect
import json
from datetime import timedelta
from pathlib import Path

import pytest

from totalvi.cli.main import execute
from totalvi.errors import argument
from totalvi.run.run import RunResult, run

RECORD = {
    "cells": 2000,
    "genes": 500,
    "proteins": 20,
    "clusters": 6,
    "held_out_loss_per_cell": 812.34,
    "seconds": {"read": 1.0, "train": 20.0},
    "warnings": ["1 of 20 antibodies: no foreground (CD25)"],
    "notes": [],
}
DEFAULTS = {name: given.default for name, given in inspect.signature(run).parameters.items()}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list:
    calls = []

    def run(*given: object, **options: object) -> RunResult:
        calls.append((given, options))
        files = [Path("figures/training.png"), Path("model.totalvi/model.json"), Path("run.json")]
        note = f"name it with {argument('panel_key')}"
        return RunResult(tmp_path / "out", files, RECORD | {"notes": [note]})

    monkeypatch.setattr("totalvi.run.run.run", run)
    monkeypatch.setattr("totalvi.report.build.build_report", lambda folder: folder / "report.html")
    return calls


def test_options_are_handed_on(asked: list) -> None:
    command = (
        "run a.csv -o out --raw b=r.h5 --keep-isotypes --protein p.csv --genome hg38 --hashtags HTO "
        "--controls IgG "
        "--cells-in rows --batch b --panel p --labels l --size-factor f --covariate c --covariate d "
        "--continuous-covariate e --genes 9 --staining-level --epochs 8 --resolution 0.5 "
        "--seed 7 --overwrite --resume "
        "--checkpoint-every 2.5 "
        "--refuse-empty-cells --allow-fractional --rna-modality r --protein-modality q "
        "--rna-layer s --protein-layer t --protein-obsm u --on-disk --leave-out x --no-mosaic "
        "--unmeasured a=CD3,CD4 --unmeasured b=CD8 --split-counts --sample m --condition n "
        "--hierarchy gates.txt --doublet-rate 0.05 --modality-information --unlabeled v"
    )
    assert execute(command.split()) == 0
    ((given, options),) = asked
    assert given == ("a.csv", Path("out"))
    assert options == {
        "raw": {"b": "r.h5"},
        "isotype_controls": (),
        "protein_path": Path("p.csv"),
        "genome": "hg38",
        "hashtags": "HTO",
        "controls": "IgG",
        "leave_out": "x",
        "mosaic": False,
        "unmeasured": {"a": ["CD3", "CD4"], "b": ["CD8"]},
        "cells_in": "rows",
        "batch_key": "b",
        "panel_key": "p",
        "labels_key": "l",
        "unlabeled_category": "v",
        "size_factor_key": "f",
        "categorical_covariate_keys": ("c", "d"),
        "continuous_covariate_keys": ("e",),
        "n_genes": 9,
        "staining_level": True,
        "max_epochs": 8,
        "resolution": 0.5,
        "seed": 7,
        "split_counts": True,
        "on_disk": True,
        "sample_key": "m",
        "condition_key": "n",
        "hierarchy": "gates.txt",
        "doublet_rate": 0.05,
        "modality_information": True,
        "overwrite": True,
        "resume": True,
        "checkpoint_every": timedelta(seconds=150),
        "drop_empty_cells": False,
        "allow_fractional": True,
        "rna_modality": "r",
        "protein_modality": "q",
        "rna_layer": "s",
        "protein_layer": "t",
        "protein_expression_obsm_key": "u",
    }


def test_defaults_are_those_of_the_function(asked: list) -> None:
    assert execute(["run", "a.h5", "-o", "out"]) == 0
    ((_, options),) = asked
    assert {name: DEFAULTS[name] for name in options} == options


def test_summary_lists_warnings_and_files(
    asked: list, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert execute(["demo", "-o", str(tmp_path / "out"), "--seed", "3"]) == 0
    printed, said = capsys.readouterr()
    assert said.startswith(f"Fitting simulated blood of two donors; results go to {tmp_path}")
    report = tmp_path / "out" / "report.html"
    assert printed.splitlines()[-1] == f"next, open in a browser: {report}"
    assert printed.startswith("2,000 cells, 500 genes, 20 proteins: 6 clusters")
    assert "812.3" in printed
    assert "warning: 1 of 20 antibodies: no foreground (CD25)" in printed
    assert "note: name it with --panel" in printed
    assert str(tmp_path / "out" / "figures" / "training.png") in printed
    assert "model.json" not in printed
    ((given, options),) = asked
    assert given[0].shape == (2000, 520)
    assert options["seed"] == 3
    assert set(given[0].obs) >= {options["batch_key"], options["labels_key"]}


def test_json_is_the_record_and_nothing_else(
    asked: list, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert execute(["run", "a.h5", "-o", "out", "--json"]) == 0
    expected = {"folder": str(tmp_path / "out"), **RECORD, "notes": ["name it with --panel"]}
    assert json.loads(capsys.readouterr().out) == expected


def test_a_run_is_repeated_as_it_was(
    asked: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def repeat(*given: object, **options: object) -> RunResult:
        asked.append((given, options))
        return RunResult(tmp_path / "out", [Path("run.json"), Path("report.html")], RECORD)

    monkeypatch.setattr("totalvi.run.run.repeat", repeat)
    command = ["run", "--from", "run.json", "-o", "out"]
    assert execute([*command, "moved.h5", "--raw", "b=r.h5", "--resume", "--overwrite"]) == 0
    assert capsys.readouterr().out.count("report.html") == 1
    ((given, options),) = asked
    assert given == (Path("run.json"), Path("out"))
    assert options == {
        "input": "moved.h5",
        "raw": {"b": "r.h5"},
        "protein_path": None,
        "overwrite": True,
        "resume": True,
        "checkpoint_every": timedelta(minutes=10),
    }
    for other in (["--seed", "0"], ["--batch", "b"], ["--keep-isotypes"]):
        assert execute([*command, *other]) == 2
        assert f"{other[0]} was given with --from" in capsys.readouterr().err
    assert execute(["run", "-o", "out"]) == 2
    assert "INPUT is missing" in capsys.readouterr().err
    assert len(asked) == 1
