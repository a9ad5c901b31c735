"""Which hierarchy of the package suits a panel and cells, and the populations that it names."""

from pathlib import Path

import numpy as np
import pandas as pd
from mudata import MuData

from totalvi.data.counts import evenly_spaced
from totalvi.data.panels.antibody_names import gene_key, identify
from totalvi.model import Model
from totalvi.posterior.gates.gate_cells import gated, markers_of
from totalvi.posterior.gates.hierarchy import Hierarchy, read_hierarchy
from totalvi.posterior.gates.marker_draws import Markers
from totalvi.posterior.gates.memberships import wanting
from totalvi.posterior.question import QUERY_BATCH_SIZE, Question
from totalvi.run.named_cells import (
    AUTO,
    EXPRESSION,
    NONE,
    Named,
    below,
    mixed_clusters,
    write_populations,
)
from totalvi.run.record import RunOptions
from totalvi.run.results import ResultsFile, posterior_samples
from totalvi.run.tables import expression_by_group

_TRIED_CELLS = 2000
_OF_ANOTHER_TISSUE = {  # populations that blood has few of, and their least share of the cells
    "bone_marrow": (("Erythroid", "Progenitor"), 0.05),
    "tonsil": (("Germinal centre",), 0.1),
}
_FEWEST_COMPARED = 20  # cells of a population that is compared with the others
_FEWEST_TOLD = 2  # populations at the top of a hierarchy


def populations_of_run(
    model: Model,
    sample: pd.Series | None,
    clusters: pd.Categorical,
    options: RunOptions,
    folder: Path,
    file: ResultsFile,
) -> list[str]:
    """Name the cells of a run as it was asked to, and return warnings."""
    if options.hierarchy == NONE:
        return []
    named = name_cells_by(model, options.hierarchy, posterior_samples(len(clusters)))
    if named is None:
        return []
    tables = write_populations(named, sample, clusters, folder, file if file.is_there else None)
    return mixed_clusters(tables["cluster_names"])


def compare_populations(
    model: Model, cells: MuData, population: np.ndarray, *, is_held_out: bool
) -> dict[str, pd.DataFrame]:
    """Return the differential expression of each population of 20 cells or more against the others.

    By the name of the table; no table where there is nothing to compare.
    """
    table = expression_by_group(
        model, cells, pd.Categorical(population), is_held_out=is_held_out, fewest=_FEWEST_COMPARED
    )
    return {} if table is None else {EXPRESSION: table}


def name_cells_by(
    model: Model, hierarchy: str, n_samples: int, indices: np.ndarray | None = None
) -> Named | None:
    """Gate the cells of a model; None: "auto" finds no hierarchy of which the panel tells two.

    Parameters
    ----------
    hierarchy
        As in `totalvi.run.run.run`.
    indices
        Of the cells; None: all.
    """
    candidates = _candidates(model) if hierarchy == AUTO else [read_hierarchy(hierarchy)]
    if not candidates:
        return None
    markers = markers_of(model, candidates, progress=False)
    chosen = _suiting(model, candidates, markers)
    question = _question(model, indices, n_samples)
    return Named(gated(model, question, chosen, markers), chosen)


def _candidates(model: Model) -> list[Hierarchy]:
    """Return the hierarchies of the package that the panel may suit, the usual one first.

    Mouse by how genes are written; else human blood, or another tissue. None where the panel tells
    too few of the usual one's populations.
    """
    genes = [name for name in model.schema.gene_names if name.isascii() and len(name) > 2]
    is_mouse = sum(name[1:] == name[1:].lower() for name in genes) > len(genes) / 2
    default = read_hierarchy("mouse_spleen" if is_mouse and genes else "blood")
    if not _tells(model, default):
        return []
    return [default, *([] if is_mouse else map(read_hierarchy, _OF_ANOTHER_TISSUE))]


def _suiting(model: Model, candidates: list[Hierarchy], markers: Markers) -> Hierarchy:
    """Return the hierarchy that suits the cells: the first, unless 2,000 cells show what it has not.

    That is 5 % of erythroid cells and progenitors, or 10 % of B cells of germinal centres.
    """
    default, *others = candidates
    tried = evenly_spaced(np.arange(model._training_data().n_cells), _TRIED_CELLS)
    question = _question(model, tried, n_samples=2)
    for other, (populations, least) in zip(others, _OF_ANOTHER_TISSUE.values(), strict=False):
        found = gated(model, question, other, markers)
        if np.mean(np.asarray(found.population.isin(below(other, populations)))) >= least:
            return other
    return default


def _question(model: Model, cells: np.ndarray | None, n_samples: int) -> Question:
    return model._question(
        None, cells, QUERY_BATCH_SIZE, progress=False, n_samples=n_samples, given_counts=True
    )


def _tells(model: Model, hierarchy: Hierarchy) -> bool:
    """Return whether the panel has what tells some of the populations at the top."""
    proteins = {identify(name).key for name in model.schema.protein_names}
    genes = {gene_key(name) for name in model.schema.gene_names}
    known = {
        marker.name
        for population in hierarchy.populations
        for marker in population.markers()
        if (
            identify(marker.name).key in proteins
            if marker.gene is None
            else gene_key(marker.gene) in genes
        )
    }
    by_proteins = [
        population
        for population in hierarchy.children(None)
        if not wanting(population.gate, known)
        and any(marker.name in known and marker.gene is None for marker in population.markers())
    ]
    return len(by_proteins) >= _FEWEST_TOLD
