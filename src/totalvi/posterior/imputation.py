"""Proteins that were not measured: what their counts would be, and how far that can be trusted."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Unpack, overload

import numpy as np
import pandas as pd

from totalvi.data.cells import CiteData, fingerprint
from totalvi.data.describe import Data
from totalvi.errors import DataError
from totalvi.posterior.arguments import (
    Cells,
    Names,
    ProteinOptions,
    Stored,
    checked_number,
    documented,
)
from totalvi.posterior.batch_levels import batch_levels, no_levels
from totalvi.posterior.hidden_counts import calibrated_limits, limits_of
from totalvi.posterior.imputed_proteins import ImputedProteins, Stacked, imputed_counts
from totalvi.posterior.latent import latent_clusters
from totalvi.posterior.protein_predictions import ImputedBatches, imputed_batches
from totalvi.posterior.question import (
    QUERY_BATCH_SIZE,
    Fitted,
    Question,
    held_out_cells,
    labels_of_cells,
)
from totalvi.posterior.rna_predictors import RnaCoordinates, RnaPredictors
from totalvi.posterior.stacking import Stack, hidden_as_panel, stacked_proteins


class _ImputationOptions(ProteinOptions, total=False):
    interval: float
    calibrated: bool
    stacked: bool | None
    own_level: bool | None


class _StoredImputation(_ImputationOptions, Stored): ...


@documented
class ImputationQueries(Fitted):
    """What a model says of proteins that a cell's panel lacks."""

    @overload
    def impute_proteins(
        self, adata: Data | None = ..., indices: Cells = ..., **options: Unpack[_StoredImputation]
    ) -> Path: ...

    @overload
    def impute_proteins(
        self, adata: Data | None = ..., indices: Cells = ..., **options: Unpack[_ImputationOptions]
    ) -> ImputedProteins: ...

    def impute_proteins(
        self,
        adata: Data | None = None,
        indices: Cells = None,
        *,
        transform_batch: Names = None,
        protein_list: Sequence[str] | None = None,
        interval: float = 0.9,
        calibrated: bool = True,
        stacked: bool | None = None,
        own_level: bool | None = None,
        n_samples: int = 100,
        out: str | Path | None = None,
        batch_size: int = QUERY_BATCH_SIZE,
        seed: int = 0,
        progress: bool | None = None,
    ) -> ImputedProteins | Path:
        """Return what the counts of proteins would be, and how sure that is.

        They are counts as the cell's own batch would have measured them, if 3 antibodies or more
        (isotype controls too, in a fit of both) were measured by it and by the batches decoded into.
        These say at which level the batch counts, and how far single proteins differ, which widens the
        intervals; ``mean`` and ``sd`` are at the middle of the level. Otherwise counts and intervals
        are as the batches decoded into measured: cells of an experiment that was stained or sequenced
        otherwise have the same order, but not the same level.

        The counts are those expected of the posterior predictive distribution: z and b from the cell's
        posterior, then NB(beta, r) with probability pi and else NB(beta alpha, r). Mean and standard
        deviation are exact given ``n_samples`` of z and b; with ``own_level=False`` the mean is
        ``get_normalized_expression(include_protein_background=True, given_counts=False)``. ``log1p``
        and the interval come from a count drawn at each sample. Where ``stacked``, all are moved to the
        ``log1p`` that model, kernel ridge regression and neighbours in RNA predict together;
        docs/model.md has the formulas.

        Parameters
        ----------
        {cells}
        transform_batch
            Batch or batches to decode into, averaged. None: for each protein those that measured it,
            whatever other cells there are. Those of a mapped query's reference count where all of its
            panels have the protein, or each batch is a panel. If no such batch is left for a protein,
            it is decoded in each cell's own batch, which started from a batch of the reference.
        protein_list
            Wanted proteins. None: all.
        interval
            Probability of the interval from ``lower`` to ``upper``, below 1.
        calibrated
            Whether the interval is corrected, protein by protein, to hold that share of the counts of
            cells that the fit held out, with their proteins hidden as in the cell's panel. Needs the
            training data where a cell lacks a protein. Of a mapped query, whose own cells tell nothing
            of what all of them lack, those intervals stay as the model gives them; `impute_query` of
            its reference corrects them. No limit lies beyond
            the counts drawn, so a poor fit needs more ``n_samples``, or to be trained longer.
        stacked
            Whether proteins that a panel lacks are predicted together with regression and neighbours,
            with weights that the same held-out cells decide. None: where intervals are calibrated. The
            model alone predicts a mapped query (see `impute_query`), and a protein that fewer than 5 of
            these cells, or fewer than 20 training cells, measured.
        own_level
            Whether counts are at the level of the cell's own batch where that is known. None: where
            ``transform_batch`` is None.
        n_samples
            Posterior samples of each cell, and counts drawn for each value; those of a minibatch are
            held.
        out
            Folder of a new zarr store to write to, in place of memory: it gets a group for each part
            of `ImputedProteins` but ``lacking``, which `anndata.read_zarr` reads.
        {batch_size} {seed} {progress}

        Returns
        -------
        `ImputedProteins`; with ``out``, its path.

        {name_error}
        DataError
            When it is to be stacked or calibrated without training data or held-out cells.
        {output_error}

        {lacking_model}
        >>> imputed = model.impute_proteins(n_samples=20)
        >>> imputed.mean.shape, bool((imputed.lower <= imputed.upper).all(axis=None))
        ((80, 5), True)
        """
        asked = self._question(adata, indices, batch_size, progress, seed, n_samples)
        question, wanted = imputed_batches(self, asked, transform_batch, protein_list)
        interval = checked_number("interval", interval, below=1)
        data, cells = question.data, question.cells
        lacking = _lacking(self)
        lacks_wanted = np.any(lacking[:, wanted.proteins.positions], axis=1)
        levels = no_levels(question)
        if transform_batch is None if own_level is None else own_level:
            levels = batch_levels(self, question)
            if levels.batches.differ():
                wanted = replace(wanted, levels=levels.batches)
        limits = limits_of(interval)[:, None]
        probabilities = np.tile(limits, (len(lacking), 1, len(wanted.proteins)))
        stacked = (calibrated if stacked is None else stacked) and self._mapping is None
        hiding, every, rna, in_all = question, wanted, None, None
        if stacked and lacks_wanted.any():
            hiding, every = imputed_batches(self, asked, transform_batch, None)
            known = self._training_data()
            coordinates = RnaCoordinates.of_data(known)
            in_all = RnaPredictors.of_data(known, coordinates)
            rna = RnaPredictors.of_data(known, coordinates, self.split)
        stacks = dict[int, Stack]()
        if calibrated or stacked:
            columns = columns_of(wanted, every)
            for panel, batches in _panels(data, cells, lacks_wanted):
                held_out = replace(held_out_cells(self, hiding, all_of_them=True), progress=False)
                of_panel = lacking[panel, every.proteins.positions]
                hidden = hidden_as_panel(held_out, every, panel, batches, of_panel)
                from_rna = rna if self.schema.measured_rna[panel] else None
                found = stacked_proteins(held_out, every, hidden, from_rna).of_proteins(columns)
                stacks[panel] = found.stack
                if calibrated:
                    reporting = found.of_cells(reporting_cells(self, held_out)).hidden
                    probabilities[panel] = calibrated_limits(reporting, interval)
        stacked_with = None if in_all is None else Stacked(in_all, stacks)
        return imputed_counts(question, wanted, levels, probabilities, stacked_with, out)

    def get_imputation_reliability(
        self,
        adata: Data | None = None,
        indices: Cells = None,
        *,
        transform_batch: Names = None,
        protein_list: Sequence[str] | None = None,
        clusters: str | Sequence[object] | None = None,
        interval: float = 0.9,
        stacked: bool = True,
        n_samples: int = 100,
        batch_size: int = QUERY_BATCH_SIZE,
        seed: int = 0,
        progress: bool | None = None,
    ) -> pd.DataFrame:
        """Return how well each protein is imputed, by hiding counts that were measured.

        Cells are encoded as if they came from a panel that lacks some proteins, and these are predicted
        as `impute_proteins` does. Cells that the model was trained on would look better than new ones:
        the encoder has seen their proteins.

        Parameters
        ----------
        adata, indices
            Cells whose proteins are hidden. None: those that the fit held out and that did not
            calibrate it, 5,000 at most.
        transform_batch
            As in `impute_proteins`.
        protein_list
            Wanted proteins. None: all.
        clusters
            Within which ``within_pearson`` is: a column of ``obs``, or a label of each cell of the
            data. None: k-means clusters of the latent space, 10 at most, of 30 cells or more on
            average.
        {hidden_counts}
        stacked
            As in `impute_proteins`, with weights that the cell itself had no part in. Without training
            data, and of a mapped query, predictions are the model's alone.
        {batch_size} {seed} {progress}

        Returns
        -------
        A row for each panel and protein that it lacks (all proteins, where no panel lacks any), with
        ``n_cells`` whose counts were hidden; ``pearson`` and ``rmse`` of log(1 + count) and its
        predicted mean; ``coverage``, the share of counts in the interval before it is calibrated;
        ``within_pearson``, the correlation of their differences from the means of the cell's
        cluster; ``pearson_lower`` and ``within_pearson_lower``, lower 95 % confidence limits of both
        (Fisher's z); and ``reliable``, whether ``pearson_lower`` is 0.7 or more and
        ``within_pearson_lower`` above 0: a protein that is predicted between cell types only is not
        reliable within them. Where stacked, also ``model_pearson``, ``ridge_pearson`` and
        ``neighbours_pearson`` of what is stacked, and ``model_is_best``, whether the model's is the
        highest of the three.

        {name_error}
        DataError
            When there are no training data or no held-out cells, or none that measured the proteins, as
            in a query of RNA alone: see `get_query_reliability`.

        {lacking_model}
        >>> list(model.get_imputation_reliability(n_samples=20).loc["batch_1"].index)
        ['protein_0', 'protein_2']
        """
        question = self._question(adata, indices, batch_size, progress, seed, n_samples)
        own = adata is None and indices is None
        asked = held_out_cells(self, question) if own else question.with_rna()
        question, wanted = imputed_batches(self, asked, transform_batch, protein_list)
        interval = checked_number("interval", interval, below=1)
        lacking = _lacking(self)
        if not lacking.any():  # where no panel lacks any, all proteins are hidden
            lacking = ~lacking
        lacks_wanted = lacking[:, wanted.proteins.positions]
        everything = self._data or question.data
        panels = _panels(everything, np.arange(everything.n_cells), np.any(lacks_wanted, axis=1))
        if clusters is None:
            groups = latent_clusters(question)
        else:
            labels = labels_of_cells(question, "clusters", clusters)
            groups = pd.factorize(labels, use_na_sentinel=False)[0]
        names = self.schema.panel_names or self.schema.batch_names
        known = self._known_data(question) if stacked else None
        every, rna = wanted, None
        if known is not None:
            question, every = imputed_batches(self, asked, transform_batch, None)
            rna = RnaPredictors.of_data(known, RnaCoordinates.of_data(known), self.split)
        columns, of_wanted = columns_of(wanted, every), wanted.proteins.names
        tables = {}
        for panel, batches in panels:
            of_panel = panel, batches, lacking[panel, every.proteins.positions]
            hidden = hidden_as_panel(question, every, *of_panel)
            if rna is None or not self.schema.measured_rna[panel]:
                found = stacked_proteins(question, every, hidden, None)
            else:
                held_out = held_out_cells(self, question, all_of_them=True, data=known)
                held_out = replace(held_out, progress=False)
                of_held_out = hidden_as_panel(held_out, every, *of_panel)
                found = stacked_proteins(held_out, every, of_held_out, rna, only_stack=not own)
                if own:
                    found = found.of_cells(reporting_cells(self, held_out))
                else:
                    found = stacked_proteins(question, every, hidden, rna, found.stack)
            table = found.of_proteins(columns).reliability(interval, of_wanted, groups)
            tables[names[panel]] = table[lacks_wanted[panel]]
        if not tables:
            raise ValueError(
                "protein_list holds only proteins that every panel measured; name others, or None."
            )
        result: pd.DataFrame = pd.concat(tables, names=["panel", "protein"])
        if not result["n_cells"].any():
            raise DataError(
                "None of the cells measured the proteins that are imputed, so there is nothing to "
                "compare with; name cells that did with indices, or for a query that was mapped call "
                "reference.get_query_reliability(query)."
            )
        return result

    def _known_data(self, question: Question) -> CiteData | None:
        """Return the training data, or those given that are the same, if some cells were held out."""
        if self._mapping is not None or self.split is None or self._result is None:
            return None
        if not len(self.split.validation) + len(self.split.test):
            return None
        same = self._data is None and fingerprint(question.data) == self._result.fingerprint
        return question.data if same else self._data


def columns_of(wanted: ImputedBatches, every: ImputedBatches) -> np.ndarray:
    """Return the places of the wanted proteins in all of those that are stacked together."""
    positions = every.proteins.positions
    return np.array([int(np.argmax(positions == one)) for one in wanted.proteins.positions])


def reporting_cells(model: Fitted, held_out: Question) -> np.ndarray:
    """Return which of the cells that the fit held out did not calibrate it, bool (N,)."""
    return np.isin(held_out.cells, held_out_cells(model, held_out).cells)


def _lacking(model: Fitted) -> np.ndarray:
    """Return which proteins each panel lacks, bool (panels, T)."""
    return ~np.array(model.schema.panel_measured, dtype=bool)


def _panels(data: CiteData, cells: np.ndarray, wanted: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """Return each wanted panel that the cells have, with the codes of its batches."""
    panel, batch = data.panel[cells], data.batch[cells]
    return [
        (int(code), np.unique(batch[panel == code])) for code in np.unique(panel[wanted[panel]])
    ]
