"""Time what people wait for in the explorer, on a run of 100,000 simulated cells.

    python benchmarks/explore.py [--cells 100000] [--folder DIR]

A run's folder is made in DIR unless it is there: a model that is trained for one epoch, since the time
of a query does not depend on the fit. "gate" is the whole answer on the server: membership, counts, the
images of both plots, and the messages to the page. "compare" is the first comparison, whose counts and
model are loaded, and one after it.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
from bokeh.document import Document

from totalvi.analysis.run import run
from totalvi.data.simulate import simulate
from totalvi.explore.app import Explorer
from totalvi.explore.serve import open_workspace


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=100_000)
    parser.add_argument("--genes", type=int, default=2_000)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/totalvi-explore-benchmark"))
    given = parser.parse_args()
    if not given.folder.exists():
        data = simulate(n_cells=given.cells, n_genes=given.genes, n_proteins=30, seed=0)
        run(data, given.folder, max_epochs=1)
    workspace = open_workspace(given.folder)
    page = Explorer(Document(), workspace)
    seconds: dict[str, list[float]] = {"gate": [], "compare": []}
    page.compare = lambda: None  # type: ignore[method-assign]  # timed by itself, below
    angle = np.linspace(0, 2 * np.pi, 200, endpoint=False)
    for size in (0.5, 1.0, 2.0, 3.0):
        for plot in page.plots:
            middle = [float(np.median(side)) for side in plot.places]
            corners = np.c_[middle[0] + size * np.cos(angle), middle[1] + size * np.sin(angle)]
            started = time.perf_counter()
            page.gate_drawn(plot, "lasso", tuple(map(tuple, corners.tolist())))
            seconds["gate"].append(time.perf_counter() - started)
    inside = page._inside[page.history.now.names[-1]]
    for _ in range(2):
        started = time.perf_counter()
        compared = workspace.comparer.compare(inside, ~inside)
        seconds["compare"].append(time.perf_counter() - started)
    workspace.executor.shutdown()
    print(compared.sentence())
    result = {"cells": workspace.cells.n_cells, "seconds": seconds}
    print(json.dumps(result, indent=1))
    print(f"a gate takes {max(seconds['gate']):.2f} s at most, a comparison {seconds['compare']}")


if __name__ == "__main__":
    main()
