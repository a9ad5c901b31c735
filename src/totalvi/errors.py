"""The exceptions that totalvi raises on purpose."""


class TotalviError(Exception):
    """Base of all errors that totalvi raises on purpose.

    The message is one sentence that names what is wrong and how to mend it. The command line
    prints it without a traceback and exits with status 2.
    """


class DataError(TotalviError, ValueError):
    """The input counts or their annotation cannot be used as they are."""


class ReadError(DataError):
    """A file cannot be read as CITE-seq counts."""


class DownloadError(TotalviError):
    """A public data set could not be fetched whole."""


class TrainingError(TotalviError):
    """A fit ended without a usable model."""


class NotTrainedError(TotalviError):
    """A query was put to a model that has not been trained, or whose fit failed."""


class FormatError(TotalviError):
    """A saved model is damaged, incomplete, or of an unknown format version."""


class CheckpointError(TotalviError):
    """A checkpoint is damaged, or of another fit than the one that is to go on."""


class ProcessError(TotalviError, ValueError):
    """Several processes cannot be launched or go on, or differ in data or arguments."""


class OutputError(TotalviError):
    """Results cannot be written where they were asked for."""


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
