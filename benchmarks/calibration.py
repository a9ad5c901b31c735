"""Measure how often intervals of counts hold the count, of cells that neither trained nor calibrated.

    python benchmarks/calibration.py --seeds 0 1 2 --models some/folder

Data: PBMC10k, BMMC, and simulations of 1,200 and 2,500 cells, drawn from the model's family and outside
of it. Of real data 80 % of the cells train, 10 % validate and 10 % report; of simulations 2,000
further cells report. Half of the validation cells calibrate. Coverage breaks ties at random, so that
it equals its level for small counts too; see `totalvi.posterior.predictive_checks.PredictiveCheck`.
Standard errors are over six parts of the cells that report. RNA is checked in some 400 genes. The
intervals of the same fit without calibration are beside them. ``--models`` keeps the fitted models, and
takes those that are there. Results go to benchmarks/results/calibration.json and calibration.md, beside
those of other data and seeds that are there.
"""

import argparse
import json
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from mudata import MuData

import totalvi
from totalvi.fit.model_state import seed_of_calibration
from totalvi.posterior.calibration import LEVELS, calibrate_fit

HERE = Path(__file__).resolve().parent
DATA = HERE.parents[1] / "shared" / "data"
N_REPORTING, N_GENES, N_FOLDS = 2000, 400, 6
KINDS = (
    "pbmc10k",
    "bmmc_134proteins",
    "family_1200",
    "family_2500",
    "outside_1200",
    "outside_2500",
)


def outside_family(n_cells: int, seed: int) -> MuData:
    """Return simulated cells whose proteins are not as the model has them.

    Foreground folds are a third of those of `totalvi.simulate` and vary from cell to cell of a type
    (log sd 0.4). Backgrounds share a factor of each cell (log sd 0.3). A staining level of each cell
    (log sd 0.3) multiplies all its proteins.
    """
    data = totalvi.simulate(
        n_cells=n_cells, n_proteins=20, median_foreground_factor=10.0, batch_effect=0.2, seed=seed
    )
    protein, rng = data["prot"], np.random.default_rng([seed, 1])
    background = protein.layers["background_mean"].astype(float)
    fold = np.where(
        protein.layers["foreground"] == 1, protein.layers["denoised"] / background, 1.0
    ) * np.exp(rng.normal(0, 0.4, background.shape) * (protein.layers["foreground"] == 1))
    shared = rng.normal(0, 0.3, (n_cells, 1)) * rng.uniform(0.5, 1.5, background.shape[1])
    staining = rng.normal(0, 0.3, (n_cells, 1))
    mean = background * np.maximum(fold, 1.0) * np.exp(shared + staining)
    r = protein.var["inverse_dispersion"].to_numpy()
    protein.X = rng.poisson(rng.gamma(r, mean / r)).astype(np.float32)
    return data


def data_and_split(
    kind: str, seed: int, data_folder: Path
) -> tuple[MuData, dict[str, Any], dict[str, Any]]:
    """Return the data, and the arguments of model and fit."""
    if not kind.startswith(("family", "outside")):
        data = totalvi.read(data_folder / f"{kind}.h5mu")
        keys = {"batch_key": "batch"} if kind.startswith("bmmc") else {}
        return data, keys, {"train_size": 0.8, "validation_size": 0.1}
    n_cells = int(kind.rpartition("_")[2])
    if kind.startswith("family"):
        data = totalvi.simulate(n_cells=n_cells + N_REPORTING, n_proteins=20, seed=seed)
    else:
        data = outside_family(n_cells + N_REPORTING, seed)
    order = np.random.default_rng(seed).permutation(n_cells)
    n_train = round(0.9 * n_cells)
    split = [order[:n_train], order[n_train:], np.arange(n_cells, n_cells + N_REPORTING)]
    return data, {}, {"split": [np.sort(part) for part in split]}


def fitted(kind: str, seed: int, folder: Path | None, data_folder: Path) -> totalvi.Model:
    """Return the model, fitted or loaded."""
    data, keys, training = data_and_split(kind, seed, data_folder)
    kept = None if folder is None else folder / f"{kind}_{seed}.totalvi"
    if kept is not None and kept.exists():
        return totalvi.Model.load(kept, data)
    model = totalvi.Model(data, seed=seed, **keys)
    model.train(progress=False, **training)
    if kept is not None:
        model.save(kept)
    return model


def coverage(model: totalvi.Model, cells: np.ndarray) -> dict[str, dict[str, list[float]]]:
    """Return the coverage of each modality at each level, and its standard error."""
    genes = list(model.schema.gene_names[:: max(len(model.schema.gene_names) // N_GENES, 1)])
    folds = np.array_split(np.random.default_rng(0).permutation(cells), N_FOLDS)
    checks = [
        model.posterior_predictive_check(
            indices=np.sort(fold), n_samples=100, gene_list=genes, progress=False
        )
        for fold in folds
    ]
    found = {}
    for modality in ("rna", "protein"):
        by_fold = np.array([check.calibration.loc[modality]["coverage"] for check in checks])
        log_likelihood = [check.summary.loc[modality, "log_likelihood"] for check in checks]
        found[modality] = {
            "coverage": by_fold.mean(axis=0).round(4).tolist(),
            "standard_error": (by_fold.std(axis=0, ddof=1) / N_FOLDS**0.5).round(4).tolist(),
            "log_likelihood": round(float(np.mean(log_likelihood)), 4),
        }
    return found


def measure(kind: str, seed: int, folder: Path | None, data_folder: Path) -> dict[str, Any]:
    """Return how fits cover held-out counts before and after they are calibrated."""
    model = fitted(kind, seed, folder, data_folder)
    assert model.split is not None
    fit = replace(model._result, calibration=None)
    start = time.process_time()
    after = calibrate_fit(
        fit, model.module, model._training_data(), seed_of_calibration(model.seed, 1)
    )
    row: dict[str, Any] = {
        "data": kind,
        "seed": seed,
        "calibrating_cells": 0 if after.calibration is None else len(after.calibration.cells),
        "reporting_cells": len(model.split.test),
        "processor_seconds": round(time.process_time() - start, 2),
    }
    for name, result in (("before", fit), ("after", after)):
        model._result = result
        row[name] = coverage(model, model.split.test)
    return row


def report(rows: list[dict[str, Any]]) -> str:
    """Return the results in Markdown."""
    levels = " | ".join(f"{level:.0%}" for level in LEVELS)
    lines = [
        "# Coverage of intervals of counts",
        "",
        "Of cells that neither trained nor calibrated, with standard errors; ties broken at random. "
        "`python benchmarks/calibration.py` measures this again, and says what the data are.",
        "",
        f"| data | seed | cells: calibrate, report | counts | | {levels} | nats a count |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: (KINDS.index(row["data"]), row["seed"])):
        for name, modality in (("before", "protein"), ("after", "protein"), ("after", "rna")):
            found = row[name][modality]
            covered = " | ".join(
                f"{value:.3f} ± {error:.3f}"
                for value, error in zip(found["coverage"], found["standard_error"], strict=True)
            )
            cells = f"{row['calibrating_cells']}, {row['reporting_cells']}"
            lines.append(
                f"| {row['data']} | {row['seed']} | {cells} | {modality} | {name} | {covered} "
                f"| {found['log_likelihood']:.4f} |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, and write the results after each fit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", nargs="+", default=KINDS, choices=KINDS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--models", type=Path)
    parser.add_argument("--folder", type=Path, default=DATA, help="where the real data are")
    given = parser.parse_args()
    path = HERE / "results" / "calibration.json"
    rows = json.loads(path.read_text()) if path.exists() else []
    for seed in given.seeds:
        for kind in given.data:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                row = measure(kind, seed, given.models, given.folder)
            rows = [old for old in rows if (old["data"], old["seed"]) != (kind, seed)] + [row]
            path.write_text(json.dumps(rows, indent=1) + "\n")
            path.with_suffix(".md").write_text(report(rows))
            print(kind, seed, row["after"]["protein"]["coverage"], flush=True)


if __name__ == "__main__":
    main()
