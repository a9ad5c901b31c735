"""What a model predicts of proteins, stacked with regression on RNA and with neighbours in RNA.

The model shares its latent state among all features and gives up on faint proteins, which regression
on many components of RNA still orders; the model knows how counts spread. So each protein is predicted
by a combination, with weights that cells decide which the fit held out: stacked regressions (Wolpert,
1992; Breiman, 1996).
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple, Self

import numpy as np
import pandas as pd
from scipy.optimize import nnls

from totalvi.data.cells import CiteData
from totalvi.fit.minibatch import Minibatch
from totalvi.posterior.batch_levels import log1p_at_level
from totalvi.posterior.hidden_counts import HiddenCounts, reliability_table
from totalvi.posterior.protein_predictions import (
    ImputedBatches,
    Predicted,
    as_panel,
    hidden_proteins,
    predicted_proteins,
    rounding_noise,
)
from totalvi.posterior.question import Question
from totalvi.posterior.rna_predictors import RnaPredictors

PREDICTORS = ("model", "ridge", "neighbours")
FEWEST_CELLS = 5  # with fewer cells that tell, a protein is predicted by the model alone
_N_FOLDS = 5
_PRIOR_CELLS = 200  # weights that are best for all proteins count as much as this many cells
_EQUAL_CELLS = 50  # among these, equal weights count as much as this many cells of one protein
_PRIOR_LEVEL_CELLS = 100  # so many cells count for the mean of a protein's predictions, as its mean


class Stack(NamedTuple):
    """How the predictions of each protein are combined; those of the model alone by default.

    Parameters
    ----------
    weights
        Of the model, ridge regression and neighbours, not negative, (3, t).
    intercept
        What is added, (t,).
    """

    weights: np.ndarray
    intercept: np.ndarray

    def predict(self, predictions: np.ndarray) -> np.ndarray:
        """Return log(1 + count) of cells (N, t) from each predictor's, (3, N, t)."""
        combined = np.einsum("pnt,pt->nt", np.nan_to_num(predictions), self.weights)
        stacked: np.ndarray = np.maximum(combined + self.intercept, 0)
        return stacked


def alone(n_proteins: int) -> Stack:
    """Return the stack of the model alone."""
    weights = np.zeros((len(PREDICTORS), n_proteins))
    weights[0] = 1
    return Stack(weights, np.zeros(n_proteins))


class _Errors(NamedTuple):
    """What the squared error of a protein depends on: of N cells, about the means.

    Parameters
    ----------
    square, product
        Covariances of the predictors, (3, 3), and with log(1 + count), (3,).
    mean, level
        Means of the predictors, (3,), and of log(1 + count).
    variance
        Of log(1 + count), above 0.
    n_cells
        N.
    """

    square: np.ndarray
    product: np.ndarray
    mean: np.ndarray
    level: float
    variance: float
    n_cells: int


def fitted_stack(predictions: np.ndarray, observed: np.ndarray) -> Stack:
    """Return the stack that predicts log(1 + count) of held-out cells best.

    The weights of a protein minimise its squared error plus a penalty on their distance from those
    that are best for all proteins, which counts as much as 200 cells; none is negative. Where all
    proteins have few cells, these are drawn to equal weights. A protein's mean is that of the cells,
    drawn to the mean of its predictions as by 100 cells.

    Parameters
    ----------
    predictions
        Of log(1 + count) by each predictor, (3, N, t); NaN where one does not predict.
    observed
        Counts that were hidden, (N, t); NaN where a cell did not measure the protein.
    """
    stack = alone(observed.shape[1])
    by_protein = {
        t: errors
        for t in range(observed.shape[1])
        if (errors := _errors(predictions[:, :, t], observed[:, t])) is not None
    }
    if not by_protein:
        return stack
    shared = _shared_weights(list(by_protein.values()))
    for t, errors in by_protein.items():
        level, n_cells = errors.level, errors.n_cells
        weights = _drawn_to(shared, errors.square, errors.product, _PRIOR_CELLS / n_cells)
        if weights.sum() > 0:
            of_predictors = weights @ errors.mean / weights.sum()
            share = _PRIOR_LEVEL_CELLS / (n_cells + _PRIOR_LEVEL_CELLS)
            level += (of_predictors - level) * share
        stack.weights[:, t], stack.intercept[t] = weights, level - weights @ errors.mean
    return stack


def _errors(predictions: np.ndarray, observed: np.ndarray) -> _Errors | None:
    """Return what the error of a protein depends on; None if too few cells tell.

    ``predictions`` are (3, N) and ``observed`` are counts (N,), NaN where not measured.
    """
    known = ~np.isnan(observed)
    logs, of_each = np.log1p(observed[known]), predictions[:, known]
    n_cells = len(logs)
    # the deviation of equal numbers may be a rounding error above 0
    if n_cells < FEWEST_CELLS or np.ptp(logs) == 0 or np.isnan(of_each).any():
        return None
    mean, level = of_each.mean(axis=1), float(logs.mean())
    centred = of_each - mean[:, None]
    square, product = centred @ centred.T / n_cells, centred @ (logs - level) / n_cells
    return _Errors(square, product, mean, level, float(logs.var()), n_cells)


def _shared_weights(by_protein: list[_Errors]) -> np.ndarray:
    """Return the weights of the least squared error of all proteins, relative to their variances."""
    square, product = np.zeros_like(by_protein[0].square), np.zeros_like(by_protein[0].product)
    for errors in by_protein:
        square += errors.square * (errors.n_cells / errors.variance)
        product += errors.product * (errors.n_cells / errors.variance)
    equal = np.full(len(product), 1 / len(product))
    n_cells = sum(errors.n_cells for errors in by_protein)
    return _drawn_to(equal, square, product, _EQUAL_CELLS / n_cells)


def _drawn_to(
    prior: np.ndarray, square: np.ndarray, product: np.ndarray, strength: float
) -> np.ndarray:
    """Return w >= 0 that minimises w' square w - 2 w' product and a penalty on its distance.

    The penalty is ``strength`` times the squared distance from ``prior``, in units of the diagonal.
    """
    penalty = np.diag(np.diag(square)) * strength
    square, product = square + penalty, product + penalty @ prior
    root = np.linalg.cholesky(square + 1e-9 * max(np.trace(square), 1e-9) * np.eye(len(square)))
    return np.asarray(nnls(root.T, np.linalg.solve(root, product))[0])


def pooled_stack(predictions: np.ndarray, observed: np.ndarray) -> Stack:
    """Return the stack with the same weights for all genes, not negative, of the least squared error.

    Levels of genes stay those of the predictions, since few cells are held out that have both.

    Parameters
    ----------
    predictions
        Of log(1 + RNA) by each predictor, (3, N, genes).
    observed
        Counts, (N, genes).
    """
    n_genes = observed.shape[1]
    weights = nnls(predictions.reshape(len(predictions), -1).T, np.log1p(observed).ravel())[0]
    return Stack(np.repeat(weights[:, None], n_genes, axis=1), np.zeros(n_genes))


def cross_fitted(
    predictions: np.ndarray,
    observed: np.ndarray,
    fit: Callable[[np.ndarray, np.ndarray], Stack] = fitted_stack,
) -> np.ndarray:
    """Return what stacks predict of cells that did not decide on their weights, (N, t).

    Each fifth of the cells is predicted by the stack of the others, so that errors are those of new
    cells.
    """
    stacked = np.empty(observed.shape)
    fold = np.arange(len(observed)) % _N_FOLDS
    for number in np.unique(fold):
        own = fold == number
        stack = fit(predictions[:, ~own], observed[~own])
        stacked[own] = stack.predict(predictions[:, own])
    return stacked


class Hidden(NamedTuple):
    """Cells that a network sees as if they came from a panel that lacks some of their proteins.

    Parameters
    ----------
    observed
        Counts of the wanted proteins, (N, t); NaN where a cell did not measure one.
    lacking
        Which of the wanted proteins the panel lacks, (t,).
    shown
        Gives what the network sees of a minibatch.
    """

    observed: np.ndarray
    lacking: np.ndarray
    shown: Callable[[Minibatch], Minibatch] = lambda batch: batch


class StackedProteins(NamedTuple):
    """How proteins of a panel are stacked, and how well that predicts cells in which they are hidden.

    Parameters
    ----------
    stack
        Of what the panel lacks; the model alone for what it measured.
    hidden
        Counts that were hidden, and what was predicted.
    predictions
        Of each predictor, (3, N, t); None without others than the model.
    """

    stack: Stack
    hidden: HiddenCounts
    predictions: np.ndarray | None

    def of_cells(self, kept: np.ndarray) -> Self:
        """Return what was predicted of some of the cells, with the same stack."""
        hidden = HiddenCounts(*(part[kept] for part in self.hidden))
        predictions = None if self.predictions is None else self.predictions[:, kept]
        return self._replace(hidden=hidden, predictions=predictions)

    def of_proteins(self, kept: np.ndarray) -> Self:
        """Return what was predicted of some of the proteins, with the stacks of these."""
        stack = Stack(self.stack.weights[:, kept], self.stack.intercept[kept])
        hidden = HiddenCounts(*(part[:, kept] for part in self.hidden))
        predictions = None if self.predictions is None else self.predictions[:, :, kept]
        return type(self)(stack, hidden, predictions)

    def reliability(self, interval: float, names: np.ndarray, clusters: np.ndarray) -> pd.DataFrame:
        """Return how well each protein is predicted, by what is stacked too, a row a protein."""
        table = reliability_table(self.hidden, interval, names, clusters)
        if self.predictions is None:
            return table
        return pd.concat([table, self.comparison(names)], axis=1)

    def comparison(self, names: np.ndarray) -> pd.DataFrame:
        """Return Pearson's correlation of log(1 + count) with each predictor, a row a protein."""
        assert self.predictions is not None
        logs = pd.DataFrame(np.log1p(self.hidden.observed), columns=names)
        table = pd.DataFrame(index=pd.Index(names))
        for predictor, values in zip(PREDICTORS, self.predictions, strict=True):
            varies = np.where(values.std(axis=0) > 1e-9, values, np.nan)
            table[f"{predictor}_pearson"] = logs.corrwith(pd.DataFrame(varies, columns=names))
        others = table[["ridge_pearson", "neighbours_pearson"]].max(axis=1)
        return table.assign(model_is_best=table["model_pearson"] > others)


def observed_proteins(data: CiteData, cells: np.ndarray, proteins: np.ndarray) -> np.ndarray:
    """Return the counts of proteins, NaN where a cell's panel did not measure them."""
    measured = np.array(data.schema.panel_measured)[data.panel[cells]]
    return np.where(measured[:, proteins], data.protein.rows(cells)[:, proteins], np.nan)


def hidden_as_panel(
    question: Question, wanted: ImputedBatches, panel: int, batches: np.ndarray, lacking: np.ndarray
) -> Hidden:
    """Return the question's cells as if they came from a panel of their own data.

    Parameters
    ----------
    panel, batches
        Its code, and those of its batches.
    lacking
        Which of the wanted proteins it lacks, (t,).
    """
    return Hidden(
        observed_proteins(question.data, question.cells, wanted.proteins.positions),
        lacking,
        lambda batch: as_panel(question, batch, panel, batches),
    )


def stacked_proteins(
    question: Question,
    wanted: ImputedBatches,
    hidden: Hidden,
    rna: RnaPredictors | None,
    stack: Stack | None = None,
    *,
    only_stack: bool = False,
) -> StackedProteins:
    """Predict the counts of the question's cells that are hidden.

    Parameters
    ----------
    rna
        What is stacked with the model. None: nothing.
    stack
        Of other cells. None: these cells decide on it, each fifth predicted by that of the others.
    only_stack
        Whether what is hidden may stay predicted by the model alone.
    """
    found = hidden_proteins(question, wanted, hidden.observed, hidden.shown)
    if rna is None:
        return StackedProteins(alone(len(hidden.lacking)), found, None)
    with question.minibatches("regression and neighbours") as batches:
        others = np.concatenate([rna.predict(batch) for batch in batches], axis=1)
    others = others[:, :, wanted.proteins.positions]
    predictions = np.concatenate([found.log1p[None], others])
    to_learn = np.where(hidden.lacking, hidden.observed, np.nan)
    log1p = cross_fitted(predictions, to_learn) if stack is None else stack.predict(predictions)
    stack = fitted_stack(predictions, to_learn) if stack is None else stack
    if not only_stack:
        found = hidden_proteins(question, wanted, hidden.observed, hidden.shown, log1p)
    return StackedProteins(stack, found, predictions)


def moved_to_stacks(
    question: Question,
    wanted: ImputedBatches,
    batch: Minibatch,
    predicted: Predicted,
    rna: RnaPredictors,
    stacks: Mapping[int, Stack],
) -> Predicted:
    """Return a minibatch's predictions moved to those stacked, in panels that have a stack.

    Stacks are of counts at the level of the batches decoded into, and so are regression and neighbours.
    """
    panel, level = batch.context.panel.cpu().numpy(), wanted.log_level(batch)
    stacked = np.isin(panel, list(stacks))
    own = predicted.log1p_mean().astype(np.float64)
    if not stacked.any():
        return predicted
    alone = own
    if wanted.levels is not None:
        alone = predicted_proteins(question, replace(wanted, levels=None), batch).log1p_mean()
    others = rna.predict(batch)[:, :, wanted.proteins.positions]
    predictions = np.concatenate([alone[None], others])
    moved = alone.astype(np.float64)
    for code, stack in stacks.items():
        moved[panel == code] = stack.predict(predictions[:, panel == code])
    shift = log1p_at_level(moved, level) - log1p_at_level(alone, level)
    log1p = np.where(stacked[:, None], np.maximum(own + shift, 0), own)
    return predicted.moved_to(log1p, rounding_noise(question, wanted, batch))
