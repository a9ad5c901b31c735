"""The figures of the report, in one Bokeh document."""

from collections.abc import Hashable, Mapping
from typing import Any, NamedTuple

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
    HistogramParts,
    agreement,
    composition,
    count_histogram,
    heat_map,
    histogram_parts,
    training_curves,
    volcano,
)
from totalvi.figures.style import PROTEIN_SCALE
from totalvi.report.report_data import Results, mean_count, number, packed

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


WIDTH, HEIGHT = 260.0, 84.0

ADVICE = {
    "not measured": "It was not measured in any cell.",
    "control with foreground": (
        "An isotype control should stain nothing, yet more than 5 % of the cells seem stained. "
        "Unspecific binding is likely: be careful with dim antibodies of the same isotype."
    ),
    "no foreground": (
        "Hardly any cell rises above the background. Either the antibody failed or no cell here has "
        "the protein; do not read its denoised values as expression."
    ),
    "no background": (
        "Nearly every cell counts as stained. Either all cells have the protein or the background "
        "cannot be told from it; its denoised values are about its raw ones."
    ),
    "does not separate": (
        "What the model takes for stained and for unstained cells has nearly the same counts. Either "
        "the antibody failed, or nearly all cells have the protein, or none: look at its counts before "
        "you gate on it, and treat its denoised values with care."
    ),
    "few cells far above": (
        "A few cells have counts far above all others: a rare population that is stained, or debris "
        "that carries many antibodies. The model's foreground is not these cells. See on raw counts "
        "what else they carry, and do not read its denoised values and foreground probabilities as "
        "expression."
    ),
}


class Fact(NamedTuple):
    """A number of a card, of a column of a table on disk."""

    label: str
    text: str
    table: str
    column: str


class Mark(NamedTuple):
    """An upright line of a histogram: a mean count, and where it is in the picture."""

    kind: str
    place: float


class Card(NamedTuple):
    """The part of the page about one antibody.

    Attributes
    ----------
    warning, advice
        Why the antibody failed and what that means; empty if it did not.
    flags
        All of its faults.
    background, foreground, denoised
        SVG paths of the histogram's parts.
    ticks
        Places in the picture and labels of the axis.
    marks
        ``isotype``, the mean count of the highest control, and ``droplet``, of empty droplets.
    alternative
        The picture in words.
    """

    name: str
    is_control: bool
    facts: list[Fact]
    warning: str
    advice: str
    flags: list[str]
    background: str
    foreground: str
    denoised: str
    ticks: list[tuple[float, str]]
    marks: list[Mark]
    alternative: str


def protein_cards(results: Results) -> list[Card]:
    """Return a card for each protein, in the order of the data."""
    return [
        _card(
            results,
            name,
            histogram_parts(
                results.raw[:, i],
                results.denoised[:, i],
                results.foreground[:, i],
                weights=results.drawn.weights,
            ),
            bool(results.is_control[i]),
            [*_separation(results, name), *_background(results, name)],
            _row(results, "proteins", name)["warning"],
        )
        for i, name in enumerate(results.protein_names)
    ]


def control_cards(results: Results) -> list[Card]:
    """Return a card for each isotype control that was kept out of the model."""
    if "isotype_controls" not in results.tables:  # the run could not make it
        return []
    cards = []
    for name in map(str, results.controls):
        numbers = _row(results, "isotype_controls", name)
        counts = results.controls[name].to_numpy(dtype=float)
        nothing = np.zeros(len(counts))
        parts = histogram_parts(counts, nothing, nothing, weights=results.drawn.weights)
        table = "isotype_controls"
        facts = [
            Fact("mean count", mean_count(numbers["mean_count"]), table, "mean_count"),
            Fact("correlation", number(numbers["correlation"], 2), table, "correlation"),
            *_droplet_facts(results, name),
        ]
        cards.append(_card(results, name, parts, True, facts, ""))
    return cards


def _droplet_means(results: Results, name: str) -> np.ndarray:
    """Return the mean count of one antibody in an empty droplet, by batch; none: no droplets."""
    ambient = results.tables.get("ambient")
    if ambient is None or name not in ambient.index:
        return np.empty(0)
    means: np.ndarray = np.exp(ambient.loc[[name], "log_mean"].to_numpy(dtype=float))
    return means


def _row(results: Results, table: str, name: str) -> dict[Hashable, Any]:
    return results.tables[table].loc[name].to_dict()


def _separation(results: Results, name: str) -> list[Fact]:
    numbers = _row(results, "proteins", name)
    shown = (
        ("foreground cells", "percent_foreground", 1, " %"),
        ("separation", "auroc", 3, ""),
        ("unsure cells", "percent_ambiguous", 1, " %"),
    )
    return [
        Fact(label, number(numbers[column], decimals) + unit, "proteins", column)
        for label, column, decimals, unit in shown
    ]


def _background(results: Results, name: str) -> list[Fact]:
    """Return the background, and its expected level by controls and droplets."""
    facts = []
    if "background" in results.tables:
        numbers = _row(results, "background", name)
        for label, column in (
            ("mean background", "background_mean"),
            ("isotype control", "control_mean"),
        ):
            facts.append(Fact(label, mean_count(numbers[column]), "background", column))
    return facts + _droplet_facts(results, name)


def _droplet_facts(results: Results, name: str) -> list[Fact]:
    means = _droplet_means(results, name)
    if not len(means):
        return []
    ends = dict.fromkeys(mean_count(end) for end in (means.min(), means.max()))
    return [Fact("empty droplet", " to ".join(ends), "ambient", "log_mean")]


def _card(
    results: Results,
    name: str,
    parts: HistogramParts,
    is_control: bool,
    facts: list[Fact],
    warning: str,
) -> Card:
    total = parts.background + parts.foreground
    top = max(total.max(), parts.denoised.max(), 1e-9)
    low, high = float(parts.edges[0]), float(parts.edges[-1])
    across = WIDTH / (high - low)
    levels = {"droplet": float(means.mean())} if len(means := _droplet_means(results, name)) else {}
    flags = [warning]
    if not is_control and "background" in results.tables:
        compared = _row(results, "background", name)
        levels["isotype"] = float(compared["control_mean"])
        flags.append(compared["warning"])
    places = {kind: float(PROTEIN_SCALE.forward(level)) for kind, level in levels.items()}
    ticks = PROTEIN_SCALE.ticks(0, float(PROTEIN_SCALE.inverse(high)))
    return Card(
        name,
        is_control,
        facts,
        warning,
        ADVICE.get(warning, ""),
        [flag for flag in flags if flag],
        _stairs(parts.edges, np.zeros(len(total)), parts.background, top),
        _stairs(parts.edges, parts.background, total, top),
        _stairs(parts.smooth_edges, np.zeros(len(parts.denoised)), parts.denoised, top),
        [((place - low) * across, label) for place, label in ticks.items()],
        [Mark(kind, (place - low) * across) for kind, place in places.items() if place <= high],
        _in_words(parts, facts),
    )


def _stairs(edges: np.ndarray, bottom: np.ndarray, top: np.ndarray, highest: float) -> str:
    """Return the outline between two stairs as an SVG path; nothing where they are the same."""
    if np.array_equal(bottom, top):
        return ""
    x = (edges - edges[0]) / (edges[-1] - edges[0]) * WIDTH
    x = np.repeat(x, 2)[1:-1]
    down = HEIGHT * (1 - np.repeat(top, 2) / highest)
    back = HEIGHT * (1 - np.repeat(bottom, 2) / highest)
    corners = [*zip(x, down, strict=True), *zip(x[::-1], back[::-1], strict=True)]
    return "M" + "L".join(f"{across:.1f} {y:.1f}" for across, y in corners) + "Z"


def _in_words(parts: HistogramParts, facts: list[Fact]) -> str:
    said = [f"{fact.label} {fact.text}" for fact in facts]
    if parts.background.any():
        peak = PROTEIN_SCALE.inverse(parts.edges[:-1][parts.background.argmax()]) + 0.5
        said.insert(0, f"background is most frequent near {peak:,.0f}")
    return "Histogram of counts: " + ", ".join(said) + "."
