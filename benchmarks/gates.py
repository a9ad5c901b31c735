"""Measure named populations against cell types, and against the same hierarchy on thresholds.

    python benchmarks/gates.py SHARED --seeds 3 --cache folder

SHARED is the folder with real counts. Data sets, and what is compared:

- bone marrow, 134 antibodies: the published cell types; hierarchy "bone_marrow".
- WNN, donor p3 of the mosaic, 224 antibodies: the published types; hierarchy "blood".
- WNN, donor p1, whose proteins are left out: its RNA is mapped on p3, and its cells are gated by
  imputed proteins.
- PBMC10k, 4,000 cells, 14 antibodies: gates drawn by hand on plots of pairs of raw counts
  (`HAND_GATES`); cells between the gates are left out.
- the same fit, by genes: clusters of the RNA alone, named by genes; no antibody is used.

Types that no population of the hierarchy stands for, or that the panel has no marker of, are left
out: `LINEAGES` and `BELOW` say which is which. F1 is that of the named population; a cell without a
name is missed. The calibration error of memberships is the mean distance, over ten bins of the
membership weighted by their sizes, between the mean membership and the share of cells that are of the
type: of all memberships of cells in populations that are compared ("all"); of those between 0.01 and
0.99 ("unsure"); and of each cell's highest membership, if it is at least 0.5 ("named").

Baselines decide each marker by a threshold, on values of CLR and dsb: between two or three normal
components (number by BIC) of each antibody, or by Otsu's rule; and name clusters of the model's latent
space by their most frequent lineage of these thresholds. Genes that stand in have log counts per
10,000.

Marker by marker, the bone marrow is fitted without the antibody, and the cells are counted that were
named rightly below or by a gate with this marker, by what becomes of them.

Results go to benchmarks/results/gates.json and gates.md.
"""

import argparse
import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mudata
import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData
from mudata import MuData
from sklearn.metrics import f1_score
from sklearn.mixture import GaussianMixture

import totalvi
from totalvi.data.panels.antibody_names import gene_key, identify
from totalvi.posterior.gates.hierarchy import (
    Hierarchy,
    Marker,
    distinct_markers,
    read_hierarchy,
)
from totalvi.posterior.gates.memberships import (
    Draws,
    Levels,
    count_members,
    known_memberships,
    name_cells,
    usable,
)
from totalvi.run.clusters import cluster_all

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
TAKEN_AWAY = ("CD3", "CD19", "CD14", "CD16", "CD4", "CD8", "CD56")
LINEAGES = {
    "bone marrow": {
        "T": "CD4+ T|CD8+ T|T reg|MAIT|gdT",
        "B": "B1 B|Naive CD20|Transitional B|Plasmablast",
        "NK": "NK",
        "Monocyte": "CD14\\+ Mono|CD16\\+ Mono",
        "Dendritic": "cDC2|pDC",
        "Erythroid": "Proerythroblast|Erythroblast|Normoblast|Reticulocyte",
    },
    "WNN": {
        "T": "CD4 T|CD8 T|other T",
        "B": "B",
        "NK": "NK",
        "Monocyte": "Mono",
        "Dendritic": "DC",
    },
    "PBMC10k": {"T": "T|CD4 T|CD8 T", "B": "B", "NK": "NK", "Monocyte": "CD14 mono|CD16 mono"},
    "PBMC10k by genes": {"T": "T", "B": "B", "NK": "NK", "Monocyte": "mono"},
}
BELOW = {
    "bone marrow": {
        "CD4 T": "CD4+ T|T reg",
        "CD8 T": "CD8+ T",
        "gdT": "gdT TCRVD2",
        "B naive": "Naive CD20",
        "B immature": "Transitional B",
        "Plasma": "Plasmablast",
        "CD14 monocyte": "CD14\\+ Mono",
        "CD16 monocyte": "CD16\\+ Mono",
        "cDC": "cDC2",
        "pDC": "pDC",
    },
    "WNN": {"CD4 T": "CD4 T", "CD8 T": "CD8 T"},
    "PBMC10k": {
        "CD4 T": "CD4 T",
        "CD8 T": "CD8 T",
        "CD14 monocyte": "CD14 mono",
        "CD16 monocyte": "CD16 mono",
    },
    "PBMC10k by genes": {},
}
HAND_GATES = {  # lowest and highest log10(1 + count) of antibodies
    "T": [("CD3", 2.4, 9), ("CD19", 0, 2.0)],
    "CD4 T": [("CD3", 2.4, 9), ("CD19", 0, 2.0), ("CD4", 2.75, 9), ("CD8a", 0, 2.25)],
    "CD8 T": [("CD3", 2.4, 9), ("CD19", 0, 2.0), ("CD4", 0, 2.1), ("CD8a", 2.6, 9)],
    "B": [("CD3", 0, 2.4), ("CD19", 2.0, 9)],
    "NK": [("CD3", 0, 2.4), ("CD19", 0, 2.0), ("CD14", 0, 1.9), ("CD56", 2.0, 9), ("CD4", 0, 2.0)],
    "CD14 mono": [("CD3", 0, 2.4), ("CD19", 0, 2.0), ("CD14", 2.0, 9), ("CD16", 0, 2.5)],
    "CD16 mono": [
        ("CD3", 0, 2.4),
        ("CD19", 0, 2.0),
        ("CD16", 2.5, 9),
        ("CD4", 2.0, 9),
        ("CD56", 0, 2.0),
    ],
}
CACHED_AS = {"PBMC10k by genes": "PBMC10k"}
RNA_MARKERS = {  # of PBMC10k, by genes alone
    "T": ("CD3D", "CD3E", "IL7R", "TRAC"),
    "B": ("MS4A1", "CD79A", "CD79B", "BANK1"),
    "NK": ("GNLY", "KLRF1", "KLRD1", "NCAM1", "SPON2"),
    "mono": ("CD14", "S100A8", "LYZ", "FCN1", "MS4A7"),
    "other": ("FCER1A", "CLEC10A", "PPBP", "LILRA4", "CLEC4C"),
}


def truth_of(types: pd.Series, patterns: Mapping[str, str]) -> pd.Series:
    """Return the population that each type stands for, missing where none does."""
    found = pd.Series(index=types.index, dtype=object)
    for population, pattern in patterns.items():
        starts = "|".join(
            part if "\\" in part else part.replace("+", "\\+") for part in pattern.split("|")
        )
        found[types.str.match(f"(?:{starts})")] = population
    return found


def read(shared: Path, name: str) -> tuple[MuData, pd.Series, dict[str, Any], str]:
    """Return counts, cell types, arguments of the model, and the hierarchy of a data set."""
    data = shared / "data"
    if name == "bone marrow":
        mdata = totalvi.read(data / "bmmc_134proteins.h5mu")
        types = mdata["rna"].obs["cell_type"].astype(str)
        return mdata, types, {"batch_key": "batch"}, "bone_marrow"
    if name == "WNN":
        mdata = totalvi.read(  # of cells with both modalities
            data / "wnn_pbmc_mosaic_224proteins.h5mu", protein_modality="adt", mosaic=False
        )
        types = mdata.obs["celltype"].astype(str)
        return mdata, types, {"batch_key": "batch", "protein_modality": "adt"}, "blood"
    mdata = totalvi.read(data / "pbmc10k.h5mu")
    mdata = mdata[np.sort(np.random.default_rng(0).permutation(mdata.n_obs)[:4000])].copy()
    types = types_by_hand(mdata["prot"]) if name == "PBMC10k" else types_by_rna(mdata["rna"])
    return mdata, types, {}, "blood"


def types_by_hand(prot: AnnData) -> pd.Series:
    """Return the last of the gates drawn by hand that each cell lies in."""
    logs = np.log10(1 + prot.to_df())
    logs.columns = [name.removesuffix("_TotalSeqB") for name in logs]
    types = pd.Series("none", logs.index)
    for name, sides in HAND_GATES.items():
        inside = [(logs[marker] >= low) & (logs[marker] < high) for marker, low, high in sides]
        types[np.logical_and.reduce(inside)] = name
    return types


def types_by_rna(rna: AnnData) -> pd.Series:
    """Return the types of clusters of the RNA, by the mean standard score of their genes."""
    adata = rna.copy()
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    sc.pp.pca(adata, n_comps=30, random_state=0)
    sc.pp.neighbors(adata, random_state=0)
    sc.tl.leiden(adata, resolution=3.0, random_state=0, flavor="igraph", n_iterations=2)
    scores = {}
    for name, genes in RNA_MARKERS.items():
        values = adata[:, [g for g in genes if g in adata.var_names]].X.toarray()
        scores[name] = ((values - values.mean(0)) / values.std(0)).mean(1)
    by_cluster = pd.DataFrame(scores).groupby(adata.obs["leiden"].to_numpy()).mean()
    return pd.Series(
        by_cluster.idxmax(axis=1).reindex(adata.obs["leiden"].to_numpy()).to_numpy(),
        adata.obs_names,
    )


def fitted(mdata: MuData, path: Path, seed: int, options: dict[str, Any]) -> totalvi.Model:
    if path.exists():
        return totalvi.Model.load(path, mdata)
    model = totalvi.Model(mdata, seed=seed, **options)
    model.train(progress=False)
    model.save(path)
    return model


def calibration_error(p: np.ndarray, of_type: np.ndarray) -> float:
    """Return the mean distance of memberships from shares, over ten bins weighted by their sizes."""
    bins = np.minimum((10 * p).astype(int), 9)
    return sum(
        abs(p[bins == k].mean() - of_type[bins == k].mean()) * (bins == k).mean()
        for k in np.unique(bins)
    )


def scores(
    memberships: pd.DataFrame,
    population: np.ndarray,
    hierarchy: Hierarchy,
    types: pd.Series,
    name: str,
) -> dict[str, float]:
    """Return F1 and calibration of both floors."""
    paths = {p.name: hierarchy.path(p.name) for p in hierarchy.populations}
    found = {}
    for depth, (floor, patterns) in enumerate(
        (("lineages", LINEAGES[name]), ("below", BELOW[name]))
    ):
        truth = truth_of(types, patterns)
        kept = truth.notna().to_numpy()
        named = [
            paths[p][depth] if p in paths and len(paths[p]) > depth else "none" for p in population
        ]
        wanted = [p for p in patterns if (truth == p).any()]
        if not wanted:
            continue
        each = f1_score(
            truth[kept], np.array(named, dtype=object)[kept], labels=wanted, average=None
        )
        found[f"F1 {floor}"] = float(each.mean())
        found |= {f"F1 {p}": float(f) for p, f in zip(wanted, each, strict=True)}
        p = memberships.loc[kept, wanted].to_numpy()
        of_type = truth[kept].to_numpy()[:, None] == np.array(wanted)
        known = np.isfinite(p)
        found[f"error {floor}, all"] = calibration_error(p[known], of_type[known])
        unsure = known & (p > 0.01) & (p < 0.99)
        found[f"error {floor}, unsure"] = calibration_error(p[unsure], of_type[unsure])
        found[f"unsure {floor}"] = float(unsure.sum() / known.sum())
        sure = p.max(axis=1, initial=0.0, where=known)
        decided = sure >= 0.5
        right = of_type[np.arange(len(p)), np.where(known, p, -1).argmax(axis=1)]
        found[f"error {floor}, named"] = calibration_error(sure[decided], right[decided])
        found[f"undecided {floor}"] = float(np.mean(np.array(named)[kept] == "none"))
    return found


def clr(counts: np.ndarray) -> np.ndarray:
    """Return the centred log ratio of each antibody over cells, as Seurat's NormalizeData(margin=2)."""
    return np.log1p(counts / np.exp(np.log1p(counts).mean(axis=0)))


def dsb(counts: np.ndarray) -> np.ndarray:
    """Return values as dsb without empty droplets does: ModelNegativeADTnorm.

    Antibodies are centred and scaled by their lower component, and freed of the mean of the lower
    component of each cell's antibodies.
    """
    logs = np.log(counts + 10.0)
    for column in logs.T:
        low = _components(column, 2)
        column -= low[0]
        column /= max(low[1], 1e-3)
    noise = np.array([_components(row, 2)[0] for row in logs])
    centred = noise - noise.mean()
    slope = centred @ (logs - logs.mean(axis=0)) / (centred @ centred)
    return logs - np.outer(centred, slope)


def _components(values: np.ndarray, n: int) -> tuple[float, float]:
    """Return mean and standard deviation of the lowest normal component."""
    mixture = GaussianMixture(n, random_state=0, n_init=1).fit(values[:, None])
    lowest = int(mixture.means_.argmin())
    return float(mixture.means_[lowest, 0]), float(mixture.covariances_[lowest].ravel()[0] ** 0.5)


def gaussian_levels(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, bool]:
    """Return which cells are above the lowest component, and in the highest; and if there are two."""
    fits = [GaussianMixture(n, random_state=0).fit(values[:, None]) for n in (2, 3)]
    best = min(fits, key=lambda fit: fit.bic(values[:, None]))
    rank = best.means_[:, 0].argsort().argsort()[best.predict(values[:, None])]
    return rank > 0, rank == rank.max(), rank.max() == 1


def otsu_levels(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, bool]:
    """Return which cells are above the threshold that separates two classes best (Otsu, 1979)."""
    counts, edges = np.histogram(values, 256)
    middle = (edges[1:] + edges[:-1]) / 2
    below, total = np.cumsum(counts), np.cumsum(counts * middle)
    above = below[-1] - below
    with np.errstate(all="ignore"):
        between = below * above * (total / below - (total[-1] - total) / above) ** 2
    high = values > edges[1 + int(np.nanargmax(between))]
    return high, high, True


def by_thresholds(
    mdata: MuData,
    prot: str,
    hierarchy: Hierarchy,
    transform: Callable[[np.ndarray], np.ndarray],
    rule: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray, bool]],
) -> tuple[pd.DataFrame, np.ndarray]:
    """Return memberships (0 or 1) and populations of the hierarchy on thresholds."""
    proteins, rna = mdata[prot], mdata["rna"]
    counts = proteins.X.toarray() if hasattr(proteins.X, "toarray") else np.asarray(proteins.X)
    values = transform(counts.astype(float))
    totals = np.maximum(np.asarray(rna.X.sum(axis=1)).ravel(), 1)
    keys: dict[str, list[int]] = {}
    for i, name in enumerate(proteins.var_names):
        keys.setdefault(identify(name).key, []).append(i)
    genes = {gene_key(name): i for i, name in enumerate(rna.var_names)}
    levels: dict[str, Levels] = {}
    for name in distinct_markers(hierarchy.populations):
        symbol = Marker(name, "+").gene
        if symbol is None and (columns := keys.get(identify(name).key)):
            chosen = max(columns, key=lambda c: values[:, c].var())
            found = rule(values[:, chosen])
        elif symbol is not None and gene_key(symbol) in genes:
            column = np.asarray(rna.X[:, genes[gene_key(symbol)]].todense()).ravel()
            found = rule(np.log1p(1e4 * column / totals))
        else:
            continue
        positive, high = (Draws(x[:, None], x[:, None]) for x in found[:2])
        levels[name] = Levels(positive, high, found[2])
    gates = {p.name: usable(p.gate, set(levels)) for p in hierarchy.populations}
    counted = count_members(hierarchy, gates, levels, mdata.n_obs).astype(float)
    memberships = pd.DataFrame(
        known_memberships(*counted), index=mdata.obs_names, columns=list(gates)
    )
    return memberships, np.asarray(name_cells(memberships, hierarchy))


def by_clusters(
    latent: np.ndarray, memberships: pd.DataFrame, hierarchy: Hierarchy
) -> tuple[pd.DataFrame, np.ndarray]:
    """Name clusters of the latent space by the most frequent lineage of thresholds, then below it."""
    clusters = cluster_all(latent, np.arange(len(latent)), resolution=1.0, seed=0).labels
    means = memberships.fillna(0.0).groupby(np.asarray(clusters)).transform("mean")
    names = np.full(len(means), "undecided", dtype=object)
    one = pd.DataFrame(0.0, index=means.index, columns=means.columns)
    for parent in (None, *(p.name for p in hierarchy.populations)):
        children = [p.name for p in hierarchy.children(parent)]
        here = names == (parent or "undecided")
        if not children or not here.any():
            continue
        names[here] = means.loc[here, children].idxmax(axis=1)
    for cell, name in zip(one.index, names, strict=True):
        one.loc[cell, list(hierarchy.path(name))] = 1.0
    return one, names


def paired(mdata: MuData, prot: str, types: pd.Series) -> tuple[MuData, pd.Series]:
    """Return the cells that have both modalities."""
    both = mdata["rna"].obs_names.intersection(mdata[prot].obs_names, sort=False)
    return mdata[both].copy(), types[both]


def measure(shared: Path, name: str, seed: int, cache: Path) -> list[dict[str, Any]]:
    """Return a row of scores for each method."""
    mdata, types, options, which = read(shared, name)
    prot = options.get("protein_modality", "prot")
    hierarchy = read_hierarchy(which)
    model = fitted(
        mdata,
        cache / f"{CACHED_AS.get(name, name).replace(' ', '_')}_{seed}.totalvi",
        seed,
        options,
    )
    gating = model.gate(hierarchy=hierarchy, progress=False)
    cells = gating.memberships.index
    rows = [
        {"data": name, "seed": seed, "method": "model"}
        | scores(gating.memberships, np.asarray(gating.population), hierarchy, types[cells], name)
    ]
    if name == "WNN":
        rows.append(mapped(model, shared, hierarchy, seed))
    if seed:  # but for the clusters, baselines have no seed
        return rows
    given, given_types = paired(mdata, prot, types)
    latent = pd.DataFrame(model.get_latent_representation(progress=False), cells)
    for values, transform in (("CLR", clr), ("dsb", dsb)):
        for rule in (gaussian_levels, otsu_levels):
            found = by_thresholds(given, prot, hierarchy, transform, rule)
            method = f"{values}, {'Gaussian mixture' if rule is gaussian_levels else 'Otsu'}"
            rows.append(
                {"data": name, "seed": seed, "method": method}
                | scores(*found, hierarchy, given_types, name)
            )
            if values == "CLR":
                memberships = found[0].loc[cells]
                one = by_clusters(latent.to_numpy(), memberships, hierarchy)
                rows.append(
                    {"data": name, "seed": seed, "method": f"clusters, {method}"}
                    | scores(*one, hierarchy, types[cells], name)
                )
    return rows


def mapped(model: totalvi.Model, shared: Path, hierarchy: Hierarchy, seed: int) -> dict[str, Any]:
    """Return the scores of cells whose proteins are imputed."""
    mosaic = mudata.read_h5mu(shared / "data" / "wnn_pbmc_mosaic_224proteins.h5mu")
    rna = mosaic["rna"][(mosaic["rna"].obs["batch"] == "p1_0").to_numpy()].copy()
    gating = model.map_query(rna).gate(hierarchy=hierarchy, progress=False)
    types = rna.obs["celltype"].astype(str)
    return {"data": "WNN", "seed": seed, "method": "model, imputed proteins (p1)"} | scores(
        gating.memberships, np.asarray(gating.population), hierarchy, types, "WNN"
    )


def taken_away(shared: Path, marker: str, seed: int, cache: Path) -> dict[str, Any]:
    """Return what becomes of the cells that the marker named rightly, in the bone marrow."""
    name = "bone marrow"
    mdata, types, options, which = read(shared, name)
    hierarchy = read_hierarchy(which)
    full = fitted(mdata, cache / f"bone_marrow_{seed}.totalvi", seed, options)
    key = identify(marker).key
    others = [p for p in mdata["prot"].var_names if identify(p).key != key]
    fewer = MuData({"rna": mdata["rna"].copy(), "prot": mdata["prot"][:, others].copy()})
    fewer.obs["batch"] = mdata["rna"].obs["batch"]
    model = fitted(fewer, cache / f"bone_marrow_without_{marker}_{seed}.totalvi", seed, options)
    before = full.gate(hierarchy=hierarchy, progress=False).population.astype(str)
    gating = model.gate(hierarchy=hierarchy, progress=False)
    after = gating.population.astype(str)
    paths = {p.name: hierarchy.path(p.name) for p in hierarchy.populations}
    deciding = {  # populations whose gate, or one above it, asks for the level of the marker
        p.name
        for p in hierarchy.populations
        if any(
            identify(m.name).key == key and not m.optional
            for above in hierarchy.populations
            if above.name in paths[p.name]
            for m in above.markers()
        )
    }
    truth = [truth_of(types, LINEAGES[name]), truth_of(types, BELOW[name])]

    def right(cell: str, population: str) -> bool:
        path = paths.get(population, ())
        expected = [t[cell] for t in truth]
        return bool(path) and all(
            pd.isna(e) or e == p for e, p in zip(expected, path, strict=False)
        )

    cells = [c for c in before.index if before[c] in deciding and right(c, before[c])
             and pd.notna(truth[0][c])]  # fmt: skip
    kept = sum(after[c] == before[c] for c in cells)
    wrong = sum(after[c] != "undecided" and not right(c, after[c]) for c in cells)
    n = max(len(cells), 1)
    return {
        "marker": marker,
        "seed": seed,
        "cells": len(cells),
        "same": kept / n,
        "less": 1 - (kept + wrong) / n,
        "wrong": wrong / n,
        "wanting": ", ".join(
            name
            for name, wanting in gating.populations["wanting"].items()
            if marker in (want.partition(" (")[0] for want in wanting.split(", "))
        ),
    }


def report(rows: pd.DataFrame, away: pd.DataFrame) -> str:
    """Return the page of results."""
    columns = [
        "F1 lineages", "F1 below",
        "error lineages, all", "error lineages, unsure", "error lineages, named",
        "error below, all", "error below, unsure", "undecided lineages",
    ]  # fmt: skip
    lines = ["# Named populations", "", __doc__.split("\n", 1)[1].strip(), ""]
    lines += ["Mean over seeds, and the standard deviation where there are several.", ""]
    for name, of_data in rows.groupby("data", sort=False):
        lines += [f"## {name}", "", "| method | seeds | " + " | ".join(columns) + " |"]
        lines += ["|---" * (len(columns) + 2) + "|"]
        for method, of_method in of_data.groupby("method", sort=False):
            cells = []
            for column in columns:
                values = of_method[column]
                spread = f" ± {values.std():.3f}" if len(values) > 1 else ""
                cells.append(f"{values.mean():.3f}{spread}")
            lines.append(f"| {method} | {len(of_method)} | " + " | ".join(cells) + " |")
        each = [c for c in of_data if c.startswith("F1 ") and c not in columns]
        model = of_data[of_data["method"] == "model"][each].mean().dropna()
        lines += ["", "F1 of the model by population: " + ", ".join(
            f"{c.removeprefix('F1 ')} {v:.3f}" for c, v in model.items()) + ".", ""]  # fmt: skip
    if len(away):
        lines += ["## A marker taken away (bone marrow)", "",
                  "Of the cells that were named rightly by a gate that asks for the marker: those that "
                  "keep their name by other markers, that are named by less or not at all, and that "
                  "are named wrongly. One seed.", "",
                  "| marker | cells | the same | less | wrong | populations wanting it |",
                  "|---|---|---|---|---|---|"]  # fmt: skip
        lines += [
            f"| {r.marker} | {r.cells} | {r.same:.3f} | {r.less:.3f} | {r.wrong:.3f} | {r.wanting} |"
            for r in away.itertuples()
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure all, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("shared", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--data", nargs="*", default=list(LINEAGES))
    parser.add_argument("--without", nargs="*", default=list(TAKEN_AWAY))
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    given.cache.mkdir(parents=True, exist_ok=True)
    rows = [
        row
        for name in given.data
        for seed in range(given.seeds)
        for row in measure(given.shared, name, seed, given.cache)
    ]
    away = [taken_away(given.shared, marker, 0, given.cache) for marker in given.without]
    table, without = pd.DataFrame(rows), pd.DataFrame(away)
    text = report(table, without)
    print(text)
    RESULTS.joinpath("gates.json").write_text(
        json.dumps({"rows": rows, "taken_away": away}, indent=1) + "\n", encoding="utf-8"
    )
    RESULTS.joinpath("gates.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
