"""Proteins that a mapped query lacks: predicted, and how well that works on cells of the reference."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, Unpack, overload

import numpy as np
import pandas as pd

from totalvi.data.cells import CiteData
from totalvi.data.counts import evenly_spaced
from totalvi.mapping.map_query import weights_of
from totalvi.mapping.mapped_cells import mapping_of
from totalvi.mapping.reference_neighbours import as_the_query
from totalvi.posterior.arguments import Cells, Sampling, Stored, checked_number, documented
from totalvi.posterior.batch_levels import batch_levels
from totalvi.posterior.hidden_counts import calibrated_limits, limits_of
from totalvi.posterior.imputation import columns_of, reporting_cells
from totalvi.posterior.imputed_proteins import ImputedProteins, Stacked, imputed_counts
from totalvi.posterior.latent import latent_clusters
from totalvi.posterior.protein_predictions import ImputedBatches, imputed_batches
from totalvi.posterior.question import QUERY_BATCH_SIZE, Fitted, Question, held_out_cells
from totalvi.posterior.rna_predictors import RnaCoordinates, RnaPredictors
from totalvi.posterior.stacking import (
    Hidden,
    StackedProteins,
    observed_proteins,
    stacked_proteins,
)

_CELLS_OF_A_CENTRE = 2000


class _Options(Sampling, total=False):
    protein_list: Sequence[str] | None
    interval: float
    n_samples: int


class _StoredOptions(_Options, Stored): ...


@documented
class QueryImputation(Fitted):
    """What a model says of the proteins that a query mapped on it lacks."""

    @overload
    def impute_query(
        self, query: Fitted, indices: Cells = ..., **options: Unpack[_StoredOptions]
    ) -> Path: ...

    @overload
    def impute_query(
        self, query: Fitted, indices: Cells = ..., **options: Unpack[_Options]
    ) -> ImputedProteins: ...

    def impute_query(
        self,
        query: Fitted,
        indices: Cells = None,
        *,
        protein_list: Sequence[str] | None = None,
        interval: float = 0.9,
        n_samples: int = 100,
        out: str | Path | None = None,
        batch_size: int = QUERY_BATCH_SIZE,
        seed: int = 0,
        progress: bool | None = None,
    ) -> ImputedProteins | Path:
        """Return what the counts of proteins would be that a query lacks, and how sure that is.

        As `impute_proteins` of the query, with what its own cells cannot tell: held-out cells of the
        reference, encoded with the genes and panel of the query, correct the intervals and decide how
        each protein is predicted by the query's model, kernel ridge regression and neighbours in RNA
        together. The last two are fitted to the reference. A batch of the query is centred as the batch
        of the reference that it started from, not at its mean, so that its cells may be of other types
        or in other shares.

        Parameters
        ----------
        query
            A model that `map_query` of this model returned, which itself has its data.
        indices
            Positions or a mask of the query's cells. None: all.
        protein_list
            Wanted proteins. None: all. Those that a panel measured are predicted by the model.
        interval
            Probability of the interval from ``lower`` to ``upper``, below 1.
        n_samples
            Posterior samples of each cell, and counts drawn for each value.
        out
            As in `impute_proteins`.
        {batch_size} {seed} {progress}

        Returns
        -------
        `ImputedProteins`; with ``out``, its path.

        Raises
        ------
        ValueError
            When an argument has a value not allowed.
        DataError
            When there are no training data or no held-out cells.
        {output_error}

        {reference_model}
        >>> query = model.map_query(mdata["rna"][60:].copy())
        >>> model.impute_query(query, n_samples=20).mean.shape
        (20, 5)
        """
        mapping_of(self, query)  # which refuses another model
        asked = query._question(None, indices, batch_size, progress, seed, n_samples)
        question, wanted = imputed_batches(query, asked, None, protein_list)
        interval = checked_number("interval", interval, below=1)
        lacking = _lacking(query)
        limits = limits_of(interval)[:, None]
        probabilities = np.tile(limits, (len(lacking), 1, len(wanted.proteins)))
        hiding = replace(question, noise=self._noise(seed), progress=False)
        stacks, rna, held_out = {}, None, list[_AsQuery]()
        if lacking[np.unique(question.data.panel)][:, wanted.proteins.positions].any():
            held_out = _as_query(self, query, hiding)
            rna = _predictors(self, query)
        for each, found in _stacked_as_query(query, hiding, wanted, held_out, rna):
            stacks[each.panel] = found.stack
            probabilities[each.panel] = calibrated_limits(found.hidden, interval)
        stacked = None if rna is None else Stacked(rna, stacks)
        levels = batch_levels(query, question, {each.panel: each.cells for each in held_out})
        if levels.batches.differ():
            wanted = replace(wanted, levels=levels.batches)
        return imputed_counts(question, wanted, levels, probabilities, stacked, out)

    def get_query_reliability(
        self,
        query: Fitted,
        *,
        protein_list: Sequence[str] | None = None,
        interval: float = 0.9,
        n_samples: int = 100,
        batch_size: int = QUERY_BATCH_SIZE,
        seed: int = 0,
        progress: bool | None = None,
    ) -> pd.DataFrame:
        """Measure on reference cells how well the proteins that a query lacks are imputed.

        The query's cells have no counts of these proteins, but held-out cells of the reference
        have. They are encoded with the genes and panel of the query. The missing proteins are then
        predicted as `impute_query` does, from the same batches and at their level, with weights that
        the cell itself had no part in. If these are each cell's own batch, the reference cells also use
        their own. The result is valid for a query like the reference; `get_unlikeness` measures how
        unlike its cells are.

        Parameters
        ----------
        query
            A model that `map_query` of this model returned, which itself has its data.
        protein_list
            Names of proteins. None: all.
        {hidden_counts} {batch_size} {seed} {progress}

        Returns
        -------
        A row for each panel of the query and each protein that it lacks, with the columns of
        `get_imputation_reliability`.

        Raises
        ------
        ValueError
            When an argument has a value not allowed, or the query lacks none of the proteins.
        DataError
            When there are no training data or no held-out cells.

        {reference_model}
        >>> query = model.map_query(mdata["rna"][60:].copy())
        >>> model.get_query_reliability(query, n_samples=20).shape
        (5, 12)
        """
        asked = query._question(None, None, batch_size, progress, n_samples=n_samples)
        asked, wanted = imputed_batches(query, asked, None, protein_list)
        interval = checked_number("interval", interval, below=1)
        question = replace(asked, noise=self._noise(seed))
        names = query.schema.panel_names or query.schema.batch_names
        held_out, tables = _as_query(self, query, question), {}
        rna = _predictors(self, query)
        for each, found in _stacked_as_query(query, question, wanted, held_out, rna):
            reporting = self._question(None, each.positions[each.reporting], batch_size, False)
            table = found.reliability(interval, wanted.proteins.names, latent_clusters(reporting))
            tables[names[each.panel]] = table[
                _lacking(query)[each.panel, wanted.proteins.positions]
            ]
        if not tables:
            raise ValueError("query lacks none of the wanted proteins; name others, or None.")
        result: pd.DataFrame = pd.concat(tables, names=["panel", "protein"])
        return result


def reference_predictors(model: Fitted) -> RnaPredictors | None:
    """Return what predicts proteins from RNA, fitted to the cells that trained a reference.

    None where it was minified without.
    """
    data = model._training_data()
    if data.posterior is None:
        return RnaPredictors.of_data(data, RnaCoordinates.of_data(data), model.split)
    if data.predictors is None:
        return None
    return RnaPredictors.of_arrays(data.predictors, data.schema)


class _AsQuery(NamedTuple):
    """Cells of the reference that the fit held out, as if they were of a panel of the query.

    Parameters
    ----------
    panel
        Code of the panel.
    cells
        What the query's network sees of them.
    counts
        Counts of all proteins, (N, T).
    positions, reporting
        Their positions in the reference, and which of them did not calibrate the model.
    """

    panel: int
    cells: CiteData
    counts: np.ndarray
    positions: np.ndarray
    reporting: np.ndarray


def _as_query(model: Fitted, query: Fitted, question: Question) -> list[_AsQuery]:
    """Return held-out cells of the reference as cells of each panel of the query."""
    mapping = mapping_of(model, query)
    held_out = held_out_cells(model, question, all_of_them=True)
    reporting = reporting_cells(model, held_out)
    cells = held_out.data.in_memory(held_out.cells)
    everything = np.arange(len(query.schema.protein_names))
    counts = observed_proteins(cells, np.arange(cells.n_cells), everything)
    panels = as_the_query(cells, query._training_data(), query.module, mapping.missing_genes)
    return [
        _AsQuery(panel, as_query, counts[kept], held_out.cells[kept], reporting[kept])
        for panel, kept, as_query in panels
    ]


def _predictors(model: Fitted, query: Fitted) -> RnaPredictors | None:
    """Return what predicts proteins of the reference from RNA in the query's genes."""
    predictors, mapping = reference_predictors(model), mapping_of(model, query)
    if predictors is None:
        return None
    cells, coordinates = query._training_data(), predictors.coordinates
    names = np.array(cells.schema.gene_names)
    genes = np.flatnonzero(~np.isin(names, mapping.missing_genes))
    if len(genes) < len(names):
        coordinates = coordinates.of_genes(genes)
    known = cells.schema.batch_names[: mapping.n_reference_batches]
    for code, started in enumerate(mapping.reference_batches, start=len(known)):
        of_batch = np.flatnonzero(cells.batch == code)
        if not len(of_batch):  # of a query loaded with some of its batches
            of_batch = np.arange(cells.n_cells)
        own = evenly_spaced(of_batch, _CELLS_OF_A_CENTRE)
        start = weights_of(started, known) @ coordinates.centre[: len(known)]
        coordinates = coordinates.with_batch(cells.rna.rows(own), start)
    return replace(predictors, coordinates=coordinates)


def _stacked_as_query(
    query: Fitted,
    question: Question,
    wanted: ImputedBatches,
    held_out: list[_AsQuery],
    rna: RnaPredictors | None,
) -> Iterator[tuple[_AsQuery, StackedProteins]]:
    """Yield what is predicted of held-out cells, for each panel of the query that lacks something.

    All of these cells decide on the stack; what is predicted is of those that report.
    """
    question, every = imputed_batches(query, question, None, None)
    columns, lacking = columns_of(wanted, every), _lacking(query)
    for each in held_out:
        if not lacking[each.panel, wanted.proteins.positions].any():
            continue
        asked = replace(question, data=each.cells, cells=np.arange(each.cells.n_cells))
        hidden = Hidden(
            each.counts[:, every.proteins.positions], lacking[each.panel, every.proteins.positions]
        )
        found = stacked_proteins(asked, every, hidden, rna).of_proteins(columns)
        yield each, found.of_cells(each.reporting)


def _lacking(query: Fitted) -> np.ndarray:
    """Return which proteins each panel lacks, bool (panels, T)."""
    return ~np.array(query.schema.panel_measured, dtype=bool)
