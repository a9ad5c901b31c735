"""Measure how the cost of a cell grows with the number of cells, and with that of genes.

    python benchmarks/speed/growth.py --cells 2000 200000

Each size has a separate process. Counts are as sparse as real ones: cells are drawn, with
repetition, from 2,000 that `totalvi.simulate` made. The table has the times of an epoch with its
validation, of the latent states, and of denoised expression (5 samples) written to a zarr store.
Memory is the peak of the process minus the counts, which exist twice, as the user's and the model's
copy. It includes Python, libraries, compiled loops and results.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

CELLS = (2_000, 10_000, 50_000, 200_000)
GENES = (1_000, 4_000, 20_000)
GENES_AS_CELLS_GROW, CELLS_AS_GENES_GROW = 2_000, 5_000
_POOL, _BLOCK = 2_000, 10_000


def simulated(n_cells: int, n_genes: int) -> Any:
    """Return a MuData of which nothing was ever held twice."""
    import numpy as np
    import pandas as pd
    from anndata import AnnData
    from mudata import MuData
    from scipy import sparse

    import totalvi

    pool = totalvi.simulate(min(n_cells, _POOL), n_genes, store_truth=False)
    rna, protein = pool["rna"].X, pool["prot"].X
    rows = np.random.default_rng(0).integers(rna.shape[0], size=n_cells)
    indptr = np.zeros(n_cells + 1, dtype=rna.indptr.dtype)
    np.cumsum(np.diff(rna.indptr)[rows], out=indptr[1:])
    counts = np.empty(indptr[-1], dtype=np.float32)
    indices = np.empty(indptr[-1], dtype=rna.indices.dtype)
    for start in range(0, n_cells, _BLOCK):
        block = rna[rows[start : start + _BLOCK]]
        stop = min(start + _BLOCK, n_cells)
        counts[indptr[start] : indptr[stop]] = block.data
        indices[indptr[start] : indptr[stop]] = block.indices
    names = pd.DataFrame(index=[f"cell_{i}" for i in range(n_cells)])
    matrix = sparse.csr_matrix((counts, indices, indptr), shape=(n_cells, n_genes))
    modalities = {
        "rna": AnnData(matrix, obs=names, var=pool["rna"].var[[]]),
        "prot": AnnData(protein[rows], obs=names, var=pool["prot"].var[[]]),
    }
    return MuData(modalities)


def measure(n_cells: int, n_genes: int, threads: int) -> dict[str, float]:
    """Return microseconds a cell, and MB, of one size in this process."""
    import numpy as np
    import torch

    import totalvi
    from totalvi.fit.device import resolved_plan
    from totalvi.fit.loop import Fit
    from totalvi.fit.plan import TrainingPlan, random_split
    from totalvi.processes import launch

    torch.set_num_threads(threads)
    mdata = simulated(n_cells, n_genes)
    rna = mdata["rna"].X
    model = totalvi.Model(mdata)
    own = model._data
    parts = [mdata["prot"].X, own.protein.read()]
    parts += [part for m in (rna, own.rna.read()) for part in (m.data, m.indices, m.indptr)]
    data_mb = sum(part.nbytes for part in parts) / 2**20
    model.train(1, split=[range(300), range(300, 400), []], accelerator="cpu", progress=False)
    split = random_split(n_cells, 0.9, None, np.random.default_rng(0))
    ends: list[float] = []
    fabric = launch("cpu")
    plan = resolved_plan(TrainingPlan(max_epochs=2), model.module, fabric.device)
    Fit(
        model.module, model._data, split, plan, fabric, np.random.SeedSequence(0),
        on_epoch=lambda *_: ends.append(time.perf_counter()),
    ).run()  # fmt: skip
    repetitions = max(1, min(5, 50_000 // n_cells))
    latent = median_seconds(lambda _: model.get_latent_representation(), repetitions)
    with tempfile.TemporaryDirectory() as folder:
        denoised = median_seconds(
            lambda i: model.get_normalized_expression(n_samples=5, out=Path(folder) / f"{i}.zarr"),
            repetitions,
        )
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak_mb /= 2**20 if sys.platform == "darwin" else 2**10
    return {
        "cells": n_cells,
        "genes": n_genes,
        "epoch": 1e6 * (ends[1] - ends[0]) / n_cells,
        "latent": 1e6 * latent / n_cells,
        "denoised": 1e6 * denoised / n_cells,
        "data_mb": data_mb,
        "beyond_data_mb": peak_mb - data_mb,
    }


def median_seconds(function: Callable[[int], object], repetitions: int) -> float:
    seconds = []
    for repetition in range(repetitions):
        started = time.perf_counter()
        function(repetition)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def in_own_process(n_cells: int, n_genes: int, threads: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--one", str(n_cells), str(n_genes)]
    command += ["--threads", str(threads)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    print(done.stdout.splitlines()[-1], flush=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, nargs="+", default=CELLS)
    parser.add_argument("--genes", type=int, nargs="+", default=GENES)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--one", type=int, nargs=2, help="cells and genes to measure in here")
    arguments = parser.parse_args()
    if arguments.one is not None:
        print(json.dumps(measure(*arguments.one, arguments.threads)))
        return
    cells_grow = [(n_cells, GENES_AS_CELLS_GROW) for n_cells in arguments.cells]
    genes_grow = [(CELLS_AS_GENES_GROW, n_genes) for n_genes in arguments.genes]
    result = {
        name: [in_own_process(*size, arguments.threads) for size in sizes]
        for name, sizes in (("cells", cells_grow), ("genes", genes_grow))
    }
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
