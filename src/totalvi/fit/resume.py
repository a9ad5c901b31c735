"""A fit that is kept in a checkpoint: which file, from where it goes on, and of which fit it is."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from totalvi.atomic import locked, parents_of
from totalvi.errors import OutputError
from totalvi.fit.checkpoint import Checkpoint, Checkpoints, State, read_checkpoint, require_same
from totalvi.fit.plan import TrainingPlan
from totalvi.fit.split import Split
from totalvi.processes import barrier, require_equal, this_process

CHECKPOINT_EVERY = timedelta(minutes=10)


class Kept(NamedTuple):
    """Where a fit is kept, and what is there of it.

    Parameters
    ----------
    path
        The file; None: the fit is not kept.
    every
        A number of epochs, or a time.
    start
        The checkpoint to go on from.
    """

    path: Path | None
    every: int | timedelta
    start: Checkpoint | None

    @property
    def settings(self) -> dict[str, Any]:
        """Settings of the fit that goes on; empty for a new one."""
        return {} if self.start is None else self.start.settings

    @property
    def state(self) -> State | None:
        """Where the fit goes on."""
        return None if self.start is None else self.start.state

    @property
    def steps_done(self) -> int:
        """Steps of the fit that goes on; 0 for a new one."""
        return 0 if self.start is None else int(self.start.state.values["steps_done"])

    def checkpoints(self, settings: dict[str, Any]) -> Checkpoints | None:
        """Return where and when a fit of these settings, the only ones it may go on with, is kept.

        Raises
        ------
        CheckpointError
            When the checkpoint is of a fit with other settings.
        """
        if self.path is None:
            return None
        if self.start is not None:
            require_same(self.path, self.settings, settings)
        return Checkpoints(self.path, self.every, settings)


@contextmanager
def kept(
    checkpoint: str | Path | None, every: int | timedelta, resume: bool | str | Path
) -> Iterator[Kept]:
    """Give what the arguments of `Model.train` mean; no other process writes the file meanwhile.

    Raises
    ------
    ValueError
        When they contradict each other.
    OutputError
        When there is a file that would be lost, or another process writes it.
    CheckpointError
        When the checkpoint cannot be read.
    """
    is_time = isinstance(every, timedelta) and every >= timedelta(0)
    is_number = isinstance(every, int) and not isinstance(every, bool) and every >= 1
    if not (is_time or is_number):
        raise ValueError(
            f"checkpoint_every is {every!r}; allowed are a number of epochs from 1, or a "
            "datetime.timedelta."
        )
    require_equal(repr((checkpoint, every, resume)), "checkpoint")
    if resume is True and checkpoint is None:
        raise ValueError("resume is True without a checkpoint; give the file to go on from.")
    if not isinstance(resume, bool):
        if checkpoint is not None and Path(checkpoint) != Path(resume):
            raise ValueError(
                f"resume is {str(resume)!r} and checkpoint {str(checkpoint)!r}; allowed is one file "
                "for both."
            )
        checkpoint = resume
    if checkpoint is None:
        yield Kept(None, every, None)
        return
    path = Path(checkpoint).resolve()
    with _right_to_write(path):
        start = None
        if not isinstance(resume, bool) or (resume and path.exists()):
            start = read_checkpoint(path)
        elif path.exists():
            raise OutputError(
                f"{path} exists: go on from it with resume=True, or choose another checkpoint."
            )
        barrier()  # before the first process writes what others may not have read yet
        yield Kept(path, every, start)


@contextmanager
def _right_to_write(path: Path) -> Iterator[None]:
    """Hold the lock of a checkpoint, and make its folder; of several processes the first does both."""
    if this_process().rank > 0:
        yield
        return
    with parents_of(path), locked(path):
        yield


def fit_settings(
    *,
    seed: int,
    number_of_fit: int,
    network: dict[str, Any],
    plan: TrainingPlan,
    split: Split,
    split_sizes: tuple[float, float | None] | None,
    data: dict[str, Any],
) -> dict[str, Any]:
    """Return all that a fit depends on, as JSON holds it.

    Parameters
    ----------
    seed, number_of_fit, network
        Of the model: its seed, how many fits it has had with this one, and its options.
    plan, split, split_sizes
        Of the fit; the sizes are None when positions were given.
    data
        From `totalvi.data.cells.fingerprint`.
    """
    settings = {
        "seed": seed,
        "number of the fit": number_of_fit,
        "network": network,
        "plan": asdict(plan),
        "split": {
            f"{name} cells": hashlib.sha256(np.ascontiguousarray(part).data).hexdigest()
            for name, part in split._asdict().items()
        },
        "split_sizes": split_sizes,
        "data": data,
    }
    plain: dict[str, Any] = json.loads(json.dumps(settings, default=lambda value: value.tolist()))
    return plain
