"""RNA of cells with proteins alone: what its counts would be, and how far that can be trusted."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from totalvi.data.cells import CiteData
from totalvi.data.counts import evenly_spaced
from totalvi.data.describe import Data
from totalvi.errors import DataError
from totalvi.fit.minibatch import Minibatch
from totalvi.posterior.arguments import Cells, Names, checked_number, documented
from totalvi.posterior.draws import gene_counts, gene_parameters
from totalvi.posterior.imputation import ImputationQueries
from totalvi.posterior.protein_predictions import Predicted, as_panel
from totalvi.posterior.question import Features, Question, held_out_cells
from totalvi.posterior.rna_predictors import log_normalised, ridge
from totalvi.posterior.stacking import Stack, pooled_stack
from totalvi.posterior.unmeasured import rna_in_batches

_N_COMPONENTS, _N_NEIGHBOURS, _N_FOLDS = 50, 15, 5
_MOST_CELLS = 5000  # of those that have both, of which genes are held as arrays
_PARTS = ("mean", "log1p", "lower", "upper")


class ImputedRna(NamedTuple):
    """What the RNA counts of cells would be at one library size, each a data frame (cells, genes).

    Parameters
    ----------
    mean
        Mean of the predicted count.
    log1p
        Mean of log(1 + count), the closest guess of a count's logarithm.
    lower, upper
        Limits of the predictive interval, whole numbers.
    lacking
        Whether each cell lacks RNA. RNA that it has is predicted as well, from itself.
    """

    mean: pd.DataFrame
    log1p: pd.DataFrame
    lower: pd.DataFrame
    upper: pd.DataFrame
    lacking: pd.Series


class ProteinPredictors:
    """Ridge regression and means of neighbours, both of log(1 + RNA) on components of the proteins.

    RNA is divided by the cell's total, times a common size. Of the proteins, the 50 first components of
    log(1 + count), centred by batch, of the cells that trained the model and have both.

    Parameters
    ----------
    data
        Cells that the model was fitted to; of those that have both, at most 5,000 are used.
    training
        Positions of those that trained it.
    genes
        Positions of the wanted genes.
    proteins
        Which proteins the panel measured that lacks RNA, (T,).
    size
        Library size to which RNA is scaled.
    """

    def __init__(
        self,
        data: CiteData,
        training: np.ndarray,
        genes: np.ndarray,
        proteins: np.ndarray,
        size: float,
    ) -> None:
        by_panel = np.array(data.schema.panel_measured, dtype=bool)
        self.has_both = data.schema.measured_rna & by_panel[:, proteins].any(axis=1)
        shared = by_panel[self.has_both].all(axis=0) if self.has_both.any() else proteins
        self._proteins = np.flatnonzero(proteins & shared)
        cells = training[self.has_both[data.panel[training]]]
        cells = evenly_spaced(np.sort(cells), _MOST_CELLS)
        self.n_cells = len(cells) if len(self._proteins) else 0
        if self.n_cells <= _N_NEIGHBOURS:
            return
        knows = np.all(by_panel[:, self._proteins], axis=1)
        with_proteins = evenly_spaced(np.flatnonzero(knows[data.panel]), _MOST_CELLS)
        of_all = self._logs(data.protein.rows(with_proteins))
        batch = data.batch[with_proteins]
        self._centre = np.tile(of_all.mean(axis=0), (len(data.schema.batch_names), 1))
        for code in np.unique(batch):
            self._centre[code] = of_all[batch == code].mean(axis=0)
        self._loadings = np.linalg.svd(of_all - self._centre[batch], full_matrices=False)[2]
        self._loadings = self._loadings[:_N_COMPONENTS].T
        self._scores = self._scored(data.protein.rows(cells), data.batch[cells])
        self._values = log_normalised(data.rna.rows(cells), size)[:, genes].toarray()
        self._weights, self._intercept = ridge(self._scores, self._values)

    def _logs(self, protein: np.ndarray) -> np.ndarray:
        logs: np.ndarray = np.log1p(protein[:, self._proteins].astype(np.float64))
        return logs

    def _scored(self, protein: np.ndarray, batch: np.ndarray) -> np.ndarray:
        scores: np.ndarray = (self._logs(protein) - self._centre[batch]) @ self._loadings
        return scores

    def predict(self, batch: Minibatch) -> np.ndarray:
        """Return log(1 + RNA) by ridge regression and by neighbours, (2, B, genes)."""
        from sklearn.neighbors import NearestNeighbors  # which takes a second to load

        scores = self._scored(batch.y.cpu().numpy(), batch.context.batch.cpu().numpy())
        search = NearestNeighbors(n_neighbors=_N_NEIGHBOURS, algorithm="brute").fit(self._scores)
        near = search.kneighbors(scores, return_distance=False)
        by_ridge = scores @ self._weights + self._intercept
        return np.stack([by_ridge, self._values[near].mean(axis=1)])


def predicted_rna(
    question: Question, batch: Minibatch, genes: np.ndarray, size: float
) -> tuple[np.ndarray, Predicted]:
    """Return log(1 + E[rho] size) and the predictive distribution of counts of a minibatch's RNA.

    Samples are decoded into all batches of the question for the mean; a count is drawn at each sample,
    decoded into the batches in turn.
    """
    network, n_batches = question.network, len(question.transform_batch)
    total = batch.zeros(network.n_input_genes)
    share = torch.full((len(batch.cells), 1), 1 / question.n_draws, device=batch.device)
    counts = np.empty((len(batch.cells), len(genes), question.n_samples), dtype=np.float32)
    at_size = torch.full_like(share, size)
    for number, draw in enumerate(question.draws(batch)):
        network.add_proportions(draw.decoded, share, total)
        if number % n_batches == draw.sample % n_batches:
            parameters = gene_parameters(network, draw._replace(library_size=at_size), genes)
            counts[:, :, draw.sample] = gene_counts(
                parameters, question.noise, draw.sample, batch.keys, genes
            )
    counts.sort(axis=2)
    mean = total[:, genes].double().cpu().numpy() * size
    return np.log1p(mean), Predicted(mean, counts.std(axis=2, dtype=np.float64), counts)


@documented
class RnaQueries(ImputationQueries):
    """What a model says of the RNA of cells that have proteins alone."""

    def impute_rna(
        self,
        adata: Data | None = None,
        indices: Cells = None,
        *,
        transform_batch: Names = None,
        gene_list: Sequence[str] | None = None,
        interval: float = 0.9,
        stacked: bool = True,
        n_samples: int = 50,
        batch_size: int = 256,
        seed: int = 0,
        progress: bool | None = None,
    ) -> ImputedRna:
        """Return what the RNA counts of cells would be, and how sure that is.

        Counts are those of a cell with the library size that is usual in the batches with RNA, as these
        would have measured them: z from the cell's posterior, then NB(l rho, r). Where ``stacked``,
        those of cells without RNA are moved to the ``log1p`` that model, ridge regression on proteins
        and neighbours in these predict together, with weights from cells that the fit held out.

        Parameters
        ----------
        {cells}
        transform_batch
            Batch or batches to decode into, averaged. None: those that measured RNA.
        gene_list
            Wanted genes. None: all.
        interval
            Probability of the interval from ``lower`` to ``upper``, below 1. It is that of the model,
            not corrected by held-out cells: see ``coverage`` of `get_rna_reliability`.
        stacked
            Whether RNA that a cell lacks is predicted together with regression and neighbours, which
            needs the training data; with fewer than 16 cells that have both, by the model alone.
        n_samples
            Posterior samples of each cell, and counts drawn for each value.
        {batch_size} {seed} {progress}

        Returns
        -------
        `ImputedRna`.

        {name_error}
        DataError
            When all cells of the fit had RNA, so that the model has not learned to do without, or when
            it is to be stacked without training data.

        {mosaic_model}
        >>> imputed = model.impute_rna(indices=range(60, 90), n_samples=10)
        >>> imputed.mean.shape, bool(imputed.lacking.all())
        ((30, 30), True)
        """
        question = self._question(adata, indices, batch_size, progress, seed, n_samples)
        question, size = self._about_rna(question, transform_batch)
        genes, interval = self._genes(gene_list), checked_number("interval", interval, below=1)
        data, lacking = question.data, ~question.data.has_rna[question.cells]
        stacks = dict[int, tuple[ProteinPredictors, Stack]]()
        if stacked and lacking.any():
            known = self._training_data()
            held_out = replace(held_out_cells(self, question, all_of_them=True), progress=False)
            for panel in np.unique(data.panel[question.cells[lacking]]):
                found = self._rna_stack(known, held_out, int(panel), genes, size, interval)
                if found is not None:
                    stacks[int(panel)] = found[0], pooled_stack(*found[1:3])
        table = question.table(genes.names)
        limits = (1 - interval) / 2, (1 + interval) / 2

        def rows(batch: Minibatch) -> Mapping[str, np.ndarray]:
            logs, predicted = predicted_rna(question, batch, genes.positions, size)
            panel = batch.context.panel.cpu().numpy()
            log1p = predicted.log1p_mean().astype(np.float64)
            for code, (others, stack) in stacks.items():
                own = panel == code
                if own.any():
                    beside = np.concatenate([logs[None], others.predict(batch)])
                    log1p[own] = stack.predict(beside[:, own])
            if np.isin(panel, list(stacks)).any():
                width = question.network.n_input_genes
                noise = question.noise.uniform("rounding", 0, batch.keys, width).numpy()
                predicted = predicted.moved_to(log1p, noise[:, genes.positions])
            shape = predicted.mean.shape
            lower = np.ceil(predicted.quantile(np.full(shape, limits[0])))
            upper = np.floor(predicted.quantile(np.full(shape, limits[1])))
            return {
                "mean": predicted.mean,
                "log1p": log1p,
                "lower": np.minimum(lower, upper),
                "upper": np.maximum(lower, upper),
            }

        written = question.rows("imputed RNA", dict.fromkeys(_PARTS, table), rows)
        assert isinstance(written, dict)
        return ImputedRna(
            **{part: table.frame(written[part]) for part in _PARTS},
            lacking=pd.Series(lacking, index=question.cell_names),
        )

    def get_rna_reliability(
        self,
        adata: Data | None = None,
        indices: Cells = None,
        *,
        transform_batch: Names = None,
        gene_list: Sequence[str] | None = None,
        interval: float = 0.9,
        n_samples: int = 50,
        batch_size: int = 256,
        seed: int = 0,
        progress: bool | None = None,
    ) -> pd.DataFrame:
        """Return how well the RNA of each gene is imputed, by hiding RNA that was measured.

        Cells that have both are encoded as if they came from a panel that lacks RNA, and their RNA is
        predicted as `impute_rna` does.

        Parameters
        ----------
        adata, indices
            Cells whose RNA is hidden, of those that have both. None: those that the fit held out.
        transform_batch, gene_list
            As in `impute_rna`.
        {hidden_counts} {batch_size} {seed} {progress}

        Returns
        -------
        A row for each panel that lacks RNA and each gene, with ``n_cells`` whose RNA was hidden;
        ``pearson`` and ``rmse`` of log(1 + count), scaled to the usual library size, and its stacked
        prediction, with weights that the cell itself had no part in; ``coverage``, the share of these
        counts, rounded, inside the model's interval; and ``model_pearson``, ``ridge_pearson``,
        ``neighbours_pearson`` of what is stacked, and ``model_is_best``, whether the model's is the
        highest.

        {name_error}
        DataError
            As in `impute_rna`, or when too few cells have both, or there are no training data.

        {mosaic_model}
        >>> table = model.get_rna_reliability(n_samples=2)
        >>> len(table), "ridge_pearson" in table
        (30, True)
        """
        question = self._question(adata, indices, batch_size, progress, seed, n_samples)
        if adata is None and indices is None:
            question = held_out_cells(self, question)
        question, size = self._about_rna(question, transform_batch)
        genes, interval = self._genes(gene_list), checked_number("interval", interval, below=1)
        names = self.schema.panel_names or self.schema.batch_names
        known = self._known_data(question)
        tables = {}
        for panel in np.flatnonzero(~self.schema.measured_rna):
            if known is None:
                break
            found = self._rna_stack(known, question, int(panel), genes, size, interval)
            if found is not None:
                tables[names[panel]] = _reliability(*found[1:], genes.names)
        if not tables:
            raise DataError(
                "No cell given has both RNA and proteins, or too few trained the model; name others."
            )
        table: pd.DataFrame = pd.concat(tables, names=["panel", "gene"])
        return table

    def _about_rna(self, question: Question, transform_batch: Names) -> tuple[Question, float]:
        """Return the question as it is decoded to impute RNA, and the library size of the counts."""
        if not self.schema.panel_measured_rna:
            raise DataError(
                "All cells of the fit had RNA, so that the model did not learn to do without; fit it "
                "to cells with both and cells with proteins alone."
            )
        codes = self._batch_codes(transform_batch)
        with_rna = rna_in_batches(self, self._data or question.data)
        if transform_batch is None:
            codes = tuple(map(int, np.flatnonzero(with_rna)))
        elif not all(code is not None and with_rna[code] for code in codes):
            raise DataError("transform_batch names a batch without RNA; name others.")
        if not codes:
            raise DataError(
                "No cell given is of a batch that measured RNA; give the training data to Model.load, "
                "or name batches with transform_batch."
            )
        means = np.array(self.schema.library_log_mean)
        return replace(question, transform_batch=codes), float(
            np.exp(means[[code for code in codes if code is not None]].mean())
        )

    def _rna_stack(
        self,
        known: CiteData,
        question: Question,
        panel: int,
        genes: Features,
        size: float,
        interval: float,
    ) -> tuple[ProteinPredictors, np.ndarray, np.ndarray, np.ndarray] | None:
        """Predict the RNA of the question's cells that have both as if they came from a panel without.

        Returns
        -------
        The simple predictors; log(1 + RNA) of each predictor, (3, N, genes); the counts at ``size``;
        and whether each is inside the model's interval. None where too few cells have both.
        """
        measured = np.array(self.schema.panel_measured[panel])
        data = question.data
        assert self.split is not None
        others = ProteinPredictors(known, self.split.train, genes.positions, measured, size)
        cells = question.cells[others.has_both[data.panel[question.cells]]]
        if len(cells) < _N_NEIGHBOURS or others.n_cells <= _N_NEIGHBOURS:
            return None
        batches = np.unique(known.batch[known.panel == panel])
        parts: list[tuple[np.ndarray, ...]] = []
        with question.about(cells).minibatches("hidden RNA") as minibatches:
            for batch in minibatches:
                shown = as_panel(question, batch, panel, batches)
                shown = shown._replace(y=batch.y * torch.from_numpy(measured).to(batch.y))
                logs, predicted = predicted_rna(question, shown, genes.positions, size)
                counts = data.rna.rows(batch.cells)
                scaled = np.expm1(log_normalised(counts, size)[:, genes.positions].toarray())
                below = predicted.distribution_function(np.round(scaled))
                inside = np.abs(below - 0.5) <= interval / 2
                parts.append((np.stack([logs, *others.predict(batch)]), scaled, inside))
        predictions, scaled, inside = zip(*parts, strict=True)
        joined = np.concatenate(scaled), np.concatenate(inside)
        return others, np.concatenate(predictions, axis=1), *joined


def _reliability(
    predictions: np.ndarray, observed: np.ndarray, inside: np.ndarray, names: np.ndarray
) -> pd.DataFrame:
    logs, fold = np.log1p(observed), np.arange(len(observed)) % _N_FOLDS
    stacked = np.empty(logs.shape)
    for own in (fold == number for number in range(_N_FOLDS)):
        stack = pooled_stack(predictions[:, ~own], observed[~own])
        stacked[own] = stack.predict(predictions[:, own])
    table = pd.DataFrame(index=pd.Index(names))
    table["n_cells"] = len(observed)
    table["pearson"] = _correlations(logs, stacked)
    table["rmse"] = np.sqrt(((logs - stacked) ** 2).mean(axis=0))
    table["coverage"] = inside.mean(axis=0)
    for name, values in zip(("model", "ridge", "neighbours"), predictions, strict=True):
        table[f"{name}_pearson"] = _correlations(logs, values)
    others = table[["ridge_pearson", "neighbours_pearson"]].max(axis=1)
    return table.assign(model_is_best=table["model_pearson"] > others)


def _correlations(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return Pearson's correlation of each column; NaN where one does not vary."""
    a, b = first - first.mean(axis=0), second - second.mean(axis=0)
    scale = np.sqrt((a**2).sum(axis=0) * (b**2).sum(axis=0))
    nothing = np.full(len(scale), np.nan)
    return np.asarray(np.divide((a * b).sum(axis=0), scale, out=nothing, where=scale > 1e-9))
