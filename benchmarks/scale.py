"""Measure training and queries of data on disk, against the same in memory.

    python benchmarks/scale.py                          # all rows, 1,000,000 cells: about an hour
    python benchmarks/scale.py --cells 100000           # all rows, smaller
    python benchmarks/scale.py --only reader epoch      # some rows; others are kept

Separate processes measure each row:

- data: simulate cells directly to a zarr store, unless it exists.
- reader: only read the windows of an epoch.
- epoch: seconds of an epoch on disk, and in memory with all data read; the better of two, in turns.
- fit: `Model(path).train()` with its defaults, then latent states and denoised proteins (1 sample) to
  zarr; peak memory of each.
- quality: held-out loss of a fit on disk and of one in memory, to the same 100,000 cells with the
  same split, seed, epochs and steps. Windows and blocks are smaller, so that the 100,000 cells have
  as many of them as all cells have. These cells are therefore mixed no better than all cells. There
  are two orders: that of the file, and by cell type and batch, the worst order for windows.
- growth: seconds per cell of an epoch on disk, and peak memory, at growing numbers of cells.

Results go to benchmarks/results/scale.json and scale.md. Needs 3 GB of disk for a million cells, and
for "epoch" the memory for all of them (8 GB).
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
N_CELLS, N_GENES, N_PROTEINS = 1_000_000, 4000, 30
SUBSET = 100_000
LIBRARY_SIZE = 740.0  # median RNA count: makes 9 % of the counts non-zero
ROWS = ("reader", "epoch", "fit", "quality", "growth")
Result = dict[str, Any]


def peak_mb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def store(folder: Path, n_cells: int) -> Path:
    return folder / f"cells_{n_cells}.zarr"


# ---------------------------------------------------------------- what a process of its own does


def simulate(folder: Path, n_cells: int) -> Result:
    from totalvi.data.simulate import simulate_to_zarr

    started = time.perf_counter()
    simulate_to_zarr(
        store(folder, n_cells), n_cells, N_GENES, N_PROTEINS, n_batches=2, n_cell_types=8,
        median_library_size=LIBRARY_SIZE,
    )  # fmt: skip
    return {"seconds": time.perf_counter() - started, "peak_mb": peak_mb()}


def cut(folder: Path, n_cells: int, of: int) -> Result:
    """Write the first cells to a store of their own."""
    import numpy as np

    from totalvi.data.columns import Columns
    from totalvi.data.find import find_counts
    from totalvi.data.io.h5_zarr import open_on_disk
    from totalvi.run.convert import write_source

    data = open_on_disk(store(folder, of))
    source = find_counts(data, Columns(), on_disk=True)
    write_source(store(folder, n_cells), source, data, Columns(), cells=np.arange(of) < n_cells)
    return {}


def reader(folder: Path, n_cells: int) -> Result:
    import numpy as np

    from totalvi.data.columns import Columns
    from totalvi.data.counts import read_ahead
    from totalvi.data.find import find_counts
    from totalvi.data.io.h5_zarr import open_on_disk
    from totalvi.fit.batches import shuffled_windows

    path = store(folder, n_cells)
    source = find_counts(open_on_disk(path), Columns(), on_disk=True)
    rng = np.random.default_rng(0)
    cells = np.sort(rng.permutation(n_cells)[: round(0.9 * n_cells)])
    windows = shuffled_windows(cells, 256, rng)
    rows = [np.sort(np.concatenate(window)) for window in windows]
    n_bytes = 0
    started, cpu = time.perf_counter(), cpu_seconds()
    for rna, protein in read_ahead(
        lambda some: (source.rna.rows(some), source.protein.rows(some)), rows
    ):
        n_bytes += rna.data.nbytes + rna.indices.nbytes + protein.nbytes
    seconds, cpu = time.perf_counter() - started, cpu_seconds() - cpu
    on_disk = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return {
        "seconds": seconds,
        "us_per_cell": 1e6 * seconds / len(cells),
        "cpu_us_per_cell": 1e6 * cpu / len(cells),
        "bytes_per_cell_on_disk": on_disk / n_cells,
        "bytes_per_cell": n_bytes / len(cells),
        "windows": len(windows),
        "peak_mb": peak_mb(),
    }


def one_epoch(folder: Path, n_cells: int, place: str) -> Result:
    """Time the second of two epochs, with its validation."""
    import numpy as np

    import totalvi
    from totalvi.fit.device import resolved_plan
    from totalvi.fit.loop import Fit
    from totalvi.fit.plan import TrainingPlan, fewer_validate, random_split
    from totalvi.processes import launch

    path = store(folder, n_cells)
    model = totalvi.Model(path if place == "disk" else totalvi.read(path), batch_key="batch")
    described_mb = peak_mb()
    rng = np.random.default_rng(0)
    split = fewer_validate(random_split(n_cells, 0.9, None, rng), rng)
    warm_up = split._replace(train=split.train[:3000], validation=split.validation[:300])
    fabric = launch("cpu")
    plan = resolved_plan(TrainingPlan(max_epochs=1), model.module, fabric.device)
    fitted = model.module, model._data
    Fit(*fitted, warm_up, plan, fabric, np.random.SeedSequence(0)).run()
    started: list[float] = []
    row = {}

    def on_epoch(_: int, of_epoch: dict[str, float]) -> None:
        row.update(of_epoch)

    started.append(time.perf_counter())
    cpu = cpu_seconds()
    Fit(*fitted, split, plan, fabric, np.random.SeedSequence(1), on_epoch).run()
    return {
        "seconds": row["seconds"],
        "cpu_seconds": cpu_seconds() - cpu,
        "us_per_cell": 1e6 * row["seconds"] / len(split.train),
        "validation_loss": row["validation_loss"],
        "described_mb": described_mb,
        "peak_mb": peak_mb(),
    }


def whole_fit(folder: Path, n_cells: int) -> Result:
    import totalvi

    path = store(folder, n_cells)
    started = time.perf_counter()
    model = totalvi.Model(path, batch_key="batch")
    described = time.perf_counter() - started
    started = time.perf_counter()
    model.train(accelerator="cpu", progress=False)
    trained = time.perf_counter() - started
    result = {
        "describe_seconds": described,
        "fit_seconds": trained,
        "epochs": len(model.history),
        "validation_loss": float(model.history["validation_loss"].min()),
        "fit_peak_mb": peak_mb(),
    }
    with tempfile.TemporaryDirectory(dir=folder) as out:
        started = time.perf_counter()
        model.get_latent_representation(out=Path(out) / "latent.zarr", progress=False)
        result["latent_seconds"] = time.perf_counter() - started
        started = time.perf_counter()
        model.get_normalized_expression(
            gene_list=[], out=Path(out) / "denoised.zarr", progress=False
        )
        result["proteins_seconds"] = time.perf_counter() - started
    return {**result, "peak_mb": peak_mb()}


def quality(folder: Path, n_cells: int, place: str, order: str, whole: int) -> Result:
    """Fit 100,000 cells, on disk with windows as coarse as those of the whole data."""
    import numpy as np
    from mudata import MuData

    import totalvi
    import totalvi.fit.batches
    from totalvi.fit import batches as orders

    path = store(folder, n_cells)
    if order == "sorted":
        path = folder / f"sorted_{n_cells}.zarr"
        if not path.exists():
            mdata = totalvi.read(store(folder, n_cells))
            rank = np.lexsort((mdata.obs["batch"], mdata.obs["cell_type"]))
            parts = {name: mdata[name][rank].copy() for name in ("rna", "prot")}
            again = MuData(parts)
            again.obs = mdata.obs.iloc[rank]
            file = folder / "sorted.h5mu"
            again.write(file)
            from totalvi.run.convert import convert_counts

            convert_counts(file, path)
            file.unlink()
    if place == "disk":
        coarse = n_cells / whole
        totalvi.fit.batches.shuffled_windows = partial(  # type: ignore[attr-defined]
            orders.shuffled_windows,
            window=round(orders.WINDOW * coarse),
            block=max(1, round(orders.BLOCK * coarse)),
        )
    data = path if place == "disk" else totalvi.read(path)
    model = totalvi.Model(data, batch_key="batch")
    model.train(accelerator="cpu", progress=False)
    losses = model.history["validation_loss"]
    return {"validation_loss": float(losses.min()), "epochs": len(losses)}


# ------------------------------------------------------------------------------------- the rows


def in_own_process(function: str, *arguments: object) -> Result:
    command = [sys.executable, "-W", "ignore", __file__, "--one", function]
    command += [str(argument) for argument in arguments]
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True,
        env={"GOMP_SPINCOUNT": "2000", **os.environ},  # as of the commands
    )  # fmt: skip
    line = done.stdout.splitlines()[-1]
    print(function, *arguments[1:], line, flush=True)
    return json.loads(line)


def require_store(folder: Path, n_cells: int, whole: int) -> None:
    if store(folder, n_cells).exists():
        return
    if n_cells == whole:
        in_own_process("simulate", folder, n_cells)
    else:
        in_own_process("cut", folder, n_cells, whole)


def row_reader(folder: Path, n_cells: int) -> Result:
    return in_own_process("reader", folder, n_cells)


def row_epoch(folder: Path, n_cells: int) -> Result:
    runs: dict[str, list[Result]] = {"disk": [], "memory": []}
    for _ in range(2):
        for place, of_place in runs.items():
            of_place.append(in_own_process("one_epoch", folder, n_cells, place))
    disk, memory = (min(of, key=lambda run: run["seconds"]) for of in runs.values())
    return {
        "disk": disk,
        "memory": memory,
        "rate": memory["seconds"] / disk["seconds"],
        "rates": [b["seconds"] / a["seconds"] for a, b in zip(*runs.values(), strict=True)],
    }


def row_fit(folder: Path, n_cells: int) -> Result:
    return in_own_process("whole_fit", folder, n_cells)


def row_quality(folder: Path, n_cells: int) -> Result:
    subset = min(SUBSET, n_cells)
    require_store(folder, subset, n_cells)
    result: Result = {"cells": subset}
    for order in ("file", "sorted"):
        memory, disk = (
            in_own_process("quality", folder, subset, place, order, max(n_cells, N_CELLS))
            for place in ("memory", "disk")
        )
        excess = disk["validation_loss"] / memory["validation_loss"] - 1
        result[order] = {"memory": memory, "disk": disk, "excess_percent": 100 * excess}
    return result


def row_growth(folder: Path, n_cells: int) -> Result:
    sizes = [n for n in (10_000, 100_000, 500_000) if n < n_cells] + [n_cells]
    runs = []
    for n in sizes:
        require_store(folder, n, n_cells)
        runs.append({"cells": n, **in_own_process("one_epoch", folder, n, "disk")})
    per_cell = [run["us_per_cell"] for run in runs]
    return {"runs": runs, "largest_over_smallest_time": max(per_cell) / min(per_cell)}


MEASURES: dict[str, Callable[[Path, int], Result]] = {
    "reader": row_reader,
    "epoch": row_epoch,
    "fit": row_fit,
    "quality": row_quality,
    "growth": row_growth,
}


def table(results: Result) -> list[str]:
    lines = ["| what | measured |", "|---|---|"]
    cells = f"{results['cells']:,} cells"

    def line(what: str, measured: str) -> None:
        lines.append(f"| {what} | {measured} |")

    if row := results.get("reader"):
        line(
            f"reader alone, {cells}",
            f"{row['us_per_cell']:.1f} us a cell ({row['cpu_us_per_cell']:.1f} of processor time), "
            f"{row['bytes_per_cell_on_disk']:,.0f} bytes a cell on disk, "
            f"{row['bytes_per_cell']:,.0f} in memory",
        )
    if row := results.get("epoch"):
        line(
            f"an epoch, {cells}",
            f"on disk {row['disk']['seconds']:.1f} s, in memory {row['memory']['seconds']:.1f} s: "
            f"{100 * row['rate']:.0f} % of the rate; peak memory {row['disk']['peak_mb']:,.0f} MB, "
            f"in memory {row['memory']['peak_mb']:,.0f} MB",
        )
    if row := results.get("fit"):
        line(
            f"whole fit on disk, {cells}",
            f"{row['epochs']} epochs in {row['fit_seconds']:,.0f} s, after "
            f"{row['describe_seconds']:.0f} s of checks; held-out loss {row['validation_loss']:.2f}; "
            f"peak memory {row['fit_peak_mb']:,.0f} MB",
        )
        line(
            f"queries to zarr, {cells}",
            f"latent states {row['latent_seconds']:.0f} s, denoised proteins "
            f"{row['proteins_seconds']:.0f} s; peak memory {row['peak_mb']:,.0f} MB",
        )
    if row := results.get("quality"):
        for order in ("file", "sorted"):
            of = row[order]
            line(
                f"held-out loss, {row['cells']:,} cells, "
                + ("sorted by cell type" if order == "sorted" else "order of the file"),
                f"on disk {of['disk']['validation_loss']:.2f}, in memory "
                f"{of['memory']['validation_loss']:.2f}: {of['excess_percent']:+.2f} %",
            )
    if row := results.get("growth"):
        for run in row["runs"]:
            line(
                f"growth: {run['cells']:,} cells on disk",
                f"{run['us_per_cell']:.1f} us a cell and epoch, peak memory {run['peak_mb']:,.0f} MB",
            )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=N_CELLS)
    parser.add_argument("--only", nargs="+", choices=ROWS, default=ROWS)
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()) / "totalvi-scale"
    )
    parser.add_argument("--output", type=Path, default=HERE / "results" / "scale.json")
    parser.add_argument("--one", nargs="+", help="function to run in here, and its arguments")
    arguments = parser.parse_args()
    if arguments.one is not None:
        function, folder, *rest = arguments.one
        values = [int(value) if value.isdigit() else value for value in rest]
        print(json.dumps(globals()[function](Path(folder), *values)))
        return
    arguments.folder.mkdir(parents=True, exist_ok=True)
    require_store(arguments.folder, arguments.cells, arguments.cells)
    path = arguments.output
    results = json.loads(path.read_text()) if path.exists() else {}
    if results.get("cells") != arguments.cells:
        results = {"cells": arguments.cells, "genes": N_GENES, "proteins": N_PROTEINS}
    for row in arguments.only:
        results[row] = MEASURES[row](arguments.folder, arguments.cells)
        results["machine"] = {
            "python": platform.python_version(),
            "processors": os.cpu_count(),
            "processor": platform.machine(),
        }
        path.write_text(json.dumps(results, indent=1) + "\n")
        path.with_suffix(".md").write_text("\n".join(table(results)) + "\n")
    print("\n".join(table(results)))


if __name__ == "__main__":
    main()
