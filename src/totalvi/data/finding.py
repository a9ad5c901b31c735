"""Findings of the checks of the input, and words that the checks share."""

import warnings
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

from totalvi.errors import DataError, DataWarning, argument


class Finding(NamedTuple):
    """One finding of a check of the input.

    Attributes
    ----------
    severity
        "error": the data cannot be used; "warning": they may contain a mistake; "note": a summary.
    code
        Fixed name of the kind of finding, such as ``rna_negative``.
    message
        One sentence that names what is wrong and where, and how to fix it.
    """

    severity: Literal["error", "warning", "note"]
    code: str
    message: str


def in_order(findings: Iterable[Finding]) -> list[Finding]:
    """Return errors, then warnings, then notes."""
    severities = ("error", "warning", "note")
    return sorted(findings, key=lambda finding: severities.index(finding.severity))


def warn_of(findings: Iterable[Finding], stacklevel: int = 2) -> None:
    """Warn of what the checks warn of, as `totalvi.errors.DataWarning`.

    Not of few genes: those of a model are chosen.
    """
    for finding in findings:
        if finding.severity == "warning" and finding.code != "few_genes":
            warnings.warn(finding.message, DataWarning, stacklevel=stacklevel + 1)


def warnings_and_notes(findings: Iterable[Finding]) -> tuple[list[str], list[str]]:
    """Return the messages of the warnings, and those of the notes."""
    said: dict[str, list[str]] = {"error": [], "warning": [], "note": []}
    for finding in findings:
        said[finding.severity].append(finding.message)
    return said["warning"], said["note"]


class CellGroups(NamedTuple):
    """The group of each cell: its panel or batch, or one group of all cells.

    Attributes
    ----------
    word
        "panel", "batch" or "data set".
    codes
        Position in ``names`` of each cell's group, shape ``(n_cells,)``.
    names
        Names of the groups.
    """

    word: str
    codes: np.ndarray
    names: tuple[str, ...]

    def name(self, code: int) -> str:
        """Return the words for one group."""
        return f'{self.word} "{self.names[code]}"' if self.word != "data set" else "the data set"


def cell_groups(obs: pd.DataFrame, word: str, key: str | None) -> CellGroups | None:
    """Group the cells by ``obs[key]``; None when the key is absent or lacks values for some cells."""
    if key is None:
        return CellGroups("data set", np.zeros(len(obs), dtype=np.intp), ("all",))
    if key not in obs or obs[key].isna().any():
        return None
    codes, names = pd.factorize(obs[key], sort=False)
    return CellGroups(word, codes, tuple(map(str, names)))


def first_and_count(names: Sequence[str] | pd.Index, singular: str) -> str:
    """Return the number of names, and the first of them, in words.

    Examples
    --------
    >>> first_and_count(["CD4"], "gene")
    'gene "CD4"'
    >>> first_and_count(["CD4", "CD8", "CD3"], "gene")
    '3 genes (the first is "CD4")'
    """
    if len(names) == 1:
        return f'{singular} "{names[0]}"'
    return f'{len(names):,} {singular}s (the first is "{names[0]}")'


def listed(names: Iterable[str], at_most: int = 5) -> str:
    """Quote names for a message, or the first few if there are many.

    Examples
    --------
    >>> listed(["a", "b", "c"], at_most=2)
    '"a", "b" and 1 more'
    """
    names = list(names)
    shown = ", ".join(f'"{name}"' for name in names[:at_most])
    return shown + (f" and {len(names) - at_most} more" if len(names) > at_most else "")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """List the known names for an error message, those similar to ``name`` first.

    Examples
    --------
    >>> did_you_mean("Bacth", ["batch", "donor"])
    'did you mean "batch"? There are: "batch", "donor"'
    >>> did_you_mean("sample", [])
    'there are none'
    """
    known = [str(k) for k in known]
    if not known:
        return "there are none"
    by_lower = {k.lower(): k for k in known}
    near = [by_lower[k] for k in get_close_matches(name.lower(), by_lower, n=3)]
    shown = listed(known, at_most=20)
    return f"did you mean {listed(near)}? There are: {shown}" if near else f"there are: {shown}"


def column(name: str, key: str) -> str:
    """Return the words for the column ``key`` of ``obs``, which the argument ``name`` names.

    Examples
    --------
    >>> column("batch_key", "donor")
    'batch_key: obs["donor"]'
    """
    return f'{argument(name)}: obs["{key}"]'


def no_column(name: str, key: str, known: Iterable[str]) -> str:
    """Return the message that ``obs`` lacks the column ``key`` that the argument ``name`` names.

    Examples
    --------
    >>> no_column("batch_key", "sample", ["donor"])
    'batch_key: no column "sample" in obs; there are: "donor".'
    """
    return f'{argument(name)}: no column "{key}" in obs; {did_you_mean(str(key), known)}.'


def column_of(obs: pd.DataFrame, name: str, key: str) -> pd.Series:
    """Return a column of ``obs`` that an argument names, or raise DataError."""
    if key not in obs:
        raise DataError(f"{argument(name)} is {key!r}; {did_you_mean(str(key), obs.columns)}.")
    return obs[key]
