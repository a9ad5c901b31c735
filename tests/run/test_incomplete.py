"""A failure after the fit loses nothing, is said, and is made up without another fit."""

import json
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import zarr

from totalvi.cli.main import execute
from totalvi.data.simulate import simulate
from totalvi.errors import IncompleteError, OutputError
from totalvi.report.build import build_report
from totalvi.run import after_fit
from totalvi.run.pipeline import IN_THE_FILE, to_do
from totalvi.run.run import run

# Of mudata, about a default that its next version changes.
pytestmark = pytest.mark.filterwarnings("ignore:From 0.4:FutureWarning")

RUN: dict[str, Any] = {
    "batch_key": "batch",
    "labels_key": "cell_type",
    "sample_key": "donor",
    "condition_key": "treatment",
    "max_epochs": 2,
}
STEPS = {
    "results file": ("totalvi.run.results.ResultsFile.write_counts", ()),
    "latent space": (
        "totalvi.model.Model.get_latent_representation",
        (
            *("clusters and UMAP", "tables", "differential expression", "batch mixing", "figures"),
            *("conditions over samples", "populations", "doublets"),
        ),
    ),
    "denoised counts": ("totalvi.model.Model._write_denoised", ("tables", "figures")),
    "clusters and UMAP": (
        "totalvi.run.after_fit.cluster_all",
        (
            *("tables", "differential expression", "figures", "conditions over samples"),
            *("populations", "doublets"),
        ),
    ),
    "hashtags": ("totalvi.run.after_fit.hashtags_of_run", ()),
    "doublets": ("totalvi.model.Model.find_doublets", ()),
    "populations": ("totalvi.run.after_fit.populations_of_run", ()),
    "tables": ("totalvi.run.after_fit.make_tables", ("figures",)),
    "background tables": ("totalvi.run.after_fit.background_tables", ()),
    "differential expression": ("totalvi.model.Model.differential_expression", ()),
    "predictive checks": ("totalvi.model.Model.posterior_predictive_check", ()),
    "batch mixing": ("totalvi.run.after_fit.batch_mixing", ()),
    "figures": ("totalvi.run.after_fit.draw_figures", ()),
    "conditions over samples": ("totalvi.run.after_fit.conditions_of_run", ()),
}
"""What to break to make each step fail, and the steps that rest on it."""
QUICK = ("results file", "latent space", "clusters and UMAP", "populations", "tables", "figures")


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("input") / "cells.h5mu"
    data = simulate(n_cells=90, n_genes=30, n_proteins=6, n_batches=2, n_isotype_controls=2, seed=2)
    data.obs["donor"] = [f"donor_{i % 4}" for i in range(90)]
    data.obs["treatment"] = ["drug" if i % 2 else "none" for i in range(90)]
    data.write(path)
    return path


@pytest.fixture(scope="module")
def whole(cells: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[bool], Path]:
    made: dict[bool, Path] = {}

    def folder(on_disk: bool) -> Path:
        if on_disk not in made:
            place = tmp_path_factory.mktemp("whole") / "out"
            made[on_disk] = run(cells, place, on_disk=on_disk, progress=False, **RUN).folder
        return made[on_disk]

    return folder


OPTIONS = ["--batch", "batch", "--epochs", "1"]


def broken(*_: Any, **__: Any) -> None:
    raise RuntimeError("it is broken")


def test_every_step_is_tried() -> None:
    assert [step.name for step in after_fit.AFTER_FIT] == list(STEPS)


def elements(path: Path) -> dict[str, Any]:
    """Return every array of a file or store."""
    found: dict[str, Any] = {}
    if path.is_dir():
        for name, member in zarr.open_group(path, mode="r").members(max_depth=None):
            if isinstance(member, zarr.Array):
                found[name] = member[...]
    else:
        with h5py.File(path) as file:
            file.visititems(
                lambda name, member: (
                    found.update({name: member[()]}) if isinstance(member, h5py.Dataset) else None
                )
            )
    return found


def assert_same_results(ours: Path, theirs: Path) -> None:
    files = [
        sorted(
            path.relative_to(folder).as_posix()
            for path in folder.rglob("*")
            if path.is_file() and "results.zarr" not in path.parts and path.name != "report.html"
        )
        for folder in (ours, theirs)
    ]
    assert files[0] == files[1]
    for table in theirs.glob("tables/*"):
        one, other = pd.read_csv(ours / "tables" / table.name), pd.read_csv(table)
        pd.testing.assert_frame_equal(
            one.drop(columns="seconds", errors="ignore"),
            other.drop(columns="seconds", errors="ignore"),
            check_exact=True,
        )
    name = "results.zarr" if (theirs / "results.zarr").exists() else "results.h5mu"
    one_file, other_file = elements(ours / name), elements(theirs / name)
    assert one_file.keys() == other_file.keys()
    for place, values in other_file.items():
        np.testing.assert_array_equal(one_file[place], values, err_msg=place)
    changing = {"finished", "seconds", "train_seconds"}
    records = [json.loads((folder / "run.json").read_text()) for folder in (ours, theirs)]
    for record in records:
        assert "train" in record["seconds"]
        del record["arguments"]["output"]
    ours_kept, theirs_kept = ({k: v for k, v in r.items() if k not in changing} for r in records)
    assert sorted(ours_kept.pop("warnings")) == sorted(theirs_kept.pop("warnings"))
    assert ours_kept == theirs_kept


@pytest.mark.parametrize(
    ("on_disk", "step"),
    [
        *((False, step) for step in QUICK),
        (True, "denoised counts"),
        *(pytest.param(False, s, marks=pytest.mark.slow) for s in STEPS if s not in QUICK),
        *(pytest.param(True, s, marks=pytest.mark.slow) for s in ("clusters and UMAP", "figures")),
    ],
)
def test_the_rest_is_there_and_resume_makes_what_is_missing(
    on_disk: bool,
    step: str,
    cells: Path,
    whole: Callable[[bool], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place, resting = STEPS[step]
    out, options = tmp_path / "out", RUN | {"on_disk": on_disk, "progress": False}
    with monkeypatch.context() as patch:
        patch.setattr(place, broken)
        with pytest.raises(IncompleteError, match=f"{step} failed .RuntimeError: it is broken"):
            run(cells, out, **options)
    assert {path.name for path in tmp_path.iterdir()} == {"out"}
    record = json.loads((out / "run.json").read_text())
    assert record["failed"][step] == "RuntimeError: it is broken"
    assert set(record["failed"]) == {step, *resting}
    assert (out / "model.totalvi").is_dir()
    page = build_report(out).read_text(encoding="utf-8")
    assert f"<b>{step}</b>: RuntimeError: it is broken" in page
    assert "--resume</code> makes what is missing" in page
    (out / "report.html").unlink()
    with monkeypatch.context() as patch:
        patch.setattr("totalvi.fit.loop.Fit.step", broken)  # there is no second fit
        made = run(cells, out, resume=True, **options)
    assert "failed" not in made.record
    assert_same_results(out, whole(on_disk))


@pytest.mark.parametrize(
    ("failed", "made"),
    [
        ("figures", set()),
        ("tables", {"modality information"}),
        ("doublets", {"populations", "tables", "differential expression", "modality information"}),
    ],
)
def test_what_takes_in_a_failed_step_is_made_again(failed: str, made: set[str]) -> None:
    file: Any = SimpleNamespace(is_there=True)
    assert to_do({"failed": [failed]}, file) == {failed, *made}
    assert to_do({"failed": []}, file) == set()
    file.is_there = False  # so that populations are named again, and the table of others is gone
    assert {"differential expression", "tables", *IN_THE_FILE} <= to_do({"failed": [failed]}, file)


def test_only_what_failed_is_made_again(
    cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("totalvi.run.after_fit.draw_figures", broken)
        with pytest.raises(IncompleteError):
            run(cells, out, **RUN)
        with pytest.raises(IncompleteError):  # it may fail again
            run(cells, out, resume=True, **RUN)
    for name, (place, _) in STEPS.items():
        if name not in ("figures", "latent space"):
            monkeypatch.setattr(place, broken)
    assert "failed" not in run(cells, out, resume=True, **RUN).record


def test_other_arguments_or_cells_complete_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = simulate(n_cells=60, n_genes=30, n_proteins=5, n_batches=2, seed=2, store_truth=False)
    out = tmp_path / "out"
    options = {"batch_key": "batch", "max_epochs": 1}
    with monkeypatch.context() as patch:
        patch.setattr("totalvi.run.after_fit.batch_mixing", broken)
        with pytest.raises(
            IncompleteError, match="the same call with resume=True makes what is missing"
        ):
            run(data, out, **options)
    with pytest.raises(OutputError, match="holds a run with another seed; give the same"):
        run(data, out, resume=True, **(options | {"seed": 1}))
    others = simulate(n_cells=60, n_genes=30, n_proteins=5, n_batches=2, seed=3, store_truth=False)
    with pytest.raises(OutputError, match="not those of the incomplete run"):
        run(others, out, resume=True, **options)
    assert (out / "tables" / "cells.csv.gz").exists()
    run(data, out, resume=True, **options)
    assert (out / "tables" / "batches.csv").exists()


def test_raw_matrices_of_batches_are_recognized_from_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    simulation = ["--cells", "60", "--genes", "30", "--proteins", "4", "--raw", "raw.h5mu"]
    assert execute(["simulate", "-o", "cells.h5mu", *simulation]) == 0
    with monkeypatch.context() as patch:
        patch.setattr("totalvi.run.after_fit.draw_figures", broken)
        with pytest.raises(IncompleteError):
            run("cells.h5mu", "out", raw={"batch_0": "raw.h5mu"}, batch_key="batch", max_epochs=1)
    monkeypatch.chdir(tmp_path.parent)
    monkeypatch.setattr("totalvi.fit.loop.Fit.step", broken)  # there is no second fit
    out = tmp_path / "out"
    assert execute(["run", "--from", str(out / "run.json"), "-o", str(out), "--resume"]) == 0
    assert "failed" not in json.loads((out / "run.json").read_text(encoding="utf-8"))


def test_an_interrupt_ends_the_run_and_leaves_the_fit(
    cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("totalvi.run.after_fit.cluster_all", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(cells, tmp_path / "out", **RUN)
    assert [path.name for path in tmp_path.iterdir()] == ["out.checkpoint"]
    monkeypatch.setattr("totalvi.fit.loop.Fit.step", broken)
    run(cells, tmp_path / "out", resume=True, **RUN)


def test_the_command_says_it_in_one_line_that_completes(
    cells: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    command = ["run", str(cells), "-o", str(out), *OPTIONS]
    with monkeypatch.context() as patch:
        patch.setattr("totalvi.run.after_fit.cluster_all", broken)
        assert execute(command) == 1
        printed = capsys.readouterr().err.splitlines()
    said = [line for line in printed if "error" in line]  # beside steps that took long
    assert len(said) == 1
    assert said[0].startswith(
        "error: clusters and UMAP failed (RuntimeError: it is broken), so that"
    )
    completing = said[0].split("`")[1].split()
    assert completing == [
        *("totalvi", "run", "--from", str(out / "run.json"), "-o", str(out), "--resume")
    ]
    assert "This run is incomplete" in (out / "report.html").read_text(encoding="utf-8")
    assert execute(completing[1:]) == 0
    assert "This run is incomplete" not in (out / "report.html").read_text(encoding="utf-8")


def test_a_report_that_fails_leaves_the_results(
    cells: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    command = ["run", str(cells), "-o", str(out), "--epochs", "1"]
    with monkeypatch.context() as patch:
        patch.setattr("totalvi.report.build.render", broken)
        assert execute(command) == 1
        assert "report.html failed (RuntimeError: it is broken)" in capsys.readouterr().err
    assert (out / "results.h5mu").exists()
    assert not (out / "report.html").exists()
    monkeypatch.setattr("totalvi.fit.loop.Fit.step", broken)
    assert execute([*command, "--resume"]) == 0
    assert (out / "report.html").exists()


def test_the_traceback_leads_to_the_failure(
    cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("totalvi.run.after_fit.batch_mixing", broken)
    with pytest.raises(IncompleteError) as failure:
        execute(["--debug", "run", str(cells), "-o", str(tmp_path / "out"), *OPTIONS])
    shown = "".join(traceback.format_exception(failure.value))
    assert "in broken" in shown
    assert "in measure_mixing" in shown
