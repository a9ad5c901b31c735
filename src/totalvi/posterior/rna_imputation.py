"""RNA of cells with proteins alone: what its counts would be, and how far that can be trusted."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
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
from totalvi.posterior.hidden_counts import HiddenCounts, calibrated_limits, limits_of
from totalvi.posterior.imputation import ImputationQueries
from totalvi.posterior.protein_predictions import Predicted, as_panel
from totalvi.posterior.question import Features, Question, held_out_cells
from totalvi.posterior.simple_predictors import ProteinPredictors, log_normalised
from totalvi.posterior.stacking import PREDICTORS, Stack, cross_fitted, pooled_stack
from totalvi.posterior.unmeasured import rna_in_batches

_FEWEST_HIDDEN_CELLS = 15  # with fewer, weights of the stack would be of chance
_MOST_HIDDEN_CELLS = 1000  # whose RNA is hidden; more would hardly change weights and limits
_PARTS = ("mean", "log1p", "lower", "upper")


class ImputedRna(NamedTuple):
    """What the RNA counts of cells would be at one library size, each a data frame (cells, genes).

    Parameters
    ----------
    mean
        Mean of the count that the model predicts, also where ``log1p`` is stacked: the means of all
        genes of a cell add up to the library size.
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
    return np.log1p(mean), Predicted(mean, counts.std(axis=2).astype(np.float64), counts)


def _moved(
    question: Question, batch: Minibatch, genes: np.ndarray, predicted: Predicted, log1p: np.ndarray
) -> Predicted:
    """Return the distribution of a minibatch's RNA moved to another mean of log(1 + count)."""
    noise = question.noise.uniform("rounding", 0, batch.keys, question.network.n_input_genes)
    return predicted.moved_to(log1p, noise.numpy()[:, genes])


@dataclass(frozen=True)
class _HiddenRna:
    """RNA of cells that have both, which is hidden as in a panel without RNA.

    Parameters
    ----------
    question
        About these cells.
    shown
        Gives what the network sees of a minibatch of them.
    genes, size
        Positions of the wanted genes, and the library size to which RNA is scaled.
    others
        What predicts RNA from proteins without the model.
    """

    question: Question
    shown: Callable[[Minibatch], Minibatch]
    genes: np.ndarray
    size: float
    others: ProteinPredictors

    def minibatches(self) -> Iterator[tuple[Minibatch, np.ndarray]]:
        """Yield what is shown of each minibatch, and its RNA at the library size, (B, genes)."""
        with self.question.minibatches("hidden RNA") as batches:
            for batch in batches:
                logs = log_normalised(self.question.data.rna.rows(batch.cells), self.size)
                yield self.shown(batch), np.expm1(logs[:, self.genes].toarray())

    def predictions(self) -> tuple[np.ndarray, np.ndarray]:
        """Return log(1 + RNA) of each predictor, (3, N, genes), and the RNA, (N, genes)."""
        parts, observed = [], []
        for batch, rna in self.minibatches():
            logs = predicted_rna(self.question, batch, self.genes, self.size)[0]
            parts.append(np.concatenate([logs[None], self.others.predict(batch)]))
            observed.append(rna)
        return np.concatenate(parts, axis=1), np.concatenate(observed)

    def below(self, stacked: np.ndarray | None) -> HiddenCounts:
        """Return the probability given to less RNA than there is, by a prediction moved to ``stacked``.

        A share of ties at random is included: most counts of RNA are 0, and the probability is uniform
        where the model is right only with that share.
        """
        parts, start = [], 0
        for batch, rna in self.minibatches():
            rows, start = slice(start, start + len(rna)), start + len(rna)
            predicted = predicted_rna(self.question, batch, self.genes, self.size)[1]
            if stacked is not None:
                predicted = _moved(self.question, batch, self.genes, predicted, stacked[rows])
            width = self.question.network.n_input_genes
            ties = self.question.noise.uniform("ties", 0, batch.keys, width).numpy()[:, self.genes]
            below = predicted.distribution_function(np.round(rna), ties)
            parts.append(HiddenCounts(rna, predicted.log1p_mean(), below))
        return HiddenCounts(*(np.concatenate(part) for part in zip(*parts, strict=True)))


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
        calibrated: bool = True,
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
            Probability of the interval from ``lower`` to ``upper``, below 1.
        calibrated
            Whether the interval of RNA that a cell lacks is corrected, gene by gene, to hold that share
            of the counts of cells that the fit held out, with their RNA hidden.
        stacked
            Whether RNA that a cell lacks is predicted together with regression and neighbours. Either
            needs the training data; with fewer than 15 held-out cells that have both, RNA and intervals
            are the model's alone, and with fewer than 20 the intervals are.
        n_samples
            Posterior samples of each cell, and counts drawn for each value.
        {batch_size} {seed} {progress}

        Returns
        -------
        `ImputedRna`.

        {name_error}
        DataError
            When all cells of the fit had RNA, so that the model has not learned to do without, or when
            it is to be stacked or calibrated without training data.

        {mosaic_model}
        >>> imputed = model.impute_rna(indices=range(60, 90), n_samples=10)
        >>> imputed.mean.shape, bool(imputed.lacking.all())
        ((30, 30), True)
        """
        question = self._question(adata, indices, batch_size, progress, seed, n_samples)
        question, size = self._about_rna(question, transform_batch)
        genes, interval = self._genes(gene_list), checked_number("interval", interval, below=1)
        data, lacking = question.data, ~question.data.has_rna[question.cells]
        limits = limits_of(interval)[:, None]
        probabilities = np.tile(limits, (len(self.schema.measured_rna), 1, len(genes)))
        stacks = dict[int, tuple[ProteinPredictors, Stack]]()
        if (stacked or calibrated) and lacking.any():
            known = self._training_data()
            held_out = replace(held_out_cells(self, question, all_of_them=True), progress=False)
            for panel in np.unique(data.panel[question.cells[lacking]]):
                hidden = self._hidden_rna(known, held_out, int(panel), genes, size)
                if hidden is None:
                    continue
                log1p = None
                if stacked:
                    predictions, observed = hidden.predictions()
                    stacks[int(panel)] = hidden.others, pooled_stack(predictions, observed)
                    log1p = cross_fitted(predictions, observed, pooled_stack)
                if calibrated:
                    probabilities[panel] = calibrated_limits(hidden.below(log1p), interval)
        table = question.table(genes.names)

        def rows(batch: Minibatch) -> Mapping[str, np.ndarray]:
            logs, predicted = predicted_rna(question, batch, genes.positions, size)
            panel, mean = batch.context.panel.cpu().numpy(), predicted.mean
            log1p = predicted.log1p_mean().astype(np.float64)
            for code, (others, stack) in stacks.items():
                own = panel == code
                if own.any():
                    beside = np.concatenate([logs[None], others.predict(batch)])
                    log1p[own] = stack.predict(beside[:, own])
            if np.isin(panel, list(stacks)).any():
                predicted = _moved(question, batch, genes.positions, predicted, log1p)
            found = predicted.summary(probabilities[panel])
            return {part: found[part] for part in _PARTS} | {"mean": mean}

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
        counts, rounded, inside the interval before it is calibrated, where a count at its limit is
        inside with the probability that it has beyond; and ``model_pearson``, ``ridge_pearson``,
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
            hidden = self._hidden_rna(known, question, int(panel), genes, size)
            if hidden is not None:
                tables[names[panel]] = _reliability(hidden, interval, genes.names)
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

    def _hidden_rna(
        self, known: CiteData, question: Question, panel: int, genes: Features, size: float
    ) -> _HiddenRna | None:
        """Return what of the question's cells is hidden as in a panel; None where too few have both."""
        measured = np.array(self.schema.panel_measured[panel])
        assert self.split is not None
        others = ProteinPredictors(known, self.split.train, genes.positions, measured, size)
        cells = question.cells[others.has_both[question.data.panel[question.cells]]]
        if len(cells) < _FEWEST_HIDDEN_CELLS or not others.can_predict:
            return None
        asked = question.about(evenly_spaced(cells, _MOST_HIDDEN_CELLS))
        batches = np.unique(known.batch[known.panel == panel])

        def shown(batch: Minibatch) -> Minibatch:
            alone = as_panel(question, batch, panel, batches)
            return alone._replace(y=batch.y * torch.from_numpy(measured).to(batch.y))

        return _HiddenRna(asked, shown, genes.positions, size, others)


def _reliability(hidden: _HiddenRna, interval: float, names: np.ndarray) -> pd.DataFrame:
    predictions, observed = hidden.predictions()
    logs, stacked = np.log1p(observed), cross_fitted(predictions, observed, pooled_stack)
    below = hidden.below(stacked).below
    table = pd.DataFrame(index=pd.Index(names))
    table["n_cells"] = len(observed)
    table["pearson"] = _correlations(logs, stacked)
    table["rmse"] = np.sqrt(((logs - stacked) ** 2).mean(axis=0))
    table["coverage"] = (np.abs(below - 0.5) <= interval / 2).mean(axis=0)
    for name, values in zip(PREDICTORS, predictions, strict=True):
        table[f"{name}_pearson"] = _correlations(logs, values)
    others = table[["ridge_pearson", "neighbours_pearson"]].max(axis=1)
    return table.assign(model_is_best=table["model_pearson"] > others)


def _correlations(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return Pearson's correlation of each column; NaN where one does not vary."""
    a, b = first - first.mean(axis=0), second - second.mean(axis=0)
    scale = np.sqrt((a**2).sum(axis=0) * (b**2).sum(axis=0))
    nothing = np.full(len(scale), np.nan)
    return np.asarray(np.divide((a * b).sum(axis=0), scale, out=nothing, where=scale > 1e-9))
