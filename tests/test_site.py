"""The documentation site: it builds without a broken link or a network, with all public names."""

import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import totalvi
from browser import browser, watch

pytest.importorskip("mkdocs", reason="needs the extra docs")
pytest.importorskip("mkdocstrings", reason="needs the extra docs")
ROOT = Path(__file__).parents[1]
SNIPPETS = ("reference/model.md", "reference/functions.md", "reference/errors.md", "from_dsb.md")
REFERENCE = "\n".join(p.read_text(encoding="utf-8") for p in (ROOT / "docs/reference").glob("*.md"))


def addresses(page: str) -> Iterator[str]:
    """Yield what a page loads by itself: scripts, styles, images, frames."""
    for tag in re.findall(r"<(?:script|img|iframe|source|link)\b[^>]*>", page):
        if not re.search(r'rel="?(?:canonical|prev|next)', tag):
            yield from re.findall(r'(?:src|href)="?([^"\s>]+)', tag)


def check_that_pages_load_only_what_is_there(site: Path) -> None:
    pages = [path for path in site.rglob("*.html") if path.name != "404.html"]
    assert len(pages) > 50
    loaded = [(path, address) for path in pages for address in addresses(path.read_text("utf-8"))]
    missing = [
        f"{path.relative_to(site)}: {address}"
        for path, address in loaded
        if not address.startswith("data:")
        and not (path.parent / address.partition("?")[0]).is_file()
    ]
    assert missing == []


def check_that_tutorials_have_figures_and_scripts(site: Path) -> None:
    for script in (ROOT / "docs" / "tutorials").glob("*.py"):
        page = (site / "tutorials" / f"{script.stem}.html").read_text(encoding="utf-8")
        assert re.search(rf'src="{script.stem}_\d+_\d+\.png"', page)
        given = (site / "tutorials" / script.name).read_text(encoding="utf-8")
        assert "# short:" not in given
        compile(given, script.name, "exec")


def check_that_the_search_works_from_the_file_system(site: Path) -> None:
    with browser() as chromium:
        page = chromium.new_page()
        said = watch(page)
        page.goto((site / "model.html").as_uri())
        page.click("input.md-search__input")
        page.keyboard.type("isotype controls", delay=20)
        page.wait_for_selector(".md-search-result__item a[href*='background.html']", timeout=30_000)
        assert said == []


def test_the_site_builds_with_all_tutorials_and_needs_no_network(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "mkdocs",
            "build",
            "--strict",
            "--quiet",
            "--site-dir",
            str(tmp_path),
        ],
        cwd=ROOT,
        env={**os.environ, "TOTALVI_TUTORIALS": "short", "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    check_that_pages_load_only_what_is_there(tmp_path)
    check_that_tutorials_have_figures_and_scripts(tmp_path)
    check_that_the_search_works_from_the_file_system(tmp_path)


def test_every_public_name_is_in_the_reference_with_an_example() -> None:
    listed = set(re.findall(r"^::: totalvi\.([\w.]+)", REFERENCE, re.MULTILINE))
    names = set(totalvi.__all__) - {"__version__", "datasets", "persistence", "DataWarning"}
    assert names <= listed
    methods = {name for name in dir(totalvi.Model) if not name.startswith("_")}
    assert {f"Model.{name}" for name in methods} <= listed
    snippets = "\n".join(re.findall(r"```python\n(.*?)```", REFERENCE, re.DOTALL))
    without = []
    for path in sorted(listed):
        value: object = totalvi
        for part in path.removeprefix("data.").split("."):
            value = getattr(value, part)
        name = path.rpartition(".")[2]
        if ">>>" not in (inspect.getdoc(value) or "") and not re.search(rf"\b{name}\b", snippets):
            without.append(path)
    assert without == []


@pytest.mark.parametrize("name", SNIPPETS)
def test_snippets_of_pages_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    snippets = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert snippets
    exec("\n".join(snippets), {})


def test_pages_for_programs_name_files_that_are_there() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", (ROOT / "llms.txt").read_text(encoding="utf-8"))
    assert len(links) > 15
    assert [link for link in links if not (ROOT / link).is_file()] == []
