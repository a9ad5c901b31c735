"""Tell the loggers and callbacks of a fit about each finished epoch."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol, Self

import numpy as np

from totalvi.errors import allowed
from totalvi.processes import first_alone, largest_of_all, this_process

Callback = Callable[[int, Mapping[str, float]], bool | None]
"""Takes the number of an epoch and its row of the history; True ends the fit."""
OnEpoch = Callable[[int, dict[str, float]], bool | None]
"""What a fit calls after each epoch; True ends it."""


class Logger(Protocol):
    """What records numbers by name: a logger of Lightning Fabric or Lightning, or MLflow itself."""

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        """Record the numbers of a step."""


@dataclass(frozen=True)
class Listeners:
    """The loggers and callbacks of a fit.

    Parameters
    ----------
    loggers
        Objects with ``log_metrics(metrics, step)``.
    callbacks
        Functions of the number of an epoch and its row.
    """

    loggers: tuple[Logger, ...]
    callbacks: tuple[Callback, ...]

    @classmethod
    def of(
        cls,
        logger: Logger | Sequence[Logger] | None,
        callbacks: Callback | Sequence[Callback],
    ) -> Self:
        """Return the listeners that these arguments of `Model.train` name.

        Raises
        ------
        ValueError
            When one of them cannot be called.

        Examples
        --------
        >>> Listeners.of(None, print).callbacks
        (<built-in function print>,)
        """
        loggers, called = _several(logger), _several(callbacks)
        for each in loggers:
            if isinstance(each, type) or not callable(getattr(each, "log_metrics", None)):
                choices = "objects with log_metrics(metrics, step), and lists of them"
                raise ValueError(allowed("logger", each, choices))
        for function in called:
            if not callable(function):
                choices = "functions of an epoch's number and row, and lists of them"
                raise ValueError(allowed("callbacks", function, choices))
        return cls(loggers, called)

    @contextmanager
    def told(
        self, hyperparameters: Mapping[str, Any], n_earlier_epochs: int, bar: OnEpoch | None
    ) -> Iterator[OnEpoch]:
        """Yield the function that tells the listeners, and the progress bar, about an epoch.

        With several processes, only the first tells them, and what its callbacks answer ends the fit
        in all. The loggers are finalised with "success", or "failed" if the block raises.

        Parameters
        ----------
        hyperparameters
            Told to the loggers that take them, if they are numbers, texts or None.
        n_earlier_epochs
            Epochs of earlier fits of the model, which come first in its history.
        bar
            The progress bar; None: none is shown.
        """
        kinds = (bool, int, float, str, type(None))
        plain = {name: v for name, v in hyperparameters.items() if isinstance(v, kinds)}
        loggers = self.loggers if this_process().rank == 0 else ()

        def tell(epoch: int, row: dict[str, float]) -> bool:
            ends = False
            with first_alone() as is_first:
                if is_first:
                    ends = self._tell(n_earlier_epochs + epoch, row)
            if bar is not None:
                bar(epoch, row)
            return bool(largest_of_all(ends))

        status = "failed"
        try:
            with first_alone():  # so that the others end too if a logger fails
                for logger in loggers:
                    _log_hyperparameters(logger, plain)
            yield tell
            status = "success"
        finally:
            for logger in loggers:
                _finalize(logger, status)

    def _tell(self, epoch: int, row: dict[str, float]) -> bool:
        for logger in self.loggers:
            logger.log_metrics(dict(row), epoch)
            getattr(logger, "save", _nothing)()  # so that the log can be read during the fit
        answers = [callback(epoch, MappingProxyType(row)) for callback in self.callbacks]
        return any(isinstance(answer, bool | np.bool_) and bool(answer) for answer in answers)


def _several(given: Any) -> tuple[Any, ...]:
    """Return what a list or a single object holds; nothing for None."""
    if isinstance(given, list | tuple):
        return tuple(given)
    return () if given is None else (given,)


def _log_hyperparameters(logger: Logger, hyperparameters: dict[str, Any]) -> None:
    log = getattr(logger, "log_hyperparams", None)
    if log is not None:
        with suppress(NotImplementedError):  # Fabric's CSVLogger has the method and takes none
            log(hyperparameters)


def _finalize(logger: Logger, status: str) -> None:
    """Tell a logger how the fit ended; what goes wrong is a warning, since the fit is done."""
    try:
        getattr(logger, "finalize", _nothing)(status)
    except Exception as error:
        name = type(logger).__name__
        warnings.warn(
            f"The logger {name} could not be finalised ({type(error).__name__}: {error}); its log may "
            "lack the last epochs, but the fit is not affected.",
            stacklevel=2,
        )


def _nothing(*_: Any) -> None:
    """Stand for a method that a logger lacks."""
