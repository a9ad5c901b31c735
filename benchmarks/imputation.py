"""Measure how accurately unmeasured proteins are predicted.

    python benchmarks/imputation.py --data pbmc10k.h5mu --seeds 0 1 2

The script hides the proteins of a random 40 % of the cells, which become a batch without proteins.
A default fit then predicts them as if the cells came from the other batch. The table shows the
Pearson correlation and the root mean squared error (RMSE) of log(1 + count), over the hidden cells
and averaged over proteins. There are three predictions: the log of the denoised mean
(`get_normalized_expression`, 25 samples), and the predictive mean of log(1 + count)
(`impute_proteins(...).log1p`, 200 samples), by the model alone and stacked with ridge regression and
neighbours. Results go to benchmarks/results/imputation.json and .md. With ``--folder`` fits are kept,
and found again there, also by `imputation_trust.py`.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from mudata import MuData

import totalvi
from field_fit import fitted

HERE = Path(__file__).resolve().parent
DATA = HERE.parents[1] / "shared" / "data" / "pbmc10k.h5mu"

KINDS = ("log_of_mean", "mean_of_log", "stacked")


def hide_proteins(mdata: MuData) -> tuple[MuData, np.ndarray]:
    """Return a copy whose batch "hidden" has no proteins, and which cells are in it."""
    hidden = np.random.default_rng(7).random(mdata.n_obs) < 0.4
    partly = mdata.copy()
    partly.obs["panel"] = pd.Categorical(np.where(hidden, "hidden", "measured"))
    counts = partly["prot"].to_df().astype(np.float32)
    counts[hidden] = np.nan
    partly["prot"].X = counts.to_numpy()
    return partly, hidden


def measure(mdata: MuData, seed: int, folder: Path) -> dict[str, object]:
    print(f"fitting with seed {seed}", flush=True)
    partly, hidden = hide_proteins(mdata)
    model, _ = fitted(partly, folder / f"hidden_{seed}", None, batch_key="panel", seed=seed)
    _, predicted = model.get_normalized_expression(
        indices=hidden,
        gene_list=[],
        transform_batch="measured",
        unmeasured="impute",
        include_protein_background=True,
        n_samples=25,
    )
    truth = np.log1p(mdata["prot"].to_df()[hidden])
    alone, stacked = (
        model.impute_proteins(
            indices=hidden, n_samples=200, calibrated=not on_its_own, stacked=not on_its_own,
            progress=False,
        )
        for on_its_own in (True, False)
    )  # fmt: skip
    return {
        "seed": seed,
        "log_of_mean": agreement(np.log1p(predicted), truth),
        "mean_of_log": agreement(alone.log1p[truth.columns], truth),
        "stacked": agreement(stacked.log1p[truth.columns], truth),
        "seconds": float(model.history["seconds"].sum()),
    }


def agreement(predicted: pd.DataFrame, truth: pd.DataFrame) -> dict[str, object]:
    pearson = {name: float(truth[name].corr(predicted[name])) for name in truth}
    squared = ((predicted - truth) ** 2).mean()
    return {
        "pearson": statistics.fmean(pearson.values()),
        "rmse": float(np.sqrt(squared.mean())),
        "mean_rmse": float(np.sqrt(squared).mean()),
        "pearson_by_protein": pearson,
    }


def arguments_of(title: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=title)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, help="where fits are kept and found again")
    return parser.parse_args()


def main() -> None:
    arguments = arguments_of(__doc__.splitlines()[0])
    mdata = totalvi.read(arguments.data)
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        rows = [measure(mdata, seed, folder) for seed in arguments.seeds]
    (HERE / "results" / "imputation.json").write_text(json.dumps(rows, indent=1) + "\n")
    table = [
        "| seed | log of the mean: Pearson | RMSE | mean of the log: Pearson | RMSE "
        "| stacked: Pearson | RMSE | seconds to fit |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        figures = [row[kind][key] for kind in KINDS for key in ("pearson", "rmse")]
        cells = [f"{figure:.3f}" for figure in figures]
        table.append(f"| {row['seed']} | {' | '.join(cells)} | {row['seconds']:.0f} |")
    means = [
        f"{statistics.fmean(row[kind][key] for row in rows):.4f}"
        for kind in KINDS
        for key in ("pearson", "rmse")
    ]
    table.append(f"| mean | {' | '.join(means)} | |")
    (HERE / "results" / "imputation.md").write_text("\n".join(table) + "\n")
    print("\n".join(table))


if __name__ == "__main__":
    main()
