"""Measure what a protein's own count adds to its denoised value, foreground and background.

    python benchmarks/given_counts.py --seeds 3 --data pbmc10k.h5mu --models some/folder

Each seed simulates 1,500 cells with 400 genes and 15 proteins, whose truth is known. With ``--data`` a
model is fitted to half of the protein molecules of each cell, drawn at random, and predicts the other
half in the cells that the fit held out. Values are given the cell's state z alone, and given z and the
count; raw counts are beside them. ``--models`` keeps the fitted models, and takes those that are there.
Results go to benchmarks/results/given_counts.json and given_counts.md.
"""

import argparse
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mudata import MuData

import totalvi

RESULTS = Path(__file__).resolve().parent / "results"
N_SAMPLES = 10
ASKED: dict[str, Any] = {"n_samples": N_SAMPLES, "return_numpy": True, "progress": False}


def fitted(data: MuData, kept: Path | None, seed: int, **training: Any) -> totalvi.Model:
    """Return a model of the data: the one kept at a path, or a new one."""
    if kept is not None and kept.exists():
        return totalvi.Model.load(kept, data)
    model = totalvi.Model(data, seed=seed, isotype_controls=())
    model.train(progress=False, **training)
    if kept is not None:
        model.save(kept)
    return model


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Return the mean over columns of Pearson's correlation."""
    return float(np.mean([np.corrcoef(x, y)[0, 1] for x, y in zip(a.T, b.T, strict=True)]))


def simulated(seed: int, folder: Path | None) -> list[dict[str, Any]]:
    """Return a row for raw counts and for each kind of value, against simulated truth."""
    data = totalvi.simulate(n_cells=1500, n_genes=400, n_proteins=15, n_cell_types=5, seed=seed)
    kept = None if folder is None else folder / f"simulated_{seed}.totalvi"
    model = fitted(data, kept, seed, max_epochs=120)
    protein = data["prot"]
    truth = np.asarray(protein.layers["foreground"]).astype(bool)
    both = truth.any(axis=0) & ~truth.all(axis=0)
    truth, level = truth[:, both], np.log(protein.layers["background_mean"][:, both])
    denoised_truth = np.log1p(protein.layers["denoised"][:, both])

    def row(what: str, denoised: np.ndarray) -> dict[str, Any]:
        log = np.log1p(denoised)
        within = [
            np.corrcoef(log[of, j], denoised_truth[of, j])[0, 1] for j, of in enumerate(truth.T)
        ]
        return {
            "seed": seed,
            "values": what,
            "denoised_r": correlation(log, denoised_truth),
            "denoised_r_foreground_cells": float(np.mean(within)),
            "denoised_error": float(np.abs(log - denoised_truth).mean()),
        }

    rows = [row("raw counts", np.asarray(protein.X)[:, both])]
    for what, given in (("given z", False), ("given z and the count", True)):
        asked = ASKED | {"given_counts": given}
        probability = model.get_protein_foreground_probability(**asked)[:, both]
        background = np.log(model.get_protein_background_mean(**asked)[:, both])
        _, denoised = model.get_normalized_expression(gene_list=[], **asked)
        bounded = probability.astype(float).clip(1e-7, 1 - 1e-7)
        rows.append(
            row(what, denoised[:, both])
            | {
                "wrong_percent": 100 * float(np.mean((probability > 0.5) != truth)),
                "log_loss": float(-np.log(np.where(truth, bounded, 1 - bounded)).mean()),
                "background_r": correlation(background, level),
            }
        )
    return rows


def halves(path: Path, folder: Path | None) -> list[dict[str, Any]]:
    """Return a row for each way to predict half of the protein molecules from the others."""
    data = totalvi.read(path)
    whole = data["prot"].to_df()
    half = pd.DataFrame(
        np.random.default_rng(0).binomial(whole.astype(int), 0.5), whole.index, whole.columns
    )
    data["prot"].X = half.to_numpy(np.float32)
    kept = None if folder is None else folder / f"half_{path.stem}.totalvi"
    model = fitted(data, kept, 0, max_epochs=35, lr=2.4e-2)
    cells, names = model.split.validation, list(model.schema.protein_names)
    seen, other = half[names].to_numpy()[cells], (whole - half)[names].to_numpy()[cells]
    predictions = {"raw counts": seen}
    for what, given in (("given z", False), ("given z and the count", True)):
        predictions[what] = model.get_normalized_expression(
            indices=cells, gene_list=[], include_protein_background=True, given_counts=given,
            **ASKED,
        )[1]  # fmt: skip
    return [
        {
            "values": what,
            "r": correlation(np.log1p(predicted), np.log1p(other)),
            "rmse": float(np.sqrt(np.mean((np.log1p(predicted) - np.log1p(other)) ** 2))),
            "mae": float(np.abs(predicted - other).mean()),
        }
        for what, predicted in predictions.items()
    ]


def markdown(rows: list[dict[str, Any]]) -> str:
    """Return rows as a table of Markdown."""
    frame = pd.DataFrame(rows)
    lines = ["| " + " | ".join(map(str, frame)) + " |", "|" + "---|" * frame.shape[1]]
    for row in frame.itertuples(index=False):
        cells = ["" if x != x else f"{x:.3g}" if isinstance(x, float) else str(x) for x in row]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data", type=Path, help="MuData file; without it, simulations alone")
    parser.add_argument("--models", type=Path, help="folder that keeps the fitted models")
    given = parser.parse_args()
    warnings.simplefilter("ignore", FutureWarning)
    found = {"simulated": [r for s in range(given.seeds) for r in simulated(s, given.models)]}
    text = (
        "1,500 simulated cells with 15 proteins, against the truth: Pearson's r of log(1 + denoised)\n"
        "and its mean absolute error, per cent of calls at 1/2 that are wrong, log-loss of the\n"
        "foreground, and r of the cell's log background.\n\n" + markdown(found["simulated"])
    )
    if given.data is not None:
        found["halves"] = halves(given.data, given.models)
        text += (
            f"\n{given.data.name}: half of the protein molecules predicts the other half, in cells\n"
            "that the fit held out; r and RMSE of log(1 + count), and mean absolute error.\n\n"
            + markdown(found["halves"])
        )
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "given_counts.json").write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    (RESULTS / "given_counts.md").write_text(text, "utf-8")
    print(text)


if __name__ == "__main__":
    main()
