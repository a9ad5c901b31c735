"""Show progress bars on standard error: for the epochs of a fit and the cells of a query."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn


class _OfCells(Protocol):
    @property
    def cells(self) -> Sized: ...


_Batch = TypeVar("_Batch", bound=_OfCells)


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
        Whether to show anything; None: only when standard error is a terminal.
    """
    if not _is_shown(show):
        yield None
        return
    from rich.progress import TextColumn

    rate, losses = TextColumn("{task.fields[rate]}"), TextColumn("{task.fields[losses]}")
    with _bar([TextColumn("training")], 10, [rate], [losses]) as bar:
        task = bar.add_task("", total=n_epochs, rate="", losses="")

        def on_epoch(_epoch: int, row: dict[str, float]) -> None:
            losses = f"loss {row['train_loss']:.1f}"
            if "validation_loss" in row:
                losses += f", held out {row['validation_loss']:.1f}"
            rate = f"{1 / max(row['seconds'], 1e-9):.2f} epochs/s"
            bar.update(task, advance=1, rate=rate, losses=losses)

        yield on_epoch


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
        Whether to show the bar; None: only when standard error is a terminal.
    """
    if not _is_shown(show):
        yield iter(batches)
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


def _is_shown(show: bool | None) -> bool:
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
        Whether to show the steps on standard error; by default when it is a terminal.

    Attributes
    ----------
    seconds : dict of str to float
        Elapsed time of each finished step.
    shown : bool
        Whether the steps are shown.
    """

    def __init__(self, show: bool | None = None) -> None:
        from rich.console import Console

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
