"""Proteins predicted from RNA by regression and by neighbours, and stacked with what a model predicts.

The model shares its latent state among all features and gives up on faint proteins, which regression
on many components of RNA still orders; the model knows how counts spread. So each protein is predicted
by a combination, with weights that cells decide which the fit held out: stacked regressions (Wolpert,
1992; Breiman, 1996).
"""

from collections.abc import Mapping
from typing import NamedTuple, Self

import numpy as np
import pandas as pd
from scipy import sparse
from scipy.optimize import nnls
from scipy.sparse.linalg import svds

from totalvi.data.cells import CiteData
from totalvi.data.counts import evenly_spaced
from totalvi.fit.minibatch import Minibatch
from totalvi.posterior.protein_predictions import (
    HiddenProteins,
    ImputedBatches,
    Predicted,
    as_panel,
    hidden_proteins,
    rounding_noise,
)
from totalvi.posterior.question import Features, Fitted, Question

PREDICTORS = ("model", "ridge", "neighbours")
FEWEST_CELLS = 5  # with fewer cells that tell, a protein is predicted by the model alone
_N_COMPONENTS, _N_NEIGHBOURS = 50, 15
_MOST_CELLS = 10_000  # of the training data; these are enough for components, ridge and neighbours
_N_FOLDS = 5
_PRIOR_CELLS = 50  # equal weights of all predictors count as much as this many cells
_PRIOR_LEVEL_CELLS = 20  # and so does the mean that the predictions have, for a protein's mean
_FEWEST_TRAINED = 20  # with fewer cells that measured a protein, nothing is regressed on them
_PENALTIES = np.logspace(-6, 0, 13)  # relative to the largest squared singular value


class _Fitted(NamedTuple):
    """What predicts the proteins that the same cells measured.

    Parameters
    ----------
    columns
        Positions of these proteins among the wanted ones.
    scores, logs
        Of the cells that measured them: components of RNA, and log(1 + count).
    weights, intercept
        Of the ridge regression.
    """

    columns: np.ndarray
    scores: np.ndarray
    logs: np.ndarray
    weights: np.ndarray
    intercept: np.ndarray

    def predict(self, scores: np.ndarray) -> np.ndarray:
        """Return log(1 + count) by ridge regression and by neighbours, (2, N, proteins)."""
        from sklearn.neighbors import NearestNeighbors  # which takes a second to load

        search = NearestNeighbors(n_neighbors=_N_NEIGHBOURS, algorithm="brute").fit(self.scores)
        near = search.kneighbors(scores, return_distance=False)
        return np.stack([scores @ self.weights + self.intercept, self.logs[near].mean(axis=1)])


class RnaPredictors:
    """Ridge regression and means of neighbours, both of log(1 + count) on components of the RNA.

    RNA is divided by the cell's total and logged; its 50 first components are centred by batch. They
    are of all cells, the proteins of those that trained the model.

    Parameters
    ----------
    data
        Cells that the model was fitted to; at most 10,000 are used, in memory or from disk.
    training
        Positions of those that trained it.
    proteins
        Positions of the wanted proteins.
    """

    def __init__(self, data: CiteData, training: np.ndarray, proteins: np.ndarray) -> None:
        cells = evenly_spaced(np.flatnonzero(data.has_rna), _MOST_CELLS)
        counts = data.rna.rows(cells)
        self._size = float(np.median(np.asarray(counts.sum(axis=1))))
        logs = log_normalised(counts, self._size)
        n_components = min(_N_COMPONENTS, min(logs.shape) - 1)
        start = np.ones(min(logs.shape))  # a fixed start makes the components repeatable
        self._loadings = svds(logs, k=n_components, v0=start)[2].T
        self._n_proteins = len(proteins)
        scores, batch = logs @ self._loadings, data.batch[cells]
        self._centre = np.tile(scores.mean(axis=0), (len(data.schema.batch_names), 1))
        for code in np.unique(batch):
            self._centre[code] = scores[batch == code].mean(axis=0)
        trained = np.isin(cells, training)
        scores, cells = (scores - self._centre[batch])[trained], cells[trained]
        by_panel = np.array(data.schema.panel_measured, dtype=bool)[:, proteins]
        measured = by_panel[data.panel[cells]]
        patterns, pattern = np.unique(measured, axis=1, return_inverse=True)
        self._fitted: list[_Fitted] = []
        for code, knows in enumerate(patterns.T):
            if knows.sum() < _FEWEST_TRAINED:
                continue
            columns = np.flatnonzero(np.ravel(pattern) == code)
            values = np.log1p(data.protein.rows(cells[knows])[:, proteins[columns]])
            found = ridge(scores[knows], values)
            self._fitted.append(_Fitted(columns, scores[knows], values, *found))

    def predict(self, batch: Minibatch) -> np.ndarray:
        """Return log(1 + count) by ridge and neighbours, (2, B, proteins); NaN where none trained."""
        x = batch.x
        parts = (part.cpu().numpy() for part in (x.counts, x.gene, x.cell_pointer))
        logs = log_normalised(sparse.csr_matrix(tuple(parts), shape=x.shape), self._size)
        scores = logs @ self._loadings - self._centre[batch.context.batch.cpu().numpy()]
        predicted = np.full((2, len(scores), self._n_proteins), np.nan)
        for fitted in self._fitted:
            predicted[:, :, fitted.columns] = fitted.predict(scores)
        return predicted

    def beside(self, question: Question, log1p: np.ndarray) -> np.ndarray:
        """Return the model's log(1 + count) of the question's cells, and both others, (3, N, t)."""
        with question.minibatches("regression and neighbours") as batches:
            others = np.concatenate([self.predict(batch) for batch in batches], axis=1)
        return np.concatenate([log1p[None], others])

    def stacked(
        self,
        question: Question,
        wanted: ImputedBatches,
        batch: Minibatch,
        predicted: Predicted,
        stacks: Mapping[int, "Stack"],
    ) -> Predicted:
        """Return a minibatch's predictions moved to those stacked, in panels that have a stack."""
        panel = batch.context.panel.cpu().numpy()
        log1p = predicted.log1p_mean().astype(np.float64)
        if not np.isin(panel, list(stacks)).any():
            return predicted
        predictions = np.concatenate([log1p[None], self.predict(batch)])
        for code, stack in stacks.items():
            log1p[panel == code] = stack.predict(predictions[:, panel == code])
        return predicted.moved_to(log1p, rounding_noise(question, wanted, batch))


def simple_predictors(
    model: Fitted, proteins: Features, data: CiteData | None = None, *, in_all: bool = False
) -> RnaPredictors:
    """Return what predicts proteins beside a model, from the cells that trained it, or from all.

    ``data`` are the training data where the model has none.
    """
    data = model._training_data() if data is None else data
    split = None if in_all else model.split
    training = np.arange(data.n_cells) if split is None else split.train
    return RnaPredictors(data, training, proteins.positions)


def log_normalised(counts: sparse.csr_matrix, size: float) -> sparse.csr_matrix:
    """Return log(1 + count * size / total of the cell)."""
    total = np.asarray(counts.sum(axis=1), dtype=np.float64).ravel()
    factor = np.divide(size, total, out=np.zeros_like(total), where=total > 0)
    scaled = sparse.csr_matrix(sparse.diags_array(factor) @ counts.astype(np.float64))
    return scaled.log1p()


def ridge(scores: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return weights (components, t) and intercepts (t,) of a ridge regression for each column.

    The penalty of each is the one of 13 with the least generalised cross-validation error (Golub, Heath
    and Wahba, 1979).

    Parameters
    ----------
    scores
        Of N cells, (N, components).
    values
        What is predicted, (N, t).

    Examples
    --------
    >>> scores = np.random.default_rng(0).normal(size=(50, 2))
    >>> weights, intercept = ridge(scores, scores @ [[2.0], [0.0]] + 1)
    >>> weights.round(3).ravel().tolist(), intercept.round(3).tolist()
    ([2.0, 0.0], [1.0])
    """
    centre, mean = scores.mean(axis=0), values.mean(axis=0)
    left, singular, right = np.linalg.svd(scores - centre, full_matrices=False)
    along = left.T @ (values - mean)
    total = ((values - mean) ** 2).sum(axis=0)
    # rows: penalties, columns: components
    kept = singular**2 / (singular**2 + _PENALTIES[:, None] * max(singular[0] ** 2, 1e-12))
    residual = total - (2 * kept - kept**2) @ along**2
    freedom = np.maximum(len(scores) - 1 - kept.sum(axis=1), 1e-9)
    best = np.argmin(residual / freedom[:, None] ** 2, axis=0)
    inverse = np.divide(1, singular, out=np.zeros_like(singular), where=singular > 0)
    weights = right.T @ ((kept[best] * inverse).T * along)
    return weights, mean - centre @ weights


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


def fitted_stack(predictions: np.ndarray, observed: np.ndarray) -> Stack:
    """Return the stack that predicts log(1 + count) of held-out cells best, protein by protein.

    The weights minimise the squared error plus a penalty on their distance from the mean of all
    predictors, which counts as much as 50 cells; none is negative. A protein's mean is that of the
    cells, drawn to the mean of its predictions as by 20 cells.

    Parameters
    ----------
    predictions
        Of log(1 + count) by each predictor, (3, N, t); NaN where one does not predict.
    observed
        Counts that were hidden, (N, t); NaN where a cell did not measure the protein.
    """
    stack = alone(observed.shape[1])
    equal = np.full(len(predictions), 1 / len(predictions))
    for t in range(observed.shape[1]):
        known = ~np.isnan(observed[:, t])
        logs, of_each = np.log1p(observed[known, t]), predictions[:, known, t]
        n_cells = len(logs)
        if n_cells < FEWEST_CELLS or logs.std() == 0 or np.isnan(of_each).any():
            continue
        mean, level = of_each.mean(axis=1), logs.mean()
        centred = of_each - mean[:, None]
        square, product = centred @ centred.T / n_cells, centred @ (logs - level) / n_cells
        prior = np.diag(np.diag(square)) * _PRIOR_CELLS / n_cells
        weights = _non_negative(square + prior, product + prior @ equal)
        of_predictors = weights @ mean / weights.sum() if weights.sum() > 0 else level
        level += (of_predictors - level) * _PRIOR_LEVEL_CELLS / (n_cells + _PRIOR_LEVEL_CELLS)
        stack.weights[:, t], stack.intercept[t] = weights, level - weights @ mean
    return stack


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


def _non_negative(square: np.ndarray, product: np.ndarray) -> np.ndarray:
    """Return w >= 0 that minimises w' square w - 2 w' product."""
    root = np.linalg.cholesky(square + 1e-9 * max(np.trace(square), 1e-9) * np.eye(len(square)))
    return np.asarray(nnls(root.T, np.linalg.solve(root, product))[0])


def cross_fitted(predictions: np.ndarray, observed: np.ndarray) -> np.ndarray:
    """Return what stacks predict of cells that did not decide on their weights, (N, t).

    Each fifth of the cells is predicted by the stack of the others, so that errors are those of new
    cells.
    """
    stacked = np.empty(observed.shape)
    fold = np.arange(len(observed)) % _N_FOLDS
    for number in np.unique(fold):
        own = fold == number
        stack = fitted_stack(predictions[:, ~own], observed[~own])
        stacked[own] = stack.predict(predictions[:, own])
    return stacked


class OfPanel(NamedTuple):
    """A panel of which cells are made, with some of their proteins hidden.

    Parameters
    ----------
    panel, batches
        Its code, and those of its batches.
    lacking
        Which of the wanted proteins it lacks, (t,).
    """

    panel: int
    batches: np.ndarray
    lacking: np.ndarray


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
    hidden: HiddenProteins
    predictions: np.ndarray | None

    def of_cells(self, kept: np.ndarray) -> Self:
        """Return what was predicted of some of the cells, with the same stack."""
        hidden = HiddenProteins(*(part[kept] for part in self.hidden))
        predictions = None if self.predictions is None else self.predictions[:, kept]
        return self._replace(hidden=hidden, predictions=predictions)

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


def stacked_proteins(
    question: Question,
    wanted: ImputedBatches,
    of_panel: OfPanel,
    rna: RnaPredictors | None,
    stack: Stack | None = None,
    *,
    only_stack: bool = False,
) -> StackedProteins:
    """Predict the counts of cells as if they came from a panel that lacks some proteins.

    Parameters
    ----------
    rna
        What is stacked with the model. None: nothing.
    stack
        Of other cells. None: these cells decide on it, each fifth predicted by that of the others.
    only_stack
        Whether what is hidden may stay predicted by the model alone.
    """
    observed = observed_proteins(question.data, question.cells, wanted.proteins.positions)

    def hidden(stacked: np.ndarray | None = None) -> HiddenProteins:
        return hidden_proteins(
            question, wanted, observed,
            lambda batch: as_panel(question, batch, of_panel.panel, of_panel.batches), stacked,
        )  # fmt: skip

    found = hidden()
    to_learn = np.where(of_panel.lacking, observed, np.nan)
    if rna is None:
        return StackedProteins(alone(len(of_panel.lacking)), found, None)
    predictions = rna.beside(question, found.log1p)
    log1p = cross_fitted(predictions, to_learn) if stack is None else stack.predict(predictions)
    stack = fitted_stack(predictions, to_learn) if stack is None else stack
    return StackedProteins(stack, found if only_stack else hidden(log1p), predictions)
