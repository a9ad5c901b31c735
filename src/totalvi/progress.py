"""Show the progress of fits, queries and steps on standard error.

A terminal gets progress bars. Elsewhere, as in the log of a job, what takes long gets plain lines.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager, nullcontext
from time import monotonic, perf_counter
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn


class _OfCells(Protocol):
    @property
    def cells(self) -> Sized: ...


_Batch = TypeVar("_Batch", bound=_OfCells)

_SECONDS_BETWEEN_LINES = 60.0  # of a fit or a query, where there is no terminal
_LEAST_SECONDS_OF_A_LINE = 30.0  # of a step


@contextmanager
def epoch_progress(
    n_epochs: int, show: bool | None
) -> Iterator[Callable[[int, dict[str, float]], None] | None]:
    """Yield a function that shows each finished epoch: bar, rate, time left, losses.

    Parameters
    ----------
    n_epochs
        Largest number of epochs to come.
    show
        Whether to show the bar; None: on a terminal, and elsewhere a line a minute.
    """
    if not is_shown(show):
        yield None if show is False else _epoch_lines(n_epochs)
        return
    from rich.progress import TextColumn

    rate, losses = TextColumn("{task.fields[rate]}"), TextColumn("{task.fields[losses]}")
    with _bar([TextColumn("training")], 10, [rate], [losses]) as bar:
        task = bar.add_task("", total=n_epochs, rate="", losses="")

        def on_epoch(_epoch: int, row: dict[str, float]) -> None:
            bar.update(task, advance=1, rate=_rate(row), losses=_losses(row))

        yield on_epoch


def _epoch_lines(n_epochs: int) -> Callable[[int, dict[str, float]], None]:
    is_due = _each_minute()

    def on_epoch(epoch: int, row: dict[str, float]) -> None:
        if is_due():
            _write(f"training: {epoch + 1} of {n_epochs} epochs, {_rate(row)}, {_losses(row)}")

    return on_epoch


def _rate(row: dict[str, float]) -> str:
    return f"{1 / max(row['seconds'], 1e-9):.2f} epochs/s"


def _losses(row: dict[str, float]) -> str:
    losses = f"loss {row['train_loss']:.1f}"
    if "validation_loss" in row:
        losses += f", held out {row['validation_loss']:.1f}"
    return losses


@contextmanager
def cell_progress(
    batches: Iterable[_Batch], n_cells: int, what: str, show: bool | None
) -> Iterator[Iterator[_Batch]]:
    """Yield the minibatches while a bar shows how many cells are done.

    Parameters
    ----------
    what
        Name of the result, shown beside the bar.
    show
        Whether to show the bar; None: on a terminal, and elsewhere a line a minute.
    """
    if not is_shown(show):
        yield iter(batches) if show is False else _with_lines(batches, n_cells, what)
        return
    from rich.progress import TextColumn

    with _bar([TextColumn("{task.description}")], 20, [TextColumn("cells")], []) as bar:
        task = bar.add_task(what, total=n_cells)

        def counted() -> Iterator[_Batch]:
            for batch in batches:
                yield batch
                bar.update(task, advance=len(batch.cells))

        yield counted()
        bar.update(task, completed=n_cells)  # a query that knows n_cells may not iterate to the end


def _with_lines(batches: Iterable[_Batch], n_cells: int, what: str) -> Iterator[_Batch]:
    is_due, n_done = _each_minute(), 0
    for batch in batches:
        yield batch
        n_done += len(batch.cells)
        if is_due():
            _write(f"{what}: {n_done:,} of {n_cells:,} cells")


def _each_minute() -> Callable[[], bool]:
    """Return a function that says whether a minute has gone since it was made, or last said so."""
    last = monotonic()

    def is_due() -> bool:
        nonlocal last
        now = monotonic()
        if now - last < _SECONDS_BETWEEN_LINES:
            return False
        last = now
        return True

    return is_due


def _write(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def is_shown(show: bool | None) -> bool:
    """Return whether there are progress bars."""
    return sys.stderr.isatty() if show is None else show


def _bar(
    before: "list[ProgressColumn]",
    width: int,
    after_count: "list[ProgressColumn]",
    at_end: "list[ProgressColumn]",
) -> "Progress":
    """Return a bar with the number done and the time left, and columns around them."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    bar, count = BarColumn(bar_width=width), MofNCompleteColumn()
    columns = (*before, bar, count, *after_count, TimeRemainingColumn(), *at_end)
    return Progress(*columns, console=Console(stderr=True))


class Steps:
    """Named steps with their elapsed times.

    Parameters
    ----------
    show
        Whether to show the steps on standard error; None: on a terminal, and elsewhere those that
        take more than half a minute.

    Attributes
    ----------
    show : bool, optional
        As given, for what shows its own progress.
    seconds : dict of str to float
        Elapsed time of each finished step.
    """

    def __init__(self, show: bool | None = None) -> None:
        from rich.console import Console

        self._console = Console(stderr=True, highlight=False)
        self.show = show
        self._has_spinner = self._console.is_terminal if show is None else show
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, name: str, *, spinner: bool = True) -> Iterator[None]:
        """Time a step, under a spinner unless it shows its own progress."""
        waiting = self._console.status(name) if self._has_spinner and spinner else nullcontext()
        started = perf_counter()
        with waiting:
            yield
        seconds = self.seconds[name] = round(perf_counter() - started, 3)
        took_long = self.show is None and seconds > _LEAST_SECONDS_OF_A_LINE
        if self._has_spinner or took_long:
            self._console.print(f"{seconds:8.1f} s  {name}")
