"""Save a fit to one file without pickle, and resume it from there with the same numbers.

`Checkpoint` is the file of one fit, and decides when to write it. `Signals` end a fit that has one.
"""

import hashlib
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import torch
import torch.distributed
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from totalvi.atomic import locked, parents_of, write_file
from totalvi.errors import CheckpointError, Interrupted, OutputError, allowed, argument, setting
from totalvi.nn.config import NetworkConfig
from totalvi.processes import barrier, require_equal, this_process

FORMAT, FORMAT_VERSION = "totalvi checkpoint", 1
CHECKPOINT_EVERY = timedelta(minutes=10)
OBEYED = (signal.SIGINT, signal.SIGTERM)


class Saved(NamedTuple):
    """The state of a fit in the form that a file stores.

    Parameters
    ----------
    values
        Numbers, texts, and lists and dicts of them.
    tensors
        Tensors by name; those of a file are on the CPU.
    settings
        Settings that must be the same for the fit to resume: seed, network, plan, data.
    """

    values: dict[str, Any]
    tensors: dict[str, Tensor]
    settings: Mapping[str, Any] = {}


class Checkpoint:
    """The file of one fit.

    Parameters
    ----------
    path
        The file, replaced each time it is written.
    every
        Number of epochs, or time, between checkpoints.
    start
        Content of the file when the fit began; None for a new fit.

    Attributes
    ----------
    settings
        Settings on which the fit depends; `belong_to` sets them once.
    """

    def __init__(self, path: Path, every: int | timedelta, start: Saved | None) -> None:
        self.path, self.every, self.start = path, every, start
        self.settings: Mapping[str, Any] = {} if start is None else start.settings
        self._written = time.monotonic()

    def belong_to(self, settings: dict[str, Any]) -> None:
        """Declare that the file belongs to the fit with these settings.

        Raises
        ------
        CheckpointError
            When it holds a fit with other settings.
        """
        if self.start is not None:
            require_same(self.path, self.start.settings, settings)
        self.settings = settings

    @property
    def steps_done(self) -> int:
        """Number of steps of the fit to resume; 0 for a new fit."""
        return 0 if self.start is None else int(self.start.values["steps_done"])

    def is_due_after(self, n_epochs: int) -> bool:
        """Return whether the file is due after this number of epochs."""
        return isinstance(self.every, int) and n_epochs % self.every == 0

    def is_due(self) -> bool:
        """Return whether the time to write the file has come."""
        passed = time.monotonic() - self._written
        return isinstance(self.every, timedelta) and passed >= self.every.total_seconds()

    def write(self, state: Saved) -> None:
        """Write the file; with several processes, only the first does."""
        if this_process().rank == 0:
            write_checkpoint(self.path, state._replace(settings=self.settings))
        self._written = time.monotonic()


@contextmanager
def kept_on_error(checkpoint: Checkpoint | None, saved: Callable[[], Saved]) -> Iterator[None]:
    """Write the checkpoint, if there is one, before an error of the block ends the fit."""
    try:
        yield
    except BaseException:
        if checkpoint is not None:
            checkpoint.write(saved())
        raise


class Signals:
    """SIGINT and SIGTERM, which are recorded so that the fit can end after its step.

    Attributes
    ----------
    own
        Numbers of the signals that this process received.
    known
        Signals known to every process of the fit, so that all end after the same step.
    """

    def __init__(self, n_processes: int) -> None:
        self.own: list[int] = []
        self.known: list[int] = self.own if n_processes == 1 else []

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Record signals while the block runs.

        A second SIGINT raises KeyboardInterrupt at once. SIGTERM may come from several programs
        that supervise a job, so it never interrupts a step. Only the main thread can handle
        signals: in other threads, and for signals that the process ignores, nothing changes.
        """

        def note(number: int, _frame: FrameType | None) -> None:
            self.own.append(number)
            if self.own.count(signal.SIGINT) > 1:
                raise KeyboardInterrupt

        before = {}
        if threading.current_thread() is threading.main_thread():
            handlers = {number: signal.getsignal(number) for number in OBEYED}
            before = {n: h for n, h in handlers.items() if h not in (None, signal.SIG_IGN)}
        try:
            for number in before:
                signal.signal(number, note)
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def flags(self) -> list[float]:
        """Return 1 for each of `OBEYED` that this process received, and 0 for the others."""
        return [float(number in self.own) for number in OBEYED]

    def learn(self, n_noted: Sequence[float]) -> None:
        """Record the signals of all processes, from how many of them received each of `OBEYED`."""
        self.known += [number for number, n in zip(OBEYED, n_noted, strict=True) if n]

    def agree(self) -> None:
        """Share the received signals between all processes, if there are several."""
        if self.known is not self.own:
            n_noted = torch.tensor(self.flags()).int()
            torch.distributed.all_reduce(n_noted)
            self.learn(n_noted.tolist())

    def interruption(self, path: Path) -> Interrupted:
        """Wait for all processes, and return the error that ends a fit saved in ``path``."""
        barrier()  # a process that ends may end the others
        return Interrupted(
            f"The fit got {signal.Signals(self.known[0]).name} and stopped; it is kept in {path}, "
            "to be resumed from there.",
            self.known[0],
        )


# ---------------------------------------------------------------- the arguments of a fit to resume


@contextmanager
def open_checkpoint(
    file: str | Path | None, every: int | timedelta, resume: bool | str | Path
) -> Iterator[Checkpoint | None]:
    """Yield the checkpoint of the arguments of `Model.train`, if any, and hold its lock.

    Raises
    ------
    ValueError
        When the arguments contradict each other.
    OutputError
        When a file would be lost, or another process writes it.
    CheckpointError
        When the checkpoint cannot be read.
    """
    is_time = isinstance(every, timedelta) and every >= timedelta(0)
    is_number = isinstance(every, int) and not isinstance(every, bool) and every >= 1
    if not (is_time or is_number):
        choices = "a number of epochs from 1, or a datetime.timedelta"
        raise ValueError(allowed("checkpoint_every", every, choices))
    require_equal(repr((file, every, resume)), "checkpoint")
    if resume is True and file is None:
        raise ValueError("resume is True without a checkpoint; give the file to resume from.")
    if not isinstance(resume, bool):
        if file is not None and Path(file) != Path(resume):
            raise ValueError(
                f"resume is {str(resume)!r} and checkpoint {str(file)!r}; allowed is one file for both."
            )
        file = resume
    if file is None:
        yield None
        return
    path = Path(file).resolve()
    with _right_to_write(path):
        start = None
        if not isinstance(resume, bool) or (resume and path.exists()):
            start = read_checkpoint(path)
        elif path.exists():
            raise OutputError(
                f"{path} exists; resume it with {setting('resume', True)}, or choose another "
                "checkpoint."
            )
        barrier()  # the first process may write only after all others have read
        yield Checkpoint(path, every, start)


@contextmanager
def _right_to_write(path: Path) -> Iterator[None]:
    """Hold the lock of a checkpoint and create its folder, both only in the first process."""
    if this_process().rank > 0:
        yield
        return
    with parents_of(path), locked(path):
        yield


def kept_accelerator(file: str | Path | None, resume: bool | str | Path, asked: str) -> str:
    """Return the accelerator of the fit to resume if "auto" is given, else the given one.

    Processes are launched with it, before `open_checkpoint` reads the rest of the file.
    """
    path = file if isinstance(resume, bool) else resume
    if asked != "auto" or resume is False or path is None:
        return asked
    try:
        with safe_open(path, "pt") as opened:
            settings = json.loads(opened.metadata()["content"])["settings"]
        return str(settings["plan"]["accelerator"])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return asked  # the file is new, or `open_checkpoint` will report its fault


_NETWORK_DEFAULTS = {field.name: field.default for field in fields(NetworkConfig)}


def require_same(path: Path, kept: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Raise CheckpointError that names the first setting that differs.

    Examples
    --------
    >>> require_same(Path("fit"), {"seed": 1}, {"seed": 2})  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    totalvi.errors.CheckpointError: fit is of another fit: seed is 1 there and 2 here; use ...
    """
    ours, theirs = _flat(here), _flat(kept)
    for name in {**theirs, **ours}:
        # an option that the other version did not have yet was what a network has by default
        default = _NETWORK_DEFAULTS.get(name.rpartition(", ")[2])
        there, now = theirs.get(name, default), ours.get(name)
        if there != now:
            what = f"is {there!r} there and {now!r} here"
            if isinstance(there, str) and len(there) == 64:  # a hash does not help the reader
                what = "differ"
            group, comma, own = name.rpartition(", ")
            raise CheckpointError(
                f"{path} is of another fit: {group}{comma}{argument(own)} {what}; use the "
                "original data and arguments, or remove the checkpoint."
            )


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}, ")
        else:
            flat[prefix + name] = value
    return flat


# --------------------------------------------------------------------------------------- the file


def write_checkpoint(path: Path, saved: Saved) -> None:
    """Write a checkpoint, completely or not at all.

    Raises
    ------
    OutputError
        When the file cannot be written.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in saved.tensors.items()}
    text = json.dumps({"settings": saved.settings, "values": saved.values})
    metadata = {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "content": text,
        "sha256": _checksum(text, tensors),
    }
    write_file(path, save(tensors, metadata))


def read_checkpoint(path: Path) -> Saved:
    """Return the content of a checkpoint.

    Raises
    ------
    CheckpointError
        When the file is missing, damaged, not a checkpoint, or of a later version.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is not there; no fit left a checkpoint under this name.")
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
            f"{FORMAT_VERSION}; resume with the totalvi that wrote it."
        )
    text = metadata.get("content", "")
    if metadata.get("sha256") != _checksum(text, tensors):
        raise CheckpointError(f"{path} is damaged (checksum); remove it and start the fit again.")
    content = json.loads(text)
    return Saved(content["values"], tensors, content["settings"])


def is_checkpoint(path: Path) -> bool:
    """Return whether a file is a checkpoint, of any version."""
    try:
        with safe_open(path, "pt") as file:
            return (file.metadata() or {}).get("format") == FORMAT
    except (OSError, SafetensorError):
        return False


def _checksum(text: str, tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


# ------------------------------------------------------------------------------- tensors by name


def with_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors with ``prefix`` before their names."""
    return {prefix + name: tensor for name, tensor in tensors.items()}


def part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names start with ``prefix``, without it."""
    return {k.removeprefix(prefix): tensor for k, tensor in tensors.items() if k.startswith(prefix)}


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimiser's state of each parameter, as "number.name"."""
    state = optimizer.state_dict()["state"]
    return {f"{i}.{name}": value for i, kept in state.items() for name, value in kept.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Restore the state that `optimizer_tensors` returned."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, name = key.split(".")
        state.setdefault(int(number), {})[name] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
