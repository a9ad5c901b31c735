"""The record of a run, with all that is needed to repeat it: arguments, versions, input."""

import hashlib
import json
import platform
import shlex
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import numpy as np
from anndata import AnnData
from mudata import MuData

from totalvi.atomic import is_of_the_disk, standing_folder
from totalvi.data.columns import Columns
from totalvi.data.io.read import ReadOptions, read
from totalvi.data.io.tenx import matrix_files
from totalvi.data.panels.antibodies import Unmeasured
from totalvi.errors import IncompleteError, OutputError, ReadError, TotalviError, argument, setting
from totalvi.progress import Steps
from totalvi.run.folder import RECORD, WriteOptions

_Work = TypeVar("_Work")


class Step(NamedTuple, Generic[_Work]):
    """A step that may fail without ending the others.

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
    """A step was skipped, because a step that it needs had failed."""


def do_each(
    all_steps: Sequence[Step[_Work]], work: _Work, timed: Steps, done: Collection[str] = ()
) -> dict[str, Exception]:
    """Do the steps one after the other, and return by name the errors of those that failed.

    Parameters
    ----------
    all_steps
        In an order in which no step needs a later one.
    work
        What they share.
    timed
        Times and shows them.
    done
        Names of steps that are not done again but loaded.

    Raises
    ------
    OutputError, OSError
        When the disk is full or cannot be written to, which would also end all other steps.
    """
    failed: dict[str, Exception] = {}
    for step in all_steps:
        lacking = [name for name in step.needs if name in failed]
        if lacking and step.name not in done:
            failed[step.name] = NotMadeError(f"it needs {lacking[0]}")
            continue
        try:
            if step.name not in done:
                with timed.step(step.name):
                    step.make(work)
            elif step.load is not None:
                step.load(work)
        except OutputError:
            raise
        except Exception as error:
            if isinstance(error, OSError) and is_of_the_disk(error):
                raise
            failed[step.name] = error
    return failed


PACKAGES = ("totalvi", "torch", "numpy", "scipy", "scanpy", "anndata", "mudata")
OF_THE_OUTPUT = tuple(field.name for field in fields(WriteOptions))
"""Arguments of a run that do not change any number."""


@dataclass(frozen=True)
class Options:
    """What a command was asked that makes a folder of results: its arguments, some in groups."""

    INPUTS: ClassVar[tuple[str, ...]]
    """Arguments that may be paths, which the record tells with their hashes."""

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of the command by name."""
        arguments: dict[str, Any] = {}
        for name, value in vars(self).items():
            is_group = isinstance(value, Columns | WriteOptions)
            of_reading = value._asdict() if isinstance(value, ReadOptions) else None
            arguments |= of_reading or (vars(value) if is_group else {name: value})
        arguments.pop("protein_names_uns_key", None)  # no command takes it
        return arguments

    def inputs(self) -> dict[str, Path]:
        """Return the files and folders that are read, by argument, as `paths_of` does."""
        arguments = self.arguments()
        return paths_of({name: arguments[name] for name in self.INPUTS})


@dataclass(frozen=True)
class RunOptions(Options):
    """What a run was asked.

    Attributes
    ----------
    reading
        How to read ``input``, if it is a path.
    keys
        Columns of ``obs``, and where the counts are.
    writing
        Where the results go.
    others
        As in :func:`totalvi.run.run.run`.
    """

    INPUTS = ("input", "protein_path", "raw")

    input: str | Path | MuData | AnnData
    raw: str | Path | Mapping[str, str | Path] | None
    unmeasured: Unmeasured | None
    reading: ReadOptions
    keys: Columns
    drop_empty_cells: bool
    n_genes: int
    staining_level: bool
    max_epochs: int | None
    resolution: float
    seed: int
    split_counts: bool
    on_disk: bool
    sample_key: str | None
    condition_key: str | None
    hierarchy: str
    doublet_rate: float | None
    modality_information: bool
    writing: WriteOptions


def paths_of(given: Mapping[str, Any]) -> dict[str, Path]:
    """Return the arguments that are paths; ``raw[donor]`` is one of several raw matrices."""
    each: dict[str, Any] = {}
    for name, value in given.items():
        several = value.items() if isinstance(value, Mapping) else ()
        each |= {f"{name}[{key}]": path for key, path in several} or {name: value}
    return {name: Path(path) for name, path in each.items() if isinstance(path, str | Path)}


def circumstances() -> dict[str, Any]:
    """Return when, where and with what versions the run was made."""
    import torch

    return {
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {"python": platform.python_version()}
        | {package: version(package) for package in PACKAGES},
    }


def asked(options: Options) -> dict[str, Any]:
    """Return the part of the record that says what was asked for: arguments, and hashes of inputs.

    Of arguments other than numbers, texts and sequences of them, only the type is kept.
    """
    inputs = options.inputs()
    arguments = {name: _plain(value) for name, value in options.arguments().items()}
    for name in options.INPUTS:
        if isinstance(paths := arguments[name], dict):
            arguments[name] = {key: str(Path(path).absolute()) for key, path in paths.items()}
    return {
        "arguments": arguments | {name: str(path.absolute()) for name, path in inputs.items()},
        "input_sha256": {name: sha256(path) for name, path in inputs.items()},
    }


class Repeat(NamedTuple):
    """A run to be repeated.

    Attributes
    ----------
    arguments
        Of :func:`totalvi.run.run.run`, all but those about the output.
    notes
        Differences that may change numbers.
    """

    arguments: dict[str, Any]
    notes: list[str]


def read_record(path: Path, moved: Mapping[str, Path]) -> Repeat:
    """Return the run in a ``run.json``, after checking that its input has not changed.

    Parameters
    ----------
    path
        Written by a run.
    moved
        New paths of moved inputs, by argument.

    Raises
    ------
    ReadError
        When the file is not the record of a run, or its input has changed or is gone.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        arguments, hashes = dict(record["arguments"]), dict(record["input_sha256"])
        versions = dict(record["versions"])
        if "totalvi" not in versions or not set(hashes) <= set(arguments):
            raise LookupError("versions or inputs")
    except OSError as error:
        raise ReadError(f"{path} cannot be read ({error.strerror}); give a run.json.") from error
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise ReadError(f"{path} is not the run.json of a run that can be repeated.") from error
    if {"query", "query_path"} & set(arguments):
        raise ReadError(
            f"{path} is of `totalvi impute` or `totalvi map`; give that command its arguments again."
        )
    if "input" not in hashes:
        raise ReadError(f"{path} is of a run on data in memory; repeat it from Python.")
    for name in moved:
        if name not in hashes:
            raise ReadError(f"{path} is of a run without {argument(name)}; leave it out.")
    arguments |= {name: str(place) for name, place in moved.items()}
    for name, expected in hashes.items():
        _require_unchanged(Path(arguments[name]), expected, path)
    now = {"python": platform.python_version()} | {
        package: version(package) for package in PACKAGES
    }
    notes = [
        f"{package} is {now[package]}, and was {then}; numbers may differ."
        for package, then in versions.items()
        if now.get(package, then) != then
    ]
    by_batch = {name[4:-1]: arguments.pop(name) for name in hashes if name.startswith("raw[")}
    if by_batch:
        arguments["raw"] = by_batch
    return Repeat({k: v for k, v in arguments.items() if k not in OF_THE_OUTPUT}, notes)


def _require_unchanged(place: Path, expected: str, record: Path) -> None:
    if not place.exists():
        raise ReadError(f"{place}, the input of {record}, is not there; say where it is now.")
    if sha256(place) != expected:
        raise ReadError(
            f"{place} is not the input of {record} any more (other SHA-256); give the same file."
        )


def write_record(record: Mapping[str, Any], path: Path) -> None:
    """Write ``record`` as indented JSON."""
    text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def differences(path: Path, options: Options) -> list[str] | None:
    """Return which arguments and inputs of the record at ``path`` are others; None if there is none.

    Without ``max_epochs``, of the number by default, or of the checkpoint that a run without it went on
    from: the record tells both ``default_max_epochs`` and ``epochs_asked``.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        theirs, hashes = dict(record["arguments"]), dict(record["input_sha256"])
        by_default = "epochs_asked" in record and (
            record["epochs_asked"] is None or theirs["max_epochs"] == record["default_max_epochs"]
        )
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
    ours = asked(options)
    names = [name for name in {**ours["arguments"], **theirs} if name not in OF_THE_OUTPUT]
    differing = [name for name in names if theirs.get(name) != ours["arguments"].get(name)]
    if ours["arguments"].get("max_epochs") is None and by_default:
        differing = [name for name in differing if name != "max_epochs"]
    of_inputs = {**ours["input_sha256"], **hashes}
    others = [name for name in of_inputs if hashes.get(name) != ours["input_sha256"].get(name)]
    return [name for name in differing if name not in of_inputs or name in others] + [
        name for name in others if name not in differing
    ]


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, or of the names and contents of what is read of a folder.

    Raises
    ------
    ReadError
        When nothing in the folder is read.
    """
    path = path.expanduser()
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    folder = standing_folder(path)
    for file_path in _files_read(folder) if folder.is_dir() else []:  # else reading refuses it
        digest.update(f"{file_path.relative_to(folder).as_posix()}\0{sha256(file_path)}\0".encode())
    return digest.hexdigest()


def _files_read(folder: Path) -> list[Path]:
    """Return the files of a zarr store, a matrix (Cell Ranger puts more beside it) or a model."""
    if any((folder / name).is_file() for name in ("zarr.json", ".zgroup", ".zattrs")):
        return _all_files(folder)
    found = matrix_files(folder)
    if not found:
        from totalvi.formats.model_folder import is_model

        found = _all_files(folder) if is_model(folder) else []
    if not found:
        read(folder)  # which says what is wrong with it
        raise ReadError(
            f"{folder} holds neither counts nor a model; give a matrix folder, a .zarr store, or the "
            "path of a file."
        )
    return found


def _all_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _plain(value: Any) -> Any:
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    value = str(value) if isinstance(value, Path | timedelta) else value
    is_plain = isinstance(value, str | int | float | None)
    return value if is_plain else f"{type(value).__name__} object"


def incomplete_record(path: Path) -> dict[str, Any] | None:
    """Return the record of a run with failed steps; None if the run is complete."""
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return record if record.get("failed") else None


def completed(earlier: dict[str, Any], record: dict[str, Any]) -> dict[str, Any]:
    """Return the record of a completed run: its input of the first run, and the new results."""
    both = {**record, **{name: earlier[name] for name in ("arguments", "epochs_asked", "notes")}}
    both["seconds"] = earlier["seconds"] | record["seconds"]
    both["warnings"] = list(dict.fromkeys([*earlier["warnings"], *record["warnings"]]))
    return both


def named(error: Exception) -> str:
    """Return an error in a few words."""
    if isinstance(error, TotalviError | NotMadeError):
        return str(error).rstrip(".")
    return f"{type(error).__name__}: {error}".rstrip(".")


def incomplete_error(
    output: Path, failed: Mapping[str, Exception], *, repeatable: bool
) -> IncompleteError:
    """Return the error that names the failure, the results, and how to complete them."""
    causes = {name: error for name, error in failed.items() if not isinstance(error, NotMadeError)}
    left_out = [name for name in failed if name not in causes]
    said = " and ".join(f"{name} failed ({named(error)})" for name, error in causes.items())
    if left_out:
        said += f", so that {', '.join(left_out)} could not be made"
    how = f"the same call with {setting('resume', True)}"
    if repeatable:
        record, folder = shlex.quote(str(output / RECORD)), shlex.quote(str(output))
        how = f"`totalvi run --from {record} -o {folder} --resume`"
    error = IncompleteError(
        f"{said}; the model and all else are in {output}, and {how} makes what is missing."
    )
    errors = list(causes.values())
    error.__cause__ = errors[0] if len(errors) == 1 else ExceptionGroup("failed steps", errors)
    return error
