"""The figures of the report, in one Bokeh document."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from bokeh.core.json_encoder import serialize_json
from bokeh.document import Document
from bokeh.models import ColumnDataSource
from bokeh.plotting import figure

from totalvi.figures.cell_maps import (
    add_color_bar,
    add_density,
    add_labels,
    biaxial,
    category_mapper,
    cell_map,
    value_mapper,
)
from totalvi.figures.charts import (
    agreement,
    composition,
    count_histogram,
    heat_map,
    training_curves,
    volcano,
)
from totalvi.figures.style import PROTEIN_SCALE
from totalvi.view.report.page_data import packed
from totalvi.view.report.report_data import Results

MARKERS_PER_CLUSTER = 4
MARKER_ROWS = 60
START = {"x": [0.0, 1.0], "y": [0.0, 1.0]}  # until the page fills a figure, which needs some range


def make_figures(results: Results) -> dict[str, figure]:
    """Return the figures of the report by name; those without data are left out.

    Maps, biaxial plots and the volcano are empty: the page fills them with what its reader picks.
    """
    tables = results.tables
    drawn = _maps(results) | _biaxials(results)
    cells = tables["cells"]
    drawn["rna_total"] = count_histogram(cells["rna_total"].to_numpy(), "RNA counts in a cell")
    drawn["protein_total"] = count_histogram(
        cells["protein_total"].to_numpy(), "protein counts in a cell"
    )
    drawn["training"] = training_curves(tables["history"], results.record["best_epoch"])
    if "differential_expression" in tables:
        values = marker_values(tables["differential_expression"])
        drawn["markers"] = heat_map(
            values.to_numpy(),
            list(values.index),
            list(values.columns),
            low=0.0,
            high=1.0,
            value_name="of the highest cluster",
        )
        features = ColumnDataSource(
            START | {"kind": [0, 0], "name": ["", ""]}, name="features_source"
        )
        drawn["volcano"] = volcano(features, y_label="log odds of a difference")
    if "predictive_checks" in tables:
        drawn |= _agreements(tables["predictive_checks"])
    if "batches" in tables:
        clusters = tables["clusters"]
        prefix = "cells_in_batch_"
        columns = [name for name in clusters.columns.astype(str) if name.startswith(prefix)]
        drawn["composition"] = composition(
            clusters[columns].to_numpy(),
            list(clusters.index),
            [name.removeprefix(prefix) for name in columns],
            x_label="% of the cluster's cells",
            y_label="cluster",
        )
    return drawn


def embedded(figures: Mapping[str, figure]) -> tuple[str, dict[str, str]]:
    """Return the packed Bokeh document of figures, and the id of each in it."""
    document = Document()
    for drawn in figures.values():
        document.add_root(drawn)
    text = serialize_json(document.to_json(deferred=False), pretty=False)
    return packed(text.encode("utf-8")), {name: drawn.id for name, drawn in figures.items()}


def marker_values(table: pd.DataFrame) -> pd.DataFrame:
    """Return features that mark the clusters, by cluster: mean expression, the highest being 1.

    All proteins, ordered by the cluster where they are highest, then of each cluster the genes that
    are called and rise most.
    """
    called = next(name for name in table.columns.astype(str) if name.startswith("is_de_fdr"))
    rows = table.reset_index().rename(columns={"index": "feature"})
    up = rows[(rows["modality"] == "rna") & rows[called].astype(bool) & (rows["lfc_median"] > 0)]
    n_clusters = max(rows["group1"].nunique(), 1)
    per_cluster = min(MARKERS_PER_CLUSTER, max(MARKER_ROWS // n_clusters, 1))
    best = up.sort_values("lfc_ci_low", ascending=False).groupby("group1").head(per_cluster)
    order = pd.unique(rows["group1"])
    genes = [g for cluster in order for g in best.loc[best["group1"] == cluster, "feature"]]
    parts: list[pd.DataFrame] = []
    for modality, wanted in (("protein", None), ("rna", list(dict.fromkeys(genes)))):
        of_kind = rows[rows["modality"] == modality]
        means = of_kind.pivot_table(
            index="feature", columns="group1", values="scale1", sort=False, dropna=False
        )[order]
        means = means if wanted is None else means.loc[wanted]
        scaled = means.div(means.max(axis=1).where(lambda top: top > 0), axis=0)
        if wanted is None:
            highest = scaled.fillna(0).to_numpy().argmax(axis=1)
            scaled = scaled.iloc[np.argsort(highest, kind="stable")]
        if modality == "rna":
            scaled.index = [f"{g} (gene)" if g in set(parts[0].index) else g for g in scaled.index]
        parts.append(scaled)
    return pd.concat(parts)


def _maps(results: Results) -> dict[str, figure]:
    umap = results.umap[results.drawn.rows].astype(np.float32)
    n_cells = len(umap)
    nothing = np.zeros(n_cells, dtype=np.uint8)
    source = ColumnDataSource(
        {"umap_1": umap[:, 0], "umap_2": umap[:, 1], "category": nothing, "value": nothing},
        name="map_cells",
    )
    categories, values = category_mapper(1), value_mapper(0.0, 1.0)
    categories.name, values.name = "category_mapper", "value_mapper"
    by_category = cell_map(source, categories, color="category")
    by_value = cell_map(
        source,
        values,
        color="value",
        height=464,  # the bar below takes the rest, so that both maps are of one size
        x_range=by_category.x_range,
        y_range=by_category.y_range,
    )
    if n_cells < len(results.umap):
        for drawn in (by_category, by_value):
            add_density(drawn, results.umap)
    add_labels(by_category, ColumnDataSource({"x": [], "y": [], "text": []}, name="labels_source"))
    add_color_bar(by_value, values, PROTEIN_SCALE).name = "color_bar"
    return {"map_category": by_category, "map_value": by_value}


def _biaxials(results: Results) -> dict[str, figure]:
    drawn = {}
    for kind in ("raw", "denoised"):
        source = ColumnDataSource(START | {"density": [0, 0]}, name=f"biaxial_{kind}")
        n_cells = len(results.drawn.rows)
        drawn[f"biaxial_{kind}"] = biaxial(source, n_cells=n_cells, x_label="x", y_label="y")
        drawn[f"biaxial_{kind}"].name = f"figure_biaxial_{kind}"
    return drawn


def _agreements(checks: pd.DataFrame) -> dict[str, figure]:
    is_protein = (checks["modality"] == "protein").to_numpy()
    order = np.argsort(is_protein, kind="stable")  # few proteins on top of many genes
    drawn: dict[str, figure] = {}
    for name, label, scale in (
        ("mean", "mean count (proteins)", PROTEIN_SCALE),
        ("zero_fraction", "share of zeros", None),
    ):
        shown = order if scale is None else order[is_protein[order]]
        rows = checks.iloc[shown]
        columns: dict[str, Any] = {"name": list(rows.index), "kind": is_protein[shown].astype(int)}
        for which in ("observed", "predicted"):
            values = rows[f"{which}_{name}"].to_numpy(dtype=float)
            columns[which] = (values if scale is None else scale.forward(values)).astype(np.float32)
        known = np.concatenate([columns["observed"], columns["predicted"]])
        high = 1.0 if scale is None else float(np.nanmax(known, initial=1.0))
        source = ColumnDataSource(columns)
        drawn[f"check_{name}"] = agreement(source, label=label, scale=scale, high=high)
    return drawn
