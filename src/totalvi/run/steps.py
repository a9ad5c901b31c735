"""The steps of a run: timed, shown on a terminal, and each on its own when one fails."""

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Generic, NamedTuple, TypeVar

from rich.console import Console

from totalvi.atomic import is_of_the_disk
from totalvi.errors import OutputError

_Work = TypeVar("_Work")


class Steps:
    """Named steps with their elapsed times.

    Parameters
    ----------
    show
        Whether to show the steps on standard error; by default when it is a terminal.

    Attributes
    ----------
    seconds : dict of str to float
        Elapsed time of each finished step.
    shown : bool
        Whether the steps are shown.
    """

    def __init__(self, show: bool | None = None) -> None:
        self._console = Console(stderr=True, highlight=False)
        self.shown = self._console.is_terminal if show is None else show
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, name: str, *, spinner: bool = True) -> Iterator[None]:
        """Time a step, under a spinner unless it shows its own progress."""
        waiting = self._console.status(name) if self.shown and spinner else nullcontext()
        started = time.perf_counter()
        with waiting:
            yield
        self.seconds[name] = round(time.perf_counter() - started, 3)
        if self.shown:
            self._console.print(f"{self.seconds[name]:8.1f} s  {name}")


class Step(NamedTuple, Generic[_Work]):
    """A step that may fail without taking others with it.

    Attributes
    ----------
    name
        What it makes.
    make
        Makes it, from what it finds in the work that all steps share, and leaves it there.
    needs
        Names of the steps whose results it takes.
    load
        Puts into the work what `make` left on disk in an earlier process.
    """

    name: str
    make: Callable[[_Work], None]
    needs: tuple[str, ...] = ()
    load: Callable[[_Work], None] | None = None


class NotMadeError(Exception):
    """A step was left out, as another that it needs had failed."""


def do_each(
    all_steps: Sequence[Step[_Work]], work: _Work, timed: Steps, done: Collection[str] = ()
) -> dict[str, Exception]:
    """Do the steps one after the other, and return by name the errors of those that failed.

    Parameters
    ----------
    all_steps
        In an order in which none needs a later one.
    work
        What they share.
    timed
        Times and shows them.
    done
        Names of steps that are not done again but loaded.

    Raises
    ------
    OutputError, OSError
        When the disk is full or does not let itself be written to, which no other step would survive.
    """
    failed: dict[str, Exception] = {}
    for step in all_steps:
        lacking = [name for name in step.needs if name in failed]
        if step.name in done:
            if step.load is not None:
                step.load(work)
            continue
        if lacking:
            failed[step.name] = NotMadeError(f"it needs {lacking[0]}")
            continue
        try:
            with timed.step(step.name):
                step.make(work)
        except OutputError:
            raise
        except Exception as error:
            if isinstance(error, OSError) and is_of_the_disk(error):
                raise
            failed[step.name] = error
    return failed
