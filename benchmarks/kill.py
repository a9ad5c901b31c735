"""Kill `totalvi run` and `Model.save` with SIGKILL at random moments, and check that nothing is lost.

Each victim is a separate process that runs the unchanged command line. It is forked from a process
that has loaded and compiled everything, so that a hundred of them take minutes and not hours. Each
fork gets its own copy of objects that it would share with its siblings. Otherwise, a victim that
dies with the lock of the progress bars, a semaphore between processes, would block all later ones.

After each kill, the checkpoint, the results and the model must each be complete, or absent as
before. Runs are killed and resumed several times, and then resumed to the end. Their weights,
history and latent space must then be those of an uninterrupted run.

``python benchmarks/kill.py --kills 100`` writes ``benchmarks/results/kill.md``, or fails on a loss.
"""

import argparse
import faulthandler
import gc
import hashlib
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

os.environ["NUMBA_THREADING_LAYER"] = "workqueue"  # the one that survives a fork
os.environ.setdefault("NUMBA_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import h5py
import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

import totalvi
from totalvi.atomic import standing_folder
from totalvi.cli.main import execute
from totalvi.fit.checkpoint import read_checkpoint
from totalvi.report.build import REPORT, build_report
from totalvi.run.after_fit import AFTER_FIT
from totalvi.run.pipeline import IN_THE_FILE

RESULTS = Path(__file__).parent / "results"
EPOCHS, SEED, OTHER_SEED = 6, 0, 1
STAGES = {"training": 0.45, "results": 0.25, "end": 0.15, "report": 0.15}  # shares of the kills
STUCK_AFTER_S = 600


class LossError(Exception):
    """Something that was there is not whole any more, or the numbers are others."""


def command(folder: Path, seed: int, *options: str) -> list[str]:
    return [
        "run", str(folder.parent / "cells.h5mu"), "-o", str(folder), "--epochs", str(EPOCHS),
        "--seed", str(seed), "--checkpoint-every", "0", *options,
    ]  # fmt: skip


def start(work: Callable[[], int]) -> int:
    """Do ``work`` in a process of its own, in silence; return its number."""
    gc.freeze()  # or the child may hang in what its collector does to threads of the parent
    process = os.fork()
    if process:
        return process
    tqdm.set_lock(threading.RLock())
    faulthandler.dump_traceback_later(STUCK_AFTER_S, exit=True, file=os.fdopen(os.dup(2), "w"))
    silence = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(silence, stream)
    os._exit(work())


def finished(process: int) -> int | None:
    """Return the exit status if there is one."""
    done, status = os.waitpid(process, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if done else None


def kill_run(folder: Path, stage: str, seconds: dict[str, float], rng: np.random.Generator) -> str:
    """Start or resume a run and kill it; return where it was, or "" if it was done before."""
    partial = folder.with_name(f".{folder.name}.partial")
    marker = {
        "training": partial,
        "results": partial / "tables",
        "end": partial / "run.json",
        "report": folder / "run.json",
    }[stage]
    shutil.rmtree(partial, ignore_errors=True)  # so that the marker is of this process
    before = identity(marker)
    process = start(lambda: execute(command(folder, SEED, "--resume", "--overwrite")))
    while identity(marker) in (None, before):
        status = finished(process)
        if status is not None:
            if status != 0:
                raise LossError(f"a resumed run ended with status {status}")
            return ""
        time.sleep(0.0005)
    time.sleep(rng.uniform(0, seconds[stage]))
    os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    if os.waitstatus_to_exitcode(status) == 0:
        return ""
    if folder.with_name(f".{folder.name}.checkpoint.partial").exists():
        return "a checkpoint was being written"
    if (partial / "run.json").exists():
        return "results being flushed to disk or put in place"
    if partial.exists():
        return "results being written" if any(partial.iterdir()) else "training"
    if folder.with_name(f"{folder.name}.checkpoint").exists():
        return "results in place, checkpoint being removed"
    return "results in place, report being made"


def identity(path: Path) -> int | None:
    """Return what tells a file from one that takes its place."""
    try:
        return path.stat().st_ino
    except OSError:
        return None


def numbers(folder: Path) -> dict[str, object]:
    """Return what tells one run's numbers from another's; every file must be readable."""
    record = json.loads((folder / "run.json").read_text())
    report = folder / REPORT  # made after the folder is in place
    if report.exists() and not report.read_text().rstrip().endswith("</html>"):
        raise LossError("the report is not whole")
    model = totalvi.Model.load(folder / "model.totalvi")
    weights = b"".join(t.numpy().tobytes() for t in model.module.state_dict().values())
    with h5py.File(folder / "results.h5mu") as file:
        latent = file["mod/rna/obsm/X_totalvi"][:].tobytes()
        for group in ("mod/rna/layers/denoised", "mod/prot/layers/foreground_probability"):
            file[group][:]
    history = model.history.drop(columns="seconds")
    tables = [pd.read_csv(path) for path in sorted((folder / "tables").iterdir())]
    return {
        "weights": hashlib.sha256(weights).hexdigest(),
        "latent": hashlib.sha256(latent).hexdigest(),
        "history": history.to_json(),
        "tables": [len(table) for table in tables],
        "files": sorted(
            p.relative_to(folder).as_posix() for p in folder.rglob("*") if REPORT not in p.name
        ),
        "seed": record["arguments"]["seed"],
    }


def require_whole(folder: Path, known: list[dict[str, object]], had_checkpoint: bool) -> bool:
    """Raise LossError unless what is there is whole; return whether there is a checkpoint."""
    checkpoint = folder.with_name(f"{folder.name}.checkpoint")
    if checkpoint.exists():
        read_checkpoint(checkpoint)
    place = standing_folder(folder)
    there = numbers(place) if place.exists() else None
    if there is not None and there not in known:
        raise LossError(f"{folder} holds neither the old nor the new results")
    done = there is not None and there["seed"] == SEED
    if had_checkpoint and not checkpoint.exists() and not done:
        raise LossError("the checkpoint is gone, and the results are not there")
    return checkpoint.exists()


def kill_runs(place: Path, n_kills: int, rng: np.random.Generator, counts: Counter[str]) -> int:
    """Kill runs until there were so many; return how many were resumed to the end."""
    new, old = place / "new", place / "old"
    for folder, seed in ((old, OTHER_SEED), (new, SEED)):  # the first also compiles
        if execute(command(folder, seed)) != 0:
            raise SystemExit("the uninterrupted run failed")
    known = [numbers(new), numbers(old)]
    took = json.loads((new / "run.json").read_text())["seconds"]
    began = time.monotonic()
    build_report(new)
    seconds = {
        "training": took["train"],
        "results": sum(took[step.name] for step in AFTER_FIT if step.name not in IN_THE_FILE),
        "end": 0.1,
        "report": time.monotonic() - began,
    }
    n_completed, killed = 0, 0
    while killed < n_kills:
        folder = place / f"run{n_completed}"
        if rng.random() < 0.5:
            shutil.copytree(old, folder)
        had_checkpoint = False
        for _ in range(rng.integers(1, 6)):
            stage = str(rng.choice(list(STAGES), p=list(STAGES.values())))
            where = kill_run(folder, stage, seconds, rng)
            had_checkpoint = require_whole(folder, known, had_checkpoint)
            if not where:
                break
            counts[where] += 1
            killed += 1
            if killed == n_kills:
                break
        process = start(lambda: execute(command(folder, SEED, "--resume", "--overwrite")))  # noqa: B023
        _, status = os.waitpid(process, 0)
        if os.waitstatus_to_exitcode(status) != 0:
            raise LossError(f"a resumed run ended with status {os.waitstatus_to_exitcode(status)}")
        if not (folder / REPORT).exists() or list(folder.glob(".*")):
            raise LossError("a finished run has no report, or left something")
        if numbers(folder) != known[0]:
            raise LossError("a resumed run has other numbers than the uninterrupted one")
        beside = {path.name for path in place.glob(f"*{folder.name}*")} - {folder.name}
        if any(name.endswith((".partial", ".previous", ".checkpoint")) for name in beside):
            raise LossError(f"a finished run left {beside}")
        shutil.rmtree(folder)
        n_completed += 1
        print(f"{killed} killed, {n_completed} resumed to the end", file=sys.stderr, flush=True)
    return n_completed


def kill_saves(place: Path, n_kills: int, rng: np.random.Generator) -> None:
    """Kill a process that replaces one model by another all the time."""
    data = totalvi.simulate(n_cells=60, n_genes=30, n_proteins=5, seed=1)
    models = []
    for seed in (0, 1):
        model = totalvi.Model(data, n_hidden=64, n_latent=4, seed=seed)
        model.train(max_epochs=1)
        models.append(model)
    states = [model.module.state_dict() for model in models]
    folder = models[0].save(place / "m.totalvi")

    def save_again_and_again() -> int:
        while True:
            for model in models:
                model.save(folder, overwrite=True)

    for _ in range(n_kills):
        process = start(save_again_and_again)
        time.sleep(rng.uniform(0.02, 0.3))
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        found = totalvi.Model.load(folder).module.state_dict()
        if not any(all(torch.equal(found[n], s[n]) for n in s) for s in states):
            raise LossError("the model is neither of the two")
    models[0].save(folder, overwrite=True)
    if len(list(place.glob(".m.totalvi.*"))):
        raise LossError("a save left something beside the model")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-report", action="store_true", help="leave kill.md as it is")
    options = parser.parse_args()
    tqdm.monitor_interval = 0  # its thread would not be there after a fork
    rng, counts, started = np.random.default_rng(options.seed), Counter[str](), time.monotonic()
    n_saves = max(1, options.kills // 4)
    with tempfile.TemporaryDirectory(prefix=".kill-", dir=Path.cwd()) as name:
        place = Path(name)
        totalvi.simulate(n_cells=200, n_genes=60, n_proteins=6, seed=3).write(place / "cells.h5mu")
        n_completed = kill_runs(place, options.kills - n_saves, rng, counts)
        kill_saves(place, n_saves, rng)
    counts["a model being saved over another"] = n_saves
    lines = [
        "# Killed with SIGKILL",
        "",
        f"`python benchmarks/kill.py --kills {options.kills} --seed {options.seed}`, totalvi "
        f"{totalvi.__version__}, {time.monotonic() - started:.0f} s on {os.cpu_count()} cores. "
        "After each kill, the checkpoint and the results were complete, or absent as before. "
        f"{n_completed} runs, killed up to 5 times each, were resumed to the end. They had a report, "
        "and the weights, history and latent space of an uninterrupted run, bit for bit.",
        "",
        "| killed while | times | losses |",
        "|---|---|---|",
        *(f"| {where} | {count} | 0 |" for where, count in sorted(counts.items())),
        f"| **all** | **{counts.total()}** | **0** |",
        "",
    ]
    print("\n".join(lines))
    if not options.no_report:
        (RESULTS / "kill.md").write_text("\n".join(lines))


if __name__ == "__main__":
    main()
