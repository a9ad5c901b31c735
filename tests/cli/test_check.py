"""`totalvi check` lists what it finds."""

import json
from pathlib import Path

import mudata
import pytest

from totalvi.cli.main import execute
from totalvi.data.simulate import simulate
from totalvi.errors import Finding, setting

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


def test_findings_name_options(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["check", str(file), "--labels", "celltype", "--rna-modality", "gex"]
    assert execute(arguments) == 2
    assert "RNA with --rna-modality" in capsys.readouterr().out
    assert execute([*arguments[:-2], "--json"]) == 2
    report = json.loads(capsys.readouterr().out)
    assert report["findings"][0]["message"].startswith("--labels: no column")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "totalvi.run.prepare.check_counts",
            lambda *_: [Finding("error", "x", f"accept with {setting('allow_fractional', True)}.")],
        )
        assert execute(["check", str(file)]) == 2
    first = capsys.readouterr().out.splitlines()[0]
    assert first == "error    accept with --allow-fractional."


def test_renamed_features_are_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cells = [f"ACGTACGTACGT-{i}" for i in range(12)]
    (tmp_path / "rna.csv").write_text(
        "\n".join([",".join(["", *cells]), *(f"{gene}{',3' * 12}" for gene in ("A", "B", "A")), ""])
    )
    (tmp_path / "protein.csv").write_text(
        "\n".join([",".join(["", *cells]), f"CD3{',3' * 12}", f"CD4{',9' * 12}", ""])
    )
    command = ["check", str(tmp_path / "rna.csv"), "--protein", str(tmp_path / "protein.csv")]
    assert execute(command) == 0
    printed = capsys.readouterr().out
    (line,) = [line for line in printed.splitlines() if "renamed" in line]
    assert line.startswith("note")
    assert '"A" to "A-1"' in line


def test_proteins_of_another_name_are_split(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = simulate(n_cells=50, n_genes=30, n_proteins=6, seed=1, store_truth=False)
    protein = data["prot"].copy()
    protein.var_names = ["CD3", "CD4", "CD8", "tag_a", "tag_b", "IgG1_control"]
    with mudata.set_options(pull_on_update=False):
        mudata.MuData({"gex": data["rna"], "adt": protein}).write(tmp_path / "cells.h5mu")
    names = ["--rna-modality", "gex", "--protein-modality", "adt"]
    assert execute(["check", str(tmp_path / "cells.h5mu"), *names, "--hashtags", "^tag_"]) == 0
    assert "30 genes and 4 proteins" in capsys.readouterr().out
