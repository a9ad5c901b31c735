"""`Model.gate`: named populations of cells, by the levels of markers that their counts suggest."""

from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from totalvi.data.counts import evenly_spaced
from totalvi.data.describe import Data
from totalvi.fit.minibatch import Minibatch
from totalvi.posterior.arguments import Cells, WhereUnmeasured, documented
from totalvi.posterior.gates.hierarchy import (
    Gate,
    Hierarchy,
    distinct_markers,
    read_hierarchy,
)
from totalvi.posterior.gates.hierarchy import (
    markers_of as markers_in,
)
from totalvi.posterior.gates.marker_draws import (
    DRAWS_A_SAMPLE,
    Markers,
    draw_levels,
    find_markers,
)
from totalvi.posterior.gates.memberships import (
    count_members,
    known_memberships,
    name_cells,
    usable,
    wanting,
)
from totalvi.posterior.question import QUERY_BATCH_SIZE, Fitted, Question
from totalvi.posterior.unmeasured import answering_for

_CELLS_OF_LEVELS = 20_000  # in which the levels of markers are looked for
_SAMPLES_OF_LEVELS = 5


class Gating(NamedTuple):
    """Populations of cells.

    Attributes
    ----------
    memberships
        Probability that each cell belongs to each population, cells x populations; NaN where a marker
        that would decide it is not known.
    population
        The population that each cell is named by, or "undecided", categorical.
    populations
        A row for each population: its ``parent``, "" at the top; its ``gate``; ``told_by``, the markers
        of the gate that tell it from its parent here; ``wanting``, those for want of which it is not
        known, or "": they are missing, do not separate, or have no positive cells.
    markers
        A row for each marker: the ``feature`` that measures it, or ""; the ``levels`` of its modes; the
        level above which it is ``positive`` and ``high``, NaN where the data show no boundary; and a
        ``note``, "does not separate" or "no positive cells" where it does not tell all levels. Levels
        are counts, or shares of a cell's RNA for genes.
    """

    memberships: pd.DataFrame
    population: pd.Series
    populations: pd.DataFrame
    markers: pd.DataFrame


@documented
class GateQueries(Fitted):
    """Which cells belong to named populations."""

    def gate(
        self,
        adata: Data | None = None,
        indices: Cells = None,
        *,
        hierarchy: str | Path | Hierarchy,
        n_samples: int = 25,
        unmeasured: WhereUnmeasured = "impute",
        batch_size: int = QUERY_BATCH_SIZE,
        seed: int = 0,
        progress: bool | None = None,
    ) -> Gating:
        """Return the probability that each cell belongs to each population of a hierarchy.

        The model gives the probability that a marker is at a level, given the cell's own counts. The
        levels of all markers are drawn for one sample of the latent state after the other. A membership
        is the share of draws in which the gates of the population, and of all above it, are fulfilled.
        The levels of a marker are found in the training data, or in ``adata`` if the model was loaded
        without data. docs/gates.md has the formulas.

        Parameters
        ----------
        {cells}
        hierarchy
            Name of a hierarchy that comes with the package ("blood", "bone_marrow", "tonsil",
            "mouse_spleen"), path of a text file, or what `totalvi.read_hierarchy` returns.
        {n_samples} {unmeasured} {batch_size} {seed} {progress}

        Returns
        -------
        Gating
            ``memberships`` (cells x populations) and ``population``, by cell; ``populations`` and
            ``markers``, which say which populations are not known because a marker is missing.

        {name_error}
        HierarchyError
            When the hierarchy cannot be read.

        {fitted_model}
        >>> from totalvi import parse_hierarchy
        >>> hierarchy = parse_hierarchy("A: protein_0+ protein_1-")
        >>> gating = model.gate(hierarchy=hierarchy, n_samples=5)
        >>> gating.memberships.shape, gating.population.cat.categories.tolist()
        ((60, 1), ['undecided', 'A'])
        """
        if not isinstance(hierarchy, Hierarchy):
            hierarchy = read_hierarchy(hierarchy)
        question = self._question(
            adata, indices, batch_size, progress, seed, n_samples, given_counts=True
        )
        about = None if self._data is not None else adata
        markers = markers_of(self, [hierarchy], about, progress=progress)
        return gated(self, question, hierarchy, markers, unmeasured)


def markers_of(
    model: Fitted,
    hierarchies: Iterable[Hierarchy],
    adata: Data | None = None,
    *,
    progress: bool | None = None,
) -> Markers:
    """Return what measures the markers of hierarchies, and their levels in the training data.

    ``adata``: in these data instead.
    """
    each = (distinct_markers(hierarchy.populations) for hierarchy in hierarchies)
    names = list(dict.fromkeys(chain.from_iterable(each)))
    schema = model.schema
    question = _about_levels(model, adata, progress)
    return find_markers(names, schema.protein_names, schema.gene_names, question)


def gated(
    model: Fitted,
    question: Question,
    hierarchy: Hierarchy,
    markers: Markers,
    unmeasured: WhereUnmeasured = "impute",
) -> Gating:
    """Return the populations of the cells of a question; ``markers`` may have others as well."""
    names = distinct_markers(hierarchy.populations)
    markers = markers.only(names)
    proteins = model._proteins([model.schema.protein_names[i] for i in markers.proteins.values()])
    genes = model._genes([model.schema.gene_names[i] for i in markers.genes.values()])
    question = answering_for(model, question, proteins, unmeasured, genes=genes)
    memberships = _memberships(question, hierarchy, markers)
    populations = pd.DataFrame(
        {
            "parent": [p.parent or "" for p in hierarchy.populations],
            "gate": [p.text for p in hierarchy.populations],
            "told_by": [_told_by(p.gate, markers) for p in hierarchy.populations],
            "wanting": [_wants(p.gate, markers) for p in hierarchy.populations],
        },
        index=memberships.columns.rename("population"),
    )
    return Gating(
        memberships,
        pd.Series(name_cells(memberships, hierarchy), memberships.index, name="population"),
        populations,
        _marker_table(model, names, markers),
    )


def _told_by(gate: Gate, markers: Markers) -> str:
    """Return the markers by which a gate is told: the first known of alternatives, no missing ones."""
    used = usable(gate, markers.known(), markers.without_positives)
    names = [] if used is None else [marker.name for marker in markers_in(used)]
    return ", ".join(name for name in dict.fromkeys(names) if name in markers.known())


def _wants(gate: Gate, markers: Markers) -> str:
    """Return the markers that a gate wants, and what is wrong with those that were measured."""
    wants = wanting(gate, markers.known(), markers.without_positives)
    noted = ((name, markers.note(name)) for name in wants)
    return ", ".join(f"{name} ({note})" if note else name for name, note in noted)


def _about_levels(model: Fitted, adata: Data | None, progress: bool | None) -> Question:
    """Return a question about the cells in which the levels of markers are looked for.

    What none of them measured is imputed.
    """
    question = model._question(
        adata, None, QUERY_BATCH_SIZE, progress, n_samples=_SAMPLES_OF_LEVELS, given_counts=True
    )
    cells = evenly_spaced(question.with_rna().cells, _CELLS_OF_LEVELS, rounding="down")
    by_panel = np.array(model.schema.panel_measured, dtype=bool)
    measured = by_panel[np.unique(question.data.panel[cells])].any(axis=0)
    return answering_for(
        model, question.about(cells), model._proteins(None), "nan" if measured.all() else "impute"
    )


def _memberships(question: Question, hierarchy: Hierarchy, markers: Markers) -> pd.DataFrame:
    known = markers.known()
    silent = markers.without_positives
    gates = {p.name: usable(p.gate, known, silent) for p in hierarchy.populations}
    some = markers.only([name for name in (*markers.proteins, *markers.genes) if name in known])
    n_draws = question.n_samples * DRAWS_A_SAMPLE

    def shares(batch: Minibatch) -> Tensor:
        counted = np.zeros((2, len(batch.cells), len(gates)))
        for levels in draw_levels(question, batch, some):
            counted += count_members(hierarchy, gates, levels, len(batch.cells))
        return torch.from_numpy(counted / n_draws)

    sure, possible = question.gather("populations", shares, axis=1)
    return pd.DataFrame(
        known_memberships(sure, possible), index=question.cell_names, columns=list(gates)
    )


def _marker_table(model: Fitted, names: list[str], markers: Markers) -> pd.DataFrame:
    rows = []
    for name in names:
        feature = ""
        if name in markers.proteins:
            feature = model.schema.protein_names[markers.proteins[name]]
        elif name in markers.genes:
            feature = model.schema.gene_names[markers.genes[name]]
        row = {"feature": feature, "positive": np.nan, "high": np.nan, "levels": ""}
        row["note"] = markers.note(name) if feature else ""
        if feature:
            positive, high, medians = markers.levels[name]
            row |= {
                "positive": np.exp(positive.at),
                "high": np.exp(high.at),
                "levels": " ".join(f"{np.exp(level):.3g}" for level in medians),
            }
        rows.append(row)
    return pd.DataFrame(rows, index=pd.Index(names, name="marker"))
