"""Measure posterior predictive counts of held-out cells as the totalVI paper does.

    python benchmarks/paper.py --data pbmc10k.h5mu --seeds 0

Fits have default options and use the paper's split: 80 % of the cells train, 5 % validate, 15 % are
held out. For each held-out cell 150 counts are drawn given the cell's own counts. The table shows

- MAE: |count - mean of the 150|, averaged over held-out cells and features;
- coverage at 99 %: the share of held-out counts from the 0.5 % to the 99.5 % quantile of the 150; the
  squared error is (that share - 0.99)^2;
- the same with ties broken at random, which is 0.99 if the model is true; see
  `totalvi.posterior.predictive_checks.PredictiveCheck`;
- CV MAE: |CV observed - CV predicted|, averaged over the features with a count above zero. CV is
  the standard deviation / mean over the cells; the predicted CV is the average over 50 samples. It
  is computed over the training cells. Over the held-out cells, the CV of rare genes is mostly
  chance: the last row is the score of a sample from the model itself instead of the observed
  counts.

Results go to benchmarks/results/paper.json and paper.md.
"""

import argparse
import json
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import sparse

import totalvi

HERE = Path(__file__).resolve().parent
DATA = HERE.parents[1] / "shared" / "data" / "pbmc10k.h5mu"
N_SAMPLES = 150
N_CV_SAMPLES = 50
ROWS = (  # measure, heading, the paper's figure
    ("gene_mae", "MAE, genes", ".196"),
    ("protein_mae", "MAE, proteins", "153.6"),
    ("protein_quantile_coverage", "coverage at 99 %, proteins, quantiles", ""),
    ("protein_quantile_error", "squared error of it", "2.8e-5"),
    ("protein_quantile_error_by_feature", "the same by protein, averaged", ""),
    ("protein_coverage", "coverage at 99 %, proteins, ties at random", ""),
    ("protein_error", "squared error of it", ""),
    ("protein_error_by_feature", "the same by protein, averaged", ""),
    ("gene_coverage", "coverage at 99 %, genes, ties at random", ""),
    ("gene_log_likelihood", "log-likelihood a count, genes (nats)", ""),
    ("protein_log_likelihood", "log-likelihood a count, proteins (nats)", ""),
    ("gene_cv_mae", "CV MAE, genes, cells trained on", ".71"),
    ("gene_cv_mae_held_out", "CV MAE, genes, held-out cells", ""),
    ("gene_cv_mae_of_model", "the same, counts from the model itself", ""),
)


def measure(path: Path, seed: int) -> dict[str, Any]:
    print(f"fitting {path.name} with seed {seed}", flush=True)
    model = totalvi.Model(totalvi.read(path), seed=seed)
    started = time.perf_counter()
    model.train(train_size=0.8, validation_size=0.05, progress=False)
    fitted = time.perf_counter()
    held_out = model.split.test
    check = model.posterior_predictive_check(
        indices=held_out, n_samples=N_SAMPLES, seed=seed, progress=False
    )
    checked = time.perf_counter()
    of_training = model.posterior_predictive_check(
        indices=model.split.train,
        n_samples=N_CV_SAMPLES,
        protein_list=[],
        seed=seed,
        progress=False,
    )
    # another seed than that of the check, whose samples would hold this one
    sample = model.posterior_predictive_sample(
        indices=held_out, protein_list=[], seed=seed + 1, progress=False
    )
    predicted_cv = check.table.query("modality == 'rna'")["predicted_cv"].to_numpy()
    summary, at_99 = check.summary, check.calibration.xs(0.99, level="level")
    protein = at_99.loc["protein"]
    return {
        "seed": seed,
        "held_out_cells": len(held_out),
        "gene_mae": summary.loc["rna", "mae"],
        "protein_mae": summary.loc["protein", "mae"],
        "protein_quantile_coverage": protein["quantile_coverage"],
        "protein_quantile_error": (protein["quantile_coverage"] - 0.99) ** 2,
        "protein_quantile_error_by_feature": protein["quantile_calibration_error"],
        "protein_coverage": protein["coverage"],
        "protein_error": (protein["coverage"] - 0.99) ** 2,
        "protein_error_by_feature": protein["calibration_error"],
        "gene_coverage": at_99.loc["rna", "coverage"],
        "gene_log_likelihood": summary.loc["rna", "log_likelihood"],
        "protein_log_likelihood": summary.loc["protein", "log_likelihood"],
        "gene_cv_mae": of_training.summary.loc["rna", "cv_mae"],
        "gene_cv_mae_held_out": summary.loc["rna", "cv_mae"],
        "gene_cv_mae_of_model": np.nanmean(np.abs(variation(sample.rna) - predicted_cv)),
        "calibration": {
            f"{modality} {level:.2f}": row.to_dict()
            for (modality, level), row in check.calibration.iterrows()
        },
        "epochs": len(model.history),
        "fit_seconds": fitted - started,
        "check_seconds": checked - fitted,
    }


def variation(counts: sparse.csr_matrix) -> np.ndarray:
    """Coefficient of variation of each column; NaN where all are zero."""
    mean = np.asarray(counts.mean(axis=0), dtype=float).ravel()
    square = np.asarray(counts.multiply(counts).mean(axis=0), dtype=float).ravel()
    with np.errstate(invalid="ignore"):
        return np.sqrt(square - mean**2) / mean


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    arguments = parser.parse_args()
    if not arguments.data.exists():
        parser.error(f"{arguments.data} does not exist; give a CITE-seq file with --data")
    results = [measure(arguments.data, seed) for seed in arguments.seeds]
    machine = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "processor": platform.machine(),
    }
    folder = HERE / "results"
    folder.mkdir(exist_ok=True)
    content = {
        "totalvi": totalvi.__version__,
        "data": arguments.data.stem,
        "samples": N_SAMPLES,
        "machine": machine,
        "results": results,
    }
    (folder / "paper.json").write_text(json.dumps(content, indent=1) + "\n")
    seeds = ", ".join(str(seed) for seed in arguments.seeds)
    table = [f"| held-out cells of {arguments.data.stem} | totalvi, seeds {seeds} | the paper |"]
    table.append("|---|---|---|")
    for key, heading, paper in ROWS:
        mean = statistics.fmean(result[key] for result in results)
        table.append(f"| {heading} | {mean:.3g} | {paper} |")
    (folder / "paper.md").write_text("\n".join(table) + "\n")
    print("\n".join(table))


if __name__ == "__main__":
    main()
