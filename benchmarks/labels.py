"""Measure partly known labels: accuracy, calibration, and a type that no known label names.

    python benchmarks/labels.py --data SHARED --seeds 0 1 2 --peer PYTHON --cache folder

SHARED is the folder with real counts. PYTHON is that of an environment with scvi-tools, whose TOTALANVI
is trained in the same run (`labels_peer.py`); without it only totalvi is measured.

A random 10 % of the cells keep their label, five times for each fit in the small data set. The model,
fitted without labels, predicts the others.

- PBMC10k: clusters of principal components of both modalities (`principal_clusters` of `mapping.py`),
  which do not come from a model.
- bone marrow, 134 antibodies, two donors: the published 39 cell types. In 60 labelled cells many have
  one cell or none.

Cells whose type has no labelled cell cannot be right, and are left out of accuracy and calibration
error. The calibration error is that of the most probable label, in 15 bins of equally many cells, over
the cells of all seeds. As bins of few cells differ by chance, the error that right probabilities would
have ("by chance", the mean of 200 drawn truths) stands beside it.

For each type of at least 1 % of the cells, and 20, all of its labels are then taken away: the AUROC is
of P(unlike all labels) of its cells against the unlabelled cells of the other labels. TOTALANVI has
no such answer; its score is 1 - the largest probability. It is trained for each left-out type with the
first seed only.

Results go to benchmarks/results/labels.json and labels.md; those of data sets that are not run stay.
"""

import argparse
import json
import subprocess
import time
import warnings
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
from mudata import MuData
from scipy import sparse
from sklearn.metrics import roc_auc_score

import totalvi
from mapping import principal_clusters
from result_files import write_results

HERE = Path(__file__).resolve().parent
UNKNOWN = "Unknown"
KNOWN = 0.1
LEAST_SHARE, LEAST_CELLS = 0.01, 20  # of a type that is left out
BINS = 15
DRAWS = {"PBMC10k": 1, "bone marrow": 5}  # of the known labels, for each seed


def cells_of(name: str, folder: Path, cache: Path) -> tuple[MuData, str | None, np.ndarray]:
    """Return the counts of a data set, its batch column, and the type of each cell."""
    if name == "bone marrow":
        mdata = totalvi.read(folder / "bmmc_134proteins.h5mu")
        return mdata, "batch", mdata["rna"].obs["cell_type"].astype(str).to_numpy(object)
    mdata = totalvi.read(folder / "pbmc10k.h5mu")
    kept = cache / "clusters.csv"
    if not kept.exists():
        pd.Series(principal_clusters(mdata), index=mdata.obs_names).to_csv(kept)
    return mdata, None, pd.read_csv(kept, index_col=0, dtype=str).iloc[:, 0].to_numpy(object)


def label_sets(name: str, types: np.ndarray, seed: int) -> pd.DataFrame:
    """Return the known labels, and the same without each of the larger types; others "Unknown"."""
    draws = []
    for draw in range(DRAWS[name]):
        known = np.zeros(len(types), dtype=bool)
        rng = np.random.default_rng(seed + 1000 * draw)
        known[rng.permutation(len(types))[: round(KNOWN * len(types))]] = True
        draws.append(known)
    sizes = pd.Series(types).value_counts()
    sets = {f"known {i}": np.where(known, types, UNKNOWN) for i, known in enumerate(draws)}
    for left in sizes.index[sizes >= max(LEAST_CELLS, LEAST_SHARE * len(types))]:
        sets[f"without {left}"] = np.where(draws[0] & (types != left), types, UNKNOWN)
    return pd.DataFrame(sets)


def peer_predictions(
    name: str,
    cells: tuple[MuData, str | None],
    sets: pd.DataFrame,
    seed: int,
    given: argparse.Namespace,
) -> dict[str, pd.DataFrame]:
    """Return the probabilities of TOTALANVI for each set of labels; train it if that is not kept."""
    mdata, batch_key = cells
    stem = f"peer {name} {seed}"
    counts, labels, output = (given.cache / f"{stem}{end}" for end in (".h5ad", ".csv", ".npz"))
    if not output.exists() and given.peer:
        rna = mdata["rna"]
        batch = "all" if batch_key is None else rna.obs[batch_key].astype(str).to_numpy()
        obs = pd.DataFrame({"batch": batch}, index=rna.obs_names)
        adata = anndata.AnnData(sparse.csr_matrix(rna.X), obs, rna.var[[]])
        adata.obsm["protein_expression"] = mdata["prot"].to_df()
        adata.write_h5ad(counts)
        sets.to_csv(labels)
        script = [given.peer, HERE / "labels_peer.py", counts, labels, output]
        epochs = [] if given.peer_epochs is None else ["--epochs", str(given.peer_epochs)]
        subprocess.run([*map(str, script), "--seed", str(seed), *epochs], check=True)
    if not output.exists():
        return {}
    with np.load(output) as found:
        names = [name for name in sets if f"{name}/names" in found]
        return {
            name: pd.DataFrame(found[f"{name}/probabilities"], columns=found[f"{name}/names"])
            for name in names
        }


def measured(
    probabilities: pd.DataFrame, score: np.ndarray, types: np.ndarray, known: np.ndarray, left: str
) -> dict[str, Any]:
    """Return what a prediction is worth on cells without a label."""
    probabilities = probabilities.drop(columns=UNKNOWN, errors="ignore")
    labels = np.unique(types[known])
    asked = ~known & np.isin(types, labels)
    chance = probabilities[list(labels)].to_numpy()[asked]
    chance = chance / chance.sum(axis=1, keepdims=True)
    right = chance.argmax(axis=1) == np.searchsorted(labels, types[asked])
    result: dict[str, Any] = {"accuracy": float(right.mean())}
    result["top"], result["right"] = chance.max(axis=1), right
    if left:
        asked = ~known & np.isin(types, [*labels, left])
        result["auroc"] = float(roc_auc_score(types[asked] == left, score[asked]))
    return result


def calibration_error(top: np.ndarray, right: np.ndarray) -> float:
    """Return the mean distance of probability and accuracy in bins of equally many cells."""
    bins = np.array_split(np.argsort(top, kind="stable"), BINS)
    gaps = [len(cells) * abs(top[cells].mean() - right[cells].mean()) for cells in bins]
    return float(sum(gaps) / len(top))


def error_by_chance(top: np.ndarray) -> float:
    """Return the calibration error that probabilities have if they are right."""
    rng = np.random.default_rng(0)
    return float(np.mean([calibration_error(top, rng.random(len(top)) < top) for _ in range(200)]))


def fitted(mdata: MuData, batch_key: str | None, path: Path, seed: int) -> totalvi.Model:
    """Fit a model, which knows no labels, or load it where an earlier call kept it."""
    if path.is_dir():
        return totalvi.Model.load(path, mdata)
    model = totalvi.Model(mdata, batch_key=batch_key, seed=seed)
    model.train(progress=False)
    model.save(path)
    return model


def compare(name: str, given: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row for each program, seed and set of labels of a data set."""
    mdata, batch_key, types = cells_of(name, given.data, given.cache)
    rows: list[dict[str, Any]] = []
    for seed in given.seeds:
        sets = label_sets(name, types, seed)
        model = fitted(mdata, batch_key, given.cache / f"{name}_{seed}.totalvi", seed)
        of_peer = sets if seed == given.seeds[0] else sets.filter(like="known")
        peer = peer_predictions(name, (mdata, batch_key), of_peer, seed, given)
        for column in sets:
            labels = sets[column].to_numpy(object)
            known = labels != UNKNOWN
            left = "" if column.startswith("known") else column.removeprefix("without ")
            about = {"data": name, "seed": seed, "left_out": left}
            about["cells"] = int((types == left).sum())
            start = time.process_time()
            found = model.predict(labels=np.where(known, labels, None), progress=False)
            seconds = time.process_time() - start
            unlike = found.unlike["unlikeness"].to_numpy()
            row = measured(found.probabilities, unlike, types, known, left)
            called = (found.labels == "unlike all").to_numpy()
            others = ~known & np.isin(types, np.unique(types[known]))
            row |= {
                "program": "totalvi",
                "seconds": seconds,
                "called_others": float(called[others].mean()),
            }
            if left:
                row["called"] = float(called[types == left].mean())
            rows.append(about | row)
            if column in peer:
                score = 1 - peer[column].drop(columns=UNKNOWN, errors="ignore").max(axis=1)
                row = measured(peer[column], score.to_numpy(), types, known, left)
                rows.append(about | row | {"program": "TOTALANVI"})
            print(
                name,
                seed,
                column,
                {k: v for k, v in rows[-1].items() if k[:3] in ("acc", "aur")},
                flush=True,
            )
    return rows


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return accuracy and calibration by data set and program."""
    totals = []
    for (data, program), part in pd.DataFrame(rows).groupby(["data", "program"], sort=False):
        whole = part[part["left_out"] == ""]
        top, right = (np.concatenate(list(whole[name])) for name in ("top", "right"))
        left = part[part["left_out"] != ""]
        by_type = left.groupby("left_out")["auroc"].mean()
        totals.append(
            {
                "data": data,
                "program": program,
                "fits": whole["seed"].nunique(),
                "draws": len(whole),
                "accuracy": float(whole["accuracy"].mean()),
                "least": float(whole["accuracy"].min()),
                "calibration_error": calibration_error(top, right),
                "by_chance": error_by_chance(top),
                "types_left_out": len(by_type),
                "auroc_median": float(left["auroc"].median()),
                "auroc_median_type": float(by_type.median()),
                "auroc_worst_type": float(by_type.min()),
                "called": float(left["called"].mean()) if program == "totalvi" else None,
                "called_others": float(left["called_others"].mean())
                if program == "totalvi"
                else None,
                "called_though_known": float(whole["called_others"].mean())
                if program == "totalvi"
                else None,
            }
        )
    return totals


def by_left_out(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Return the AUROC of each left-out type, by program, and how many of its cells are called."""
    left = pd.DataFrame([row for row in rows if row["left_out"]])
    by = ["data", "left_out", "cells"]
    table = left.pivot_table(index=by, columns="program", values="auroc", sort=False)
    called = left[left["program"] == "totalvi"].groupby(by, sort=False)["called"].mean()
    return table.assign(called=called).reset_index()


def page(totals: list[dict[str, Any]], types: pd.DataFrame, given: argparse.Namespace) -> list[str]:
    """Return the lines of the page."""

    def number(value: Any, digits: int = 3) -> str:
        return "" if value is None or pd.isna(value) else f"{value:.{digits}f}"

    lines = [
        "# Partly known labels",
        "",
        f"`benchmarks/labels.py`, seeds {', '.join(map(str, given.seeds))}: 10 % of the cells have a "
        "label. The script says how each number is measured.",
        "",
        "| data | program | fits, draws | accuracy (least) | calibration error (by chance) "
        "| AUROC of a left-out type: median | median and worst type |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in totals:
        error = f"{row['calibration_error']:.3f} ({row['by_chance']:.3f})"
        by_type = (row["auroc_median_type"], row["auroc_worst_type"])
        worst = ", ".join(number(value) for value in by_type if value is not None)
        lines.append(
            f"| {row['data']} | {row['program']} | {row['fits']}, {row['draws']} "
            f"| {row['accuracy']:.3f} ({row['least']:.3f}) | {error} "
            f"| {number(row['auroc_median'])} | {worst} |"
        )
    lines += ["", 'Cells that totalvi answers "unlike all", in %:', ""]
    lines += [
        "| data | of the left-out type | of the others then | where all types are known |",
        "|---|---|---|---|",
    ]
    for row in totals:
        if row["program"] == "totalvi":
            shares = [
                100 * row[name] for name in ("called", "called_others", "called_though_known")
            ]
            lines.append(f"| {row['data']} | " + " | ".join(f"{x:.1f}" for x in shares) + " |")
    lines += ["", "By type, means over seeds (TOTALANVI: the first seed):", ""]
    programs = [name for name in ("totalvi", "TOTALANVI") if name in types]
    heads = ["data", "type", "cells", *(f"AUROC, {name}" for name in programs), "called unlike all"]
    lines += ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in types.to_dict("records"):
        values = [row["data"], row["left_out"], str(row["cells"])]
        values += [number(row[name]) for name in programs] + [number(row["called"], 2)]
        lines.append("| " + " | ".join(values) + " |")
    return lines


def main() -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=HERE.parents[1] / "shared" / "data")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--peer", help="Python of an environment with scvi-tools")
    parser.add_argument("--peer-epochs", type=int, help="of TOTALVI; default: its own")
    parser.add_argument("--cache", type=Path, default=Path("labels-cache"))
    parser.add_argument("--only", nargs="+", default=["PBMC10k", "bone marrow"])
    given = parser.parse_args()
    started = time.process_time()
    warnings.simplefilter("ignore")
    given.cache.mkdir(exist_ok=True)
    rows = [row for name in given.only for row in compare(name, given)]
    totals = summary(rows)
    plain = [{k: v for k, v in row.items() if k not in ("top", "right")} for row in rows]
    earlier = HERE / "results" / "labels.json"
    if earlier.exists():  # other data sets stay there
        kept = json.loads(earlier.read_text(encoding="utf-8"))
        totals = [row for row in kept["summary"] if row["data"] not in given.only] + totals
        plain = [row for row in kept["rows"] if row["data"] not in given.only] + plain
    lines = page(totals, by_left_out(plain), given)
    write_results("labels", {"summary": totals, "rows": plain}, lines, started)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
