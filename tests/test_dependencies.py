"""What pyproject.toml names is what the sources import, in the versions that the tests run with."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NEEDED = [Requirement(text) for text in PROJECT["dependencies"]]
FOR_DEVELOPMENT = [Requirement(text) for text in PROJECT["optional-dependencies"]["dev"]]


def imported_packages(folder: Path) -> set[str]:
    """Return the top-level names that the files of a folder import, but for Python's and ours."""
    found = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names) - {"totalvi"}


def test_what_is_imported_is_declared_and_the_other_way_round() -> None:
    distributions = packages_distributions()
    imported = {
        canonicalize_name(distribution)
        for package in imported_packages(ROOT / "src")
        for distribution in distributions[package]
    }
    assert imported == {canonicalize_name(requirement.name) for requirement in NEEDED}


@pytest.mark.parametrize("requirement", NEEDED + FOR_DEVELOPMENT, ids=lambda r: r.name)
def test_what_is_pinned_lies_within_the_bounds(requirement: Requirement) -> None:
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    pins = {canonicalize_name(name): version for name, version in re.findall(r"(.+)==(.+)", text)}
    assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)])
    assert any(bound.operator == ">=" for bound in requirement.specifier)
