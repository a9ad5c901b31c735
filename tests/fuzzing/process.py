"""A process that reads damaged files, limited in time and memory, and is replaced when it dies."""

import hashlib
import multiprocessing
import os
import resource
import shutil
import tempfile
import warnings
import zlib
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

if TYPE_CHECKING:
    from fuzzing.mutations import Mutation

SECONDS = 30  # for one file of a few kilobytes
MEMORY = 2 * 2**30  # more than the process held before
RESIDENT = 600 * 2**20  # that reading one file may add


class Outcome(NamedTuple):
    """How a reading ended: "refused", "right", "undetectable", or one of `FAULTS`."""

    kind: str
    what: str
    detail: str = ""


FAULTS = ("wrong", "unexpected error", "memory", "outside", "hang", "crash")


class Worker:
    """Reads damaged samples one at a time in a process of its own."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        os.environ.setdefault("MALLOC_ARENA_MAX", "2")  # threads reserve address space otherwise
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()
        if not self._connection.poll(300) or self._connection.recv() != "ready":
            raise RuntimeError("the reading process did not start")

    def outcome(self, name: str, index: int) -> Outcome:
        """Damage the sample of this name by the seed ``index``, read it, and say how it ended."""
        outcome = self._try(name, index)
        # a process that read many damaged files may owe its end to one of these: in a fresh one, again
        return self._try(name, index) if outcome.kind in ("hang", "crash") else outcome

    def _try(self, name: str, index: int) -> Outcome:
        self._connection.send((name, index))
        try:
            if self._connection.poll(SECONDS):
                return Outcome(*self._connection.recv())
            kind = "hang"
        except EOFError:
            kind = "crash"
        self._process.kill()
        self._process.join()
        detail = f"exit code {self._process.exitcode}"
        self._start()
        return Outcome(kind, "", detail)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()


def _serve(connection: Connection) -> None:
    warnings.simplefilter("ignore")
    import torch

    from fuzzing.samples import SAMPLES

    torch.set_num_threads(1)
    root = Path(tempfile.mkdtemp(prefix="fuzz-"))
    originals = {}
    for name, sample in SAMPLES.items():
        place = root / "originals" / name.replace(" ", "_").replace("/", "_")
        place.mkdir(parents=True)
        path = sample.write(place)
        originals[name] = (path, sample.read(path))
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    connection.send("ready")
    try:
        while True:
            name, index = connection.recv()
            connection.send(tuple(_outcome(root, name, index, *originals[name])))
    except EOFError:
        pass
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _outcome(
    root: Path, name: str, index: int, original: Path, expected: dict[str, str]
) -> Outcome:
    import numpy as np

    from fuzzing.mutations import mutate
    from fuzzing.samples import SAMPLES
    from totalvi.errors import TotalviError

    case = root / "case"
    shutil.rmtree(case, ignore_errors=True)
    case.mkdir()
    path = case / original.name
    copy = shutil.copytree if original.is_dir() else shutil.copy
    copy(original, path)
    done = mutate(path, np.random.default_rng([zlib.crc32(name.encode()), index]))
    before, held = _listing(root), _resident()
    detail = ""
    try:
        found = SAMPLES[name].read(path)
    except TotalviError as error:
        kind, detail = "refused", str(error)
    except BaseException as error:
        kind, detail = "unexpected error", f"{type(error).__name__}: {error}"
    else:
        said = found.pop("left out", "")
        differs = sorted(key for key in {*found, *expected} if found.get(key) != expected.get(key))
        left_out = [key for key in differs if _is_left_out(key, found, said)]
        kind, detail = "wrong" if differs != left_out else "right", ", ".join(differs)
    if _resident() - held > RESIDENT:
        kind = "memory"
    elif _listing(root) != before:
        kind = "outside"
    elif kind == "wrong" and _says_so(path, name, found, expected, done):
        kind = "undetectable"
    return Outcome(kind, done.what, detail)


def _is_left_out(key: str, found: dict[str, str], said: str) -> bool:
    """Return whether a note names what is missing; an entry of obsm may have held the proteins."""
    no_proteins = not any(name.startswith("prot.") for name in found)
    of_proteins = no_proteins and (key == "modalities" or key.startswith("prot."))
    return f'"{key}"' in said or ('obsm["' in said and of_proteins)


def _says_so(
    path: Path, name: str, found: dict[str, str], expected: dict[str, str], done: "Mutation"
) -> bool:
    """Return whether the file now says what was read, or only values without a checksum differ."""
    from fuzzing.oracle import is_json, what_a_folder_says, what_tables_say
    from fuzzing.samples import SAMPLES
    from totalvi.errors import TotalviError

    config = path.parents[1] / "originals" / "0.6.x_config" / "described" / "config.json"
    if path.name == "tables":
        return what_tables_say(path) == found
    if path.name == "matrix":
        return what_a_folder_says(path) == found
    if path.name == "described" and (path / "config.json").read_bytes() != config.read_bytes():
        return is_json(path / "config.json")
    if done.file is None or done.rest is None:
        return False
    done.file.write_bytes(done.rest)
    try:
        return SAMPLES[name].read(path) == expected
    except TotalviError:
        return True


def _resident() -> int:
    """Return the most memory that this process ever held, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _listing(root: Path) -> str:
    """Return a digest of all that lies beside the file that is read, and of the file itself."""
    listing = hashlib.sha256()
    for folder, _, files in os.walk(root / "case"):
        for file in sorted(files):
            stat = Path(folder, file).lstat()
            listing.update(f"{folder}/{file} {stat.st_size} {stat.st_mtime_ns}".encode())
    listing.update(repr(sorted(entry.name for entry in root.iterdir())).encode())
    return listing.hexdigest()
