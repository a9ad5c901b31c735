"""Measure minified references: their size, how their answers differ, and how fast cells are mapped.

    python benchmarks/minified.py --data pbmc10k.h5mu --query pbmc5k_rna.h5ad --cache fits

For each data set and seed, a model is fitted to nine tenths of the cells and saved whole and minified.
The tables show

- bytes a cell and other bytes of the file, and what each part of a cell needs;
- the largest difference between the answers of the minified and of the whole reference about the other
  cells, mapped with their proteins and from RNA alone, and about the reference's own cells;
- what the card says, beside the same measured on the mapped cells;
- seconds to read the reference and map 10,000 cells (the query's, repeated), with labels, unlikeness,
  places on the map, imputed proteins with intervals, and their foreground probability.

Results go to benchmarks/results/minified.json and .md. ``--no-seconds`` leaves the times out.
"""

import argparse
import json
import time
import warnings
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
from mudata import MuData
from safetensors import safe_open

import totalvi
from result_files import write_results
from totalvi.errors import DataWarning
from totalvi.formats.minified import read_card
from totalvi.run.variable_genes import select_genes

LABELS = "types"  # clusters of the latent space
MAPPED_CELLS, MOST_GENES = 10_000, 4000


def fitted(mdata: MuData, name: str, seed: int, cache: Path) -> totalvi.Model:
    """Return a model of the cells, fitted now or earlier."""
    place = cache / f"{name}_{seed}.totalvi"
    if place.exists():
        return totalvi.Model.load(place, mdata)
    model = totalvi.Model(mdata, seed=seed)
    model.train(progress=False)
    model.save(place)
    return model


def largest(one: pd.DataFrame, other: pd.DataFrame) -> float:
    """Return the largest difference of two tables, of counts relative to 1 + count."""
    one, other = (x.select_dtypes("number").to_numpy(np.float64) for x in (one, other))
    return float(np.nanmax(np.abs(one - other) / (1 + np.abs(one))))


def differences(whole: totalvi.Model, small: totalvi.Model, cells: MuData) -> dict[str, float]:
    """Return the largest difference of each answer about mapped cells, and about own cells."""
    found: dict[str, float] = {}
    for how, data in (("with proteins", cells), ("RNA alone", cells["rna"].copy())):
        queries = [model.map_query(data) for model in (whole, small)]
        labels, unlike, latent = [], [], []
        for model, query in zip((whole, small), queries, strict=True):
            labels.append(model.transfer_labels(query, LABELS).probabilities)
            unlike.append(model.get_unlikeness(query))
            latent.append(pd.DataFrame(query.get_latent_representation()))
        found[f"{how}: label probabilities"] = largest(*labels)
        found[f"{how}: unlikeness"] = largest(*unlike)
        found[f"{how}: latent space"] = largest(*latent)
        if how == "RNA alone":
            imputed = [
                model.impute_query(query, n_samples=25)
                for model, query in zip((whole, small), queries, strict=True)
            ]
            for part in ("log1p", "lower", "upper"):
                of_part = [getattr(each, part) for each in imputed]
                found[f"imputed proteins: {part}"] = largest(*of_part)
            reliable = [
                model.get_query_reliability(query, n_samples=25)
                for model, query in zip((whole, small), queries, strict=True)
            ]
            found["reliability"] = largest(*reliable)
    own = [pd.DataFrame(model.get_latent_representation()) for model in (whole, small)]
    found["own cells: latent means"] = float(np.abs(own[0] - own[1]).to_numpy().max())
    for samples in (1, 25):
        rna, protein = zip(
            *(
                model.get_normalized_expression(given_counts=False, n_samples=samples)
                for model in (whole, small)
            ),
            strict=True,
        )
        found[f"own cells: RNA of {samples} samples"] = largest(*rna)
        found[f"own cells: proteins of {samples} samples"] = largest(*protein)
    return found


def bytes_of_parts(place: Path) -> dict[str, int]:
    """Return the bytes of each part that is kept of all cells."""
    with safe_open(place, "numpy") as file:
        names = [name for name in file.keys() if name.startswith("cells.")]  # noqa: SIM118
        return {
            name.removeprefix("cells."): file.get_tensor(name).nbytes
            for name in names
            if name != "cells.coefficients" and not name.startswith("cells.kept_")
        }


def seconds(place: Path, data: Path | None, query: anndata.AnnData) -> float:
    """Return the seconds to read a reference and to map cells, with all that is said of them."""
    started = time.perf_counter()
    model = totalvi.Model.load(place, None if data is None else totalvi.read(data))
    mapped = model.map_query(query)
    model.transfer_labels(mapped, LABELS)
    model.get_unlikeness(mapped)
    model.get_map_coordinates(mapped)
    model.impute_query(mapped, n_samples=25, progress=False)
    return time.perf_counter() - started


def measure(path: Path, seed: int, query: Path | None, cache: Path) -> dict[str, Any]:
    """Return what is measured of one data set and seed."""
    mdata = totalvi.read(path)
    rna = mdata["rna"]
    if rna.n_vars > MOST_GENES:
        chosen = select_genes(rna.X.tocsr(), rna.var_names, n_genes=MOST_GENES)
        mdata = MuData({"rna": rna[:, chosen].copy(), "prot": mdata["prot"]})
    left_out = np.random.default_rng(0).random(mdata.n_obs) < 0.1
    reference, cells = mdata[~left_out].copy(), mdata[left_out].copy()
    model = fitted(reference, path.stem, seed, cache)
    types = cache / f"{path.stem}_types.csv"  # the same for all seeds
    if not types.exists():
        from sklearn.cluster import KMeans

        latent = model.get_latent_representation()
        codes = KMeans(12, random_state=0, n_init=3).fit_predict(latent)
        pd.Series([f"type {code}" for code in codes], reference.obs_names).to_csv(types)
    reference.obs[LABELS] = pd.read_csv(types, index_col=0).iloc[:, 0].reindex(reference.obs_names)
    reference.obsm["X_umap"] = model.get_latent_representation()[:, :2]
    model = totalvi.Model.load(cache / f"{path.stem}_{seed}.totalvi", reference)
    place = cache / f"{path.stem}_{seed}_minified.totalvi"
    started = time.perf_counter()
    model.save(place, minified=True, overwrite=True)
    row: dict[str, Any] = {"data": path.stem, "seed": seed, "cells": reference.n_obs}
    row["seconds to write"] = time.perf_counter() - started
    small = totalvi.Model.load(place)
    row["parts"] = bytes_of_parts(place)
    row["bytes a cell"] = sum(row["parts"].values()) / reference.n_obs
    row["other MB"] = place.stat().st_size / 1e6 - row["bytes a cell"] * reference.n_obs / 1e6
    row["differences"] = differences(model, small, cells)
    row["card"] = read_card(place)["card"]
    mapped = small.map_query(cells["rna"].copy())
    imputed = small.impute_query(mapped, n_samples=25)
    truth = np.log1p(cells["prot"].to_df())
    shared = [name for name in imputed.log1p if name in truth]
    row["pearson of new cells"] = {
        name: float(np.corrcoef(imputed.log1p[name], truth[name])[0, 1]) for name in shared
    }
    if query is not None:
        new = anndata.read_h5ad(query)
        rows = np.arange(MAPPED_CELLS) % new.n_obs
        new = new[rows].copy()
        new.obs_names = [f"new_{i}" for i in range(new.n_obs)]
        stored = cache / f"{path.stem}_reference.h5mu"
        reference.write(stored)
        whole = cache / f"{path.stem}_{seed}.totalvi"
        for name, (at, data) in {"whole": (whole, stored), "minified": (place, None)}.items():
            row[f"seconds, {name}"] = min(seconds(at, data, new) for _ in range(3))
    return row


def report(rows: list[dict[str, Any]]) -> list[str]:
    """Return the tables as Markdown."""
    timed = any("seconds, minified" in row for row in rows)
    lines = [
        "# Minified references",
        "",
        "Written by `python benchmarks/minified.py`. Differences are the largest over all cells and",
        "features, of counts relative to 1 + count. Labels are clusters of the latent space.",
        "Each row is one fit; without times, those were not measured.",
        "",
        "| data | seed | cells | bytes a cell | other MB |"
        + " map 10,000 cells: whole, minified (s) |" * timed,
        "|---|---|---|---|---|" + "---|" * timed,
    ]
    for row in rows:
        text = f"| {row['data']} | {row['seed']} | {row['cells']:,} | {row['bytes a cell']:.1f} | "
        text += f"{row['other MB']:.1f} |"
        if timed:
            both = [row.get(f"seconds, {name}") for name in ("whole", "minified")]
            text += " |" if both[0] is None else f" {both[0]:.1f}, {both[1]:.1f} |"
        lines.append(text)
    lines += ["", "| part of a cell | bytes (mean of the rows above) |", "|---|---|"]
    for name in rows[0]["parts"]:
        each = [row["parts"].get(name, 0) / row["cells"] for row in rows]
        lines.append(f"| {name} | {np.mean(each):.2f} |")
    heads = [f"{row['data']}, seed {row['seed']}" for row in rows]
    lines += ["", f"| largest difference | {' | '.join(heads)} |", "|---|" + "---|" * len(rows)]
    for name in rows[0]["differences"]:
        values = " | ".join(f"{row['differences'][name]:.1e}" for row in rows)
        lines.append(f"| {name} | {values} |")
    lines += [
        "",
        "The card says how well proteins are predicted from RNA; beside it, the same of new cells",
        "of the same data set (mean over proteins):",
        "",
        "| data | seed | labels, all | labels, RNA alone | Pearson, card | Pearson, new cells |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        card, new = row["card"], row["pearson of new cells"]
        said = [card["imputed_proteins"][name]["pearson"] for name in new]
        about = card["labels"][LABELS]
        lines.append(
            f"| {row['data']} | {row['seed']} | {about['accuracy_rna_and_proteins']:.3f} | "
            f"{about['accuracy_rna']:.3f} | {np.nanmean(said):.3f} | "
            f"{np.nanmean(list(new.values())):.3f} |"
        )
    return lines


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Measure minified references.")
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument(
        "--query",
        type=Path,
        help="RNA of other cells with the genes of the first data, for the times",
    )
    parser.add_argument("--cache", type=Path, required=True, help="folder of fits")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--no-seconds", action="store_true")
    arguments = parser.parse_args()
    started = time.process_time()
    arguments.cache.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore", DataWarning)
    query = None if arguments.no_seconds else arguments.query
    rows = []
    for path in arguments.data:
        for seed in arguments.seeds:
            of_query = query if path == arguments.data[0] else None
            rows.append(measure(path, seed, of_query, arguments.cache))
            print(json.dumps(rows[-1]["differences"], indent=1), flush=True)
    write_results("minified", {"rows": rows}, report(rows), started)
    print("\n".join(report(rows)))


if __name__ == "__main__":
    main()
