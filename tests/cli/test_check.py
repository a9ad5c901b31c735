"""`totalvi check` lists what it finds."""

import json
from pathlib import Path

import pytest

from totalvi.cli.main import execute
from totalvi.data.simulate import simulate

# Of mudata, about a default that its next version changes.
pytestmark = pytest.mark.filterwarnings("ignore:From 0.4:FutureWarning")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    simulate(n_cells=50, n_genes=30, n_proteins=4, seed=1).write(tmp_path / "cells.h5mu")
    return tmp_path / "cells.h5mu"


def test_good_data_are_summed_up(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["check", str(file), "--batch", "batch"]) == 0
    printed = capsys.readouterr()
    assert "50 cells" in printed.out
    assert "error" not in printed.out
    assert printed.err == ""
    assert "\x1b" not in printed.out


def test_errors_are_listed_first_with_status_2(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert execute(["check", str(file), "--batch", "donor", "--labels", "celltype"]) == 2
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:2]] == ["error", "error"]
    assert "donor" in lines[0]
    assert 'did you mean "cell_type"' in lines[1]


def test_json_holds_the_same_findings(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["check", str(file), "--batch", "donor"]) == 2
    plain = capsys.readouterr().out
    assert execute(["check", str(file), "--batch", "donor", "--json"]) == 2
    report = json.loads(capsys.readouterr().out)
    assert report["input"] == str(file)
    assert [f["severity"] for f in report["findings"]].count("error") == 1
    for finding in report["findings"]:
        assert finding["message"] in plain
        assert finding["code"]


def test_counts_that_are_not_found_are_a_finding(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert execute(["check", str(file), "--protein-modality", "adt", "--json"]) == 2
    (finding,) = json.loads(capsys.readouterr().out)["findings"]
    assert "adt" in finding["message"]
