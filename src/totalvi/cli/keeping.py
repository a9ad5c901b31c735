"""What the commands that keep a fit say when they end early."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer


@contextmanager
def keeping(output: Path) -> Iterator[None]:
    """Say where the fit is kept when a run ends early, and exit as the signal asks that ended it."""
    from totalvi.analysis.output import checkpoint_of
    from totalvi.errors import Interrupted
    from totalvi.processes import this_process

    try:
        yield
    except BaseException as error:
        checkpoint = checkpoint_of(output)
        is_kept = checkpoint.exists() and str(checkpoint) not in str(error)
        if (is_kept or isinstance(error, Interrupted)) and this_process().rank == 0:
            typer.echo(f"the fit is kept in {checkpoint}: go on with --resume", err=True)
        if isinstance(error, Interrupted):
            raise typer.Exit(128 + error.signal_number) from error
        raise
