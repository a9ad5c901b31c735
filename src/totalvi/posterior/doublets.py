"""The probability that a cell is a doublet: how its posterior compares with sums of two cells."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy.special import gammaincinv
from torch import Tensor

from totalvi.data.cells import CiteData
from totalvi.data.counts import CountsInMemory, evenly_spaced
from totalvi.data.describe import Data
from totalvi.errors import DataError, allowed
from totalvi.fit.minibatch import Minibatch
from totalvi.posterior.arguments import Cells, documented
from totalvi.posterior.question import QUERY_BATCH_SIZE, Fitted, Question

if TYPE_CHECKING:
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.isotonic import IsotonicRegression

FEWEST_CELLS = 50  # with fewer cells nothing is learned from sums of them
_MOST_CELLS = 4096  # that sums are made of, and told from
_LEAST_SUMS = 1000
_LEAST_CAPTURED = (1.0, 0.5)  # sums keep a share of their counts between this and 1
_MOST_DRAWS = 3  # of sums without likely doublets, where few cells leave much to chance
_NEIGHBOURS = (15, 50)
_N_FOLDS = 5
_TAILS = (0.2, 0.3, 0.4, 0.5, 0.6)  # shares of the sums above the scores that tell the rate
_SAMPLES = 3


class Doublets(NamedTuple):
    """Which cells are likely doublets.

    Attributes
    ----------
    cells
        A row for each cell: ``score``, by which doublets are told best, from 0 to 1; ``probability``
        of being a doublet; and ``exclusion``, how much the cell carries proteins that exclude each
        other.
    rate
        Share of doublets among the cells, on which the probability rests.
    captured
        Mean share of the counts of two cells that a doublet holds.
    """

    cells: pd.DataFrame
    rate: float
    captured: float


def rate_by_number(n_cells: int) -> float:
    """Return the share of doublets that is usual when so many cells were captured together.

    It is 0.8 % per 1,000 cells (the user guides of 10x Genomics' Chromium), at most a half.

    Examples
    --------
    >>> rate_by_number(5000)
    0.04
    """
    return min(8e-6 * n_cells, 0.5)


def check_rate(name: str, rate: float | None) -> None:
    """Raise ValueError unless an argument is a share that doublets may have, or None."""
    if not (rate is None or 0 < rate < 1):
        raise ValueError(allowed(name, rate, "numbers above 0 and below 1"))


class Traits(NamedTuple):
    """What tells doublets from single cells, of N cells or sums.

    Parameters
    ----------
    latent
        Mean of q(u | cell), (N, d).
    foreground
        Probability that each protein is foreground given its count, (N, T).
    log_totals
        Logs of 1 + the total counts of RNA and of proteins, (N, 2).
    """

    latent: np.ndarray
    foreground: np.ndarray
    log_totals: np.ndarray


def traits(question: Question) -> Traits:
    """Return what tells doublets of the cells of a question."""

    def of_batch(batch: Minibatch) -> Tensor:
        foreground = batch.zeros(question.network.n_input_proteins)
        for draw in question.draws(batch, genes=False):
            foreground += draw.foreground_probability() / question.n_draws
        rna = batch.y.new_zeros(len(batch.y)).index_add_(0, batch.x.cell, batch.x.counts)
        totals = torch.stack([rna, batch.y.sum(dim=1)], dim=1).log1p()
        return torch.cat([draw.posterior.qz_m, foreground, totals], dim=1)

    found = question.gather("doublets", of_batch)
    n_latent = question.network.n_latent
    return Traits(found[:, :n_latent], found[:, n_latent:-2], found[:, -2:])


def pairs_of_cells(
    group: np.ndarray, weight: np.ndarray, n_pairs: int, rng: np.random.Generator
) -> np.ndarray:
    """Draw pairs of different cells of one group, (pairs, 2), each cell with its weight."""
    found = []
    for code in np.unique(group):
        cells = np.flatnonzero(group == code)
        share = weight[cells] / weight[cells].sum()
        found.append(rng.choice(cells, (round(n_pairs * len(cells) / len(group)), 2), p=share))
    pairs: np.ndarray = np.concatenate(found)
    apart: np.ndarray = pairs[pairs[:, 0] != pairs[:, 1]]
    return apart


def summed(
    data: CiteData, pairs: np.ndarray, least_captured: float, rng: np.random.Generator
) -> CiteData:
    """Return sums of pairs of cells of one batch and panel, annotated as the first of each.

    Each sum keeps every count with a probability that is uniform between ``least_captured`` and 1.
    """
    first, second = pairs.T
    rna = (data.rna.rows(first) + data.rna.rows(second)).tocsr()
    protein = data.protein.rows(first) + data.protein.rows(second)
    factor = data.library_size[first] + data.library_size[second]
    if least_captured < 1:
        kept = rng.uniform(least_captured, 1, len(pairs))
        of_count = np.repeat(kept, np.diff(rna.indptr))
        rna.data = rng.binomial(rna.data.round().astype(np.int64), of_count).astype(np.float32)
        rna.eliminate_zeros()
        protein = rng.binomial(protein.round().astype(np.int64), kept[:, None]).astype(np.float32)
        factor = factor * kept
    if data.schema.columns.size_factor_key is None:
        factor = np.asarray(rna.sum(axis=1)).ravel()
    return replace(
        data.in_memory(first),
        rna=CountsInMemory(rna),
        protein=CountsInMemory(protein),
        cell_names=pd.Index([f"sum {i}" for i in range(len(pairs))]),
        library_size=np.maximum(factor, 1e-6).astype(data.library_size.dtype),
    )


def exclusion_weights(foreground: np.ndarray) -> np.ndarray:
    """Return by how much each pair of proteins excludes each other, (T, T), in nats, 0 or more.

    It is ``log(E[p_s] E[p_t] / E[p_s p_t])``, the mean over cells of the foreground probabilities p:
    how much rarer cells with both proteins are than if one told nothing of the other.
    """
    mean = foreground.mean(axis=0, dtype=np.float64)
    both = foreground.T.astype(np.float64) @ foreground / len(foreground)
    weights: np.ndarray = np.log(np.outer(mean, mean) + 1e-6) - np.log(both + 1e-6)
    np.fill_diagonal(weights, 0.0)
    return weights.clip(min=0.0)


def exclusion(foreground: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return how much cells carry proteins that exclude each other, (N,): ``sum_st w_st p_s p_t``."""
    found: np.ndarray = ((foreground @ weights) * foreground).sum(axis=1) / 2
    return found


def told_rate(cell_score: np.ndarray, sum_score: np.ndarray) -> float:
    """Return the largest share of doublets that the scores of cells and of sums allow.

    Above a score that single cells do not reach, the cells are doublets, so that their share above it
    is the rate times that of the sums. Where single cells reach it, the ratio is larger. So the rate is
    the least ratio over several scores, each at its upper limit: that of a Poisson mean (Garwood, 1936)
    which is passed by chance in 2.5 % of data sets.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> cells = np.concatenate([rng.normal(0, 1, 9_000), rng.normal(6, 1, 1_000)])
    >>> 0.1 < told_rate(cells, rng.normal(6, 1, 10_000)) < 0.12
    True
    """
    ratios = []
    for tail in _TAILS:
        least = np.quantile(sum_score, 1 - tail)
        above = float((cell_score >= least).sum())
        share = float((sum_score >= least).mean())
        ratios.append(float(gammaincinv(above + 1, 0.975)) / len(cell_score) / share)
    return min(*ratios, 0.5)


@dataclass(frozen=True)
class _Judge:
    """What was learned from the cells of a pool and from sums of them.

    Parameters
    ----------
    weights
        From `exclusion_weights`.
    known, is_sum
        Latent means of pool and sums, and which of them are sums, (M, d) and (M,).
    trees
        Boosted trees, each learned from all but one fold of pool and sums.
    score
        Of the pool: the share of sums among cells and sums that look like it.
    share
        The share of sums by score, as an isotonic regression.
    rate
        From `told_rate`.
    captured
        The mean share of their counts that the sums keep.
    """

    weights: np.ndarray
    known: np.ndarray
    is_sum: np.ndarray
    trees: "list[HistGradientBoostingClassifier]"
    score: np.ndarray
    share: "IsotonicRegression"
    rate: float
    captured: float

    def score_others(self, cells: Traits) -> np.ndarray:
        """Return the mean score by all trees of cells outside of the pool."""
        score = np.zeros(len(cells.latent))
        if len(score):
            near = _share_of_sums(cells.latent, self.known, self.is_sum)
            columns = _columns(cells, near, self.weights)
            for trees in self.trees:
                score += trees.predict_proba(columns)[:, 1] / len(self.trees)
        return score

    def probability(self, score: np.ndarray, rate: float) -> np.ndarray:
        """Return the probability of a doublet by Bayes' rule, given a share of doublets."""
        share = self.share.predict(score)
        ratio = share / np.maximum(1 - share, 1e-9) * (~self.is_sum).sum() / self.is_sum.sum()
        found: np.ndarray = np.minimum(ratio * rate, 1.0)
        return found


def _tell_apart(pool: Traits, sums: Traits, captured: float, seed: int) -> _Judge:
    """Learn to tell sums from the cells of a pool.

    Boosted trees learn it in four fifths of pool and sums and score the others, in turn.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier  # which takes a second to load
    from sklearn.isotonic import IsotonicRegression

    weights = exclusion_weights(pool.foreground)
    known = np.concatenate([pool.latent, sums.latent])
    is_sum = np.arange(len(known)) >= len(pool.latent)
    near = _share_of_sums(known, known, is_sum, skip_first=True)
    both = (_columns(pool, near[~is_sum], weights), _columns(sums, near[is_sum], weights))
    learned = np.concatenate(both)
    fold = np.random.default_rng(seed).permutation(np.arange(len(known)) % _N_FOLDS)
    score, by_fold = np.empty(len(known)), []
    for k in range(_N_FOLDS):
        trees = HistGradientBoostingClassifier(
            max_leaf_nodes=8, max_iter=80, early_stopping=False, random_state=seed
        ).fit(learned[fold != k], is_sum[fold != k])
        score[fold == k] = trees.predict_proba(learned[fold == k])[:, 1]
        by_fold.append(trees)
    share = IsotonicRegression(out_of_bounds="clip").fit(score, is_sum)
    own, rate = score[~is_sum], told_rate(score[~is_sum], score[is_sum])
    return _Judge(weights, known, is_sum, by_fold, own, share, rate, captured)


def draws_of_sums(n_cells: int) -> int:
    """Return how often sums of so many cells are drawn."""
    return min(max(_MOST_CELLS // n_cells, 1), _MOST_DRAWS)


def _columns(of: Traits, near: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return what the trees see of cells or sums."""
    return np.column_stack([near, exclusion(of.foreground, weights), of.log_totals, of.foreground])


def _share_of_sums(
    asked: np.ndarray, known: np.ndarray, is_sum: np.ndarray, *, skip_first: bool = False
) -> np.ndarray:
    """Return the share of sums among the nearest neighbours, for each number of these, (N, 2)."""
    from sklearn.neighbors import NearestNeighbors  # which takes a second to load

    n_nearest = min(max(_NEIGHBOURS) + skip_first, len(known))
    search = NearestNeighbors(n_neighbors=n_nearest, algorithm="brute").fit(known)
    near = is_sum[search.kneighbors(asked, return_distance=False)[:, int(skip_first) :]]
    return np.column_stack([near[:, :k].mean(axis=1) for k in _NEIGHBOURS])


def doublets(question: Question, rate: float | None, seed: int) -> Doublets:
    """Return which of all cells of the question's data are likely doublets."""
    data = question.data
    everyone = np.arange(data.n_cells)
    pool = evenly_spaced(everyone, _MOST_CELLS, rounding="down")
    parts = data.in_memory(pool)
    group = parts.panel + (parts.panel.max() + 1) * parts.batch.astype(np.int64)
    own = traits(question.about(everyone))
    own_pool = Traits(*(part[pool] for part in own))
    rng = np.random.default_rng(seed)

    def judged(weight: np.ndarray) -> _Judge:
        """Learn from sums that keep all or part of their counts, whichever is more like doublets."""
        judges = []
        for least in _LEAST_CAPTURED:
            pairs = pairs_of_cells(group, weight, max(len(pool), _LEAST_SUMS), rng)
            sums = summed(parts, pairs, least, rng)
            asked = replace(question, data=sums, cells=np.arange(sums.n_cells), progress=False)
            judges.append(_tell_apart(own_pool, traits(asked), (1 + least) / 2, seed))
        # what doublets are not like allows but a small share of them
        return max(judges, key=lambda judge: judge.rate)

    first = judged(np.ones(len(pool)))
    likely = first.probability(first.score, first.rate if rate is None else rate)
    judges = [judged(np.maximum(1 - likely, 1e-6)) for _ in range(draws_of_sums(len(pool)))]
    found_rate = float(np.mean([judge.rate for judge in judges])) if rate is None else rate
    others = np.setdiff1d(everyone, pool)
    of_others = Traits(*(part[others] for part in own))
    score, probability = np.zeros((2, data.n_cells))
    for judge in judges:
        of_judge = np.empty(data.n_cells)
        of_judge[pool], of_judge[others] = judge.score, judge.score_others(of_others)
        score += of_judge / len(judges)
        probability += judge.probability(of_judge, found_rate) / len(judges)
    excluding = exclusion(own.foreground, judges[0].weights)
    table = pd.DataFrame(
        {"score": score, "probability": probability, "exclusion": excluding}, index=data.cell_names
    )
    return Doublets(table, found_rate, float(np.mean([judge.captured for judge in judges])))


@documented
class DoubletQueries(Fitted):
    """Which cells are likely doublets."""

    def find_doublets(
        self,
        adata: Data | None = None,
        indices: Cells = None,
        *,
        rate: float | None = None,
        batch_size: int = QUERY_BATCH_SIZE,
        seed: int = 0,
        progress: bool | None = None,
    ) -> Doublets:
        """Return the probability that each cell is a doublet: two cells that share a barcode.

        Sums of the counts of two random cells of a batch are encoded by the model, and boosted trees
        tell them from the cells: by the share of sums among the neighbours in the latent space, by
        proteins that exclude each other, by the foreground of each protein given its count, and by
        the totals of both kinds of counts. With p the distribution of what they see,

            P(doublet) = rate * p(sum) / p(cell)

        by Bayes' rule. Doublets of two like cells look like one, and have a probability near the
        rate. docs/model.md has the details.

        Parameters
        ----------
        {cells}
        rate
            Share of doublets among the cells of ``adata``. None: the largest that the data allow, which
            is told by cells that no single cell is like. About 0.008 per 1,000 cells captured together
            is usual with 10x Genomics' Chromium (`totalvi.posterior.doublets.rate_by_number`).
        {batch_size}
        seed
            Of the sums and samples.
        {progress}

        Returns
        -------
        Doublets
            ``cells``: a data frame of the cells with ``score``, ``probability`` and ``exclusion``; the
            ``rate``; and ``captured``, the share of two cells' counts that doublets hold.

        Raises
        ------
        ValueError
            When an argument has a value not allowed.
        DataError
            When there are fewer than 50 cells.

        {fitted_model}
        >>> found = model.find_doublets()
        >>> list(found.cells)
        ['score', 'probability', 'exclusion']
        """
        check_rate("rate", rate)
        question = self._question(
            adata, indices, batch_size, progress, seed, _SAMPLES, given_counts=True
        )
        if question.data.n_cells < FEWEST_CELLS:
            raise DataError(
                f"There are {question.data.n_cells} cells, too few to tell doublets; give at least "
                f"{FEWEST_CELLS}."
            )
        found = doublets(question, rate, int(seed))
        return found._replace(cells=found.cells.iloc[question.cells])
