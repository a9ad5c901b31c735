"""What the report shows of named populations (their tree, cells by sample, gates) and of doublets."""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from totalvi.data.panels.antibody_names import identify
from totalvi.figures.style import PROTEIN_SCALE
from totalvi.posterior.gates.hierarchy import Hierarchy, markers_of, parse_hierarchy
from totalvi.posterior.gates.memberships import FAILED, WITHOUT_POSITIVES, members, usable
from totalvi.report.report_data import Results
from totalvi.run.folder import DOUBLET_PROBABILITY, LIKELY_DOUBLET

WIDTH, HEIGHT = 240.0, 200.0
_PIXELS, _FINE_PIXELS = 80, 150  # across and up, of cells that are drawn as one
_MOST_SAMPLES = 12
_MOST_FEATURES = 8  # that are listed of a population and modality
_TWO_LINEAGES = (("CD3", "CD19"), ("CD3", "CD14"), ("CD19", "CD14"))


class GatePlot(NamedTuple):
    """A plot of the members of the population above, and of its own, on two of its markers.

    Attributes
    ----------
    name, above
        The population, and the one above it or "all cells".
    x, y
        Antibodies.
    others, own
        SVG paths of the cells.
    x_ticks, y_ticks
        Places in the picture and labels.
    lines
        Boundaries of levels: their ends x1, y1, x2, y2.
    percent
        Of the members above, as the table of populations counts them.
    """

    name: str
    above: str
    x: str
    y: str
    others: str
    own: str
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    lines: list[tuple[float, float, float, float]]
    percent: float = np.nan


def named_populations(results: Results) -> dict[str, Any] | None:
    """Return what the page shows of populations; None: the cells have no names."""
    tables = results.tables
    if "populations" not in tables or "population" not in results.obs:
        return None
    table, hierarchy = tables["populations"], _hierarchy(tables["populations"])
    by_sample = tables["population_samples"]
    samples = list(dict.fromkeys(by_sample.index))
    cells = by_sample.set_index("population", append=True)
    rows = []
    for name, row in table.iterrows():
        of_samples = [cells.xs((sample, name)) for sample in samples[:_MOST_SAMPLES]]
        rows.append(
            row.to_dict()
            | {"name": name, "depth": len(hierarchy.path(str(name))) - 1, "samples": of_samples}
        )
    undecided = by_sample[by_sample["population"] == "undecided"]
    return {
        "hierarchy": table["hierarchy"].iloc[0],
        "samples": samples[:_MOST_SAMPLES],
        "n_samples": len(samples),
        "rows": rows,
        "undecided": [undecided.loc[sample] for sample in samples[:_MOST_SAMPLES]],
        "n_undecided": int(undecided["cells"].sum()),
        "clusters": tables["cluster_names"].reset_index().to_dict("records")
        if "cluster_names" in tables
        else [],
        "plots": gate_plots(results, hierarchy),
        "features": higher_features(tables, hierarchy),
    }


def higher_features(tables: dict[str, pd.DataFrame], hierarchy: Hierarchy) -> list[dict[str, str]]:
    """Return the genes and proteins that are higher in each population than in the other cells.

    Those that tell it or a population above it are left out: cells were named by them.
    """
    if "population_expression" not in tables or "told_by" not in tables["populations"]:
        return []
    found = tables["population_expression"]
    called = found.filter(regex="^is_de").all(axis=1)
    found = found[called & (found["lfc_mean"] > 0)].sort_values("lfc_mean", ascending=False)
    markers, told_by = tables["population_markers"]["feature"], tables["populations"]["told_by"]
    rows = []
    for population in hierarchy.populations:
        own = found[found["group1"] == population.name]
        names = [m for p in hierarchy.path(population.name) for m in told_by[p].split(", ") if m]
        others = own[~own.index.isin(markers[names])]
        if len(others):
            shown = {
                kind: ", ".join(others.index[others["modality"] == kind][:_MOST_FEATURES])
                for kind in ("rna", "protein")
            }
            rows.append({"name": population.name, **shown})
    return rows


def _hierarchy(table: pd.DataFrame) -> Hierarchy:
    """Return the hierarchy of the table of populations."""
    lines = [
        f"{name}: {row['parent']} > {row['gate']}" if row["parent"] else f"{name}: {row['gate']}"
        for name, row in table.iterrows()
    ]
    return parse_hierarchy("\n".join(lines), str(table["hierarchy"].iloc[0]))


def gate_plots(results: Results, hierarchy: Hierarchy) -> list[GatePlot]:
    """Return a plot for each population with cells whose gate has two antibodies to draw it on.

    A gate of one antibody is drawn with one of the other populations at its side.
    """
    markers_table = results.tables["population_markers"]
    measured = markers_table["feature"]
    notes = (
        markers_table["note"].fillna("") if "note" in markers_table else measured.map(lambda _: "")
    )
    note = {str(marker): str(text) for marker, text in notes.items()}
    silent = {marker for marker, text in note.items() if text == WITHOUT_POSITIVES}
    columns = {
        str(marker): results.protein_names.index(feature)
        for marker, feature in measured.items()
        if feature in results.protein_names and note[str(marker)] != FAILED
    }
    names = [population.name for population in hierarchy.populations]
    inside = members(results.tables["memberships"][names].iloc[results.drawn.rows], hierarchy)
    percent = results.tables["populations"]["percent_of_parent"]
    places = PROTEIN_SCALE.forward(_spread(results.raw))
    plots = []
    for population in hierarchy.populations:
        beside = [p for p in hierarchy.children(population.parent) if p != population]
        gates = (usable(p.gate, set(columns), silent) for p in (population, *beside))
        asked = [m.name for gate in gates if gate is not None for m in markers_of(gate)]
        markers = list(dict.fromkeys(name for name in asked if name in columns))[:2]
        own = inside[population.name].to_numpy()
        above = np.ones(len(own), dtype=bool)
        if population.parent is not None:
            above = inside[population.parent].to_numpy()
        if len(markers) == 2 and own.any():
            plot = _plot(
                results, population.name, population.parent, markers, columns, places, [above, own]
            )
            plots.append(plot._replace(percent=float(percent[population.name])))
    return plots


def _spread(counts: np.ndarray) -> np.ndarray:
    """Return counts spread by up to half a count, so that equal ones do not hide each other."""
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, counts.shape)
    return np.maximum(counts + noise, 0.0)


def _plot(
    results: Results,
    name: str,
    above: str | None,
    markers: list[str],
    columns: dict[str, int],
    places: np.ndarray,
    inside: list[np.ndarray],
) -> GatePlot:
    x, y = (columns[marker] for marker in markers)
    ends = [_ends(places[:, column]) for column in (x, y)]
    pixels = np.stack(
        [(places[:, c] - low) / (high - low) for c, (low, high) in zip((x, y), ends, strict=True)]
    )
    shown = np.isfinite(pixels).all(axis=0)
    boundaries = results.tables["population_markers"]["positive"].loc[markers].to_numpy(float)
    at = [
        (float(PROTEIN_SCALE.forward(level)) - low) / (high - low)
        for level, (low, high) in zip(boundaries, ends, strict=True)
    ]
    lines = [(WIDTH * at[0], 0.0, WIDTH * at[0], HEIGHT)] if 0 < at[0] < 1 else []
    if 0 < at[1] < 1:
        lines.append((0.0, HEIGHT * (1 - at[1]), WIDTH, HEIGHT * (1 - at[1])))
    ticks = [
        [
            ((place - low) / (high - low), label)
            for place, label in PROTEIN_SCALE.ticks(0, float(PROTEIN_SCALE.inverse(high))).items()
            if low <= place <= high
        ]
        for low, high in ends
    ]
    return GatePlot(
        name,
        above or "all cells",
        results.protein_names[x],
        results.protein_names[y],
        _squares(pixels[:, inside[0] & ~inside[1] & shown]),
        _squares(pixels[:, inside[1] & shown]),
        [(WIDTH * place, label) for place, label in ticks[0]],
        [(HEIGHT * (1 - place), label) for place, label in ticks[1]],
        lines,
    )


def _ends(places: np.ndarray) -> tuple[float, float]:
    """Return where an axis begins and ends."""
    low, high = np.nanquantile(places, [0.001, 0.999])
    room = 0.05 * max(high - low, 1e-6)
    return float(low - room), float(high + room)


def _squares(pixels: np.ndarray, n_pixels: int = _PIXELS) -> str:
    """Return the SVG path of cells (2, n) between 0 and 1, those of a pixel as one square."""
    place = np.unique((np.clip(pixels, 0, 0.999) * n_pixels).astype(int), axis=1)
    width, height = WIDTH / n_pixels, HEIGHT / n_pixels
    return "".join(
        f"M{x * width:.1f} {HEIGHT - (y + 1) * height:.1f}h{width:.1f}v{height:.1f}h-{width:.1f}z"
        for x, y in place.T
    )


def shown_doublets(results: Results) -> dict[str, Any] | None:
    """Return what the page shows of likely doublets; None: they were not told.

    ``groups`` are the rows of samples and of clusters, with names where clusters have them; ``single``
    and ``doublet`` are SVG paths of the cells on the map.
    """
    if "doublets" not in results.tables or DOUBLET_PROBABILITY not in results.obs:
        return None
    table = results.tables["doublets"]
    has_names = "cluster_names" in results.tables
    names = results.tables["cluster_names"]["name"].to_dict() if has_names else {}
    rows: dict[str, list[dict[str, Any]]] = {"all": [], "sample": [], "cluster": []}
    for group, row in table.iterrows():
        is_cluster = row["of"] == "cluster"
        named = names.get(str(group), "") if is_cluster else ""
        rows[row["of"]].append({**row, "name": group, "named": named})
    low, high = (end(results.umap, axis=0) for end in (np.min, np.max))
    pixels = ((results.umap - low) / np.maximum(high - low, 1e-9)).T
    called = results.obs[DOUBLET_PROBABILITY].to_numpy() > LIKELY_DOUBLET
    return {
        "all": rows["all"][0],
        "groups": [("Sample", rows["sample"]), ("Cluster", rows["cluster"])],
        "highest": max(float(table["percent"].max()), 1.0),
        "single": _squares(pixels[:, ~called], _FINE_PIXELS),
        "doublet": _squares(pixels[:, called], _FINE_PIXELS),
        "two_lineages": _of_two_lineages(results, called),
    }


def _of_two_lineages(results: Results, called: np.ndarray) -> list[dict[str, Any]]:
    """Return how many cells carry the proteins of two lineages, and how many of these are called."""
    place = {identify(name).target: i for i, name in enumerate(results.protein_names)}
    rows, cells = [], results.drawn
    for pair in _TWO_LINEAGES:
        if set(pair) <= set(place):
            carried = results.foreground[:, [place[marker] for marker in pair]] > 0.5
            weights = np.where(carried.all(axis=1), cells.weights, 0)
            n_cells = round(weights.sum())
            n_called = round(weights[called[cells.rows]].sum())
            if n_cells:
                rows.append({"pair": " and ".join(pair), "cells": n_cells, "called": n_called})
    return rows
