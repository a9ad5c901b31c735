"""The page of queries names them all, and its snippets run."""

import re
from pathlib import Path

import pytest

import totalvi

PAGE = Path(__file__).parents[1] / "docs" / "queries.md"


def test_snippets_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    snippets = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(snippets) >= 6
    exec("\n".join(snippets), {})


def test_every_query_has_a_line() -> None:
    rows = re.findall(r"^\| `(\w+)` \| \S", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    bases = [
        b
        for b in totalvi.Model.__mro__
        if b.__module__.startswith(("totalvi.posterior", "totalvi.mapping"))
    ]
    queries = {name for b in bases for name, value in vars(b).items() if callable(value)}
    assert sorted(rows) == sorted(name for name in queries if not name.startswith("_"))


def test_sizes_name_files_that_are_there() -> None:
    root = PAGE.parents[1]
    section = (root / "docs" / "scaling.md").read_text(encoding="utf-8")
    rows = section.partition("## Thresholds")[2]
    named = set(re.findall(r"`([\w/]+\.py)`", rows))
    assert len(named) > 40
    folders = (root / "tests", root / "src" / "totalvi")
    assert {name for name in named if not any((f / name).is_file() for f in folders)} == set()


def test_all_that_a_model_shows_is_documented() -> None:
    shown = [getattr(totalvi.Model, name) for name in dir(totalvi.Model) if name[0] != "_"]
    assert [value.__qualname__ for value in shown if not value.__doc__] == []
