"""The report as a file: whole, small, of any number of cells, and safe from names in data."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from browser import browser, opened_page
from report.run_folder import write_run_folder
from totalvi.cli.main import execute
from totalvi.errors import OutputError
from totalvi.report.build import build_report

EVIL = "<script>alert(1)</script>"
PROTEINS = ["CD3", EVIL, "</script><img src=x onerror=alert(2)>", 'a"b']


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("run") / "out"
    write_run_folder(made, 300, [f"{EVIL}gene", "B", "C"], PROTEINS)
    build_report(made)
    return made


@pytest.fixture(scope="module")
def chromium() -> Iterator:
    with browser() as started:
        yield started


def test_the_page_is_one_small_file_and_names_are_only_text(folder: Path) -> None:
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert len(text) < 10e6
    assert EVIL not in text
    markup, _ = text.split('<script type="application/json"')  # then come data and scripts
    assert "<img" not in markup
    assert not re.search(r'(?:src|href)="(?!#|data:,)', markup)


def test_a_telephone_shows_it_without_a_complaint(folder: Path, chromium) -> None:
    page, said = opened_page(chromium, folder / "report.html", 390)
    assert page.locator("article h4").all_inner_texts() == PROTEINS
    assert page.locator("#failure").is_hidden()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert said == []


def test_the_command_makes_it_anew(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "again.html"
    assert execute(["report", str(folder), "-o", str(output)]) == 0
    assert capsys.readouterr().out.strip() == str(output)
    size = (folder / "report.html").stat().st_size
    assert output.stat().st_size == pytest.approx(size, rel=0.01)  # Bokeh's names are ever new


def names(kind: str, n: int) -> list[str]:
    return [f"{kind}_{i}" for i in range(n)]


@pytest.mark.parametrize("n_proteins", [30, pytest.param(130, marks=pytest.mark.slow)])
def test_ten_thousand_cells_take_ten_megabytes_at_most(tmp_path: Path, n_proteins: int) -> None:
    genes, proteins = names("gene", 450), names("protein", n_proteins)
    write_run_folder(tmp_path / "run", 10_000, genes, proteins)
    assert build_report(tmp_path / "run").stat().st_size < 10e6


@pytest.mark.slow
def test_more_cells_take_no_more_and_are_said_to_be_a_sample(tmp_path: Path, chromium) -> None:
    write_run_folder(tmp_path / "run", 200_000, names("gene", 60), names("protein", 20))
    assert build_report(tmp_path / "run").stat().st_size < 10e6
    page, said = opened_page(chromium, tmp_path / "run" / "report.html", 1280)
    drawn = re.search(r"([\d,]+) of 200,000 cells", page.locator("#map").inner_text())
    assert drawn is not None
    assert 9_900 < int(drawn[1].replace(",", "")) <= 10_000
    assert said == []


def test_other_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="not a folder of `totalvi run`"):
        build_report(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps({}))
    with pytest.raises(OutputError, match="give the folder that a run wrote"):
        build_report(tmp_path)
