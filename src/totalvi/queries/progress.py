"""The progress bar of a query."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from totalvi.feed import Minibatch


@contextmanager
def cell_progress(
    batches: Iterable[Minibatch], n_cells: int, what: str, show: bool | None
) -> Iterator[Iterator[Minibatch]]:
    """Give the minibatches on, while a bar on standard error shows how many cells are done.

    Parameters
    ----------
    what
        What is computed, shown beside the bar.
    show
        Whether to show the bar; None: only when standard error is a terminal.
    """
    if not (sys.stderr.isatty() if show is None else show):
        yield iter(batches)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("cells"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=n_cells)

        def counted() -> Iterator[Minibatch]:
            for batch in batches:
                yield batch
                bar.update(task, advance=len(batch.cells))

        yield counted()
        bar.update(task, completed=n_cells)  # who knows the number of cells need not ask for more
