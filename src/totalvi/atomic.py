"""Write files and folders completely or not at all, whatever happens in the meantime."""

import ctypes
import errno
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from totalvi.errors import LockedError, OutputError

_FIXES = {
    errno.ENOSPC: "free some space, or choose another place",
    errno.EDQUOT: "free some of your quota, or choose another place",
    errno.EFBIG: "raise the limit on file sizes, or choose another place",
    errno.EROFS: "choose another place",
    errno.EACCES: "choose another place",
    errno.EPERM: "choose another place",
    errno.EIO: "check the disk, or choose another place",
    errno.ENOTDIR: "choose another place",
    errno.EEXIST: "choose another place",
    errno.ENAMETOOLONG: "choose a shorter name",
}
_MOST_TRIES, _SECONDS_BETWEEN_TRIES = 50, 0.1
_HERE, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux


@contextmanager
def writing(target: Path) -> Iterator[Path]:
    """Turn a system error of a full or read-only disk into an OutputError about ``target``.

    Yield where to write until ``target`` is complete.
    """
    try:
        yield partial_of(target)
    except OSError as error:
        if not is_of_the_disk(error):
            raise
        number = _error_number(error)
        raise OutputError(
            f"{target} cannot be written ({os.strerror(number)}), and what was there is unchanged; "
            f"{_FIXES[number]}."
        ) from error


def is_of_the_disk(error: OSError) -> bool:
    """Return whether an error means that the disk is full or cannot be written to."""
    return _error_number(error) in _FIXES


def _error_number(error: OSError) -> int:
    """Return the errno, which HDF5 hides in its message."""
    if error.errno is not None:
        return error.errno
    found = (number for number in _FIXES if f"errno = {number}," in str(error))
    return next(found, 0)


@contextmanager
def locked(target: Path, wait_s: float = 0) -> Iterator[None]:
    """Hold the lock beside ``target``, which the system releases when the process ends.

    Raises
    ------
    LockedError
        When another process holds it for longer than ``wait_s``.
    """
    lock = FileLock(_beside(target, "lock"), timeout=wait_s)
    try:
        with writing(target):
            lock.acquire()
    except Timeout as error:
        raise LockedError(
            f"{target} is being written by another process; wait for it, or choose another place."
        ) from error
    try:
        yield
    finally:
        # a process that waits notices that its lock file was removed, and creates another
        if isinstance(lock, FileLock):  # without locks, it is of another kind
            Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


@contextmanager
def parents_of(target: Path) -> Iterator[None]:
    """Create the parent folders of ``target``; remove those that are empty if the block fails."""
    missing = [folder for folder in target.parents if not folder.exists()]
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for folder in missing:
            if any(folder.iterdir()):
                break
            folder.rmdir()
        raise


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder that replaces ``target`` when the block ends without an error.

    The caller holds the lock of ``target``, whose parent exists. At every moment, even after a power
    failure, the old or the new folder is complete: see `standing_folder`.

    Raises
    ------
    OutputError
        When the disk is full or cannot be written to.
    """
    with writing(target) as temporary:
        _remove(temporary)  # left by a process that was killed
        temporary.mkdir()
        try:
            yield temporary
            for path in temporary.rglob("*"):
                flush(path)
            flush(temporary)
            _replace(temporary, target)
        finally:
            _remove(temporary)


def standing_folder(target: Path) -> Path:
    """Return the path of the folder ``target``: a name beside it if a process died while replacing it.

    This can happen only on file systems that cannot exchange two names.
    """
    previous = _previous(target)
    return previous if previous.is_dir() and not target.exists() else target


def write_file(target: Path, content: bytes) -> None:
    """Write a file completely, or leave the old one unchanged.

    Raises
    ------
    OutputError
        When the disk is full or cannot be written to.
    """
    with writing(target) as temporary:
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
            flush(target.parent)
        finally:
            temporary.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _replace(new: Path, target: Path) -> None:
    """Replace ``target`` by ``new``; the old one is then at ``new``, or removed."""
    previous = _previous(target)
    if previous.exists() and not target.exists():
        previous.rename(target)
    _remove(previous)
    if not target.exists():
        new.rename(target)
    elif not _exchanged(new, target):
        target.rename(previous)
        try:
            new.rename(target)
        except BaseException:
            previous.rename(target)
            raise
    flush(target.parent)
    _remove(previous)


def _exchanged(one: Path, other: Path) -> bool:
    """Exchange two names in one step; return whether system and file system support it."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    return bool(rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0)


def partial_of(target: Path) -> Path:
    """Return the path of ``target`` while it is being written."""
    return _beside(target, "partial")


def _previous(target: Path) -> Path:
    return _beside(target, "previous")


def _beside(target: Path, what: str) -> Path:
    return target.parent / f".{target.name}.{what}"


def _remove(folder: Path) -> None:
    """Remove a folder, into which threads of a process that was interrupted may still write."""
    for attempt in range(1, _MOST_TRIES + 1):
        if not folder.is_dir() or folder.is_symlink():
            return
        try:
            shutil.rmtree(folder)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.ENOENT) or attempt == _MOST_TRIES:
                raise
            time.sleep(_SECONDS_BETWEEN_TRIES)
