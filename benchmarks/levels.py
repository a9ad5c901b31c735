"""Measure whether imputed proteins take the level of a query that was stained otherwise.

    python benchmarks/levels.py [--cells 4000] [--seeds 3] [--folder fits]

Random halves of a data set are reference and query. The query is stained at .3 times the reference, by
keeping each of its protein molecules with that probability, or at 3.3 times, by thinning the reference,
or alike. Of its proteins it shows three, drawn at random, or none; the others are imputed and compared
with its counts, both where it is mapped on a fit of the reference and in a fit of both.

Then a data set is the reference and another laboratory's the query, with the antibodies that both have.

Results go to benchmarks/results/levels.json and .md.
"""

import argparse
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData
from mudata import MuData
from scipy import sparse

import totalvi

HERE = Path(__file__).resolve().parent
DATA = HERE.parents[1] / "shared" / "data"
SHARE = 0.3
N_GENES = 2000
N_MEASURED = 3
BONE_MARROW = "bmmc_134proteins.h5mu"
LABORATORIES = ("eccite_pbmc_49proteins.h5ad", "reapseq_pbmc3_48proteins.h5mu")
NOTES = """- *mapped*: on a fit of the reference, without a fit of the query; *joint*: one fit of both.
- *at 0.3*: the query's proteins are thinned; *at 3.3*: the reference's are; *at 1.0*: neither.
- *PBMC10k to ...*: another laboratory, with the antibodies that both have. Single proteins differ
  there in their level, which the width of the intervals follows.
- Errors are of log(1 + count). Where no protein is shown, both are at the level of the reference."""


def short(name: str) -> str:
    """Return the name of a data set in the tables."""
    return Path(name).stem.split("_")[0]


def dense(values: object) -> np.ndarray:
    """Return counts as an array."""
    array: np.ndarray = values.toarray() if sparse.issparse(values) else np.asarray(values)
    return array.astype(np.float32)


def data_set(name: str, n_cells: int, seed: int) -> MuData:
    """Return at most ``n_cells`` of a data set, without annotation."""
    if name == "simulated":
        found = totalvi.simulate(n_cells=n_cells, n_genes=2000, n_proteins=30, seed=seed)
        found["prot"].var_names = found["prot"].var_names.str.replace("protein_", "antigen")
    else:
        found = totalvi.read(DATA / name)
    some = np.sort(np.random.default_rng(seed).permutation(found.n_obs)[:n_cells])
    parts = {}
    for modality in ("rna", "prot"):
        part = found[modality][some]
        obs = pd.DataFrame(index=[f"cell{cell}" for cell in some])
        counts = sparse.csr_matrix(part.X) if modality == "rna" else dense(part.X)
        parts[modality] = AnnData(counts, obs=obs, var=pd.DataFrame(index=part.var_names))
    parts["prot"] = parts["prot"][:, ~np.isnan(parts["prot"].X).any(axis=0)].copy()
    return MuData(parts)


def of_same_names(reference: MuData, query: MuData) -> tuple[MuData, MuData]:
    """Return both with the most variable genes of the reference and names of proteins that agree."""
    joined = totalvi.concat({"reference": reference, "query": query})
    is_query = (joined.obs["batch"] == "query").to_numpy()
    genes = variable(joined["rna"][~is_query], N_GENES)
    parts = []
    for cells in (~is_query, is_query):
        rna, proteins = joined["rna"][cells][:, genes].copy(), joined["prot"][cells].copy()
        proteins = proteins[:, ~np.isnan(dense(proteins.X)).any(axis=0)].copy()
        for part in (rna, proteins):
            part.obs = pd.DataFrame(index=[name.rsplit("-", 1)[0] for name in part.obs_names])
        parts.append(MuData({"rna": rna, "prot": proteins}))
    return parts[0], parts[1]


def variable(rna: AnnData, n_genes: int) -> np.ndarray:
    """Return the positions of the most variable genes."""
    chosen = AnnData(rna.X.copy(), var=pd.DataFrame(index=rna.var_names))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sc.pp.highly_variable_genes(chosen, n_top_genes=n_genes, flavor="seurat_v3")
    return np.flatnonzero(chosen.var["highly_variable"])


def thinned(cells: MuData, share: float, rng: np.random.Generator) -> MuData:
    """Return cells of which each protein molecule is kept with probability ``share``."""
    kept = cells.copy()
    counts = dense(kept["prot"].X).astype(int)
    kept["prot"].X = rng.binomial(counts, share).astype(np.float32)
    return kept


def showing(query: MuData, shown: list[str]) -> MuData:
    """Return the query with only the proteins named."""
    if not shown:
        return MuData({"rna": query["rna"].copy()})
    return MuData({"rna": query["rna"].copy(), "prot": query["prot"][:, shown].copy()})


def scores(imputed: object, truth: pd.DataFrame, hidden: list[str]) -> dict[str, float]:
    """Return how well the counts of hidden proteins were predicted."""
    observed = truth[hidden].to_numpy()
    lower, upper, log1p = (
        getattr(imputed, part)[hidden].to_numpy() for part in ("lower", "upper", "log1p")
    )
    inside = (observed >= lower) & (observed <= upper)
    error = log1p - np.log1p(observed)
    return {
        "coverage": float(inside.mean()),
        "worst": float(inside.mean(axis=0).min()),
        "width": float(np.median(np.log1p(upper) - np.log1p(lower))),
        "rmse": float(np.sqrt((error**2).mean())),
        "bias": float(error.mean()),
    }


def both_levels(
    model: totalvi.Model, truth: pd.DataFrame, hidden: list[str], cells: np.ndarray | None
) -> dict[str, dict[str, float]]:
    """Return scores of imputed counts at their own level, and at that of the reference."""
    found = {}
    for name, own in (("own", True), ("reference", False)):
        imputed = model.impute_proteins(
            indices=cells, protein_list=hidden, own_level=own, progress=False
        )
        found[name] = scores(imputed, truth, hidden)
    return found


def fitted(
    data: MuData, folder: Path | None, name: str, seed: int, **options: str
) -> totalvi.Model:
    """Fit a model, or load it where an earlier call kept it."""
    kept = None if folder is None else folder / f"{name}.totalvi"
    if kept is not None and kept.exists():
        return totalvi.Model.load(kept, data)
    model = totalvi.Model(data, seed=seed, **options)
    model.train(progress=False)
    if kept is not None:
        model.save(kept)
    return model


def of_halves(name: str, n_cells: int, seed: int, folder: Path | None) -> list[dict[str, Any]]:
    """Return the rows of a data set whose halves are reference and query, stained otherwise."""
    rng = np.random.default_rng(seed)
    cells, rows = data_set(name, n_cells, seed), []
    order = rng.permutation(cells.n_obs)
    halves = of_same_names(*(cells[np.sort(half)].copy() for half in np.array_split(order, 2)))
    for level in (SHARE, 1, 1 / SHARE):
        reference, query = (
            thinned(half, SHARE, rng) if is_thin else half
            for half, is_thin in zip(halves, (level > 1, level < 1), strict=True)
        )
        rows += one(reference, query, f"{short(name)} at {level:.1f}", seed, folder)
    return rows


def one(
    reference: MuData, query: MuData, name: str, seed: int, folder: Path | None
) -> list[dict[str, Any]]:
    """Return a row for each way to predict a query, with three of its proteins and with none."""
    rng = np.random.default_rng(seed)
    truth = query["prot"].to_df()
    rows: list[dict[str, Any]] = []
    model = fitted(reference, folder, f"{name}-{seed}-reference", seed)
    shared = [protein for protein in model.schema.protein_names if protein in truth]
    chosen = list(rng.permutation(shared)[:N_MEASURED])
    for shown in (chosen, []):
        hidden = [protein for protein in shared if protein not in chosen]
        asked = showing(query, shown)
        mapped = model.map_query(asked)
        row = {"data": name, "seed": seed, "shown": len(shown), "way": "mapped"}
        rows.append(row | both_levels(mapped, truth, hidden, None))
        print(rows[-1], flush=True)
        if not shown:
            continue
        joint = totalvi.concat({"reference": reference, "query": asked})
        of_query = np.flatnonzero(joint.obs["batch"].astype(str) == "query")
        both = fitted(joint, folder, f"{name}-{seed}-both", seed, batch_key="batch")
        row = {"data": name, "seed": seed, "shown": len(shown), "way": "joint"}
        rows.append(row | both_levels(both, truth, hidden, of_query))
        print(rows[-1], flush=True)
    return rows


def page(rows: list[dict[str, Any]], n_cells: int) -> str:
    """Return the page of the results: medians over seeds, and the range of the coverage."""
    table = pd.DataFrame(
        [
            {**{name: row[name] for name in ("data", "way", "shown")}}
            | {
                f"{score} {level}": row[level][score]
                for level in ("own", "reference")
                for score in row[level]
            }
            for row in rows
        ]
    )
    lines = [
        "# Proteins imputed at the level of a query",
        "",
        f"`python benchmarks/levels.py --cells {n_cells}`: medians of "
        f"{len({row['seed'] for row in rows})} seeds, each with another {N_MEASURED} proteins shown; "
        "coverage of intervals of 90 % with its range. Own level: of the query, by the proteins shown.",
        "",
        "| query | how | proteins shown | coverage, own level | of the worst protein "
        "| RMSE, own level | coverage, level of the reference | RMSE, level of the reference |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (data, shown, way), group in table.groupby(["data", "shown", "way"], sort=False):
        middle, low, high = group.drop(columns=["data", "way"]).agg(["median", "min", "max"]).values
        columns = group.columns.drop(["data", "way"])
        of = dict(zip(columns, zip(middle, low, high, strict=True), strict=True))
        own, other = of["coverage own"], of["coverage reference"]
        lines.append(
            f"| {data} | {way} | {shown} | {own[0]:.2f} ({own[1]:.2f} to {own[2]:.2f}) | "
            f"{of['worst own'][0]:.2f} | {of['rmse own'][0]:.2f} | {other[0]:.2f} | "
            f"{of['rmse reference'][0]:.2f} |"
        )
    return "\n".join([*lines, "", NOTES]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=4000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--data", nargs="*", default=["simulated", "pbmc10k.h5mu", BONE_MARROW])
    parser.add_argument("--laboratories", nargs="*", default=list(LABORATORIES))
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.folder is not None:
        options.folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in options.data:
        for seed in range(options.seeds):
            rows += of_halves(name, options.cells, seed, options.folder)
    for name in options.laboratories:
        for seed in range(options.seeds):
            reference, query = of_same_names(
                data_set("pbmc10k.h5mu", options.cells, seed), data_set(name, options.cells, seed)
            )
            rows += one(reference, query, f"PBMC10k to {short(name)}", seed, options.folder)
    (HERE / "results" / "levels.json").write_text(json.dumps(rows, indent=1) + "\n")
    (HERE / "results" / "levels.md").write_text(page(rows, options.cells))


if __name__ == "__main__":
    main()
