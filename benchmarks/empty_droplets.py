"""Measure how empty droplets improve the estimated background, where the truth is known.

``python benchmarks/empty_droplets.py --data FOLDER`` writes ``benchmarks/results/empty_droplets.json``
and ``.md``.

1. Simulated cells and droplets: of droplets whose profile deviates from the cells' by 0.1, 0.3 and 0.5
   (standard deviation of the logs), and of droplets in which every second protein varies little
   (0.15) or much (1.1).
2. Hybrids of real counts: in PBMC with RNA, a protein's counts in the cells of types that lack it are
   replaced by those of a real empty droplet of another experiment, and added elsewhere. The model is
   given the other half of these droplets, as they are or thinned by protein so that their profile
   deviates by 0.4. Baselines, written from the published formulas:

   - dsb (Mule, Martins and Tsang, 2022), step I: log(count + 10) less the mean of the droplets, over
     their standard deviation; foreground above 3.5;
   - DecontPro (Yin et al., 2023): a count is Poisson with rate
     ``n [(1 - b_t) (d_i p_t + (1 - d_i) r_kt) + b_t]`` for the ambient profile p of the droplets and
     the native profile r of the cell's type k, which it is given; by maximum likelihood, which its
     narrow priors come to; foreground where more than half of the count is native.

The error of a protein is ``|log mean_n E[beta_nt] - log mean_n beta_nt|``, for its background mean
over cells. The error of a cell and protein is ``|log E[beta_nt] - log beta_nt|``.
"""

import argparse
import json
import warnings
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import torch
from mudata import MuData
from scipy import sparse

import totalvi
from mapping import marker_types

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
SEEDS = (0, 1, 2)
CELLS = {"n_cells": 1000, "n_genes": 200, "n_proteins": 20}
CASES = {
    "hard: 8 of 20 proteins on every cell type, foreground tenfold": {
        "n_ubiquitous": 8,
        "median_foreground_factor": 10.0,
    },
    "easy: each protein has negative cell types, foreground thirtyfold": {},
}
NARROW, WIDE = 0.15, 1.1
DROPLETS: dict[str, dict | None] = {
    "without": None,
    "deviation 0.1": {"profile_deviation": 0.1},
    "deviation 0.3": {"profile_deviation": 0.3},
    "deviation 0.5": {"profile_deviation": 0.5},
    "spread 0.15 and 1.1": {"profile_deviation": 0.0, "protein_spread": [NARROW, WIDE] * 10},
}
EPOCHS = 80
HYBRID_CELLS, HYBRID_GENES, HYBRID_DEVIATION = 1500, 800, 0.4
# The marker types of `mapping.py` that lack each protein, and those that carry it.
LACKING = {
    "CD3": (["B", "monocyte", "NK"], ["CD4 T", "CD8 T"]),
    "CD4": (["B", "CD8 T", "NK"], ["CD4 T"]),
    "CD8": (["B", "CD4 T", "monocyte"], ["CD8 T"]),
    "CD14": (["B", "CD4 T", "CD8 T", "NK"], ["monocyte"]),
    "CD16": (["B", "CD4 T"], ["NK"]),
    "CD19": (["CD4 T", "CD8 T", "monocyte", "NK"], ["B"]),
    "CD56": (["B", "CD4 T", "monocyte"], ["NK"]),
}


def background_errors(case: dict, seed: int, droplets: dict | None) -> dict[str, float | None]:
    """Fit to simulated cells, with or without their empty droplets; compare with the truth."""
    mdata = totalvi.simulate(**CELLS, **case, seed=seed)
    raw = False
    if droplets is not None:
        raw = totalvi.simulate_raw(mdata, n_empty=2000, seed=seed, **droplets)
    model = totalvi.Model(mdata, n_hidden=64, seed=seed, empty_droplets=raw)
    model.train(max_epochs=EPOCHS, progress=False)
    names = list(model.schema.protein_names)
    estimate = model.get_protein_background_mean(
        n_samples=10, given_counts=False, return_numpy=True, progress=False
    )
    truth = mdata["prot"][:, names].layers["background_mean"]
    signed = np.log(estimate.mean(axis=0) / truth.mean(axis=0))
    narrow = np.arange(len(names)) % 2 == 0
    return {
        "protein_error": float(np.abs(signed).mean()),
        "worst_protein_error": float(np.abs(signed).max()),
        "cell_error": float(np.abs(np.log(estimate / truth)).mean()),
        "wide_less_narrow": float(signed[~narrow].mean() - signed[narrow].mean()),
        "held_out_loss": float(model.history["validation_loss"].min()),
        "estimated_deviation": said_deviation(model),
    }


def said_deviation(model: totalvi.Model) -> float | None:
    """Return how far a model says that droplets and lower modes differ; None without droplets."""
    said = [f.message for f in model.findings if f.code == "empty_droplets_agreement"]
    return float(said[0].split("differ by ")[1].split()[0]) if said else None


def hybrid(folder: Path, seed: int) -> tuple[MuData, pd.DataFrame, np.ndarray]:
    """Return PBMC with the background of real droplets, the other droplets, and the cells' types."""
    mdata = totalvi.read(folder / "pbmc10k.h5mu")
    rng = np.random.default_rng(seed)
    types = marker_types(mdata)
    chosen = np.sort(rng.choice(np.flatnonzero(types != ""), HYBRID_CELLS, replace=False))
    mdata, types = mdata[chosen].copy(), types[chosen]
    droplets = anndata.read_h5ad(folder / "pbmc_87proteins_empty_droplets.h5ad").to_df()
    droplets.columns = [name.removesuffix("_PROT").strip() for name in droplets]
    cells = mdata["prot"].to_df()
    cells.columns = [name.split("_")[0] for name in cells]
    cells = cells.rename(columns={"CD8a": "CD8"})
    names = [name for name in cells if name in droplets]
    order = rng.permutation(len(droplets))
    added, given = order[: len(order) // 2], order[len(order) // 2 :]
    background = droplets.iloc[rng.choice(added, len(cells))][names].to_numpy()
    counts = cells[names].to_numpy()
    for name, (lacking, _) in LACKING.items():
        counts[np.isin(types, lacking), names.index(name)] = 0
    rna = mdata["rna"][:, np.argsort(-_variance(mdata["rna"].X))[:HYBRID_GENES]]
    obs = pd.DataFrame(index=mdata.obs_names)
    prot = anndata.AnnData(
        (counts + background).astype(np.float32),
        obs=obs,
        var=pd.DataFrame(index=names),
        layers={"background": background},
    )
    genes = anndata.AnnData(rna.X.copy(), obs=obs, var=pd.DataFrame(index=rna.var_names))
    return MuData({"rna": genes, "prot": prot}), droplets.iloc[given][names], types


def _variance(counts: sparse.csr_matrix) -> np.ndarray:
    logs = counts.copy()
    logs.data = np.log1p(logs.data)
    square = np.asarray(logs.multiply(logs).mean(axis=0)).ravel()
    return square - np.asarray(logs.mean(axis=0)).ravel() ** 2


def deviating(droplets: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Thin the counts of each protein so that the profile deviates."""
    rng = np.random.default_rng([seed, 1])
    deviation = rng.normal(0, HYBRID_DEVIATION, droplets.shape[1])
    share = np.exp(deviation - deviation.max())
    return pd.DataFrame(
        rng.binomial(droplets.to_numpy().astype(int), share), columns=droplets.columns
    )


def by_totalvi(
    mdata: MuData, droplets: pd.DataFrame | None, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the background mean of each cell and protein, and whether its count is foreground."""
    table: pd.DataFrame | bool = False
    if droplets is not None:
        n, total = len(droplets), droplets.to_numpy(float)
        rna = anndata.AnnData(np.ones((n, mdata["rna"].n_vars)), var=mdata["rna"].var)
        raw = MuData({"rna": rna, "prot": anndata.AnnData(total, var=mdata["prot"].var)})
        table = totalvi.ambient_profile(raw)
    model = totalvi.Model(mdata, n_hidden=64, seed=seed, empty_droplets=table)
    model.train(max_epochs=EPOCHS, progress=False)
    asked = {"n_samples": 10, "return_numpy": True, "progress": False}
    background = model.get_protein_background_mean(given_counts=False, **asked)
    return background, model.get_protein_foreground_probability(**asked) > 0.5


def by_dsb(mdata: MuData, droplets: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Return the same by dsb's first step."""
    logs = np.log(droplets.to_numpy(float) + 10)
    z = (np.log(mdata["prot"].X + 10) - logs.mean(axis=0)) / logs.std(axis=0, ddof=1)
    return np.broadcast_to(np.exp(logs.mean(axis=0)) - 10, z.shape), z > 3.5


def by_decontpro(
    mdata: MuData, droplets: pd.DataFrame, types: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the same by DecontPro's likelihood, maximised by expectation maximisation."""
    counts = np.asarray(mdata["prot"].X, dtype=float)
    total = counts.sum(axis=1, keepdims=True)
    ambient_profile = droplets.to_numpy(float).sum(axis=0)
    ambient_profile /= ambient_profile.sum()
    kinds, code = np.unique(types, return_inverse=True)
    of_kind = np.eye(len(kinds))[code]  # (cells, types)
    native_profile = of_kind.T @ counts + 0.5
    native_profile /= native_profile.sum(axis=1, keepdims=True)
    share, background = np.full((len(counts), 1), 0.5), np.full(counts.shape[1], 1e-3)
    for _ in range(500):
        ambient = total * (1 - background) * share * ambient_profile
        native = total * (1 - background) * (1 - share) * native_profile[code]
        rate = ambient + native + total * background
        split = counts / np.maximum(rate, 1e-12)
        native, ambient, other = native * split, ambient * split, total * background * split
        share = ambient.sum(axis=1, keepdims=True) / (ambient + native).sum(axis=1, keepdims=True)
        native_profile = of_kind.T @ native + 1e-6
        native_profile /= native_profile.sum(axis=1, keepdims=True)
        background = np.minimum(other.sum(axis=0) / total.sum(), 0.5)
    return ambient + other, native > counts / 2


def hybrid_rows(folder: Path, seed: int) -> dict[str, dict[str, float]]:
    """Return what each method finds in a hybrid, by method."""
    mdata, same, types = hybrid(folder, seed)
    off = deviating(same, seed)
    answers = {
        "totalvi, no droplets": by_totalvi(mdata, None, seed),
        "totalvi": by_totalvi(mdata, same, seed),
        "totalvi, deviating droplets": by_totalvi(mdata, off, seed),
        "dsb": by_dsb(mdata, same),
        "dsb, deviating droplets": by_dsb(mdata, off),
        "DecontPro": by_decontpro(mdata, same, types),
        "DecontPro, deviating droplets": by_decontpro(mdata, off, types),
    }
    names, truth = list(mdata["prot"].var_names), mdata["prot"].layers["background"]
    rows = {}
    for method, (background, called) in answers.items():
        errors, false, right = [], [], []
        for name, (lacking, carrying) in LACKING.items():
            j, lacks = names.index(name), np.isin(types, lacking)
            ratio = max(background[lacks, j].mean(), 1e-3) / truth[lacks, j].mean()
            errors.append(abs(np.log(ratio)))
            false.append(called[lacks, j].mean())
            right.append(called[np.isin(types, carrying), j].mean())
        rows[method] = {
            "protein_error": float(np.mean(errors)),
            "worst_protein_error": float(np.max(errors)),
            "called_of_lacking": float(np.mean(false)),
            "called_of_carrying": float(np.mean(right)),
        }
    return rows


def main() -> None:
    """Measure all cases and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=HERE.parents[1] / "shared" / "data")
    folder = parser.parse_args().data
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    found: dict[str, dict] = {"simulated": {}, "hybrid": {}}
    for name, case in CASES.items():
        found["simulated"][name] = {
            label: [background_errors(case, seed, droplets) for seed in SEEDS]
            for label, droplets in DROPLETS.items()
        }
    runs = [hybrid_rows(folder, seed) for seed in SEEDS]
    found["hybrid"] = {method: [run[method] for run in runs] for method in runs[0]}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "empty_droplets.json").write_text(json.dumps(found, indent=1) + "\n")
    (RESULTS / "empty_droplets.md").write_text(as_text(found))
    print(as_text(found))


def spread(values: list[float], decimals: int = 2) -> str:
    """Return the mean of the seeds and, in brackets, the lowest and highest."""
    mean, low, high = np.mean(values), min(values), max(values)
    return f"{mean:.{decimals}f} ({low:.{decimals}f} to {high:.{decimals}f})"


def as_text(found: dict) -> str:
    """Return the results as a page."""
    lines = [
        "# Background from empty droplets",
        "",
        "`python benchmarks/empty_droplets.py`. Errors are those of the log background mean: of a "
        "protein (over cells), and of a cell and protein. Numbers are the mean, lowest and highest of "
        f"{len(SEEDS)} seeds.",
        "",
        "## Simulated cells",
        "",
        f"{CELLS['n_cells']:,} simulated cells, {CELLS['n_proteins']} proteins (2 isotype controls, "
        "excluded from the model), 2,000 empty droplets with 0.4 of a cell's background, debris and "
        f"blank barcodes; {EPOCHS} epochs. *Estimated* is the deviation that the model reports. *Wide "
        "less narrow* is the difference of signed errors between every second protein and the others. "
        "The loss is the lowest `validation_loss` of the fit, in nats a cell.",
        "",
    ]
    for name, rows in found["simulated"].items():
        lines += [
            f"### {name[0].upper()}{name[1:]}",
            "",
            "| droplets | protein error | divided by that without | worst protein | cell error "
            "| wide less narrow | estimated | held-out loss, background integrated |",
            "|---|---|---|---|---|---|---|---|",
        ]
        without = [run["protein_error"] for run in rows["without"]]
        for label, runs in rows.items():
            of = {key: [run[key] for run in runs] for key in runs[0]}
            ratio = [a / b for a, b in zip(of["protein_error"], without, strict=True)]
            cells = [spread(of["protein_error"]), spread(ratio), spread(of["worst_protein_error"])]
            cells += [spread(of["cell_error"]), spread(of["wide_less_narrow"])]
            cells.append("" if label == "without" else spread(of["estimated_deviation"]))
            lines.append(f"| {label} | {' | '.join(cells)} | {spread(of['held_out_loss'], 1)} |")
        lines.append("")
    lines += [
        "## Real droplets",
        "",
        f"{HYBRID_CELLS:,} cells of PBMC10k with {HYBRID_GENES} genes and the 12 proteins that the "
        "droplets of PBMC stained with 87 antibodies have too. The cells of the types that lack a "
        f"protein have the counts of a droplet instead of their own ({', '.join(LACKING)}); the errors "
        "are theirs. *Called* is the share of these cells' counts that a method calls foreground, and "
        f"that of the types that carry the protein. The deviation is {HYBRID_DEVIATION}; as counts are "
        "thinned, the level of these droplets is lower too, which dsb takes over.",
        "",
        "| method | protein error | worst protein | called, lacking, % | called, carrying, % |",
        "|---|---|---|---|---|",
    ]
    for method, runs in found["hybrid"].items():
        of = {key: [run[key] for run in runs] for key in runs[0]}
        shares = [
            spread([100 * value for value in of[key]], 1)
            for key in ("called_of_lacking", "called_of_carrying")
        ]
        errors = f"{spread(of['protein_error'])} | {spread(of['worst_protein_error'])}"
        lines.append(f"| {method} | {errors} | {' | '.join(shares)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
