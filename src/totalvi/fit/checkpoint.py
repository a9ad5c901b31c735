"""Checkpoints: what a fit needs to go on with the same numbers, in one file without pickle."""

import hashlib
import json
import signal
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from totalvi.atomic import write_file
from totalvi.errors import CheckpointError, Interrupted
from totalvi.processes import Process, barrier

FORMAT, FORMAT_VERSION = "totalvi checkpoint", 1


class State(NamedTuple):
    """Where a fit is.

    Parameters
    ----------
    values
        Numbers, texts, and lists and dicts of them.
    tensors
        By name; all on the CPU.
    """

    values: dict[str, Any]
    tensors: dict[str, Tensor]


class Checkpoint(NamedTuple):
    """A state, and the fit that it is of.

    Parameters
    ----------
    settings
        What must be the same for the fit to go on: seed, network, plan, data.
    state
        Where it was.
    """

    settings: dict[str, Any]
    state: State


class Checkpoints(NamedTuple):
    """Where and when a fit writes its checkpoint.

    Parameters
    ----------
    path
        The file, replaced by each checkpoint.
    every
        A number of epochs, or a time.
    settings
        Of the fit.
    """

    path: Path
    every: int | timedelta
    settings: dict[str, Any]


class Keeper:
    """Writes checkpoints when they are due, and ends a fit that got a signal.

    Parameters
    ----------
    checkpoints
        Where and when.
    state
        Returns the state of the fit, between two steps.
    signals
        Numbers of the signals received.
    process
        Which one of several this is; only the first writes.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        state: Callable[[], State],
        signals: list[int],
        process: Process,
    ) -> None:
        self.checkpoints, self.state, self.signals = checkpoints, state, signals
        self.process = process
        self.written = time.monotonic()

    def write(self) -> None:
        """Write a checkpoint now."""
        path, _, settings = self.checkpoints
        if self.process.rank == 0:
            write_checkpoint(path, Checkpoint(settings, self.state()))
        self.written = time.monotonic()

    def after_step(self) -> None:
        """Write a checkpoint if its time has come or the fit must end.

        Raises
        ------
        Interrupted
            When there was a signal.
        """
        if self.signals:
            self.write()
            if self.process.n_processes > 1:
                barrier()  # whoever is gone may take the others with it
            raise Interrupted(
                f"The fit got {signal.Signals(self.signals[0]).name} and stopped; it is kept in "
                f"{self.checkpoints.path}: resume it from there.",
                self.signals[0],
            )
        every = self.checkpoints.every
        if (
            isinstance(every, timedelta)
            and time.monotonic() - self.written >= every.total_seconds()
        ):
            self.write()

    def after_epoch(self, n_epochs: int, last: bool) -> None:
        """Write a checkpoint if so many epochs make one due, or there are no more to come.

        Raises
        ------
        Interrupted
            When there was a signal.
        """
        every = self.checkpoints.every
        if last or (isinstance(every, int) and n_epochs % every == 0):
            self.write()
        self.after_step()


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint, whole or not at all.

    Raises
    ------
    OutputError
        When the file cannot be written.
    """
    (values, tensors), settings = checkpoint.state, checkpoint.settings
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps({"settings": settings, "values": values})
    metadata = {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "content": text,
        "sha256": _checksum(text, tensors),
    }
    write_file(path, save(tensors, metadata))


def read_checkpoint(path: Path) -> Checkpoint:
    """Return the checkpoint in a file.

    Raises
    ------
    CheckpointError
        When the file is missing, damaged, something else, or of a later version.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is not there: no fit left a checkpoint under this name.")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError) as error:
        raise CheckpointError(f"{path} is no checkpoint, or damaged ({error}).") from error
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of totalvi.")
    if metadata.get("format_version") != str(FORMAT_VERSION):
        raise CheckpointError(
            f"{path} has format version {metadata.get('format_version')}, and this totalvi reads "
            f"{FORMAT_VERSION}; go on with the totalvi that wrote it."
        )
    text = metadata.get("content", "")
    if metadata.get("sha256") != _checksum(text, tensors):
        raise CheckpointError(f"{path} is damaged (checksum): start the fit anew.")
    content = json.loads(text)
    return Checkpoint(content["settings"], State(content["values"], tensors))


def is_checkpoint(path: Path) -> bool:
    """Return whether a file is a checkpoint, of any version."""
    try:
        with safe_open(path, "pt") as file:
            return (file.metadata() or {}).get("format") == FORMAT
    except (OSError, SafetensorError):
        return False


def require_same(path: Path, kept: dict[str, Any], here: dict[str, Any]) -> None:
    """Raise CheckpointError that names the first setting that differs.

    Examples
    --------
    >>> require_same(Path("fit"), {"seed": 1}, {"seed": 2})  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    totalvi.errors.CheckpointError: fit is of another fit: seed is 1 there and 2 here; give ...
    """
    ours, theirs = _flat(here), _flat(kept)
    for name in {**theirs, **ours}:
        there, now = theirs.get(name), ours.get(name)
        if there != now:
            what = f"is {there!r} there and {now!r} here"
            if isinstance(there, str) and len(there) == 64:  # hashes would tell nobody anything
                what = "differ"
            raise CheckpointError(
                f"{path} is of another fit: {name} {what}; give what it was made with, or start anew "
                "without it."
            )


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}, ")
        else:
            flat[prefix + name] = value
    return flat


def _checksum(text: str, tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
