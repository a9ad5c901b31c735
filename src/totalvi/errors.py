"""The exceptions that totalvi raises on purpose, the findings of checks, and the words that they share.

A message that tells of an argument names it with `argument` or `setting` when it is made, so that it
reads right both from Python and on the command line.
"""

import shlex
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from difflib import get_close_matches
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

if TYPE_CHECKING:
    import pandas as pd

_OPTIONS: ContextVar[Mapping[str, str] | None] = ContextVar("options", default=None)


@contextmanager
def naming_options(options: Mapping[str, str]) -> Iterator[None]:
    """Let messages that are made meanwhile name these options in place of Python's arguments.

    Parameters
    ----------
    options
        Option of the command line for each argument that has one.
    """
    before = _OPTIONS.set(options)
    try:
        yield
    finally:
        _OPTIONS.reset(before)


def argument(name: str) -> str:
    """Return what an argument is called where the message is read.

    Examples
    --------
    >>> argument("rna_layer")
    'rna_layer'
    >>> with naming_options({"rna_layer": "--rna-layer"}):
    ...     argument("rna_layer")
    '--rna-layer'
    """
    return (_OPTIONS.get() or {}).get(name, name)


def setting(name: str, value: object) -> str:
    """Return how an argument is given a value where the message is read.

    An option without a value of its own stands for True, or for nothing in a list.

    Examples
    --------
    >>> setting("rna_layer", "counts"), setting("overwrite", True)
    ('rna_layer="counts"', 'overwrite=True')
    >>> with naming_options({"rna_layer": "--rna-layer", "overwrite": "--overwrite"}):
    ...     setting("rna_layer", "counts"), setting("overwrite", True)
    ('--rna-layer counts', '--overwrite')
    """
    option = (_OPTIONS.get() or {}).get(name)
    if option is None:
        return f'{name}="{value}"' if isinstance(value, str) else f"{name}={value!r}"
    return option if value is True or value == () else f"{option} {shlex.quote(str(value))}"


def allowed(name: str, value: object, choices: str | Sequence[object]) -> str:
    """Return the message that an argument has a value that is not allowed.

    Parameters
    ----------
    name
        Of the argument.
    value
        What it is.
    choices
        What it may be: the values, or words for them.

    Examples
    --------
    >>> allowed("seed", -1, "whole numbers from 0")
    'seed is -1; allowed are whole numbers from 0.'
    >>> allowed("schedule", "linear", ("one-cycle", "constant"))
    "schedule is 'linear'; allowed are 'one-cycle', 'constant'."
    """
    words = choices if isinstance(choices, str) else ", ".join(map(repr, choices))
    return f"{argument(name)} is {value!r}; allowed are {words}."


def first_and_count(names: "Sequence[str] | pd.Index", singular: str) -> str:
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


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, in the plural where it is not one.

    Examples
    --------
    >>> counted(1, "protein"), counted(1200, "cell"), counted(2, "batch"), counted(2, "epoch")
    ('1 protein', '1,200 cells', '2 batches', '2 epochs')
    """
    plural = f"{noun}es" if noun.endswith("tch") else f"{noun}s"
    return f"{number:,} {noun if number == 1 else plural}"


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
    if len(near) == len(known):
        return f"did you mean {listed(near)}?"
    shown = listed(known, at_most=20)
    return f"did you mean {listed(near)}? There are: {shown}" if near else f"there are: {shown}"


class TotalviError(Exception):
    """Base of all errors that totalvi raises on purpose.

    The message is one sentence that names what is wrong and how to fix it. The command line
    prints it without a traceback and exits with status 2.
    """


class DataError(TotalviError, ValueError):
    """The input counts or their annotation cannot be used as they are."""


class DataWarning(UserWarning):
    """The input counts can be used, but there is something in them to look at again."""


Severity: TypeAlias = Literal["error", "warning", "note"]


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

    severity: Severity
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


class ReadError(DataError):
    """A file cannot be read as CITE-seq counts."""


class DownloadError(TotalviError):
    """A public data set could not be downloaded completely."""


class TrainingError(TotalviError):
    """A fit ended without a usable model."""


class NotTrainedError(TotalviError):
    """A query was called on a model that has not been trained, or whose fit failed."""


class BackgroundError(NotTrainedError):
    """The background of a protein is beyond any count: the fit went wrong.

    Parameters
    ----------
    protein
        Its position among the model's.
    names
        Names of the model's proteins; empty if they are not known.
    """

    def __init__(self, protein: int, names: Sequence[str] = ()) -> None:
        which = f'"{names[protein]}"' if names else f"number {protein + 1}"
        super().__init__(
            f"The model's background of protein {which} is beyond 1e13 counts in some cells: the fit "
            "went wrong or was far too short; train again with a lower learning rate, or for longer."
        )
        self.protein = protein


class FormatError(TotalviError):
    """A saved model is damaged, incomplete, or of an unknown format version."""


class CheckpointError(TotalviError):
    """A checkpoint is damaged, or belongs to a different fit."""


class ProcessError(TotalviError, ValueError):
    """Several processes cannot be launched or continue, or differ in data or arguments."""


class LostProcessError(ProcessError):
    """Another process of a fit ended, or cannot be reached."""


class OutputError(TotalviError):
    """Results cannot be written to the given path."""


class LockedError(OutputError):
    """Another process writes to the given path."""


class IncompleteError(TotalviError):
    """A step after the fit failed; everything that does not depend on it is written.

    Parameters
    ----------
    message
        The failure, where the other results are, and how to complete them.
    """


class Interrupted(KeyboardInterrupt):
    """A fit was stopped by a signal, after it wrote its checkpoint.

    Parameters
    ----------
    message
        The signal, and where the checkpoint is.
    signal_number
        SIGINT or SIGTERM.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number
