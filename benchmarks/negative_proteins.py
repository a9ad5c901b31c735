"""Measure whether proteins that no cell carries are told to be background, by penalty of foreground.

    python benchmarks/negative_proteins.py --seeds 5 --penalties 0 0.01 0.02 0.03 0.05

Each seed simulates 1,500 cells with 400 genes, 14 proteins and 6 proteins without foreground, which the
model is not told of. The table gives the largest mean foreground probability of one of the six (the
truth is 0) over the seeds, and the log-loss of the foreground of the others, whose truth is known.
"paper" is the objective of the totalVI paper: no penalty, and one sample of the background.
Results go to benchmarks/results/negative_proteins.json and negative_proteins.md.
"""

import argparse
import json
import platform
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

import totalvi

RESULTS = Path(__file__).resolve().parent / "results"
N_NEGATIVE = 6


def measure(seed: int, name: str, options: dict[str, Any]) -> dict[str, Any]:
    """Fit a simulation, and judge the foreground probability of its proteins."""
    mdata = totalvi.simulate(
        n_cells=1500, n_genes=400, n_proteins=20, n_cell_types=5,
        n_isotype_controls=N_NEGATIVE, seed=seed,
    )  # fmt: skip
    model = totalvi.Model(mdata, isotype_controls=(), seed=seed, **options)
    model.train(max_epochs=120, progress=False)
    found = model.get_protein_foreground_probability(n_samples=10, progress=False)
    negative = found.columns.str.startswith("isotype")
    truth = np.asarray(mdata["prot"].layers["foreground"]).astype(bool)[:, ~negative]
    probability = found.loc[:, ~negative].to_numpy(np.float64).clip(1e-6, 1 - 1e-6)
    row = {
        "objective": name,
        "seed": seed,
        "foreground_of_negative": found.loc[:, negative].mean().round(4).tolist(),
        "log_loss_of_others": float(-np.log(np.where(truth, probability, 1 - probability)).mean()),
        "held_out_elbo": model.get_elbo(
            indices=model.split.validation, integrate_background=False, progress=False
        ),
    }
    print(json.dumps(row), flush=True)
    return row


def table(rows: list[dict[str, Any]], n_seeds: int) -> str:
    """Return the figures of each objective over the seeds, as Markdown."""
    lines = [
        f"Foreground of {N_NEGATIVE} proteins that no cell carries, in {n_seeds} simulations of 1,500",
        "cells, and log-loss of the foreground of the 14 others (mean and standard deviation over",
        "seeds). Numbers are of the foreground probability given the cell's own count.",
        "",
        "| penalty | mean foreground probability of the six | largest of one | above .10 | log-loss |",
        "|---|---|---|---|---|",
    ]
    for name, of_name in pd.DataFrame(rows).groupby("objective", sort=False):
        negative = np.concatenate(of_name["foreground_of_negative"].to_list())
        loss = of_name["log_loss_of_others"]
        lines.append(
            f"| {name} | {negative.mean():.3f} | {negative.max():.3f} | {(negative > 0.1).sum()} of "
            f"{negative.size} | {loss.mean():.4f} ({loss.std():.4f}) |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--penalties", type=float, nargs="+", default=[0, 0.01, 0.02, 0.03, 0.05])
    given = parser.parse_args()
    warnings.simplefilter("ignore", FutureWarning)
    objectives = {f"{of:g}": {"foreground_penalty": of} for of in given.penalties}
    objectives["paper"] = {"foreground_penalty": 0.0, "background_samples": 1}
    rows = [
        measure(seed, name, options)
        for name, options in objectives.items()
        for seed in range(1, given.seeds + 1)
    ]
    machine = {"python": platform.python_version(), "torch": torch.__version__}
    RESULTS.mkdir(exist_ok=True)
    kept = json.dumps({"machine": machine, "fits": rows}, indent=1)
    (RESULTS / "negative_proteins.json").write_text(kept + "\n", encoding="utf-8")
    text = table(rows, given.seeds)
    (RESULTS / "negative_proteins.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
