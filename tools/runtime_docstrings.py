"""Give the reference pages the docstrings as Python has them, with what several share filled in.

Two colons before an example, as NumPy's style has them, become one.
"""

import re
from importlib import import_module
from inspect import getdoc
from operator import attrgetter
from typing import Any

from griffe import Extension, Module, Object

FILLED_IN = re.compile(r"^ *\{\w+\}", re.MULTILINE)  # as {cells} {seed}


class RuntimeDocstrings(Extension):
    """Replace docstrings that are completed when the module is imported."""

    def on_package(self, *, pkg: Module, **_: Any) -> None:
        """Visit everything in the package once it is read."""
        _complete(pkg)


def _complete(parent: Object) -> None:
    for member in parent.members.values():
        if member.is_alias:
            continue
        if member.docstring is not None and FILLED_IN.search(member.docstring.value):
            name = member.path.removeprefix(f"{member.module.path}.")
            runtime = attrgetter(name)(import_module(member.module.path))
            member.docstring.value = getdoc(runtime) or ""
        if member.docstring is not None:
            member.docstring.value = re.sub(r"::$", ":", member.docstring.value, flags=re.MULTILINE)
        _complete(member)
