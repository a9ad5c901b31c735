"""Measure the prediction of hidden proteins beside ridge regression and neighbours.

    python benchmarks/field.py --data /path/of/data --seeds 0 1 2

Three data sets, with the proteins of some cells hidden, as in a panel of their own: "reap" (REAP-seq of
PBMC, 48 antibodies with isotype controls; a third of the cells, another one for each seed), "pbmc10k"
(a random 40 %) and "wnn" (donor p3 of the WNN atlas, 500 genes and 224 antibodies, a random 40 %). All
predict log(1 + count) in the hidden cells: the model alone (``stacked=False``), what
`impute_proteins` returns, ridge regression and the mean of 15 neighbours, both on 50 components of
log-normalised RNA and fitted to all measured cells. Means over proteins, "faint" of those whose median
count is below 3; "per cell" is Pearson's correlation over the proteins of a cell. "counts" is Pearson's
correlation of counts with predicted means. Results go to benchmarks/results/field.json and field.md.
"""

import argparse
import time
import warnings
from pathlib import Path

import mudata
import numpy as np
import pandas as pd
from scipy import sparse
from scipy.stats import rankdata
from sklearn.decomposition import TruncatedSVD
from sklearn.linear_model import Ridge
from sklearn.neighbors import KNeighborsRegressor

import totalvi
from result_files import write_results
from totalvi.run.variable_genes import select_genes

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
NAMES = ("reap", "pbmc10k", "wnn")


def cells_of(name: str, seed: int, folder: Path) -> tuple[mudata.MuData, np.ndarray, np.ndarray]:
    """Return cells with hidden proteins, all of their protein counts, and which cells hide them."""
    if name == "reap":
        data = totalvi.read(folder / "reapseq_pbmc3_48proteins.h5mu")
        rna = data["rna"]
        kept = select_genes(sparse.csr_matrix(rna.X), rna.var_names, n_genes=4000)
        data = mudata.MuData({"rna": rna[:, kept].copy(), "prot": data["prot"].copy()})
        hidden = np.random.default_rng(7).integers(3, size=data.n_obs) == seed % 3
    elif name == "pbmc10k":
        data = totalvi.read(folder / "pbmc10k.h5mu")
        hidden = np.random.default_rng(7 + seed).random(data.n_obs) < 0.4
    else:
        atlas = mudata.read_h5mu(folder / "wnn_pbmc_mosaic_224proteins.h5mu")
        cells = atlas.obs_names[atlas.obs["batch"].astype(str).str.startswith("p3")]
        data = mudata.MuData(
            {"rna": atlas["rna"][cells].copy(), "prot": atlas["adt"][cells].copy()}
        )
        hidden = np.random.default_rng(7 + seed).random(data.n_obs) < 0.4
    data = data.copy()
    data.obs["panel"] = pd.Categorical(np.where(hidden, "hidden", "measured"))
    truth = data["prot"].to_df().to_numpy(np.float32).copy()
    shown = truth.copy()
    shown[hidden] = np.nan
    data["prot"].X = shown
    return data, truth, hidden


def simple(
    data: mudata.MuData, truth: np.ndarray, hidden: np.ndarray
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return log(1 + count) and counts of the hidden cells by ridge regression and by neighbours."""
    counts = sparse.csr_matrix(data["rna"].X, dtype=np.float64)
    total = np.asarray(counts.sum(axis=1)).ravel()
    logs = sparse.csr_matrix(sparse.diags_array(np.median(total) / total) @ counts).log1p()
    scores = TruncatedSVD(50, random_state=0).fit_transform(logs)
    scores -= scores.mean(axis=0)
    known = np.log1p(truth[~hidden])
    found = {}
    for name, method in (("ridge", Ridge()), ("neighbours", KNeighborsRegressor(15))):
        predicted = method.fit(scores[~hidden], known).predict(scores[hidden])
        found[name] = (predicted, np.expm1(predicted))
    return found


def columns_r(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return Pearson's correlation of each column; 0 where one is constant."""
    first, second = first - first.mean(axis=0), second - second.mean(axis=0)
    norm = np.sqrt((first**2).sum(axis=0) * (second**2).sum(axis=0))
    return np.divide((first * second).sum(axis=0), norm, out=np.zeros(len(norm)), where=norm > 1e-9)


def scores_of(log1p: np.ndarray, mean: np.ndarray, truth: np.ndarray) -> dict[str, object]:
    """Return how well the counts of hidden cells are predicted."""
    logs = np.log1p(truth)
    spearman = columns_r(rankdata(log1p, axis=0), rankdata(truth, axis=0))
    faint = np.median(truth, axis=0) < 3
    scores = {
        "spearman": spearman.mean(),
        "spearman of faint": spearman[faint].mean() if faint.any() else None,
        "pearson of logs": columns_r(log1p, logs).mean(),
        "counts": columns_r(mean, truth).mean(),
        "per cell": columns_r(log1p.T, logs.T).mean(),
        "rmse": np.sqrt(((logs - log1p) ** 2).mean()),
    }
    plain = {key: None if value is None else float(value) for key, value in scores.items()}
    return {**plain, "by protein": [round(float(value), 4) for value in spearman]}


def measure(name: str, seed: int, folder: Path, models: Path | None) -> list[dict[str, object]]:
    data, counts, hidden = cells_of(name, seed, folder)
    truth = counts[hidden]
    path = None if models is None else models / f"{name}_{seed}"
    if path is not None and path.exists():
        model = totalvi.Model.load(path, data)
    else:
        model = totalvi.Model(data, batch_key="panel", isotype_controls=[], seed=seed)
        model.train(progress=False)
        if path is not None:
            model.save(path)
    rows = []
    for kind, stacked in (("model", False), ("stacked", True)):
        found = model.impute_proteins(indices=hidden, stacked=stacked, progress=False)
        inside = (truth >= found.lower.to_numpy()) & (truth <= found.upper.to_numpy())
        row = scores_of(found.log1p.to_numpy(np.float64), found.mean.to_numpy(np.float64), truth)
        width = found.upper.to_numpy() - found.lower.to_numpy()
        covered = {"coverage": float(inside.mean()), "width": float(width.mean())}
        rows.append({"data": name, "seed": seed, "kind": kind, **row, **covered})
    for kind, (log1p, mean) in simple(data, counts, hidden).items():
        row = scores_of(log1p, mean, truth)
        rows.append(
            {"data": name, "seed": seed, "kind": kind, **row, "coverage": None, "width": None}
        )
    ridge = np.array(rows[2]["by protein"])
    for row in rows[:2]:
        row["worst against ridge"] = float((np.array(row["by protein"]) - ridge).min())
    return rows


def lines_of(rows: list[dict[str, object]]) -> list[str]:
    """Return a table of means over seeds, with their standard deviations."""
    shown = ["spearman", "spearman of faint", "pearson of logs", "counts", "per cell", "rmse",
             "worst against ridge", "coverage"]  # fmt: skip
    table = pd.DataFrame(rows)
    lines = [
        f"| data | seeds | prediction | {' | '.join(shown)} |",
        "|---" * (len(shown) + 3) + "|",
    ]
    for (name, kind), some in table.groupby(["data", "kind"], sort=False):
        values = some[shown].astype(float)
        cells = [
            "" if np.isnan(mean) else f"{mean:.3f}" + ("" if np.isnan(sd) else f" ± {sd:.3f}")
            for mean, sd in zip(values.mean(), values.std(), strict=True)
        ]
        lines.append(f"| {name} | {len(some)} | {kind} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--sets", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--models", type=Path, help="folder in which fits are kept and found again")
    arguments = parser.parse_args()
    started, rows = time.process_time(), list[dict[str, object]]()
    with warnings.catch_warnings(action="ignore"):
        for name in arguments.sets:
            for seed in arguments.seeds:
                rows += measure(name, seed, arguments.data, arguments.models)
                print("\n".join(lines_of(rows[-4:])), flush=True)
    lines = lines_of(rows)
    write_results("field", {"rows": rows}, lines, started)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
