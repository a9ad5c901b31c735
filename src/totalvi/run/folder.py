"""Check the places of results, and write results completely or not at all."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

from totalvi.atomic import flush, locked, new_folder, parents_of, writing
from totalvi.errors import OutputError, TrainingError, argument, setting

MODEL, RESULTS = "model.totalvi", "results.h5mu"
RECORD = "run.json"
CLUSTER_COLUMN = "leiden_totalvi"
PREDICTED_COLUMN = "predicted_label"
RESULTS_OF_LABELS = (PREDICTED_COLUMN, "label_probability", "unlike_all_probability")
DOUBLET_SCORE, DOUBLET_PROBABILITY = "doublet_score", "doublet_probability"
LIKELY_DOUBLET = 0.5  # a doublet's least probability
RESULTS_OF_HASHTAGS = ("hashtag_sample", "hashtag_probability", "hashtags_carried")
HASHTAG_SAMPLE, HASHTAG_PROBABILITY, HASHTAGS_CARRIED = RESULTS_OF_HASHTAGS
NATS = {f"nats_{name}": name for name in ("rna", "protein", "rna_added", "protein_added")}
"""Columns of cells, and what they are called in `Model.get_modality_information`."""
DENOISED_LIBRARY_SIZE = 10_000  # of RNA in the results file
STORE = "results.zarr"  # of a run on disk
PROPOSED_GATES = "gates_proposed.csv"  # of named populations, for people to edit in the explorer
PARTS = {
    PROPOSED_GATES,
    RESULTS,
    STORE,
    "imputed.h5ad",
    MODEL,
    "tables",
    "figures",
    "report.html",
    RECORD,
}


class RunResult(NamedTuple):
    """What a run made.

    Attributes
    ----------
    folder
        Where it is.
    files
        All files, relative to ``folder``.
    record
        What ``run.json`` holds, the warnings among it.
    """

    folder: Path
    files: list[Path]
    record: dict[str, Any]


@dataclass(frozen=True)
class WriteOptions:
    """Where a command writes its results, and what it makes of those that are there.

    These are the arguments of a command that change no number.

    Attributes
    ----------
    output, overwrite, resume, checkpoint_every, progress
        As in :func:`totalvi.run.run.run`.
    """

    output: Path
    overwrite: bool
    resume: bool
    checkpoint_every: timedelta
    progress: bool | None = None

    @property
    def checkpoint(self) -> Path:
        """The file in which the fit is kept until the results are there."""
        return checkpoint_of(self.output)


def checkpoint_of(output: Path) -> Path:
    """Return the file beside ``output`` in which a run keeps its fit until the results are there.

    Examples
    --------
    >>> checkpoint_of(Path("pbmc/results")).name
    'results.checkpoint'
    """
    output = Path(os.path.realpath(output))
    return output.parent / f"{output.name}.checkpoint"


@contextmanager
def staged_folder(output: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty folder that becomes ``output`` when the block ends, or is removed if it fails.

    No other process can write ``output`` in the meantime.

    Parameters
    ----------
    output
        A folder that does not exist or is empty, or a link to one; missing parents are created.
    overwrite
        Replace the folder of an earlier run, which holds nothing else, at the end.

    Raises
    ------
    OutputError
        If ``output`` may not be replaced, is being written, or cannot be.
    """
    require_writable(output, overwrite=overwrite)
    place = Path(os.path.realpath(output))
    with parents_of(place), locked(place):
        require_writable(output, overwrite=overwrite)  # another run may have just ended
        with new_folder(place) as folder:
            yield folder


@contextmanager
def results_folder(writing: WriteOptions) -> Iterator[Path]:
    """Give what `staged_folder` gives for a block that fits with a checkpoint and writes the results.

    A checkpoint is there when the block starts only to go on from, and when it has ended only if the
    fit can go on.

    Raises
    ------
    OutputError
        As in `staged_folder`, and when there is a checkpoint that may not be deleted.
    """
    with staged_folder(writing.output, overwrite=writing.overwrite) as folder:
        if not writing.resume:
            _forget(writing.checkpoint, overwrite=writing.overwrite)
        try:
            yield folder
        except TrainingError:
            writing.checkpoint.unlink(missing_ok=True)  # going on from it would fail alike
            raise
    writing.checkpoint.unlink(missing_ok=True)


def _forget(checkpoint: Path, *, overwrite: bool) -> None:
    """Remove the checkpoint of an earlier run, if that is what it is and asked for."""
    if not checkpoint.exists():
        return
    from totalvi.fit.checkpoint import is_checkpoint

    if overwrite and is_checkpoint(checkpoint):
        checkpoint.unlink()
        return
    raise OutputError(
        f"{checkpoint} is there, of a run that was interrupted; go on with "
        f"{setting('resume', True)}, or delete it."
    )


@contextmanager
def staged_file(output: Path, *, suffix: str, overwrite: bool = False) -> Iterator[Path]:
    """Yield a path that becomes the file ``output`` when the block ends, or is removed if it fails.

    No other process can write ``output`` in the meantime.

    Parameters
    ----------
    output
        A file with the ending ``suffix``; missing parents are created.
    overwrite
        Whether to replace an existing file.

    Raises
    ------
    OutputError
        If ``output`` has another ending, may not be replaced, is being written, or cannot be.
    """
    output = output.absolute()
    if output.suffix != suffix:
        raise OutputError(f"{output} does not end in {suffix}; choose a name that does.")
    if output.is_dir():
        raise OutputError(f"{output} is a folder; choose the name of a file.")
    _nearest_folder(output)
    with parents_of(output), locked(output), writing(output):
        if output.exists() and not overwrite:
            raise OutputError(
                f"{output} exists; choose another name, or replace it with "
                f"{setting('overwrite', True)}."
            )
        staged = output.with_name(f".{output.name}.partial{suffix}")
        staged.unlink(missing_ok=True)  # left by a process that was killed
        staged.touch(exist_ok=False)
        try:
            yield staged
            flush(staged)
            staged.replace(output)
            flush(output.parent)
        finally:
            staged.unlink(missing_ok=True)


def refuse_input_in_output(given: Path, output: Path) -> None:
    """Refuse an input that is the output, is or has a link in it, or links into it."""
    place, real = given.absolute(), Path(os.path.realpath(given))
    above = {real, *real.parents, *map(Path, map(os.path.realpath, (place, *place.parents)))}
    if Path(os.path.realpath(output)) in above:
        where = "is" if real == Path(os.path.realpath(output)) else "lies in"
        raise OutputError(
            f"the input {given} {where} the output {output}, which would be replaced; "
            "choose another output."
        )


def _nearest_folder(output: Path) -> Path:
    """Return the nearest folder above ``output`` that exists."""
    nearest = next(folder for folder in output.parents if folder.exists())
    if not nearest.is_dir():
        raise OutputError(
            f"{nearest} is a file, so nothing can be made in it; choose another place."
        )
    return nearest


def require_writable(output: Path, *, overwrite: bool = False) -> None:
    """Refuse, before any work, a folder of results that could not be written at the end.

    Raises
    ------
    OutputError
        If ``output`` is a file, a link to nothing or a folder that cannot be moved, holds
        something that may not be replaced, or has a parent that cannot be written to.
    """
    if output.is_symlink() and not output.exists():
        raise OutputError(f"{output} is a link to nothing; choose another output folder.")
    output = Path(os.path.realpath(output))
    if os.path.ismount(output):
        raise OutputError(
            f"{output} is a mount point, which cannot be replaced; choose a folder in it."
        )
    if output in (Path.cwd(), *Path.cwd().parents):
        raise OutputError(
            f"{output} is or holds the current folder, which cannot be replaced; "
            "choose a new folder in it."
        )
    if output.exists() and not output.is_dir():
        raise OutputError(f"{output} is a file; choose a folder for the results.")
    nearest = _nearest_folder(output)
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise OutputError(
            f"cannot write in {nearest} (no permission); choose another output folder."
        )
    if not output.exists() or not any(output.iterdir()):
        return
    if not overwrite:
        raise OutputError(
            f"{output} is not empty; choose another output folder, or replace it with "
            f"{setting('overwrite', True)}."
        )
    _require_earlier_run(output)


def _require_earlier_run(output: Path) -> None:
    """Refuse to replace a folder unless a run wrote it and nothing was added."""
    if not _is_record(output / RECORD):
        raise OutputError(
            f"{output} holds no {RECORD} of totalvi, so it is not the result of an earlier run and "
            "will not be overwritten; choose another output folder."
        )
    foreign = sorted(path.name for path in output.iterdir() if not _is_of_a_run(path.name))
    if foreign:
        raise OutputError(
            f"{output} holds {foreign[0]}, which no run wrote, and will not be overwritten; "
            f"move {foreign[0]} elsewhere, or choose another output folder."
        )


def _is_of_a_run(name: str) -> bool:
    """Return whether a file is a part of a run, or what a process left that was killed writing one."""
    return name in PARTS or name.startswith(tuple(f".{part}." for part in (*PARTS, "explore")))


def _is_record(path: Path) -> bool:
    try:
        versions = json.loads(path.read_text(encoding="utf-8"))["versions"]
    except (OSError, ValueError, LookupError, TypeError):
        return False
    return isinstance(versions, dict) and "totalvi" in versions


def holds_this_run(writing: WriteOptions, differing: list[str] | None) -> bool:
    """Return whether the output has the results of a run that is resumed.

    Parameters
    ----------
    differing
        From `totalvi.run.record.differences`, of the record in the output.

    Raises
    ------
    OutputError
        When it has those of a run with other arguments or inputs, and may not be replaced.
    """
    if differing and not writing.overwrite:
        others = ", ".join(argument(name) for name in differing)
        raise OutputError(
            f"{writing.output} holds a run with another {others}; give the same, choose another output "
            f"folder, or replace it with {setting('overwrite', True)}."
        )
    return differing == []


def finished(output: Path) -> RunResult:
    """Return what a run that has ended made."""
    record = json.loads((output / RECORD).read_text(encoding="utf-8"))
    checkpoint = checkpoint_of(output)
    if checkpoint.exists():  # it died just before it would have removed it
        with locked(Path(os.path.realpath(output))):  # unless it is of one that replaces the output
            checkpoint.unlink(missing_ok=True)
    return RunResult(output, files_in(output), record)


def counts_beside(model: Path) -> Path | None:
    """Return the results with the counts that `totalvi run` wrote beside a model's folder, if any."""
    beside = [model.parent / name for name in (RESULTS, STORE)]
    return next((path for path in beside if path.exists()), None)


def files_in(folder: Path) -> list[Path]:
    """Return all files of a folder of results, relative to it."""
    return sorted(_written(folder))


def _written(folder: Path) -> Iterator[Path]:
    """Yield what is in the folder; of a zarr store, which has many files, the store."""
    for path in folder.rglob("*"):
        place = path.relative_to(folder)
        if place.parts[0] == STORE:
            if len(place.parts) == 1:
                yield place
        elif path.is_file():
            yield place
