"""Files and folders are whole, whatever happens: full disks, closed ones, deaths, other writers."""

import errno
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from totalvi import atomic
from totalvi.atomic import locked, new_folder, parents_of, standing_folder, write_file, writing
from totalvi.errors import OutputError


def fill(target: Path, text: str) -> None:
    with new_folder(target) as folder:
        (folder / "part").mkdir()
        (folder / "part" / "a").write_text(text)


def content(target: Path) -> str:
    return (target / "part" / "a").read_text()


@pytest.fixture(params=["exchanged", "renamed"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With and without a file system that exchanges names."""
    if request.param == "renamed":
        monkeypatch.setattr(atomic, "_exchanged", lambda *_: False)
    return str(request.param)


def test_a_folder_replaces_another(tmp_path: Path, kind: str) -> None:
    for text in ("old", "new"):
        fill(tmp_path / "f", text)
        assert content(tmp_path / "f") == text
        assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_a_failure_leaves_the_old_folder(tmp_path: Path, kind: str) -> None:
    fill(tmp_path / "f", "old")
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "f"):
        raise KeyboardInterrupt
    assert content(tmp_path / "f") == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_a_failed_rename_puts_the_old_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(atomic, "_exchanged", lambda *_: False)
    fill(tmp_path / "f", "old")
    rename = Path.rename

    def fail_for_the_new(self: Path, target: Path) -> Path:
        if self.name.endswith(".partial"):
            raise OSError(errno.EIO, "broken")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_for_the_new)
    with pytest.raises(OutputError, match="Input/output error"):
        fill(tmp_path / "f", "new")
    assert content(tmp_path / "f") == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_what_a_killed_process_left_is_used_and_cleared(tmp_path: Path, kind: str) -> None:
    fill(tmp_path / ".f.previous", "old")  # died between two renames
    fill(tmp_path / ".f.partial", "half")
    assert content(standing_folder(tmp_path / "f")) == "old"
    fill(tmp_path / "f", "new")
    assert content(standing_folder(tmp_path / "f")) == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_a_file_is_whole_or_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_file(tmp_path / "f", b"old")

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OutputError, match=r"cannot be written \(No space left.*free some space"):
        write_file(tmp_path / "f", b"new")
    assert (tmp_path / "f").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_a_thread_that_still_writes_does_not_hide_why_a_folder_is_removed(tmp_path: Path) -> None:
    stop = threading.Event()

    def write(folder: Path) -> None:
        number = 0
        while not stop.is_set():
            number += 1
            with suppress(OSError):  # the folder is gone
                (folder / "part" / f"{number % 50}").mkdir(parents=True, exist_ok=True)

    threads = []

    def interrupted(target: Path) -> None:
        with new_folder(target) as folder:
            threads.append(threading.Thread(target=write, args=(folder,)))
            threads[0].start()
            threading.Timer(0.5, stop.set).start()
            time.sleep(0.05)
            raise SystemExit(143)

    with pytest.raises(SystemExit):
        interrupted(tmp_path / "new")
    threads[0].join()


def test_parents_vanish_with_a_failure(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no"), parents_of(tmp_path / "a" / "b" / "c"):
        raise ValueError("no")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"), parents_of(tmp_path / "file" / "a"):
        pass


def test_one_process_at_a_time_and_the_dead_hold_nothing(tmp_path: Path) -> None:
    target = tmp_path / "f"
    code = (
        "import sys, time; from pathlib import Path; from totalvi.atomic import locked\n"
        f"with locked(Path({str(target)!r})):\n    print('held', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    with pytest.raises(OutputError, match="written by another process"), locked(target):
        pass
    process.kill()
    process.wait()
    process.stdout.close()
    with locked(target):
        assert (tmp_path / ".f.lock").exists()
    assert list(tmp_path.iterdir()) == []


def test_other_errors_are_left_alone(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), writing(tmp_path):
        raise FileNotFoundError(errno.ENOENT, "gone")


# ---------------------------------------------------------------- real disks


@contextmanager
def small_disk(place: Path) -> Iterator[Path]:
    """A file system of one megabyte; needs a system and a user that may mount one."""
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    try:
        done = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except OSError:
        done = False
    if not done:
        pytest.skip("may not mount a file system here")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        fill(disk / "f", "old")
        write_file(disk / "g", b"old")
        for write in (
            lambda: fill(disk / "f", "x" * 2_000_000),
            lambda: write_file(disk / "g", b"x" * 2_000_000),
        ):
            with pytest.raises(OutputError, match="No space left on device"):
                write()
        assert content(disk / "f") == "old"
        assert (disk / "g").read_bytes() == b"old"
        assert sorted(path.name for path in disk.iterdir()) == ["f", "g"]


def test_a_full_disk_under_hdf5(tmp_path: Path) -> None:
    import h5py
    import numpy as np

    with small_disk(tmp_path / "disk") as disk:
        fill(disk / "f", "old")
        with (
            pytest.raises(OutputError, match="No space left on device"),
            new_folder(disk / "f") as folder,
            h5py.File(folder / "a.h5", "w") as file,
        ):
            file["x"] = np.arange(1_000_000)
        assert content(disk / "f") == "old"


def test_a_read_only_disk(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        fill(disk / "f", "old")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with pytest.raises(OutputError, match="Read-only file system"), locked(disk / "f"):
            pass
        with pytest.raises(OutputError, match="Read-only file system"):
            fill(disk / "f", "new")
        assert content(disk / "f") == "old"


def test_a_limit_on_file_sizes(tmp_path: Path) -> None:
    write_file(tmp_path / "g", b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
        with pytest.raises(OutputError, match="File too large"):
            write_file(tmp_path / "g", b"x" * 200_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (tmp_path / "g").read_bytes() == b"old"
