"""Measure the cost of a fit by cell, gene, count, protein, weight and process; check the formula.

    python benchmarks/costs.py            # some 6 minutes, on a machine that does nothing else
    python benchmarks/costs.py --quick    # a few sizes only

The script times training steps of a grid of sizes with one thread. It fits this formula to the
seconds of a step, by non-negative least squares of relative errors:

    step = a + b cells + c cells x genes + d non-zero counts + e cells x proteins + f weights

The grid leaves out the sizes of the check, whose times the formula then predicts. Further rows
measure a second thread, and compare processes that share each minibatch with one process, with the
bytes that each sends per step. Results go to benchmarks/results/costs.json and costs.md.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

HERE = Path(__file__).resolve().parent
TERMS = ("step", "cell", "cell x gene", "non-zero count", "cell x protein", "weight")


class Size(NamedTuple):
    """Of a fit: genes, share of RNA counts that are not zero, proteins, cells in a minibatch."""

    genes: int
    density: float
    proteins: int
    cells: int


GRID = [
    Size(genes, density, proteins, cells)
    for genes in (1000, 2000, 4000, 8000)
    for density in (0.05, 0.15)
    for proteins, cells in ((10, 128), (30, 256), (150, 512), (150, 128))
]
CHECK = [
    Size(3000, 0.1, 60, 256),
    Size(4000, 0.09, 30, 256),
    Size(6000, 0.08, 200, 256),
    Size(4000, 0.09, 30, 1024),
]


def simulated(size: Size, n_cells: int) -> Any:
    """Return counts of this size, without structure: time does not depend on it."""
    from anndata import AnnData
    from mudata import MuData
    from scipy import sparse

    rng = np.random.default_rng(0)
    per_cell = round(size.genes * size.density)
    gene = np.concatenate(
        [np.sort(rng.choice(size.genes, per_cell, replace=False)) for _ in range(n_cells)]
    )
    counts = rng.geometric(0.6, gene.size).astype(np.float32)
    pointer = np.arange(n_cells + 1) * per_cell
    rna = sparse.csr_matrix((counts, gene, pointer), shape=(n_cells, size.genes))
    protein = rng.negative_binomial(1, 0.02, (n_cells, size.proteins)).astype(np.float32)
    return MuData({"rna": AnnData(rna), "prot": AnnData(protein)})


def step_seconds(size: Size, threads: int) -> dict[str, float]:
    """Return the median time of a training step, its minibatch made within it, and the weights."""
    import torch

    import totalvi
    from totalvi.fit.batches import minibatches
    from totalvi.fit.device import resolved_plan, wide_products
    from totalvi.fit.loop import Fit
    from totalvi.fit.plan import Split, TrainingPlan
    from totalvi.processes import launch

    torch.set_num_threads(threads)
    n_cells = 6 * size.cells
    model = totalvi.Model(simulated(size, n_cells))
    module = model.module.train()
    fabric = launch("cpu")
    plan = TrainingPlan(max_epochs=100, batch_size=size.cells)
    plan = resolved_plan(plan, module, fabric.device)
    cells, nobody = np.arange(n_cells), np.arange(0)
    split, seed = Split(cells, nobody, nobody), np.random.SeedSequence(0)
    fit = Fit(module, model._training_data(), split, plan, fabric, seed)
    ends, order = [], np.random.default_rng(0)
    with wide_products(module, plan.precision):
        for _ in range(6):
            for batch in minibatches(model._training_data(), module, cells, size.cells, order):
                fit.step(batch)
                ends.append(time.perf_counter())
    weights = sum(parameter.numel() for parameter in module.parameters())
    return {"seconds": statistics.median(np.diff(ends)[6:]), "weights": weights}


def work(size: Size, weights: float) -> list[float]:
    """Return how much there is of each of `TERMS` in a step."""
    by_gene = size.cells * size.genes
    return [1, size.cells, by_gene, by_gene * size.density, size.cells * size.proteins, weights]


def explained(rows: list[tuple[Size, float, float]]) -> np.ndarray:
    """Return seconds of each term, by non-negative least squares of relative errors."""
    from scipy.optimize import nnls

    amounts = np.array([work(size, weights) for size, _, weights in rows])
    seconds = np.array([seconds for _, seconds, _ in rows])
    relative = amounts / seconds[:, None]
    scale = relative.max(axis=0)
    found = nnls(relative / scale, np.ones(len(rows)))[0]
    return np.asarray(found / scale)


def processes_seconds(n_processes: int, size: Size, folder: Path) -> float:
    """Return seconds of an epoch of a fit that processes of one thread share, the better of two."""
    script = folder / "fit.py"
    script.write_text(
        "import sys, time\n"
        f"sys.path.insert(0, {str(HERE)!r})\n"
        "import costs, totalvi\n"
        "from totalvi.processes import this_process\n"
        f"data = costs.simulated(costs.Size(*{tuple(size)!r}), 20 * {size.cells})\n"
        "model = totalvi.Model(data)\n"
        f"model.train(3, batch_size={size.cells}, train_size=0.95, accelerator='cpu',\n"
        "            progress=False, early_stopping=False)\n"
        "if this_process().rank == 0:\n"
        "    print('seconds', model.history['seconds'].iloc[1:].min())\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(n_processes), str(script)]
    done = subprocess.run(
        command, check=True, capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"},
    )  # fmt: skip
    line = next(line for line in done.stdout.splitlines() if line.startswith("seconds"))
    return float(line.split()[1])


def in_own_process(size: Size, threads: int) -> dict[str, float]:
    command = [sys.executable, "-W", "ignore", __file__, "--one", json.dumps([*size, threads])]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(size, threads, found, flush=True)
    return found


def measured(quick: bool) -> dict[str, Any]:
    grid = GRID[:: 5 if quick else 1]
    rows = []
    for size in grid:
        found = in_own_process(size, 1)
        rows.append((size, found["seconds"], found["weights"]))
    seconds = explained(rows)
    errors = [np.dot(work(size, w), seconds) / s - 1 for size, s, w in rows]
    check = []
    for size in CHECK:
        found = in_own_process(size, 1)
        two = in_own_process(size, 2)["seconds"]
        predicted = float(np.dot(work(size, found["weights"]), seconds))
        check.append(
            {**size._asdict(), "measured": found["seconds"], "predicted": predicted, "two": two}
        )
    shared = []
    with tempfile.TemporaryDirectory() as folder:
        for size in (CHECK[1], CHECK[3]):
            one, two = (processes_seconds(n, size, Path(folder)) for n in (1, 2))
            shared.append({**size._asdict(), "one": one, "two": two})
    return {
        "seconds": dict(zip(TERMS, seconds.tolist(), strict=True)),
        "grid": [{**size._asdict(), "measured": s, "weights": w} for size, s, w in rows],
        "median_error": float(np.median(np.abs(errors))),
        "largest_error": float(np.max(np.abs(errors))),
        "check": check,
        "processes": shared,
        "processors": os.cpu_count(),
    }


def table(found: dict[str, Any]) -> list[str]:
    lines = ["| part of a step | seconds, one thread |", "|---|---|"]
    lines += [f"| {term} | {value:.2e} |" for term, value in found["seconds"].items()]
    lines += [
        "",
        f"The error over the grid is {100 * found['median_error']:.0f} % in the median, "
        f"{100 * found['largest_error']:.0f} % at most.",
        "",
        "| genes | density | proteins | cells a step | measured, ms | predicted | two threads |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['genes']} | {row['density']} | {row['proteins']} | {row['cells']} | "
        f"{1e3 * row['measured']:.1f} | {1e3 * row['predicted']:.1f} | {1e3 * row['two']:.1f} |"
        for row in found["check"]
    ]
    lines += [
        "",
        "| cells a step | one process, s an epoch | two processes | speed |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {row['cells']} | {row['one']:.2f} | {row['two']:.2f} | {row['one'] / row['two']:.2f} |"
        for row in found["processes"]
    ]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "costs.json")
    parser.add_argument("--one", help="time one size in this process")
    arguments = parser.parse_args()
    if arguments.one is not None:
        *size, threads = json.loads(arguments.one)
        print(json.dumps(step_seconds(Size(*size), threads)))
        return
    found = measured(arguments.quick)
    arguments.output.write_text(json.dumps(found, indent=1) + "\n")
    arguments.output.with_suffix(".md").write_text("\n".join(table(found)) + "\n")
    print("\n".join(table(found)))


if __name__ == "__main__":
    main()
