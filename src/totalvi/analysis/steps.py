"""Timing the steps of a run and showing them on a terminal."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from rich.console import Console


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
