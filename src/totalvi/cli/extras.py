"""Packages that only some commands need: which are missing, and how to install them."""

from collections.abc import Sequence
from importlib.util import find_spec

from totalvi.errors import TotalviError

# By the name under which each is imported: the extra of pyproject.toml that installs it.
EXTRA_OF = {
    "igraph": "clusters",
    "scanpy": "clusters",
    "skmisc": "clusters",
    "bokeh": "report",
    "jinja2": "report",
    "markupsafe": "report",
    "matplotlib": "report",
    "contourpy": "explorer",
    "tornado": "explorer",
}
# Better said before a fit than after it.
_OF_RESULTS = ["run", "demo", "report", "gate", "compare"]
_EXTRAS_OF_COMMAND = {
    **dict.fromkeys(_OF_RESULTS, ("clusters", "report")),
    **dict.fromkeys(["train", "impute"], ("clusters",)),  # which selects variable genes
    "explore": ("clusters", "report", "explorer"),
}


class MissingPackageError(TotalviError):
    """A package that only some commands need is not installed."""


def require_extras(arguments: Sequence[str]) -> None:
    """Raise MissingPackageError if the command that is first in ``arguments`` lacks a package."""
    command = next((word for word in arguments if not word.startswith("-")), "")
    if {"-h", "--help"} & set(arguments):
        return
    for package, extra in EXTRA_OF.items():
        wanted = extra in _EXTRAS_OF_COMMAND.get(command, ())
        if wanted and find_spec(package) is None:
            raise MissingPackageError(_advice(f"totalvi {command} needs {package}", extra))


def missing_extra(package: str | None) -> str | None:
    """Return what to do about a package that could not be imported; None if it is of no extra."""
    name = (package or "").partition(".")[0]
    if name not in EXTRA_OF:
        return None
    return _advice(f"this command needs {name}", EXTRA_OF[name])


def _advice(what: str, extra: str) -> str:
    return f"{what}, which is not installed; run pip install 'totalvi[{extra}]' or 'totalvi[all]'."
