"""Runs that go on, are requeued, are signalled, and are repeated from their record."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from totalvi.atomic import locked
from totalvi.cli.main import execute
from totalvi.data.background.ambient import AMBIENT
from totalvi.data.simulate import simulate
from totalvi.errors import Interrupted, OutputError, ReadError
from totalvi.fit.checkpoint import read_checkpoint
from totalvi.fit.loop import Fit
from totalvi.run import pipeline
from totalvi.run.record import Options, RunOptions, asked, differences, sha256, write_record
from totalvi.run.run import repeat, run

# Of mudata, about a default that its next version changes.
pytestmark = pytest.mark.filterwarnings("ignore:From 0.4:FutureWarning")

RUN: dict[str, Any] = {"batch_key": "batch", "max_epochs": 3}


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("input") / "cells.h5mu"
    simulate(n_cells=80, n_genes=30, n_proteins=5, n_batches=2, seed=2).write(path)
    return path


@pytest.fixture(scope="module")
def done(cells: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(cells, tmp_path_factory.mktemp("done") / "out", **RUN).folder


def assert_same_numbers(ours: Path, theirs: Path) -> None:
    weights = "model.totalvi/weights.safetensors"
    assert (ours / weights).read_bytes() == (theirs / weights).read_bytes()
    for table in theirs.glob("tables/*"):
        one, other = pd.read_csv(ours / "tables" / table.name), pd.read_csv(table)
        pd.testing.assert_frame_equal(
            one.drop(columns="seconds", errors="ignore"),
            other.drop(columns="seconds", errors="ignore"),
            check_exact=True,
        )


def times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


# ------------------------------------------------------------------------- resumed and requeued


def test_a_resumed_run_has_the_numbers_of_an_uninterrupted_one(
    cells: Path, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, steps = Fit.step, []

    def watched(self: Any, batch: Any) -> Any:
        steps.append(None)
        if len(steps) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, batch)

    monkeypatch.setattr(Fit, "step", watched)
    with pytest.raises(Interrupted, match=r"out\.checkpoint"):
        run(cells, tmp_path / "out", **RUN, resume=True)  # nothing to resume: it starts
    assert [path.name for path in tmp_path.iterdir()] == ["out.checkpoint"]
    with pytest.raises(OutputError, match="go on with resume"):
        run(cells, tmp_path / "out", **RUN)
    with pytest.raises(Exception, match="seed is 0 there and 1 here"):
        run(cells, tmp_path / "out", **RUN, seed=1, resume=True)
    run(cells, tmp_path / "out", batch_key="batch", resume=True)  # with the epochs it began with
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert_same_numbers(tmp_path / "out", done)
    recorded, before = json.loads((tmp_path / "out" / "run.json").read_text()), times(tmp_path)
    assert recorded["arguments"]["max_epochs"] == RUN["max_epochs"]  # so that it is repeated
    run(cells, tmp_path / "out", batch_key="batch", resume=True)  # requeued
    assert times(tmp_path) == before


def test_a_requeued_run_that_is_done_does_nothing_but_its_report(
    cells: Path, done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    shutil.copytree(done, out)
    before = times(out)
    command = ["run", str(cells), "-o", str(out), "--batch", "batch", "--epochs", "3", "--resume"]
    # killed after the results were in place, while the report was written
    (out / ".report.html.partial.html").write_text("<html>")
    assert execute([*command, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == {"folder": str(out)} | json.loads((out / "run.json").read_text())
    report = out / "report.html"
    assert report.read_text().rstrip().endswith("</html>")
    after = times(out)
    assert {path: when for path, when in after.items() if path != report} == before
    with pytest.raises(OutputError, match="another max_epochs"):  # another run
        run(cells, out, batch_key="batch", max_epochs=4, resume=True)
    with pytest.raises(OutputError, match="another max_epochs"):  # of the default number of epochs
        run(cells, out, batch_key="batch", resume=True)
    assert times(out) == after


@dataclass(frozen=True)
class Given(Options):
    INPUTS = ("input",)

    input: Path
    max_epochs: int | None
    seed: int = 0


def test_results_of_the_default_epochs_are_those_of_no_number(tmp_path: Path) -> None:
    cells = tmp_path / "cells.h5mu"
    cells.touch()
    for planned, wanted, same in (
        (400, None, True),
        (400, 400, True),
        (3, None, True),
        (3, 3, False),
    ):
        record = asked(Given(cells, planned))
        write_record(
            record | {"epochs_asked": wanted, "default_max_epochs": 400}, tmp_path / "run.json"
        )
        for given, expected in ((None, same), (planned, True), (5, False)):
            assert (differences(tmp_path / "run.json", Given(cells, given)) == []) is expected


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
def test_signals_end_the_command_with_a_checkpoint(cells: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "out.checkpoint"
    command = [
        *(sys.executable, "-m", "totalvi", "run", str(cells), "-o", str(tmp_path / "out")),
        *("--epochs", "100000", "--checkpoint-every", "0", "--resume"),
    ]
    n_steps = [0]
    for number, status in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        before = checkpoint.stat().st_mtime_ns if n_steps[-1] else 0
        process = subprocess.Popen(
            command,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        deadline = time.monotonic() + 300
        while not checkpoint.exists() or checkpoint.stat().st_mtime_ns == before:
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(number)
        _, printed = process.communicate(timeout=300)
        assert process.returncode == status
        assert f"the fit is kept in {checkpoint}; go on with --resume" in printed
        assert "Traceback" not in printed
        assert [path.name for path in tmp_path.iterdir()] == [checkpoint.name]
        n_steps.append(read_checkpoint(checkpoint).values["steps_done"])
        assert n_steps[-1] > n_steps[-2]


# ------------------------------------------------------------------------------------- repeated


def test_a_run_is_repeated_on_its_moved_input_with_the_same_numbers(
    cells: Path, done: Path, tmp_path: Path
) -> None:
    record = json.loads((done / "run.json").read_text())
    record["arguments"]["input"] = str(tmp_path / "gone.h5mu")
    record["versions"]["torch"] = "0.1"
    (tmp_path / "run.json").write_text(json.dumps(record))
    with pytest.raises(ReadError, match=r"gone\.h5mu, the input of .* is not there; say where"):
        repeat(tmp_path / "run.json", tmp_path / "again")
    changed = tmp_path / "changed.h5mu"
    changed.write_bytes(cells.read_bytes() + b"\0")
    with pytest.raises(ReadError, match=r"is not the input of .* any more"):
        repeat(tmp_path / "run.json", tmp_path / "again", input=changed)
    with pytest.raises(ReadError, match="is of a run without raw"):
        repeat(tmp_path / "run.json", tmp_path / "again", input=cells, raw=cells)
    moved = tmp_path / "moved.h5mu"
    shutil.copy(cells, moved)
    again = repeat(tmp_path / "run.json", tmp_path / "again", input=moved)
    assert_same_numbers(again.folder, done)
    assert any(note.startswith("torch is ") for note in again.record["notes"])


def fake_fit(mdata: Any, options: RunOptions, *_: Any) -> pipeline.Outcome:
    """Note what a fit would be made of."""
    digest = hashlib.sha256(repr((options.keys, options.seed, options.resolution)).encode())
    digest.update(mdata["rna"].X.toarray().tobytes())
    digest.update(mdata.uns[AMBIENT].to_csv().encode())
    return pipeline.Outcome({"digest": digest.hexdigest(), "max_epochs": 1}, [], {})


def test_the_hash_is_of_the_input_that_was_read(
    cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = shutil.copy(cells, tmp_path / "cells.h5mu")

    def changed_meanwhile(*_: Any, **__: Any) -> pipeline.Outcome:
        with given.open("ab") as file:
            file.write(b"\0")
        return pipeline.Outcome({"max_epochs": 1}, [], {})

    monkeypatch.setattr(pipeline, "fit_and_write", changed_meanwhile)
    made = run(given, tmp_path / "out")
    assert made.record["input_sha256"] == {"input": sha256(cells)}
    with pytest.raises(ReadError, match=r"is not the input of .* any more"):
        repeat(made.folder / "run.json", tmp_path / "again")


@pytest.mark.parametrize("by_batch", [False, True])
def test_empty_droplets_are_found_again(
    by_batch: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "fit_and_write", fake_fit)
    command = ["simulate", "-o", str(tmp_path / "c.h5mu"), "--raw", str(tmp_path / "r.h5mu")]
    assert execute([*command, "--cells", "60", "--genes", "30", "--proteins", "4"]) == 0
    raw: Any = {"batch_0": tmp_path / "r.h5mu"} if by_batch else tmp_path / "r.h5mu"
    options = {"batch_key": "batch" if by_batch else None, "seed": 3, "resolution": 0.5}
    first = run(tmp_path / "c.h5mu", tmp_path / "out", raw=raw, **options)
    names = {"input", "raw[batch_0]" if by_batch else "raw"}
    assert set(first.record["input_sha256"]) == names
    again = repeat(first.folder / "run.json", tmp_path / "again")
    assert again.record["digest"] == first.record["digest"]
    assert again.record["arguments"]["raw"] == first.record["arguments"]["raw"]
    (tmp_path / "r.h5mu").rename(tmp_path / "moved.h5mu")
    with pytest.raises(ReadError, match=r"r\.h5mu, the input of"):
        repeat(first.folder / "run.json", tmp_path / "third")
    moved: Any = {"batch_0": tmp_path / "moved.h5mu"} if by_batch else tmp_path / "moved.h5mu"
    third = repeat(first.folder / "run.json", tmp_path / "third", raw=moved)
    assert third.record["digest"] == first.record["digest"]


def test_results_that_were_put_away_are_complete(
    cells: Path, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    shutil.copytree(done, out)
    (out / "report.html").write_text("the report")
    monkeypatch.setattr(os, "access", lambda _path, mode: mode != os.W_OK)
    command = ["run", str(cells), "-o", str(out), "--batch", "batch", "--epochs", "3", "--resume"]
    assert execute(command) == 0
    assert (out / "report.html").read_text() == "the report"


def test_a_second_writer_is_not_told_to_resume(
    cells: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    (tmp_path / "out.checkpoint").touch()
    with locked(out):
        command = ["run", str(cells), "-o", str(out), "--batch", "batch", "--epochs", "3"]
        assert execute([*command, "--resume"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "is being written by another process" in line


def test_the_record_tells_how_often_the_fit_was_kept(done: Path) -> None:
    arguments = json.loads((done / "run.json").read_text())["arguments"]
    assert arguments["checkpoint_every"] == "0:10:00"
