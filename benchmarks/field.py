"""Measure the prediction of hidden proteins, and a mosaic, beside other methods.

    make bench-field
    python benchmarks/field.py --data /path/of/data --scvi-python PYTHON --midas-python PYTHON

Three data sets, with the proteins of some cells hidden, as in a panel of their own: "reap" (REAP-seq of
PBMC, donor PBMC3, 48 antibodies with isotype controls; a third of the cells, another one for each
seed), "pbmc10k" (a random 40 %) and "wnn" (donor p3 of the WNN atlas, 500 genes and 224 antibodies, a
random 40 %). All predict log(1 + count) in the hidden cells: the model alone (``stacked=False``), what
`impute_proteins` returns, ridge regression and the mean of 15 neighbours, both on 50 components of
log-normalised RNA and fitted to all measured cells, and TOTALVI of scvi-tools (`field_scvi.py`). Means
over proteins, "faint" of those whose median count is below 3; "per cell" is Pearson's correlation over
the proteins of a cell. "counts" is Pearson's correlation of counts with predicted means. "worst against
ridge" is the protein whose Spearman correlation is furthest below that of ridge regression.

"mosaic" is that of `mosaic.py`: labels of p1 and p2 from their neighbours in p3, and mixing, by
totalvi, in the own modality, and by scmidas (`field_midas.py`).

Fits of peers that take minutes run for the ``--slow-seeds`` only. With two processes, scvi-tools runs
beside all the rest, each on one thread. Results go to benchmarks/results/field.json and field.md;
``--quick`` tries everything with a few epochs, prints the table, and writes nothing there.
"""

import argparse
import os
import platform
import tempfile
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mudata
import numpy as np
import pandas as pd
from mudata import MuData
from scipy import sparse
from scipy.stats import rankdata
from sklearn.decomposition import TruncatedSVD
from sklearn.linear_model import Ridge
from sklearn.neighbors import KNeighborsRegressor

import totalvi
from field_fit import fitted
from field_mosaic import rows_of_mosaic
from field_page import page, table
from field_peers import LIMIT, Answer, Question, ask, write_partly_hidden
from result_files import write_results
from totalvi.run.variable_genes import select_genes

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
HIDDEN = ("reap", "pbmc10k", "wnn")  # data sets with hidden proteins
SCVI_EPOCHS = {"reap": 200, "pbmc10k": 100}  # at most; these take scvi-tools minutes
NAMES = (*HIDDEN, "mosaic")
Row = dict[str, Any]


@dataclass(frozen=True)
class Hidden:
    """Cells of which some hide their proteins, all of their protein counts, and which cells do."""

    data: MuData
    counts: np.ndarray
    hidden: np.ndarray


def cells_of(name: str, seed: int, folder: Path) -> Hidden:
    """Return the cells of a data set with the proteins that a seed hides."""
    if name == "reap":
        data = totalvi.read(folder / "reapseq_pbmc3_48proteins.h5mu")
        rna = data["rna"]
        kept = select_genes(sparse.csr_matrix(rna.X), rna.var_names, n_genes=4000)
        data = MuData({"rna": rna[:, kept].copy(), "prot": data["prot"].copy()})
        hidden = np.random.default_rng(7).integers(3, size=data.n_obs) == seed % 3
    elif name == "pbmc10k":
        data = totalvi.read(folder / "pbmc10k.h5mu")
        hidden = np.random.default_rng(7 + seed).random(data.n_obs) < 0.4
    else:
        atlas = mudata.read_h5mu(folder / "wnn_pbmc_mosaic_224proteins.h5mu")
        cells = atlas.obs_names[atlas.obs["batch"].astype(str).str.startswith("p3")]
        data = MuData({"rna": atlas["rna"][cells].copy(), "prot": atlas["adt"][cells].copy()})
        hidden = np.random.default_rng(7 + seed).random(data.n_obs) < 0.4
    data = data.copy()
    data.obs["panel"] = pd.Categorical(np.where(hidden, "hidden", "measured"))
    truth = data["prot"].to_df().to_numpy(np.float32).copy()
    shown = truth.copy()
    shown[hidden] = np.nan
    data["prot"].X = shown
    return Hidden(data, truth, hidden)


def simple(cells: Hidden) -> dict[str, tuple[np.ndarray, float]]:
    """Return log(1 + count) of the hidden cells by ridge regression and neighbours, with seconds."""
    started = time.process_time()
    hidden = cells.hidden
    counts = sparse.csr_matrix(cells.data["rna"].X, dtype=np.float64)
    total = np.asarray(counts.sum(axis=1)).ravel()
    logs = sparse.csr_matrix(sparse.diags_array(np.median(total) / total) @ counts).log1p()
    scores = TruncatedSVD(50, random_state=0).fit_transform(logs)
    scores -= scores.mean(axis=0)
    known = np.log1p(cells.counts[~hidden])
    shared = time.process_time() - started
    found = {}
    for name, method in (("ridge", Ridge()), ("neighbours", KNeighborsRegressor(15))):
        started = time.process_time()
        predicted = method.fit(scores[~hidden], known).predict(scores[hidden])
        found[name] = (predicted, shared + time.process_time() - started)
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


def predictions(cells: Hidden, path: Path, seed: int, given: argparse.Namespace) -> list[Row]:
    """Return how well totalvi, ridge regression and neighbours predict the proteins of a data set."""
    options = {"batch_key": "panel", "isotype_controls": [], "seed": seed}
    model, fit_seconds = fitted(cells.data, path, given.epochs, **options)
    truth = cells.counts[cells.hidden]
    rows: list[Row] = []
    for method, stacked in (("totalvi, model alone", False), ("totalvi", True)):
        started = time.process_time()
        found = model.impute_proteins(indices=cells.hidden, stacked=stacked, progress=False)
        seconds = fit_seconds + time.process_time() - started
        inside = (truth >= found.lower.to_numpy()) & (truth <= found.upper.to_numpy())
        row = scores_of(found.log1p.to_numpy(np.float64), found.mean.to_numpy(np.float64), truth)
        row |= {"coverage": float(inside.mean()), "processor seconds": seconds}
        rows.append({"method": method, **row})
    for method, (log1p, seconds) in simple(cells).items():
        row = scores_of(log1p, np.expm1(log1p), truth)
        rows.append({"method": method, **row, "processor seconds": seconds})
    return rows


def question_of_scvi(name: str, seed: int, cells: Hidden, given: argparse.Namespace) -> Question:
    """Write the cells for scvi-tools, and return what it is asked."""
    path = given.folder / f"{name}_{seed}.h5ad"
    write_partly_hidden(cells.data, cells.counts, cells.hidden, path)
    most = given.epochs or SCVI_EPOCHS.get(name)
    options = ["--seed", str(seed), *(["--epochs", str(most)] if most else [])]
    answer = given.folder / f"scvi_{name}_{seed}_{most or 'own'}.npz"
    return Question("field_scvi.py", path, answer, tuple(options))


def row_of_scvi(answer: Answer, cells: Hidden) -> Row:
    """Return how well scvi-tools predicts, or why it does not."""
    if isinstance(answer, str):
        return {"method": "scvi-tools", "failed": answer}
    mean = answer["mean"].astype(np.float64)
    row = scores_of(np.log1p(mean), mean, cells.counts[cells.hidden])
    seconds = float(answer["fit_seconds"] + answer["answer_seconds"])
    note = f"{int(answer['epochs'])} epochs"
    return {"method": "scvi-tools", **row, "processor seconds": seconds, "note": note}


def against_ridge(rows: list[Row]) -> list[Row]:
    """Return the rows of one data set and seed with the worst protein against ridge regression."""
    ridge = next(np.array(row["by protein"]) for row in rows if row["method"] == "ridge")
    for row in rows:
        if "by protein" in row and row["method"] != "ridge":
            row["worst against ridge"] = float((np.array(row["by protein"]) - ridge).min())
    return rows


def measure(given: argparse.Namespace) -> tuple[list[Row], dict[str, str]]:
    """Return the rows of all data sets, and the versions of the peers."""
    asked = [(name, seed) for name in HIDDEN if name in given.sets for seed in given.seeds]
    cells = {key: cells_of(*key, given.data) for key in asked}
    questions = {
        (name, seed): question_of_scvi(name, seed, cells[name, seed], given)
        for name, seed in asked
        if name not in SCVI_EPOCHS or seed in given.slow_seeds
    }
    versions: dict[str, str] = {}
    with ThreadPoolExecutor(1) as beside:
        answers = {
            key: beside.submit(ask, given.scvi_python, question, limit=LIMIT["scvi"])
            for key, question in questions.items()
        }
        if given.processes == 1:
            beside.shutdown(wait=True)
        found: dict[tuple[str, int], list[Row]] = {}
        for name, seed in asked:
            path = given.folder / f"{name}_{seed}"
            found[name, seed] = predictions(cells[name, seed], path, seed, given)
            print(
                "\n".join(table([{"data": name, **row} for row in found[name, seed]])), flush=True
            )
        mosaic: list[Row] = []
        if "mosaic" in given.sets:
            mosaic, versions = rows_of_mosaic(given)
        for key, waiting in answers.items():
            answer = waiting.result()
            found[key].append(row_of_scvi(answer, cells[key]))
            versions |= {} if isinstance(answer, str) else {"scvi": str(answer["version"])}
    rows = [
        {"data": name, "seed": seed, **row}
        for (name, seed), some in found.items()
        for row in against_ridge(some)
    ]
    return rows + mosaic, versions


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--sets", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--slow-seeds", type=int, nargs="+", default=[0], help="of slow fits of peers"
    )
    parser.add_argument("--scvi-python", default=".peer-venv/bin/python")
    parser.add_argument("--midas-python", default=".midas-venv/bin/python")
    parser.add_argument("--midas-epochs", type=int, nargs="+", default=[65])
    parser.add_argument("--processes", type=int, choices=[1, 2], default=2)
    parser.add_argument(
        "--folder", type=Path, help="where fits and answers are kept and found again"
    )
    parser.add_argument("--quick", action="store_true", help="a small trial; writes no results")
    given = parser.parse_args()
    given.epochs = None
    if given.quick:
        given.sets, given.seeds, given.slow_seeds = ["wnn", "mosaic"], [0], [0]
        given.epochs, given.midas_epochs = 5, [2]
    if not given.data.is_dir():
        parser.error(f"{given.data} is not a folder; name that of the data with --data")
    return given


def main() -> None:
    given = arguments()
    started = time.process_time()
    kept = " Fits are of several calls, of which field.json has the seconds of the last."
    kept = "" if given.folder is None else kept
    with warnings.catch_warnings(action="ignore"), tempfile.TemporaryDirectory() as temporary:
        given.folder = (given.folder or Path(temporary)).absolute()
        given.folder.mkdir(parents=True, exist_ok=True)
        rows, versions = measure(given)
    about = {
        "machine": f"The machine has {os.cpu_count()} cores, {platform.machine()}.{kept}",
        "seeds": ", ".join(map(str, given.seeds)),
        "slow_seeds": ", ".join(map(str, given.slow_seeds)),
        **{f"{name}_epochs": epochs for name, epochs in SCVI_EPOCHS.items()},
        **{peer: versions.get(peer, "(no answer)") for peer in LIMIT},
    }
    lines = page(rows, about)
    print("\n".join(lines))
    if not given.quick:
        write_results("field", {"versions": versions, "rows": rows}, lines, started)


if __name__ == "__main__":
    main()
