"""What the benchmarks import exists, so that a script that nobody ran for long still starts."""

import ast
import importlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def imported(script: Path) -> Iterator[tuple[str, str]]:
    for node in ast.walk(ast.parse(script.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "totalvi":
            for alias in node.names:
                yield str(node.module), alias.name


# scripts named same_* also run on earlier versions
@pytest.mark.parametrize(
    "script",
    [path for path in sorted(BENCHMARKS.rglob("*.py")) if not path.name.startswith("same_")],
    ids=lambda path: path.stem,
)
def test_names_that_a_benchmark_imports_exist(script: Path) -> None:
    lacking = [
        f"{module}.{name}"
        for module, name in imported(script)
        if not hasattr(importlib.import_module(module), name)
        and importlib.util.find_spec(f"{module}.{name}") is None
    ]
    assert lacking == []


def test_names_are_found_in_scripts() -> None:
    names = {name for script in BENCHMARKS.rglob("*.py") for name in imported(script)}
    assert {("totalvi.fit.loop", "Fit"), ("totalvi.processes", "launch")} <= names
