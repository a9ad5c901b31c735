"""Measure differential expression against simulated truth: false discoveries, power, effect sizes.

    python benchmarks/differential_truth.py --simulations 20

Each simulation has its own fit, and compares each of its cell types with all other cells. The true
effect is that of the groups' mean expression by the parameters of the simulation, with the
pseudocounts of the table. A call is false if the true effect is below delta. Power is the share of
true effects of 2-fold or more that are called. The slope is that of estimated on true effects.
Results go to benchmarks/results/differential_truth.json and differential_truth.md.
"""

import argparse
import time
import warnings
from typing import Any

import numpy as np
import pandas as pd
from mudata import MuData

import totalvi
from result_files import write_results
from totalvi.posterior.differential.differential_tables import expected_fdr_calls

UNITS = ("groups", "cells")


def true_means(mdata: MuData) -> dict[str, pd.DataFrame]:
    """Return each cell's true mean expression by modality, free of the draw of its counts.

    RNA: the proportions. Proteins: the foreground probability of the cell's type, times its
    background mean, times the foreground factor of the type.
    """
    rna, protein = mdata["rna"], mdata["prot"]
    of_type = protein.varm["foreground_probability"] * protein.varm["foreground_factor"]
    foreground = of_type.T[mdata.obs["cell_type"].cat.codes] * protein.layers["background_mean"]
    return {
        "rna": pd.DataFrame(rna.layers["denoised"], columns=rna.var_names, dtype=float),
        "protein": pd.DataFrame(foreground, columns=protein.var_names, dtype=float),
    }


def true_effects(mdata: MuData, table: pd.DataFrame) -> np.ndarray:
    """Return the true effect of each row of a table of cell types against the rest."""
    group = mdata.obs["cell_type"].astype(str).to_numpy()
    means = true_means(mdata)
    truth = np.full(len(table), np.nan)
    rows_of = table.reset_index().groupby(["group1", "modality"], observed=True)
    for (first, modality), rows in rows_of:
        inside = group == first
        levels = [means[modality][cells].mean()[rows["feature"]] for cells in (inside, ~inside)]
        c = rows["pseudocounts"].to_numpy()
        truth[rows.index] = np.log2(levels[0] + c) - np.log2(levels[1] + c)
    return truth


def judge(table: pd.DataFrame, truth: np.ndarray) -> dict[str, float]:
    """Return realised false discovery rate, power at 2-fold, slope, and numbers of calls."""
    # the table of pairs of cells calls nothing: this is what such calls would be worth
    called = np.concatenate(
        [
            expected_fdr_calls(rows["proba_not_de"].to_numpy(), 0.05)
            for _, rows in table.groupby("comparison", observed=True, sort=False)
        ]
    )
    false, large = np.abs(truth) < table["delta"].to_numpy(), np.abs(truth) >= 1
    return {
        "false_discovery_rate": float((called & false).sum() / max(called.sum(), 1)),
        "power": float((called & large).sum() / large.sum()),
        "slope": float(np.polyfit(truth, table["lfc_mean"], 1)[0]),
        "called": int(called.sum()),
    }


def measure(seed: int) -> list[dict[str, Any]]:
    print(f"simulation {seed}", flush=True)
    mdata = totalvi.simulate(n_cells=1500, n_genes=400, n_proteins=15, n_cell_types=5, seed=seed)
    model = totalvi.Model(mdata, isotype_controls=())
    model.train(max_epochs=120, progress=False)
    rows = []
    for unit in UNITS:
        table = model.differential_expression(groupby="cell_type", unit=unit, progress=False)
        truth = true_effects(mdata, table)
        for modality in ("both", "rna", "protein"):
            some = (table["modality"] == modality).to_numpy() | (modality == "both")
            rows.append(
                {
                    "seed": seed,
                    "unit": unit,
                    "modality": modality,
                    **judge(table[some], truth[some]),
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--simulations", type=int, default=20)
    n_simulations = parser.parse_args().simulations
    started = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        rows = [row for seed in range(1, n_simulations + 1) for row in measure(seed)]
    figures = ["false_discovery_rate", "power", "slope", "called"]
    means = pd.DataFrame(rows).groupby(["unit", "modality"], sort=False)[figures].mean()
    lines = [
        f"Means over {n_simulations} simulations of 1500 cells, 400 genes and 15 proteins; each of 5",
        "cell types against the rest, delta 0.25, expected false discovery rate 5 %.",
        "",
        "| compared | features | realised FDR | power at 2-fold | slope of effects | calls |",
        "|---|---|---|---|---|---|",
    ]
    for (unit, modality), row in means.iterrows():  # type: ignore[misc]
        lines.append(
            f"| {unit} | {modality} | {row['false_discovery_rate']:.3f} | {row['power']:.3f} | "
            f"{row['slope']:.3f} | {row['called']:.0f} |"
        )
    write_results("differential_truth", {"simulations": rows}, lines, started)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
