"""Name the cells of a run by the gates of a hierarchy, and count them by sample."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import pandas as pd

from totalvi.data.columns import column_of
from totalvi.errors import listed
from totalvi.posterior.gates.hierarchy import All, Gate, Hierarchy, Marker, Not
from totalvi.posterior.gates.hierarchy import Any as AnyOf
from totalvi.posterior.gates.memberships import (
    FAILED,
    UNDECIDED,
    WITHOUT_POSITIVES,
    members,
    percent_limits,
    usable,
    wanting,
)
from totalvi.run.folder import (
    CLUSTER_COLUMN,
    DENOISED_LIBRARY_SIZE,
    DOUBLET_PROBABILITY,
    HASHTAG_SAMPLE,
    LIKELY_DOUBLET,
    PROPOSED_GATES,
    RESULTS_OF_HASHTAGS,
)
from totalvi.run.results import ResultsFile
from totalvi.run.table_files import write_tables

if TYPE_CHECKING:  # the report takes only what it shows, and loads no torch
    from totalvi.model import Model
    from totalvi.posterior.gates.gate_cells import Gating

POPULATION, MEMBERSHIP = "population", "population_membership"
EXPRESSION = "population_expression"  # the table of what is higher in each
AUTO, NONE = "auto", "none"


class Named(NamedTuple):
    """The populations of cells, and the hierarchy that named them."""

    gating: Gating
    hierarchy: Hierarchy


def below(hierarchy: Hierarchy, names: tuple[str, ...]) -> list[str]:
    """Return the populations that are or lie below some."""
    return [p.name for p in hierarchy.populations if set(hierarchy.path(p.name)) & set(names)]


def population_tables(
    named: Named,
    sample: pd.Series | None,
    clusters: pd.Series | pd.Categorical | None,
    doublets: np.ndarray | None = None,
) -> dict[str, pd.DataFrame]:
    """Return the tables of named populations; ``doublets`` are the cells that are likely doublets.

    Returns
    -------
    - ``populations``: parent, gate, what tells it and what is wanting, cells and percentages. ``cells``
      are its members (`members`), NaN where there are none but could be some, for want of a marker;
      ``expected_cells`` is the sum of memberships; ``named``, the cells that bear its name, not that
      of one below; and ``doublets``, how many of the members are likely ones.
      ``percent_lower`` and ``percent_upper`` are 95 % limits of ``percent_of_cells``, for the chance
      which of a sample's cells were measured; they know nothing of cells that bear the wrong name.
    - ``population_samples``: cells and percentages of each population by sample.
    - ``population_markers``: what measures each marker, and the levels found.
    - ``cluster_names``: the deepest population that most cells of a cluster are of, and their share.
    - ``memberships``: of each cell.
    """
    gating, hierarchy = named
    inside = _inside(gating, hierarchy)
    parents = {p.name: p.parent for p in hierarchy.populations}
    samples = np.array(["all cells"] * len(inside) if sample is None else list(map(str, sample)))
    everyone = np.ones(len(inside), dtype=bool)
    overall = _counts(gating, inside, parents, doublets, everyone).loc[list(parents)]
    by_sample = [
        _counts(gating, inside, parents, doublets, samples == one).assign(sample=one)
        for one in np.unique(samples)
    ]
    unknown = gating.memberships.isna().any().reindex(overall.index, fill_value=False)
    untold = overall.index[unknown & (overall["cells"] == 0)]
    for table in (overall, *by_sample):
        for name in {"cells", "named", "doublets"} & set(table):
            table[name] = table[name].astype("Int64")
        percents = [name for name in table if str(name).startswith("percent_")]
        columns = ["cells", "named", "doublets", *percents]
        table.loc[untold, [name for name in columns if name in table]] = np.nan
    tables = {
        "populations": gating.populations.assign(hierarchy=hierarchy.name).join(overall),
        "population_samples": pd.concat(by_sample).reset_index().set_index("sample"),
        "population_markers": gating.markers,
        "memberships": gating.memberships.assign(population=gating.population).rename_axis("cell"),
    }
    if clusters is not None:
        tables["cluster_names"] = cluster_names(inside, np.asarray(clusters), hierarchy)
    return tables


def _counts(
    gating: Gating,
    inside: pd.DataFrame,
    parents: dict[str, str | None],
    doublets: np.ndarray | None,
    some: np.ndarray,
) -> pd.DataFrame:
    """Count some of the cells in each population, also in percent of all and of those above it."""
    inside, n_cells = inside[some], int(some.sum())
    cells = inside.sum()
    of_parent = [cells[above] if (above := parents.get(str(name))) else n_cells for name in inside]
    named = gating.population[some].astype(str).value_counts()
    columns = {
        "cells": cells,
        "expected_cells": gating.memberships[some].sum(min_count=1),
        "named": named.reindex(inside.columns, fill_value=0),
    }
    if doublets is not None:
        columns["doublets"] = inside[doublets[some]].sum()
    with np.errstate(invalid="ignore", divide="ignore"):
        columns["percent_of_cells"] = 100 * cells / n_cells
        columns["percent_of_parent"] = 100 * cells / np.array(of_parent)
    columns["percent_lower"], columns["percent_upper"] = percent_limits(cells, n_cells)
    counted = pd.DataFrame(columns)
    return counted.loc[inside.columns].rename_axis("population")


def _inside(gating: Gating, hierarchy: Hierarchy) -> pd.DataFrame:
    """Return which cells are members of each population, or are undecided."""
    undecided = gating.population.astype(str) == UNDECIDED
    return members(gating.memberships, hierarchy).assign(**{UNDECIDED: undecided})


def cluster_names(inside: pd.DataFrame, clusters: np.ndarray, hierarchy: Hierarchy) -> pd.DataFrame:
    """Return a name for each cluster, with the share of its cells that agrees.

    From the top down, a cluster goes to the population that most of its cells are of, as long as these
    are more than half of them.

    Parameters
    ----------
    inside
        Which cells are in each population, bool, cells x populations, and which are "undecided".
    clusters
        Of the cells.
    """
    rows = []
    clusters = clusters.astype(str)
    order = in_order(clusters)
    for cluster in order:
        share = inside[clusters == cluster].mean()
        name: str | None = None
        while children := [p.name for p in hierarchy.children(name)]:
            best = max(children, key=lambda child: float(share[child]))
            if share[best] <= 0.5:
                break
            name = best
        named = name or UNDECIDED
        n_cells = int((clusters == cluster).sum())
        rows.append({"name": named, "share": float(share[named]), "cells": n_cells})
    return pd.DataFrame(rows, index=pd.Index(order, name="cluster"))


def in_order(clusters: np.ndarray) -> list[str]:
    """Return the names of clusters, numbers by their size.

    Examples
    --------
    >>> in_order(np.array(["10", "B", "9", "10"]))
    ['9', '10', 'B']
    """
    names = map(str, pd.unique(clusters))
    return sorted(names, key=lambda name: (not name.isdecimal(), name.zfill(9), name))


def write_populations(
    named: Named,
    sample: pd.Series | None,
    clusters: pd.Series | pd.Categorical | None,
    folder: Path,
    file: ResultsFile | None,
) -> dict[str, pd.DataFrame]:
    """Write the tables, and names and memberships as columns of ``obs``, into a folder of results.

    Returns
    -------
    The tables of `population_tables`.
    """
    tables = population_tables(named, sample, clusters, _likely_doublets(file))
    cells = _named_rows(folder / "tables" / "cells.csv.gz", named.gating.population)
    write_tables(tables | cells, folder / "tables")
    (folder / "tables" / f"{EXPRESSION}.csv.gz").unlink(missing_ok=True)  # of other names
    if file is not None:
        file.add_obs(POPULATION, pd.Categorical(named.gating.population).remove_unused_categories())
        file.add_obs(MEMBERSHIP, named_membership(named.gating).to_numpy(np.float32))
        gates = proposed_gates(named, genes=file.has("mod/rna/layers/denoised"))
        gates.to_csv(folder / PROPOSED_GATES, index=False, float_format="%.6g")
    return tables


def _likely_doublets(file: ResultsFile | None) -> np.ndarray | None:
    """Return which cells of a run are likely doublets; None: it was not told."""
    if file is None or not file.has(f"obs/{DOUBLET_PROBABILITY}"):
        return None
    return np.asarray(file.read(f"obs/{DOUBLET_PROBABILITY}") > LIKELY_DOUBLET)


def columns_of_cells(file: ResultsFile, folder: Path, staining_level: bool) -> dict[str, Any]:
    """Return the columns of ``obs`` that a run has made for its table of cells."""
    has_names = (folder / "tables" / "populations.csv").exists()
    made = {"staining_level": staining_level, POPULATION: has_names}
    return {
        name: file.read(f"obs/{name}") for name in made if made[name] and file.has(f"obs/{name}")
    }


def _named_rows(path: Path, population: pd.Series) -> dict[str, pd.DataFrame]:
    """Return the table of cells with new names, where one was written before and is of these cells."""
    if not path.exists():
        return {}
    cells = pd.read_csv(path, dtype=str, keep_default_na=False, index_col=0)
    names = population.astype(str)
    if not np.array_equal(cells.index.astype(str), names.index.astype(str)):
        return {}
    return {"cells": cells.assign(**{POPULATION: names.to_numpy()})}


def mixed_clusters(names: pd.DataFrame) -> list[str]:
    """Warn of clusters that the gates leave without a name, from the table ``cluster_names``."""
    mixed = names.index[names["name"] == UNDECIDED]
    if not len(mixed):
        return []
    has = "cluster has" if len(mixed) == 1 else "clusters have"
    return [
        f"{len(mixed)} {has} no population that most of the cells are of, {listed(mixed)}, with "
        f"{names.loc[mixed, 'cells'].sum():,} cells; they may be of a type that the hierarchy lacks "
        "or the panel cannot tell, doublets or debris, so look at their markers before you count them."
    ]


Ends: TypeAlias = tuple[float, float]
"""Lowest and highest count of a marker; NaN is the boundary of a protein that the data show none of."""


def proposed_gates(named: Named, *, genes: bool) -> pd.DataFrame:
    """Return the gates of a hierarchy as ranges of denoised counts, which the explorer shows and edits.

    The ends are the boundaries between the levels of each marker; a protein without one is positive
    from a foreground probability of 0.5. Alternatives that are not told for want of a marker are left
    out, and so are populations of which none is left, with those below them.

    Parameters
    ----------
    genes
        Whether there are denoised counts of genes.

    Returns
    -------
    A table as `totalvi.explorer.gate_files.gates_of_table` reads it.
    """
    markers, hierarchy = named.gating.markers, named.hierarchy
    is_gene = markers.index.str.startswith("gene:")
    usual = np.where(is_gene, genes & markers["positive"].notna(), True)
    known = set(markers.index[(markers["feature"] != "") & usual & ~markers["note"].eq(FAILED)])
    silent = set(markers.index[markers["note"] == WITHOUT_POSITIVES])
    rows: list[tuple[str, str, str, str, float | None, float | None]] = []
    told: set[str | None] = {None}
    for population in hierarchy.populations:
        gate = usable(population.gate, known, silent)
        gate = None if gate is None else _told_part(gate, known, silent)
        if gate is None or population.parent not in told or wanting(gate, known, silent):
            continue
        told.add(population.name)
        name, parent = (
            text.replace("/", "|") for text in (population.name, population.parent or "")
        )
        choices = _choices(gate, markers)
        for number, choice in enumerate(choices, 1):
            label = name if len(choices) == 1 else f"{name}, {number} of {len(choices)}"
            rows += [
                (label, parent, *_condition(marker, ends, markers))
                for marker, ends in choice.items()
            ]
        if len(choices) > 1:
            parts = (f"{name}, {number} of {len(choices)}" for number in range(1, len(choices) + 1))
            rows += [(name, parent, "or", part, None, None) for part in parts]
    return pd.DataFrame(rows, columns=["gate", "parent", "kind", "feature", "low", "high"])


def _told_part(gate: Gate, known: set[str], silent: set[str]) -> Gate:
    """Return a gate without the alternatives that want a marker, unless all do."""
    if isinstance(gate, All):
        return All(tuple(_told_part(part, known, silent) for part in gate.parts))
    if isinstance(gate, AnyOf):
        return AnyOf(tuple(p for p in gate.parts if not wanting(p, known, silent)) or gate.parts)
    return gate


def _condition(
    marker: str, ends: Ends, markers: pd.DataFrame
) -> tuple[str, str, float | None, float | None]:
    """Return the kind, feature and ends of a condition; open ends are None."""
    feature = str(markers.loc[marker, "feature"])
    if np.isnan(ends).any():
        low, high = (0.5 if np.isnan(end) else None for end in ends)
        return "protein_foreground", feature, low, high
    is_gene = marker.startswith("gene:")
    scale = DENOISED_LIBRARY_SIZE if is_gene else 1.0
    low, high = (None if np.isinf(end) else scale * end for end in ends)
    return "gene_denoised" if is_gene else "protein_denoised", feature, low, high


def _choices(gate: Gate, markers: pd.DataFrame, *, negated: bool = False) -> list[dict[str, Ends]]:
    """Return a gate as alternatives, each of which asks for a range of each of some markers."""
    match gate:
        case Not():
            return _choices(gate.part, markers, negated=not negated)
        case Marker():
            return [
                {gate.name: ends}
                for ends in _ends(gate, pd.Series(markers.loc[gate.name]), negated)
            ]
    parts = [_choices(part, markers, negated=negated) for part in gate.parts]
    if isinstance(gate, All) == negated:  # none of both is one or the other, and so on
        return [choice for part in parts for choice in part]
    joined: list[dict[str, Ends]] = []
    for several in product(*parts):
        both: dict[str, Ends] = {}
        for choice in several:
            for marker, (low, high) in choice.items():
                before = both.get(marker, (-np.inf, np.inf))
                both[marker] = (
                    float(np.maximum(before[0], low)),
                    float(np.minimum(before[1], high)),
                )
        joined.append(both)
    return joined


def _ends(marker: Marker, row: pd.Series, negated: bool) -> list[Ends]:
    """Return the ranges in which a marker is at a level, or is not."""
    positive, high = float(row["positive"]), float(row["high"])
    high = positive if np.isnan(high) else high
    low_range, high_range = (-np.inf, positive), (high, np.inf)
    match marker.level:
        case "+":
            return [low_range if negated else (positive, np.inf)]
        case "low":
            return [(positive, np.inf) if negated else low_range]
        case "high":
            return [(-np.inf, high) if negated else high_range]
    if high == positive or np.isnan(positive):  # one level is above low
        return [low_range if negated else (positive, np.inf)]
    return [low_range, high_range] if negated else [(positive, high)]


def named_membership(gating: Gating) -> pd.Series:
    """Return the membership of each cell in the population that it is named by, NaN if undecided."""
    columns = gating.memberships.columns.get_indexer(pd.Index(gating.population.astype(str)))
    values = gating.memberships.to_numpy()[np.arange(len(columns)), columns]
    return pd.Series(np.where(columns < 0, np.nan, values), gating.memberships.index)


def samples_of(
    obs: pd.DataFrame, sample_key: str | None, batch_key: str | None, by_hashtag: bool
) -> pd.Series | None:
    """Return the sample of each cell, by default its batch and its hashtag; None: there is neither."""
    if sample_key is not None:
        return column_of(obs, "sample_key", sample_key)
    batch = None if batch_key is None else column_of(obs, "batch_key", batch_key)
    if not by_hashtag:
        return batch
    tag = obs[HASHTAG_SAMPLE].astype(str)
    return tag if batch is None else batch.astype(str) + ", " + tag


def samples_and_clusters(
    model: Model, sample_key: str | None, indices: np.ndarray | None = None
) -> tuple[pd.Series | None, pd.Series | None]:
    """Return the sample and the cluster of cells of a model, as a run tells samples."""
    obs = model._training_data().annotation.obs()
    obs = obs if indices is None else obs.iloc[indices]
    batch_key = model.schema.columns.batch_key
    by_hashtag = set(RESULTS_OF_HASHTAGS) <= set(obs)
    sample = samples_of(obs, sample_key, batch_key, by_hashtag)
    return sample, obs.get(CLUSTER_COLUMN)
