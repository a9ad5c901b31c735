"""The progress bar of a fit."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

OnEpoch = Callable[[int, dict[str, float]], None]


@contextmanager
def epoch_progress(n_epochs: int, show: bool | None) -> Iterator[OnEpoch | None]:
    """Give a function that shows each finished epoch: bar, rate, time left, losses.

    Parameters
    ----------
    n_epochs
        Epochs to come, at most.
    show
        Whether to show anything; None: only when standard error is a terminal.
    """
    if not (sys.stderr.isatty() if show is None else show):
        yield None
        return
    columns = (
        TextColumn("training"),
        BarColumn(bar_width=10),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[losses]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=n_epochs, rate="", losses="")

        def on_epoch(_epoch: int, row: dict[str, float]) -> None:
            losses = f"loss {row['train_loss']:.1f}"
            if "validation_loss" in row:
                losses += f", held out {row['validation_loss']:.1f}"
            rate = f"{1 / max(row['seconds'], 1e-9):.2f} epochs/s"
            bar.update(task, advance=1, rate=rate, losses=losses)

        yield on_epoch
