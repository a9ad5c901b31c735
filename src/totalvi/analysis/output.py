"""Writing a folder or a file whole or not at all."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from totalvi.errors import OutputError

RECORD = "run.json"
STORE = "results.zarr"  # of a run on disk
PARTS = {"results.h5mu", STORE, "model.totalvi", "tables", "figures", RECORD}


@contextmanager
def staged_folder(output: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Give an empty folder that becomes ``output`` when the block ends, and vanishes if it fails.

    Parameters
    ----------
    output
        A folder that does not exist or is empty, or a link to one; missing parents are made at
        the end.
    overwrite
        Replace the folder of an earlier run, which holds nothing else, at the end.

    Raises
    ------
    OutputError
        If ``output`` may not be replaced or its parent cannot be written to.
    """
    require_writable(output, overwrite=overwrite)
    output = Path(os.path.realpath(output))
    staged = _staging_place(output)
    with _writing(staged.parent):
        staged.mkdir()
    try:
        yield staged
        output.parent.mkdir(parents=True, exist_ok=True)
        _replace(staged, output)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise


@contextmanager
def staged_file(output: Path, *, suffix: str, overwrite: bool = False) -> Iterator[Path]:
    """Give a path that becomes the file ``output`` when the block ends, and vanishes if it fails.

    Parameters
    ----------
    output
        A file with the ending ``suffix``; missing parents are made at the end.
    overwrite
        Replace a file that is there.

    Raises
    ------
    OutputError
        If ``output`` has another ending, may not be replaced, or cannot be written.
    """
    output = output.absolute()
    if output.suffix != suffix:
        raise OutputError(f"{output} does not end in {suffix}: choose a name that does")
    if output.is_dir():
        raise OutputError(f"{output} is a folder: choose the name of a file")
    if output.exists() and not overwrite:
        raise OutputError(f"{output} exists: choose another name, or replace it with overwrite")
    staged = _staging_place(output).with_suffix(suffix)
    with _writing(staged.parent):
        staged.touch(exist_ok=False)
    try:
        yield staged
        output.parent.mkdir(parents=True, exist_ok=True)
        staged.replace(output)
    finally:
        staged.unlink(missing_ok=True)


def _staging_place(output: Path) -> Path:
    """Choose a new hidden name beside ``output``, or in the nearest folder above that exists."""
    nearest = next(folder for folder in output.parents if folder.exists())
    if not nearest.is_dir():
        raise OutputError(
            f"{nearest} is a file, so nothing can be made in it: choose another place"
        )
    return nearest / f".{output.name}.{uuid4().hex[:8]}"


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"cannot write in {folder} ({error.strerror}): choose another output"
        ) from error


def require_writable(output: Path, *, overwrite: bool = False) -> None:
    """Refuse, before any work, a folder of results that could not be written at the end.

    Raises
    ------
    OutputError
        If ``output`` is a file, a link to nothing or a folder that cannot be moved, holds
        something that may not be replaced, or has a parent that cannot be written to.
    """
    if output.is_symlink() and not output.exists():
        raise OutputError(f"{output} is a link to nothing: choose another output folder")
    output = Path(os.path.realpath(output))
    if os.path.ismount(output):
        raise OutputError(
            f"{output} is a mount point, which cannot be replaced: choose a folder in it"
        )
    if output in (Path.cwd(), *Path.cwd().parents):
        raise OutputError(
            f"{output} is or holds the current folder, which cannot be replaced: "
            "choose a new folder in it"
        )
    if output.exists() and not output.is_dir():
        raise OutputError(f"{output} is a file: choose a folder for the results")
    nearest = _staging_place(output).parent
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise OutputError(
            f"cannot write in {nearest} (no permission): choose another output folder"
        )
    if not output.exists() or not any(output.iterdir()):
        return
    if not overwrite:
        raise OutputError(
            f"{output} is not empty: choose another output folder, or replace it with overwrite"
        )
    _require_earlier_run(output)


def _require_earlier_run(output: Path) -> None:
    """Refuse to replace a folder unless a run wrote it and nothing was added."""
    if not _is_record(output / RECORD):
        raise OutputError(
            f"{output} holds no {RECORD} of totalvi, so it is not the result of an earlier run and "
            "will not be overwritten: choose another output folder"
        )
    foreign = sorted(path.name for path in output.iterdir() if path.name not in PARTS)
    if foreign:
        raise OutputError(
            f"{output} holds {foreign[0]}, which no run wrote, and will not be overwritten: "
            f"move {foreign[0]} elsewhere, or choose another output folder"
        )


def _is_record(path: Path) -> bool:
    try:
        versions = json.loads(path.read_text(encoding="utf-8"))["versions"]
    except (OSError, ValueError, LookupError, TypeError):
        return False
    return isinstance(versions, dict) and "totalvi" in versions


def _replace(staged: Path, output: Path) -> None:
    """Put ``staged`` in the place of ``output``, which is kept until that has succeeded."""
    if not output.exists():
        staged.rename(output)
        return
    old = staged.with_name(f"{staged.name}.old")
    output.rename(old)
    try:
        staged.rename(output)
    except OSError:
        old.rename(output)
        raise
    shutil.rmtree(old)
