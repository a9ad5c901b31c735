"""Measure how much memory queries add, each in a separate process.

    python benchmarks/memory.py --data pbmc10k.h5mu
    python benchmarks/memory.py --only disk

- memory: denoised expression of the data with 100 posterior samples, as data frames. The result is
  the rise of the peak memory of the process during the query, as a multiple of the size of its
  result.
- disk: denoised expression of 500,000 simulated cells with 1,000 genes, 5 % of whose counts are above
  zero, to a zarr store, by a small model fitted to 2,000 of them. The result is the peak memory of the
  process during the query, including the counts.

The fits are short, because memory depends on the sizes and not on the weights. A first query of a
few cells loads and compiles the code that all queries share. Results go to
benchmarks/results/memory.json and memory.md.
"""

import argparse
import json
import multiprocessing
import platform
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy import sparse

import totalvi

HERE = Path(__file__).resolve().parent
DATA = HERE.parents[1] / "shared" / "data" / "pbmc10k.h5mu"
N_CELLS, N_GENES, N_PROTEINS, DENSITY = 500_000, 1000, 20, 0.05
CELLS_PER_BLOCK = 20_000


def resident() -> int:
    """Return the bytes of memory that this process holds, without pages of files that it maps."""
    status = Path("/proc/self/status").read_text()
    lines = dict(line.split(":", 1) for line in status.splitlines())
    return int(lines["RssAnon"].split()[0]) * 1024


@contextmanager
def peak() -> Iterator[dict[str, int]]:
    """Watch what this process holds, every 5 ms: ``before`` and at most, as ``peak``."""
    held = {"before": resident(), "peak": resident()}
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            held["peak"] = max(held["peak"], resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield held
    finally:
        done.set()
        watcher.join()


def in_memory(path: Path, n_samples: int) -> dict[str, float]:
    model = totalvi.Model(totalvi.read(path))
    model.train(max_epochs=1, progress=False)
    model.get_normalized_expression(indices=range(100), progress=False)
    started = time.perf_counter()
    with peak() as held:
        rna, protein = model.get_normalized_expression(n_samples=n_samples, progress=False)
    answer = rna.to_numpy().nbytes + protein.to_numpy().nbytes
    added = held["peak"] - held["before"]
    return {
        "cells": len(rna),
        "features": rna.shape[1] + protein.shape[1],
        "samples": n_samples,
        "answer_bytes": answer,
        "added_bytes": added,
        "times_the_answer": added / answer,
        "seconds": time.perf_counter() - started,
    }


def simulated(n_cells: int, seed: int = 0) -> AnnData:
    """Counts of 5 % of the genes a cell, at random, made in blocks of cells."""
    rng = np.random.default_rng(seed)
    per_cell = round(DENSITY * N_GENES)
    gene = np.empty((n_cells, per_cell), dtype=np.int32)
    for start in range(0, n_cells, CELLS_PER_BLOCK):
        rows = gene[start : start + CELLS_PER_BLOCK]
        # one gene from each of as many stretches of genes, so that none comes twice
        rows[:] = rng.integers(0, N_GENES // per_cell, rows.shape) + np.arange(
            0, N_GENES, N_GENES // per_cell
        )
    counts = rng.geometric(0.5, gene.size).astype(np.float32)
    pointer = np.arange(0, gene.size + 1, per_cell, dtype=np.int32)
    rna = sparse.csr_matrix((counts, gene.ravel(), pointer), shape=(n_cells, N_GENES))
    protein = rng.negative_binomial(2, 0.1, (n_cells, N_PROTEINS)).astype(np.float32)
    adata = AnnData(rna, obs=pd.DataFrame(index=[f"cell_{i}" for i in range(n_cells)]))
    adata.var_names = [f"gene_{i}" for i in range(N_GENES)]
    adata.obsm["protein"] = pd.DataFrame(
        protein, index=adata.obs_names, columns=[f"protein_{i}" for i in range(N_PROTEINS)]
    )
    return adata


def to_disk(n_cells: int) -> dict[str, float]:
    model = totalvi.Model(simulated(2000, seed=1), protein_expression_obsm_key="protein")
    model.train(max_epochs=1, progress=False)
    model.get_normalized_expression(indices=range(100), progress=False)
    cells = simulated(n_cells)
    data = cells.X.data.nbytes + cells.X.indices.nbytes + cells.obsm["protein"].to_numpy().nbytes
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, peak() as held:
        out = model.get_normalized_expression(cells, out=Path(folder) / "denoised", progress=False)
        written = sum(file.stat().st_size for file in Path(out).rglob("*"))
    return {
        "cells": n_cells,
        "features": N_GENES + N_PROTEINS,
        "samples": 1,
        "data_bytes": data,
        "written_bytes": written,
        "before_bytes": held["before"],
        "added_bytes": held["peak"] - held["before"],
        "peak_bytes": held["peak"],
        "seconds": time.perf_counter() - started,
    }


def apart(measure: Callable[..., dict[str, float]], *arguments: object) -> dict[str, float]:
    """Return what ``measure`` gives in a process of its own."""
    print(measure.__name__, flush=True)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, arguments)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument(
        "--only", choices=["memory", "disk"], help="one of the two; the other's stays"
    )
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--cells", type=int, default=N_CELLS, help="simulated")
    arguments = parser.parse_args()
    path = HERE / "results" / "memory.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    if arguments.only != "disk":
        if not arguments.data.exists():
            parser.error(f"{arguments.data} does not exist; give a CITE-seq file with --data")
        results["memory"] = {
            "data": arguments.data.stem, **apart(in_memory, arguments.data, arguments.samples)
        }  # fmt: skip
    if arguments.only != "memory":
        results["disk"] = {"data": "simulated", **apart(to_disk, arguments.cells)}
    results["machine"] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "processor": platform.machine(),
    }
    path.write_text(json.dumps(results, indent=1) + "\n")
    table = ["| query | answer | what it added | peak of the process |", "|---|---|---|---|"]
    if "memory" in results:
        row = results["memory"]
        table.append(
            f"| {row['data']}, {row['cells']:,} cells x {row['features']:,} features, "
            f"{row['samples']} samples, in memory | {row['answer_bytes'] / 2**20:.0f} MiB | "
            f"{row['added_bytes'] / 2**20:.0f} MiB, {row['times_the_answer']:.2f} times | |"
        )
    if "disk" in results:
        row = results["disk"]
        table.append(
            f"| {row['cells']:,} simulated cells x {row['features']:,} features, to zarr | "
            f"{row['written_bytes'] / 2**20:.0f} MiB | {row['added_bytes'] / 2**20:.0f} MiB | "
            f"{row['peak_bytes'] / 2**20:.0f} MiB, of which {row['before_bytes'] / 2**20:.0f} before |"
        )
    (HERE / "results" / "memory.md").write_text("\n".join(table) + "\n")
    print("\n".join(table))


if __name__ == "__main__":
    main()
