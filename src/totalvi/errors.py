"""The exceptions that totalvi raises on purpose, and how their messages name an argument.

A message that tells of an argument names it with `argument` or `setting` when it is made, so that it
reads right both from Python and on the command line.
"""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

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


class TotalviError(Exception):
    """Base of all errors that totalvi raises on purpose.

    The message is one sentence that names what is wrong and how to fix it. The command line
    prints it without a traceback and exits with status 2.
    """


class DataError(TotalviError, ValueError):
    """The input counts or their annotation cannot be used as they are."""


class DataWarning(UserWarning):
    """The input counts can be used, but there is something in them to look at again."""


class ReadError(DataError):
    """A file cannot be read as CITE-seq counts."""


class DownloadError(TotalviError):
    """A public data set could not be fetched whole."""


class TrainingError(TotalviError):
    """A fit ended without a usable model."""


class NotTrainedError(TotalviError):
    """A query was put to a model that has not been trained, or whose fit failed."""


class BackgroundError(NotTrainedError):
    """The background of a protein is beyond any count: the fit went wrong.

    Parameters
    ----------
    protein
        Its position among the model's.
    names
        Names of the model's proteins; empty where they are not known.
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
    """A checkpoint is damaged, or of another fit than the one that is to go on."""


class ProcessError(TotalviError, ValueError):
    """Several processes cannot be launched or go on, or differ in data or arguments."""


class OutputError(TotalviError):
    """Results cannot be written where they were asked for."""


class IncompleteError(TotalviError):
    """Something that follows a fit failed; all that does not rest on it is written.

    Parameters
    ----------
    message
        What failed, where the rest is, and how to complete it.
    """


class Interrupted(KeyboardInterrupt):
    """A fit was stopped by a signal, after it wrote its checkpoint.

    Parameters
    ----------
    message
        What happened, and where the checkpoint is.
    signal_number
        SIGINT or SIGTERM.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number
