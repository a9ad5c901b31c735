"""Measure the probability of doublets against spiked doublets, beside scrublet.

    python benchmarks/doublets.py SHARED --seeds 0 1 2 --cache folder

SHARED is the folder with real counts; scrublet is that of PyPI (0.2.3), which only this needs.
In each data set random pairs of cells of a batch are replaced by their sums, until 8 % of the cells are
doublets; no cell of a pair is left alone. The model is fitted to the result, and knows nothing of it.
A doublet keeps all counts ("all"); or the same fit is asked about cells whose doublets keep each count
with a probability that is uniform between 0.5 and 1 ("half or more"). The doublets that a data set had
before count as single cells.

- PBMC10k: 4,300 random cells before. Lineages by gates drawn by hand on raw counts (`LINEAGES`).
- bone marrow, 134 antibodies, two donors: the published cell types (`OF_MARROW`).
- ECCITE, 49 antibodies: 500 cells; a cell is of the lineage whose antibody (CD3, CD19, CD14, CD56) is
  highest among standard scores of log counts, if by more than 0.3. The public file has only the most
  frequent hashtag of each cell, so that its hashtags tell no doublets.

AUROC of "two lineages" is that of doublets of two lineages against all single cells; of "all", that of
all doublets, many of which are of two like cells. "Called" are cells with a probability above 0.5. The
calibration error is the mean distance, over five bins weighted by their sizes, between the mean
probability and the share of doublets. "Total" is the RNA count of a cell.

Results go to benchmarks/results/doublets.json and doublets.md; those of other data sets and seeds
stay there.
"""

import argparse
import json
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import mudata
import numpy as np
import pandas as pd
import scrublet
from anndata import AnnData
from mudata import MuData
from scipy import sparse
from sklearn.metrics import roc_auc_score

import totalvi

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
LINEAGES = {  # lowest and highest log10(1 + count) of antibodies of PBMC10k, drawn by hand
    "T": [("CD3", 2.4, 9), ("CD19", 0, 2.0), ("CD14", 0, 2.0)],
    "B": [("CD3", 0, 2.4), ("CD19", 2.0, 9)],
    "NK": [("CD3", 0, 2.4), ("CD19", 0, 2.0), ("CD14", 0, 1.9), ("CD56", 2.0, 9), ("CD4", 0, 2.0)],
    "monocyte": [("CD3", 0, 2.4), ("CD19", 0, 2.0), ("CD14", 2.0, 9)],
}

OF_MARROW = {
    "T": r"CD4\+ T|CD8\+ T|T reg|MAIT|gdT|T prog",
    "B": "B1 B|Naive CD20|Transitional B|Plasma|Plasmablast",
    "NK": "NK",
    "monocyte": r"CD14\+ Mono|CD16\+ Mono|cDC2",
    "erythroid": "Proerythroblast|Erythroblast|Normoblast|Reticulocyte",
}
SHARE = 0.08
CAPTURED = {"all": 1.0, "half or more": 0.5}


class Spiked(NamedTuple):
    """Cells, some of which are sums of two others.

    Attributes
    ----------
    mdata
        Counts.
    is_doublet
        Of each cell.
    heterotypic
        Whether it is a doublet of two lineages.
    """

    mdata: MuData
    is_doublet: np.ndarray
    heterotypic: np.ndarray


def spike(mdata: MuData, lineage: np.ndarray, share: float, least_kept: float, seed: int) -> Spiked:
    """Replace pairs of random cells of a batch by their sums.

    Parameters
    ----------
    lineage
        Of each cell, "" where it is not known.
    share
        Of doublets among the cells that are left.
    least_kept
        Each doublet keeps a random share of its counts, between this and 1.
    """
    rng = np.random.default_rng([seed, 7])
    n = mdata.n_obs
    n_doublets = round(share * n / (1 + share))
    batch = np.zeros(n, int) if "batch" not in mdata.obs else pd.factorize(mdata.obs["batch"])[0]
    first, second = [], []
    for code in np.unique(batch):
        cells = rng.permutation(np.flatnonzero(batch == code))
        k = round(n_doublets * len(cells) / n)
        first.append(cells[:k])
        second.append(cells[k : 2 * k])
    a, b = np.concatenate(first), np.concatenate(second)
    alone = np.setdiff1d(np.arange(n), np.r_[a, b])
    kept = rng.uniform(least_kept, 1, len(a))

    def joined(counts: Any, dense: bool) -> Any:
        summed = counts[a] + counts[b]
        summed = np.asarray(summed) if dense else summed.tocsr()
        values = summed if dense else summed.data
        per_value = kept[:, None] if dense else np.repeat(kept, np.diff(summed.indptr))
        if least_kept < 1:
            values[...] = rng.binomial(values.astype(int), np.broadcast_to(per_value, values.shape))
        both = (
            np.vstack([counts[alone], summed]) if dense else sparse.vstack([counts[alone], summed])
        )
        return both.astype(np.float32) if dense else both.tocsr().astype(np.float32)

    rna, prot = mdata["rna"], mdata["prot"]
    names = [*mdata.obs_names[alone], *(f"doublet_{i}" for i in range(len(a)))]
    obs = pd.DataFrame(index=names)
    obs["batch"] = pd.Categorical([*map(str, batch[alone]), *map(str, batch[a])])
    parts = {
        "rna": AnnData(joined(sparse.csr_matrix(rna.X), False), obs.copy(), rna.var.copy()),
        "prot": AnnData(joined(np.asarray(prot.X), True), obs.copy(), prot.var.copy()),
    }
    with mudata.set_options(pull_on_update=False):
        spiked = MuData(parts)
    spiked.obs = obs
    is_doublet = np.arange(len(names)) >= len(alone)
    known = (lineage[a] != "") & (lineage[b] != "") & (lineage[a] != lineage[b])
    return Spiked(spiked, is_doublet, np.r_[np.zeros(len(alone), bool), known])


def read(shared: Path, name: str, seed: int) -> tuple[MuData, np.ndarray]:
    """Return counts and the lineage of each cell, "" where it is not known."""
    data = shared / "data"
    if name == "bone marrow":
        mdata = totalvi.read(data / "bmmc_134proteins.h5mu")
        types = mdata["rna"].obs["cell_type"].astype(str)
        mdata.obs["batch"] = mdata["rna"].obs["batch"].to_numpy()
        lineage = np.full(mdata.n_obs, "", dtype=object)
        for of, pattern in OF_MARROW.items():
            lineage[types.str.match(pattern).to_numpy()] = of
    elif name == "ECCITE":
        mdata = totalvi.read(data / "eccite_pbmc_49proteins.h5ad")
        logs = np.log1p(_dense(mdata["prot"][:, ["CD3", "CD19", "CD14", "CD56"]].X))
        scores = (logs - logs.mean(axis=0)) / logs.std(axis=0)
        ordered = np.sort(scores, axis=1)
        lineage = np.array(["T", "B", "monocyte", "NK"], dtype=object)[scores.argmax(axis=1)]
        lineage[ordered[:, -1] - ordered[:, -2] <= 0.3] = ""
        some = np.argsort(-np.asarray(mdata["rna"].X.sum(axis=0)).ravel())[:4000]
        mdata = MuData({"rna": mdata["rna"][:, np.sort(some)].copy(), "prot": mdata["prot"].copy()})
    else:
        mdata = totalvi.read(data / "pbmc10k.h5mu")
        chosen = np.sort(np.random.default_rng(seed).permutation(mdata.n_obs)[:4300])
        mdata = mdata[chosen].copy()
        logs = np.log10(1 + _dense(mdata["prot"].X))
        columns = [antibody.split("_")[0] for antibody in mdata["prot"].var_names]
        lineage = np.full(mdata.n_obs, "", dtype=object)
        for of, sides in LINEAGES.items():
            inside = [
                (logs[:, columns.index(marker)] >= low) & (logs[:, columns.index(marker)] < high)
                for marker, low, high in sides
            ]
            lineage[np.logical_and.reduce(inside)] = of
    mdata["prot"].X = _dense(mdata["prot"].X)
    return mdata, lineage


def _dense(values: Any) -> np.ndarray:
    return np.asarray(values.toarray() if sparse.issparse(values) else values)


def fitted(spiked: Spiked, path: Path, seed: int) -> totalvi.Model:
    if path.exists():
        return totalvi.Model.load(path, spiked.mdata)
    batches = spiked.mdata.obs["batch"].nunique() > 1
    model = totalvi.Model(spiked.mdata, batch_key="batch" if batches else None, seed=seed)
    model.train(progress=False)
    model.save(path)
    return model


def aurocs(score: np.ndarray, spiked: Spiked) -> dict[str, float]:
    """Return the AUROC of all doublets, and of those of two lineages."""
    single = ~spiked.is_doublet
    two = single | spiked.heterotypic
    return {
        "two lineages": float(roc_auc_score(spiked.heterotypic[two], score[two])),
        "all": float(roc_auc_score(spiked.is_doublet, score)),
    }


def bins_of(probability: np.ndarray, is_doublet: np.ndarray) -> list[dict[str, float]]:
    """Return the cells, mean probability and share of doublets of five bins of the probability."""
    number = np.minimum((5 * probability).astype(int), 4)
    return [
        {
            "bin": int(k),
            "cells": int((number == k).sum()),
            "probability": float(probability[number == k].mean()),
            "share": float(is_doublet[number == k].mean()),
        }
        for k in np.unique(number)
    ]


def measure(shared: Path, name: str, captured: str, seed: int, cache: Path) -> dict[str, Any]:
    """Return what was found in one data set with doublets."""
    mdata, lineage = read(shared, name, seed)
    whole = spike(mdata, lineage, SHARE, 1.0, seed)
    model = fitted(whole, cache / f"{name.replace(' ', '_')}_{seed}.totalvi", seed)
    spiked = spike(mdata, lineage, SHARE, CAPTURED[captured], seed)
    found = model.find_doublets(spiked.mdata, seed=seed, progress=False)
    cells, is_doublet = found.cells, spiked.is_doublet
    rna = spiked.mdata["rna"].X
    judge = scrublet.Scrublet(rna, expected_doublet_rate=SHARE, random_state=seed)
    their_scores, _ = judge.scrub_doublets(verbose=False)
    probability = cells["probability"].to_numpy()
    called, bins = probability > 0.5, bins_of(probability, is_doublet)
    error = sum(of["cells"] * abs(of["probability"] - of["share"]) for of in bins) / len(cells)
    return {
        "data": name,
        "captured": captured,
        "seed": seed,
        "cells": len(cells),
        "doublets": int(is_doublet.sum()),
        "of two lineages": int(spiked.heterotypic.sum()),
        "totalvi": aurocs(cells["score"].to_numpy(), spiked),
        "scrublet": aurocs(their_scores, spiked),
        "total": aurocs(np.asarray(rna.sum(axis=1)).ravel(), spiked),
        "rate": found.rate,
        "called": int(called.sum()),
        "precision": float(is_doublet[called].mean()) if called.any() else None,
        "recall": float(called[is_doublet].mean()),
        "recall of two lineages": float(called[spiked.heterotypic].mean()),
        "calibration error": float(error),
        "bins": bins,
    }


def report(rows: list[dict[str, Any]]) -> str:
    """Return the results as Markdown."""
    lines = ["# Doublets", "", (__doc__ or "").partition("\n\n")[2].strip(), ""]
    lines += [
        "Mean over seeds, and the standard deviation where there are several.",
        "",
        "## AUROC",
        "",
    ]
    lines += [
        "| data | counts kept | seeds | doublets | | totalvi | scrublet | total |",
        "|---|" + "---|" * 7,
    ]
    groups = list(dict.fromkeys((row["data"], row["captured"]) for row in rows))
    for group in groups:
        of = [row for row in rows if (row["data"], row["captured"]) == group]
        for which in ("two lineages", "all"):
            number = of[0]["of two lineages" if which == "two lineages" else "doublets"]
            scores = (
                _spread([row[how][which] for row in of]) for how in ("totalvi", "scrublet", "total")
            )
            lines.append(
                f"| {group[0]} | {group[1]} | {len(of)} | {number} | {which} | {' | '.join(scores)} |"
            )
    names = ("rate", "precision", "recall", "recall of two lineages", "calibration error")
    lines += ["", f"## Calls, where {SHARE:.0%} of the cells are doublets", ""]
    lines += [f"| data | counts kept | {' | '.join(names)} |", "|---|" + "---|" * 6]
    for group in groups:
        of = [row for row in rows if (row["data"], row["captured"]) == group]
        numbers = (_spread([row[name] for row in of if row[name] is not None]) for name in names)
        lines.append(f"| {group[0]} | {group[1]} | {' | '.join(numbers)} |")
    lines += ["", "## Reliability of the probability", "", "Cells of all seeds together.", ""]
    lines += ["| data | counts kept | probability | cells | mean | share of doublets |"]
    lines += ["|---|" + "---|" * 5]
    for group in groups:
        bins = pd.DataFrame(
            [b for row in rows if (row["data"], row["captured"]) == group for b in row["bins"]]
        )
        for k, of_bin in bins.groupby("bin"):
            total = of_bin["cells"].sum()
            mean, share = (
                (of_bin[c] * of_bin["cells"]).sum() / total for c in ("probability", "share")
            )
            ends = f"{0.2 * int(k):.1f} to {0.2 * (int(k) + 1):.1f}"
            lines.append(
                f"| {group[0]} | {group[1]} | {ends} | {total:,} | {mean:.3f} | {share:.3f} |"
            )
    return "\n".join(lines) + "\n"


def _spread(values: list[float]) -> str:
    if not values:
        return "-"
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}"


def main() -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shared", type=Path)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--data", nargs="*", default=["PBMC10k", "bone marrow", "ECCITE"])
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    given.cache.mkdir(parents=True, exist_ok=True)
    path = RESULTS / "doublets.json"
    rows: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.exists() else {}
    for name in given.data:
        for seed in given.seeds:
            for captured in CAPTURED:
                found = measure(given.shared, name, captured, seed, given.cache)
                rows[f"{name}, {captured}, {seed}"] = found
            path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
            RESULTS.joinpath("doublets.md").write_text(report([*rows.values()]), encoding="utf-8")


if __name__ == "__main__":
    main()
