"""Measure how proteins of a query are predicted that has other cells than its reference.

    python benchmarks/sorted_queries.py [--seeds 3] [--cells 3000]

The query is a random third of PBMC10k or of bone marrow, or four fifths of the B cells, monocytes or
CD8 T cells of PBMC10k (by their counts of CD19, CD14, and CD3 and CD8a), with RNA alone. The reference
is the rest. Ways to predict the proteins:

- *mapped*: the query is mapped on a fit of the reference, which `totalvi impute` does: `impute_query`;
- *mapped, model alone*: `impute_proteins` of the mapped query, without regression and neighbours;
- *fitted together*: `impute_proteins` of one fit of both, in which the query is a batch;
- *ridge*: regression on 50 components of log-normalised RNA, centred over all cells.

Results go to benchmarks/results/sorted_queries.json and .md.
"""

import argparse
import time
import warnings
from typing import Any

import numpy as np
import pandas as pd
from mudata import MuData

import totalvi
from field import DATA, Hidden, columns_r, simple
from field_page import spread
from result_files import write_results

SETS = ("random third", "B cells", "monocytes", "CD8 T cells", "bone marrow, random third")
LEAST = {
    "B cells": {"CD19": 100},
    "monocytes": {"CD14": 200},
    "CD8 T cells": {"CD3": 200, "CD8a": 200},
}
COLUMNS = {"rmse": 3, "r": 3, "per cell": 3, "coverage": 3, "mean off": 3}


def cells_of(name: str, seed: int, n_cells: int) -> tuple[MuData, np.ndarray]:
    """Return a data set, and which of its cells are the query."""
    file = "bmmc_134proteins.h5mu" if name.startswith("bone") else "pbmc10k.h5mu"
    data = totalvi.read(DATA / file)
    rng = np.random.default_rng(seed)
    if name in LEAST:
        counts = data["prot"].to_df()
        columns = {column.split("_")[0]: column for column in counts}
        of_kind = np.ones(data.n_obs, dtype=bool)
        for protein, least in LEAST[name].items():
            of_kind &= (counts[columns[protein]] > least).to_numpy()
        is_query = of_kind & (rng.random(data.n_obs) < 0.8)
    else:
        is_query = rng.random(data.n_obs) < 1 / 3
    reference = rng.permutation(np.flatnonzero(~is_query))[:n_cells]
    query = rng.permutation(np.flatnonzero(is_query))[: n_cells // 3]
    kept = np.sort(np.concatenate([reference, query]))
    return data[kept].copy(), is_query[kept]


def scores(found: Any, truth: np.ndarray) -> dict[str, float]:
    """Return how well counts are predicted: errors, correlations, and what the intervals hold."""
    log1p, logs = found.log1p.to_numpy(np.float64), np.log1p(truth)
    inside = (truth >= found.lower.to_numpy()) & (truth <= found.upper.to_numpy())
    off = np.abs(np.log(found.mean.to_numpy(np.float64).mean(axis=0) / truth.mean(axis=0)))
    both = {"coverage": float(inside.mean()), "mean off": float(off.mean())}
    return accuracy(log1p, logs) | both


def accuracy(log1p: np.ndarray, logs: np.ndarray) -> dict[str, float]:
    return {
        "rmse": float(np.sqrt(((log1p - logs) ** 2).mean())),
        "r": float(columns_r(log1p, logs).mean()),
        "per cell": float(columns_r(log1p.T, logs.T).mean()),
    }


def fitted(data: MuData, seed: int, **options: str) -> totalvi.Model:
    model = totalvi.Model(data, isotype_controls=[], seed=seed, **options)
    model.train(progress=False)
    return model


def measure(name: str, seed: int, n_cells: int) -> list[dict[str, Any]]:
    """Return a row for each way to predict the query."""
    data, is_query = cells_of(name, seed, n_cells)
    counts = data["prot"].to_df().to_numpy(np.float32)
    truth = counts[is_query]
    model = fitted(data[~is_query].copy(), seed)
    query = model.map_query(MuData({"rna": data["rna"][is_query].copy()}))
    found = {
        "mapped": scores(model.impute_query(query, progress=False), truth),
        "mapped, model alone": scores(
            query.impute_proteins(calibrated=False, progress=False), truth
        ),
    }
    shown = counts.copy()
    shown[is_query] = np.nan
    data["prot"].X = shown
    data.obs["panel"] = pd.Categorical(np.where(is_query, "query", "reference"))
    both = fitted(data, seed, batch_key="panel")
    imputed = both.impute_proteins(indices=is_query, progress=False)
    found["fitted together"] = scores(imputed, truth)
    by_ridge = simple(Hidden(data, counts, is_query))["ridge"][0]
    found["ridge"] = accuracy(by_ridge, np.log1p(truth))
    about = {"query": name, "seed": seed, "cells": len(truth)}
    return [{**about, "way": way, **values} for way, values in found.items()]


def page(rows: list[dict[str, Any]], given: argparse.Namespace) -> list[str]:
    """Return the lines of the page: means over seeds, and standard deviations."""
    table = pd.DataFrame(rows)
    lines = [
        "# Queries of other cells than the reference",
        "",
        f"`python benchmarks/sorted_queries.py --cells {given.cells} --seeds {given.seeds}`: means",
        f"over seeds ± their standard deviation, at most {given.cells:,} cells of a reference.",
        "Data and ways are in the docstring. rmse: of log(1 + count), of which r is Pearson's",
        "correlation over cells, the mean of all proteins; per cell: over proteins; coverage: of",
        "intervals of 90 %; mean off: of the mean count of a protein over all cells, the absolute log",
        "of its ratio to the one measured.",
        "",
        "| query | way | " + " | ".join(COLUMNS) + " |",
        "|---|---|" + "---|" * len(COLUMNS),
    ]
    for (query, way), some in table.groupby(["query", "way"], sort=False):
        cells = [spread(list(some[name]), digits) for name, digits in COLUMNS.items()]
        lines.append(f"| {query} | {way} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cells", type=int, default=3000)
    given = parser.parse_args()
    started = time.process_time()
    rows = []
    with warnings.catch_warnings(action="ignore"):
        for seed in range(given.seeds):
            for name in given.sets:
                rows += measure(name, seed, given.cells)
                print("\n".join(page(rows, given)[-4:]), flush=True)
    write_results("sorted_queries", {"rows": rows}, page(rows, given), started)


if __name__ == "__main__":
    main()
