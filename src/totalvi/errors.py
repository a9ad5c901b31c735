"""The exceptions that totalvi raises on purpose."""

from collections.abc import Sequence


class TotalviError(Exception):
    """Base of all errors that totalvi raises on purpose.

    The message is one sentence that names what is wrong and how to fix it. The command line
    prints it without a traceback and exits with status 2.
    """


class DataError(TotalviError, ValueError):
    """The input counts or their annotation cannot be used as they are."""


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


class OutputError(TotalviError):
    """Results cannot be written to the given path."""


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
