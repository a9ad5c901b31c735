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
OF_COMMANDS = ("clusters", "report", "explorer")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = {
    name: [Requirement(text) for text in texts if not text.startswith("totalvi[")]
    for name, texts in PROJECT["optional-dependencies"].items()
}
CORE = [Requirement(text) for text in PROJECT["dependencies"]]
NEEDED = CORE + [needed for name in OF_COMMANDS for needed in EXTRAS[name]]
FOR_DEVELOPMENT = EXTRAS["dev"] + EXTRAS["docs"]


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


# Packages of the field that are not installed with this one, as code in a message may name them.
OF_OTHERS = {
    *(
        "muon",
        "mu",
        "scvi",
        "scirpy",
        "squidpy",
        "seurat",
        "rpy2",
        "anndata2ri",
        "dsb",
        "celltypist",
    ),
    *("loompy", "leidenalg", "louvain", "harmonypy", "openpyxl", "pyarrow", "dask", "fastparquet"),
}
# What comes before the name of a package in code that a text tells people to run.
IMPORTING = re.compile(
    r"(?:pip install|conda install|^\s*(?:>>> |\.\.\. )?import|\bimport(?= \w+[`;,]))\s+"
    r"([A-Za-z][\w-]*)"
    r"|\bfrom ([A-Za-z]\w*)[\w.]* import\b"
    r"|(?<![\w./-])([a-z]\w*)\.(?:\w+\.)*\w+\(",
    re.MULTILINE,
)


def packages_named(text: str) -> set[str]:
    """Return the packages that code within a text imports, installs or calls."""
    named = {next(filter(None, found)) for found in IMPORTING.findall(text)}
    importing = {name for *both, _ in IMPORTING.findall(text) for name in both if name}
    return importing | (named & OF_OTHERS)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("take the cells of both with muon.pp.intersect_obs(mdata).", {"muon"}),
        ("write it with scvi.data.read(path).", {"scvi"}),
        ("pip install leidenalg", {"leidenalg"}),
        (">>> import muon as mu", {"muon"}),
        ("run `from scirpy.io import read`", {"scirpy"}),
        ("drop the cells with mdata.obs_names_make_unique()", set()),
        ("read it with pyarrow.csv.read_csv(path)", {"pyarrow"}),
    ],
)
def test_what_texts_name_is_found(text: str, named: set[str]) -> None:
    assert packages_named(text) == named


def test_no_text_tells_people_to_use_a_package_that_is_not_installed() -> None:
    """Unless the same text says how to install it."""
    ours = {canonicalize_name(requirement.name) for requirement in NEEDED}
    installed = {
        package
        for package, distributions in packages_distributions().items()
        if {canonicalize_name(name) for name in distributions} & ours
    }
    known = ours | installed | set(sys.stdlib_module_names) | {"totalvi"}
    found, n_named = [], 0
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Constant) and isinstance(node.value, str)):
                continue
            named = packages_named(node.value)
            n_named += len(named)
            if "pip install" not in node.value:
                found += [f"{path.name}:{node.lineno}: {name}" for name in named - known]
            else:
                installing = set(re.findall(r"pip install ([\w-]+)", node.value))
                found += [f"{path.name}: {name}" for name in named - known - installing]
    assert found == []
    assert n_named > 20


def test_all_installs_every_extra_of_a_command() -> None:
    assert PROJECT["optional-dependencies"]["all"] == ["totalvi[clusters,explorer,report]"]


@pytest.mark.parametrize("requirement", NEEDED + FOR_DEVELOPMENT, ids=lambda r: r.name)
def test_what_is_pinned_lies_within_the_bounds(requirement: Requirement) -> None:
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    pins = {canonicalize_name(name): version for name, version in re.findall(r"(.+)==(.+)", text)}
    assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)])
    assert any(bound.operator == ">=" for bound in requirement.specifier)


def test_the_conda_recipe_has_the_bounds_of_the_project() -> None:
    recipe = (ROOT / "conda" / "meta.yaml").read_text(encoding="utf-8")
    run = recipe.partition("  run:\n")[2].partition("\ntest:")[0]
    listed = dict(line.strip("- ").split() for line in run.splitlines() if line.strip())
    assert listed.pop("python") == PROJECT["requires-python"]
    of_conda = {"torch": "pytorch", "igraph": "python-igraph"}
    wanted = {of_conda.get(r.name, r.name): str(r.specifier) for r in NEEDED}
    assert listed == wanted
