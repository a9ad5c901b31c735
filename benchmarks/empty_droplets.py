"""Measure how empty droplets improve the estimated background, on cells with a simulated background.

``python benchmarks/empty_droplets.py`` writes ``benchmarks/results/empty_droplets.json`` and ``.md``.

The error of a protein is ``|log mean_n E[beta_nt] - log mean_n beta_nt|``, for its background mean
over cells. The error of a cell and protein is ``|log E[beta_nt] - log beta_nt|``. Its floor is the
error of an estimate from each protein's distribution alone, without the cell.
"""

import json
from pathlib import Path

import numpy as np
import torch

import totalvi

RESULTS = Path(__file__).parent / "results"
SEEDS = (0, 1, 2)
CELLS = {"n_cells": 1000, "n_genes": 200, "n_proteins": 20}
CASES = {
    "hard: 8 of 20 proteins on every cell type, foreground tenfold": {
        "n_ubiquitous": 8,
        "median_foreground_factor": 10.0,
    },
    "easy: each protein has negative cell types, foreground thirtyfold": {},
}
EPOCHS = 100


def background_errors(case: dict, seed: int, with_droplets: bool) -> dict[str, float]:
    """Fit to simulated cells, with or without their empty droplets; compare with the truth."""
    mdata = totalvi.simulate(**CELLS, **case, seed=seed)
    raw = totalvi.simulate_raw(mdata, n_empty=2000, seed=seed) if with_droplets else False
    model = totalvi.Model(mdata, n_hidden=64, seed=seed, empty_droplets=raw)
    model.train(max_epochs=EPOCHS, progress=False)
    names = list(model.schema.protein_names)
    estimate = model.get_protein_background_mean(
        n_samples=10, given_counts=False, return_numpy=True, progress=False
    )
    truth = mdata["prot"][:, names].layers["background_mean"]
    by_protein = np.abs(np.log(estimate.mean(axis=0) / truth.mean(axis=0)))
    by_cell = np.abs(np.log(estimate / truth))
    return {
        "protein_error": float(by_protein.mean()),
        "worst_protein_error": float(by_protein.max()),
        "cell_error": float(by_cell.mean()),
        "floor": float(np.abs(np.log(truth) - np.log(truth).mean(axis=0)).mean()),
        "held_out_loss": float(model.history["validation_loss"].min()),
    }


def main() -> None:
    """Measure all cases and write the results."""
    torch.set_num_threads(1)
    found = {
        name: [
            {
                label: background_errors(case, seed, with_droplets)
                for label, with_droplets in (("without", False), ("with", True))
            }
            for seed in SEEDS
        ]
        for name, case in CASES.items()
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "empty_droplets.json").write_text(json.dumps(found, indent=1) + "\n")
    (RESULTS / "empty_droplets.md").write_text(as_text(found))
    print(as_text(found))


def as_text(found: dict) -> str:
    """Return the results as a page."""
    lines = [
        "# Background from empty droplets",
        "",
        f"`python benchmarks/empty_droplets.py`: {CELLS['n_cells']:,} simulated cells, "
        f"{CELLS['n_proteins']} proteins (2 isotype controls, excluded from the model), 2,000 empty "
        "droplets with 0.4 of a cell's background and a deviation of 0.1 between proteins, and debris "
        f"and blank barcodes; {EPOCHS} epochs. The errors are those of the log background mean: of a "
        "protein (over cells), and of a cell and protein. The floor of the second is the variation "
        "of a cell's background.",
        "",
    ]
    for name, runs in found.items():
        lines += [
            f"## {name[0].upper()}{name[1:]}",
            "",
            "| seed | droplets | protein error | worst protein | cell error | floor | held-out loss |",
            "|---|---|---|---|---|---|---|",
        ]
        for seed, run in zip(SEEDS, runs, strict=True):
            for label, row in run.items():
                cells = [f"{value:.3f}" for value in list(row.values())[:4]]
                lines.append(
                    f"| {seed} | {label} | {' | '.join(cells)} | {row['held_out_loss']:.1f} |"
                )
        sums = {
            label: sum(run[label]["protein_error"] for run in runs) for label in ("without", "with")
        }
        ratio = sums["with"] / sums["without"]
        said = f"Protein error with droplets, divided by the error without: {ratio:.2f}."
        lines += ["", said, ""]
    return "\n".join(lines[:-1]) + "\n"


if __name__ == "__main__":
    main()
