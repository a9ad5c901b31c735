"""Run every command at growing numbers of cells: whether it succeeds, its time and its memory.

    python benchmarks/sizes.py                                  # all sizes: more than an hour
    python benchmarks/sizes.py --cells 1000 9000 --epochs 3
    python benchmarks/sizes.py --cells 60000 --commands run report

Cells are simulated, with 2,000 genes (9 % of the counts are not zero) and 30 proteins. Each command
runs in a separate process, as a user starts it. If it needs the output of another command (a run, a
store), that command runs first. Rows:

- check, convert (to zarr), run, run_on_disk, report (built again, and opened in Chromium);
- explore: the page opened in Chromium, a gate drawn with the mouse, its count, its comparison;
- map, impute: a fifth as many new cells, with RNA alone;
- denoise, de: of the cells of the run, as .h5mu and as a table;
- resume: a run that is killed (SIGKILL) after its first checkpoint, and then resumed. It must end
  with the held-out loss of the run that was not killed, if that had as many epochs.

Memory is the largest resident memory of any process of the command. "counts" are the bytes of the
non-zero RNA counts in CSR (8 each) and of the proteins (4 each).

Results are merged into those of earlier runs, row by row: benchmarks/results/sizes.json and sizes.md.
"""

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import sizes_pages as pages
from sizes_table import row, table

HERE = Path(__file__).resolve().parent
CELLS = (1_000, 9_000, 25_000, 60_000, 200_000)
N_GENES, N_PROTEINS = 2_000, 30
LIBRARY_SIZE = 370.0  # median RNA count: makes 9 % of the counts non-zero
DATA = f"{N_GENES:,} genes, {N_PROTEINS} proteins"
EPOCHS_COMPARED_WITH = 10
BEFORE_AND_IN_FIT = ("read", "check and select genes", "train")
Result = dict[str, Any]


class FailedError(Exception):
    """A command did not do what it is for."""


class Place(NamedTuple):
    """Where the files of one size are.

    Parameters
    ----------
    folder
        Of everything of this size.
    epochs
        Of the fits.
    screenshots
        Folder for pictures of pages.
    timeout
        Seconds that a command may take.
    """

    folder: Path
    epochs: int
    screenshots: Path
    timeout: float

    def __truediv__(self, name: str) -> Path:
        return self.folder / name


# ------------------------------------------------------------------------------ data and processes


def make_data(folder: Path, n_cells: int) -> None:
    """Simulate cells, and new ones of the same kinds of which only RNA is kept."""
    import mudata
    import numpy as np

    import totalvi
    from totalvi.data.simulate import simulate_to_zarr

    mudata.set_options(pull_on_update=False)
    n_new = n_cells // 5
    store = folder / "simulated.zarr"
    simulate_to_zarr(
        store, n_cells + n_new, N_GENES, N_PROTEINS, n_batches=2, n_cell_types=8,
        median_library_size=LIBRARY_SIZE, overwrite=True,
    )  # fmt: skip
    mdata = totalvi.read(store)
    shutil.rmtree(store)
    new = mdata["rna"][n_cells:].copy()
    new.obs = mdata.obs[n_cells:].copy()
    new.write(folder / "new.h5ad")
    cells = mudata.MuData({name: of[:n_cells].copy() for name, of in mdata.mod.items()})
    cells.obs = mdata.obs[:n_cells].copy()
    rna = cells["rna"].X
    cells.write(folder / "cells.h5mu")
    size = {
        "counts_mb": (8 * rna.nnz + 4 * n_cells * N_PROTEINS) / 1e6,
        "non_zero": float(rna.nnz / np.prod(rna.shape)),
    }
    (folder / "size.json").write_text(json.dumps(size) + "\n")


def command(place: Place, *arguments: object) -> Result:
    """Run a command of totalvi to its end; raise where it fails."""
    words = [str(argument) for argument in arguments]
    return _ended(_start(place, words), place, words[0], time.perf_counter())


def _start(place: Place, words: list[str]) -> subprocess.Popen:
    with (place / "log.txt").open("ab") as log:
        log.write(f"\n$ totalvi {' '.join(words)}\n".encode())
        log.flush()
        return subprocess.Popen(
            [sys.executable, "-m", "totalvi", *words],
            stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip


def _ended(process: subprocess.Popen, place: Place, name: str, started: float) -> Result:
    """Wait for a process, and return its seconds and memory."""
    done = 0
    while not done:
        done, status, used = os.wait4(process.pid, os.WNOHANG)
        if not done and time.perf_counter() - started > place.timeout:
            os.killpg(process.pid, signal.SIGKILL)
            os.wait4(process.pid, 0)
            process.returncode = -signal.SIGKILL
            raise FailedError(f"{name} did not end within {place.timeout:,.0f} s")
        time.sleep(0 if done else 0.02)
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        last = (place / "log.txt").read_text(errors="replace").strip().splitlines()[-1]
        raise FailedError(f"{name} ended with status {process.returncode}: {last}")
    return {"seconds": seconds, "peak_mb": used.ru_maxrss * 1024 / 1e6}


# ------------------------------------------------------------------------------------- the commands


def require(place: Place, name: str) -> Path:
    """Return what another command makes, which is made first where it is not there."""
    path = place / name
    if not path.exists():
        print(f"  {name} is made first", flush=True)
        {"cells.zarr": convert, "run": run, "run_on_disk": run_on_disk}[name](place)
    return path


def check(place: Place) -> Result:
    return command(place, "check", place / "cells.h5mu", "--batch", "batch")


def convert(place: Place) -> Result:
    return command(place, "convert", place / "cells.h5mu", place / "cells.zarr", "--overwrite")


def run(place: Place) -> Result:
    return _whole_run(place, place / "cells.h5mu", "run")


def run_on_disk(place: Place) -> Result:
    return _whole_run(place, require(place, "cells.zarr"), "run_on_disk", "--on-disk")


def _whole_run(place: Place, data: Path, name: str, *options: str) -> Result:
    folder = place / name
    _forget(folder, place / f"{name}.checkpoint")
    found = command(
        place, "run", data, "-o", folder, "--batch", "batch", "--epochs", place.epochs,
        *options,
    )  # fmt: skip
    record = json.loads((folder / "run.json").read_text())
    if not (folder / "report.html").is_file():
        raise FailedError(f"{name} left no report.html")
    steps = record["seconds"]
    rest = found["seconds"] - sum(steps.values())  # start of Python, and the report
    written = ((folder / file).stat().st_mtime for file in ("run.json", "report.html"))
    of_record, of_report = written
    after = of_report - of_record
    after += sum(of for step, of in steps.items() if step not in BEFORE_AND_IN_FIT)
    of_fit = steps["train"] / record["epochs"] * EPOCHS_COMPARED_WITH
    return found | {
        "steps": steps,
        "start_and_report_seconds": rest,
        "report_seconds": of_report - of_record,
        "epochs": record["epochs"],
        "clusters": record["clusters"],
        "held_out_loss": record["held_out_loss_per_cell"],
        "after_the_fit_seconds": after,
        "after_the_fit_to_ten_epochs": after / of_fit,
    }


def report(place: Place) -> Result:
    folder = require(place, "run")
    found = command(place, "report", folder, "-o", place / "report.html")
    page = pages.open_report(
        place / "report.html", place.screenshots / f"{place.folder.name}_report.png"
    )
    return _without_complaints(found | page)


def explore(place: Place) -> Result:
    folder = require(place, "run")
    found = pages.explore(folder, place.screenshots, f"{place.folder.name}_explore")
    if found["status"] != 0:
        raise FailedError(f"explore ended with status {found['status']}")
    waited = ("start_seconds", "open_seconds", "gate_seconds", "comparison_seconds")
    return _without_complaints(found | {"seconds": sum(found[name] for name in waited)})


def _without_complaints(found: Result) -> Result:
    if found["console_errors"]:
        raise FailedError(f"the page complained: {found['console_errors'][0]}")
    return found | {"console_errors": 0}


def map_new(place: Place) -> Result:
    folder = require(place, "run")
    return _and_removed(place, "mapped", "map", folder, place / "new.h5ad")


def impute(place: Place) -> Result:
    return _and_removed(
        place,
        "imputed",
        "impute",
        place / "cells.h5mu",
        place / "new.h5ad",
        "--epochs",
        place.epochs,
    )


def denoise(place: Place) -> Result:
    return _and_removed(place, "denoised.h5mu", "denoise", require(place, "run"))


def differences(place: Place) -> Result:
    return _and_removed(place, "differences.csv", "de", require(place, "run"))


def _and_removed(place: Place, name: str, *arguments: object) -> Result:
    """Run a command whose output nothing else needs."""
    output = place / name
    found = command(place, *arguments, "-o", output, "--overwrite")
    files = [output] if output.is_file() else [path for path in output.rglob("*") if path.is_file()]
    found["output_mb"] = sum(path.stat().st_size for path in files) / 1e6
    output.unlink() if output.is_file() else shutil.rmtree(output)
    return found


def resume(place: Place) -> Result:
    """Kill a run once its fit is kept, and go on with it."""
    folder, checkpoint = place / "resumed", place / "resumed.checkpoint"
    _forget(folder, checkpoint)
    every = 0 if json.loads((place / "size.json").read_text())["counts_mb"] < 10 else 0.02
    words = [
        "run", place / "cells.h5mu", "-o", folder, "--batch", "batch", "--epochs", place.epochs,
        "--checkpoint-every", every,
    ]  # fmt: skip
    killed = _kill_when(place, list(map(str, words)), checkpoint)
    if not checkpoint.exists() or (folder / "run.json").exists():
        raise FailedError("the run could not be killed while it was fitting")
    found = command(place, *words, "--resume")
    record = json.loads((folder / "run.json").read_text())
    other = place / "run" / "run.json"
    if other.exists():
        whole = json.loads(other.read_text())
        same_epochs = whole["epochs_asked"] == place.epochs
        if same_epochs and whole["held_out_loss_per_cell"] != record["held_out_loss_per_cell"]:
            raise FailedError("the resumed run ended with another loss than the one not killed")
    _forget(folder, checkpoint)
    return found | {"killed_after_seconds": killed}


def _kill_when(place: Place, words: list[str], appears: Path) -> float:
    """Start a command, and kill it once a file is there; return the seconds until then."""
    started = time.perf_counter()
    process = _start(place, words)
    while not appears.exists() and process.poll() is None:
        if time.perf_counter() - started > place.timeout:
            break
        time.sleep(0.005)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return time.perf_counter() - started


def _forget(folder: Path, checkpoint: Path) -> None:
    checkpoint.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


COMMANDS: dict[str, Callable[[Place], Result]] = {
    "check": check,
    "convert": convert,
    "run": run,
    "run_on_disk": run_on_disk,
    "report": report,
    "explore": explore,
    "map": map_new,
    "impute": impute,
    "denoise": denoise,
    "de": differences,
    "resume": resume,
}


def measure(name: str, place: Place) -> Result:
    """Return what a command did, or how it failed."""
    try:
        return {"passed": True, **COMMANDS[name](place)}
    except Exception as error:  # whatever goes wrong is the result
        return {"passed": False, "error": f"{type(error).__name__}: {error}".split("\n")[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, nargs="+", default=list(CELLS))
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=list(COMMANDS))
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()) / "totalvi-sizes"
    )
    parser.add_argument("--screenshots", type=Path, help="default: in the folder")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "sizes.json")
    parser.add_argument("--timeout", type=float, default=3600, help="seconds for a command")
    parser.add_argument("--make", type=int, help="only simulate so many cells into the folder")
    given = parser.parse_args()
    # A shell starts background jobs deaf to Ctrl-C, and their children would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if given.make is not None:
        make_data(given.folder, given.make)
        return
    screenshots = given.screenshots or given.folder / "screenshots"
    screenshots.mkdir(parents=True, exist_ok=True)
    results = json.loads(given.output.read_text()) if given.output.exists() else {"sizes": {}}
    for n_cells in given.cells:
        place = Place(given.folder / str(n_cells), given.epochs, screenshots, given.timeout)
        if not (place / "size.json").exists():
            place.folder.mkdir(parents=True, exist_ok=True)
            words = ["--folder", str(place.folder), "--make", str(n_cells)]
            subprocess.run([sys.executable, "-W", "ignore", __file__, *words], check=True)
        size = results["sizes"].setdefault(str(n_cells), {"commands": {}})
        size |= json.loads((place / "size.json").read_text())
        for name in given.commands:
            found = {"epochs_asked": given.epochs, **measure(name, place)}
            size["commands"][name] = found
            print(row(n_cells, name, found, size), flush=True)
            results["machine"] = {
                "python": platform.python_version(),
                "processors": os.cpu_count(),
                "processor": platform.machine(),
            }
            given.output.parent.mkdir(parents=True, exist_ok=True)
            given.output.write_text(json.dumps(results, indent=1) + "\n")
            given.output.with_suffix(".md").write_text(table(results, DATA, list(COMMANDS)))


if __name__ == "__main__":
    main()
