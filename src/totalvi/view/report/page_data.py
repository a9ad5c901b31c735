"""The numbers behind the page's selectors: categories, proteins, genes, differential expression."""

import base64
import gzip
import json
from collections.abc import Iterator
from itertools import zip_longest
from typing import Any

import numpy as np
import pandas as pd

from totalvi.figures.cell_maps import label_places
from totalvi.figures.style import PROTEIN_SCALE, RNA_SCALE, category_colors
from totalvi.view.report.report_data import CLUSTERS, Results, read_genes


def packed(values: bytes) -> str:
    """Return bytes compressed with gzip, in base64."""
    return base64.b64encode(gzip.compress(values, compresslevel=6, mtime=0)).decode("ascii")


def packed_json(value: Any) -> str:
    """Return a JSON value, compressed, in base64."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return packed(text.encode("utf-8"))


def packed_counts(counts: np.ndarray) -> dict[str, Any]:
    """Return exact counts in as few bytes as possible; the largest code is NaN.

    Examples
    --------
    >>> packed_counts(np.array([0, 7, np.nan]))["type"]
    'uint8'
    """
    known = np.isfinite(counts)
    highest = counts[known].max() if known.any() else 0
    kind = next(t for t in (np.uint8, np.uint16, np.uint32) if highest < np.iinfo(t).max)
    codes = np.where(known, counts, np.iinfo(kind).max).astype(kind)
    return _entry(codes, 0.0, 1.0)


def packed_levels(values: np.ndarray, n_levels: int) -> dict[str, Any]:
    """Return values rounded to the nearest of equally spaced levels; the largest code is NaN.

    Examples
    --------
    >>> entry = packed_levels(np.array([0.0, 1.0]), 251)
    >>> entry["type"], entry["low"], entry["step"]
    ('uint8', 0.0, 0.004)
    """
    known = np.isfinite(values)
    low, high = (values[known].min(), values[known].max()) if known.any() else (0.0, 1.0)
    step = float(high - low) / (n_levels - 1) or 1.0
    kind = np.uint8 if n_levels < 256 else np.uint16
    codes = np.full(len(values), np.iinfo(kind).max, dtype=kind)
    codes[known] = np.round((values[known] - low) / step).astype(kind)
    return _entry(codes, float(low), step)


def _entry(codes: np.ndarray, low: float, step: float) -> dict[str, Any]:
    little = codes.astype(codes.dtype.newbyteorder("<"))
    return {"type": codes.dtype.name, "low": low, "step": step, "data": packed(little.tobytes())}


def size_of(entries: dict[str, Any]) -> int:
    """Return how many bytes the data of packed entries take in the page."""
    return sum(len(entry["data"]) for entry in entries.values())


MAX_DRAWN = 10_000
PROTEIN_BYTES = 4_500_000  # in the page, of all proteins
BYTES_PER_VALUE = 4.5  # of one cell's raw count, denoised count and foreground probability
DATA_BYTES = 7_000_000  # of proteins and genes together; Bokeh and the rest take 1.5 MB
MAX_GENES = 400
MAX_ROWS = 40_000  # of differential expression

COLUMNS = {
    "lfc_median": 4,
    "lfc_ci_low": 4,
    "lfc_ci_high": 4,
    "bayes_factor": 3,
    "proba_de": 4,
    "raw_mean1": 4,
    "raw_mean2": 4,
    "non_zeros_proportion1": 4,
    "non_zeros_proportion2": 4,
}
"""Columns of differential expression that the page shows, and the decimals it gets."""


def n_drawn(n_proteins: int) -> int:
    """Return how many cells to draw: fewer of wide panels, so that the page stays small.

    Examples
    --------
    >>> n_drawn(14), n_drawn(134), n_drawn(300)
    (10000, 7462, 3333)
    """
    return min(MAX_DRAWN, int(PROTEIN_BYTES / BYTES_PER_VALUE / max(n_proteins, 1)))


def data_of_page(results: Results) -> dict[str, Any]:
    """Return everything that the page's script reads, as JSON values."""
    proteins = _proteins(results)
    left = DATA_BYTES - sum(size_of(entry["layers"]) for entry in proteins)
    return {
        "cells": len(results.drawn.rows),
        "cells_in_all": len(results.umap),
        "weights": packed(results.drawn.weights.astype("<f4").tobytes()),
        "categories": _categories(results),
        "features": [*proteins, *_genes(results, left)],
        "scales": {
            kind: {
                "cofactor": scale.cofactor,
                "ticks": [[place, label] for place, label in scale.ticks(fine=True).items()],
            }
            for kind, scale in (("protein", PROTEIN_SCALE), ("gene", RNA_SCALE))
        },
        "differential": _differential(results),
    }


def _categories(results: Results) -> list[dict[str, Any]]:
    wanted = {"cluster": CLUSTERS}
    wanted |= {key: key for key in (results.batch_key, results.labels_key) if key is not None}
    rows = results.drawn.rows
    categories = []
    for name, column in wanted.items():
        values = pd.Categorical(results.obs[column]).remove_unused_categories()
        names = [str(category) for category in values.categories]
        codes = values.codes.astype(np.int32)
        n_cells = np.bincount(codes[codes >= 0], minlength=len(names))
        places = label_places(results.umap[rows], codes[rows], names) if len(names) <= 40 else {}
        kind = np.uint8 if len(names) < 255 else np.uint16
        shown = np.where(codes < 0, np.iinfo(kind).max, codes)[rows].astype(kind)
        categories.append(
            {
                "name": name,
                "names": names,
                "n_cells": n_cells.tolist(),
                "colors": category_colors(len(names)),
                "labels": places if column != results.batch_key else {},
                "type": np.dtype(kind).name,
                "data": packed(shown.astype(np.dtype(kind).newbyteorder("<")).tobytes()),
            }
        )
    return categories


def _proteins(results: Results) -> list[dict[str, Any]]:
    entries = []
    for i, name in enumerate(results.protein_names):
        denoised = PROTEIN_SCALE.forward(results.denoised[:, i])
        layers = {
            "denoised": packed_levels(denoised, 2000) | {"is_place": True},
            "raw": _raw(results.raw[:, i], PROTEIN_SCALE),
            "foreground": packed_levels(results.foreground[:, i], 201) | {"is_place": True},
        }
        entries.append({"name": name, "kind": "protein", "layers": layers})
    return entries


def _genes(results: Results, left: int) -> Iterator[dict[str, Any]]:
    """Return the genes that mark the clusters, the best of each first, until the page is full."""
    chosen = marker_genes(results)[:MAX_GENES]
    if not chosen:
        return
    place = {name: i for i, name in enumerate(results.gene_names)}
    raw, denoised = read_genes(results, [place[name] for name in chosen])
    for i, name in enumerate(chosen):
        layers = {"raw": _raw(raw[:, i], RNA_SCALE)}
        if denoised is not None:
            levels = packed_levels(RNA_SCALE.forward(denoised[:, i]), 251)
            layers["denoised"] = levels | {"is_place": True}
        left -= size_of(layers)
        if left < 0:
            return
        yield {"name": name, "kind": "gene", "layers": layers}


def marker_genes(results: Results) -> list[str]:
    """Return genes, the likeliest marker of each cluster first, then the second of each, ..."""
    known = set(results.gene_names)
    table = results.tables.get("differential_expression")
    ranked: list[list[str]] = []
    if table is not None:
        up = table[(table["modality"] == "rna") & (table["lfc_median"] > 0)]
        up = up.sort_values("lfc_ci_low", ascending=False)
        ranked = [list(of_cluster.index) for _, of_cluster in up.groupby("group1")]
    turns = (name for turn in zip_longest(*ranked) for name in turn if name in known)
    return list(dict.fromkeys([*turns, *results.gene_names]))


def _raw(counts: np.ndarray, scale: Any) -> dict[str, Any]:
    known = counts[np.isfinite(counts)]
    if (known == np.round(known)).all():
        return packed_counts(counts) | {"is_place": False}
    return packed_levels(scale.forward(counts), 2000) | {"is_place": True}


def _differential(results: Results) -> dict[str, Any] | None:
    table = results.tables.get("differential_expression")
    if table is None:
        return None
    comparisons = list(pd.unique(table["comparison"]))
    called = next(name for name in table.columns.astype(str) if name.startswith("is_de_fdr"))
    is_protein = table["modality"] == "protein"
    rank = table.groupby("comparison", sort=False).cumcount()
    per_comparison = max(MAX_ROWS // len(comparisons), 50)
    kept = table[(rank < per_comparison) | is_protein]
    names = list(dict.fromkeys(kept.index))
    number = {name: i for i, name in enumerate(names)}
    columns: dict[str, Any] = {
        "feature": [number[name] for name in kept.index],
        "comparison": pd.Categorical(kept["comparison"], categories=comparisons).codes.tolist(),
        "is_protein": (kept["modality"] == "protein").astype(int).tolist(),
        "called": kept[called].astype(bool).astype(int).tolist(),
    }
    for name, decimals in COLUMNS.items():
        values = kept[name].round(decimals).astype(object)
        columns[name] = values.where(kept[name].notna(), None).tolist()
    return {
        "comparisons": comparisons,
        "names": names,
        "rows": len(kept),
        "rows_in_all": len(table),
        "fdr": called.removeprefix("is_de_fdr_"),
        "columns": packed_json(columns),
    }
