"""`totalvi datasets` lists and fetches."""

from pathlib import Path

import pytest

from totalvi.cli.main import execute
from totalvi.data.datasets import DATASETS


@pytest.mark.parametrize("arguments", [["datasets"], ["datasets", "list"]])
def test_all_data_sets_are_listed(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [dataset.name for dataset in DATASETS]


@pytest.mark.parametrize(("options", "kind"), [([], "filtered"), (["--raw"], "raw")])
def test_fetch_prints_the_path_of_the_file(
    options: list[str],
    kind: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = {}

    def fetch(name: str, **given: object) -> Path:
        asked.update(given, name=name)
        return tmp_path / "file.h5"

    monkeypatch.setattr("totalvi.data.datasets.fetch", fetch)
    assert execute(["datasets", "fetch", "pbmc_1k", "-o", str(tmp_path), *options]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'file.h5'}\n"
    assert asked == {"name": "pbmc_1k", "kind": kind, "folder": tmp_path}
