"""Posterior predictive checks: counts drawn from the model against those observed, streamed.

No sample is kept. An observed count is compared with each count drawn for the same cell and feature
as it comes; how many were lower and how many equal is all that intervals need.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from totalvi.compiled import compiled
from totalvi.data.describe import Data
from totalvi.posterior.arguments import Cells, documented
from totalvi.posterior.calibration import LEVELS, predictive_log_prob, predictive_proteins
from totalvi.posterior.draws import gene_counts, gene_parameters, protein_counts
from totalvi.posterior.question import Fitted, Question

_CHECK_BATCH_SIZE = 256  # the checks hold about ten arrays of cells by genes


class FeatureChecks(NamedTuple):
    """Checks of F features over the cells that measured them; NaN where none did.

    Parameters
    ----------
    n_cells
        How many cells measured the feature, (F,).
    observed_mean, observed_cv, observed_zero_fraction
        Mean, coefficient of variation (standard deviation / mean) and share of zeros, (F,).
    predicted_mean, predicted_cv, predicted_zero_fraction
        The same of each sample of all cells, averaged over the samples (for the coefficient of
        variation, over those with a count above zero).
    coverage
        Share of counts inside central predictive intervals, (levels, F), by level of `LEVELS`.
    quantile_coverage
        The same with quantiles of the samples as limits, both inside the interval.
    mae
        Mean absolute difference of the observed count and the mean of those drawn, (F,).
    log_likelihood
        Mean over cells of log E[p(count)], in nats per count, (F,).
    """

    n_cells: np.ndarray
    observed_mean: np.ndarray
    observed_cv: np.ndarray
    observed_zero_fraction: np.ndarray
    predicted_mean: np.ndarray
    predicted_cv: np.ndarray
    predicted_zero_fraction: np.ndarray
    coverage: np.ndarray
    quantile_coverage: np.ndarray
    mae: np.ndarray
    log_likelihood: np.ndarray


def predictive_checks(
    question: Question, genes: np.ndarray, proteins: np.ndarray
) -> tuple[FeatureChecks, FeatureChecks]:
    """Return the checks of the genes and of the proteins at the given positions.

    Held at a time are a few arrays (cells of a minibatch, features) and (n_samples, features).
    """
    network, noise = question.network, question.noise
    gene_tally = FeatureTally(question.n_samples, len(genes))
    protein_tally = FeatureTally(question.n_samples, len(proteins))
    with question.minibatches("predictive checks") as batches:
        for batch in batches:
            observed, observed_protein = batch.x.to_dense()[:, genes], batch.y[:, proteins]
            measured = network.measured(batch.context.panel)
            has_rna = np.repeat(question.data.has_rna[batch.cells, None], len(genes), axis=1)
            rna = MinibatchTally(gene_tally, observed.cpu().numpy(), has_rna)
            protein = MinibatchTally(
                protein_tally,
                observed_protein.cpu().numpy(),
                None if measured is None else measured[:, proteins].cpu().numpy(),
            )
            for draw in question.draws(batch):
                if len(genes):
                    gene = gene_parameters(network, draw, genes)
                    drawn = gene_counts(gene, noise, draw.sample, batch.keys, genes)
                    rna.add(drawn, gene.log_prob(observed))
                of_cell = predictive_proteins(question, draw, proteins)
                drawn = protein_counts(network, of_cell, noise, draw.sample, batch.keys, proteins)
                log_prob = predictive_log_prob(question, draw, observed_protein, proteins)
                protein.add(drawn, log_prob)
            rna.close()
            protein.close()
    return gene_tally.checks(), protein_tally.checks()


class FeatureTally:
    """Sums over cells from which `FeatureChecks` follow.

    Parameters
    ----------
    n_samples, n_features
        Samples of each cell, and features F.
    """

    def __init__(self, n_samples: int, n_features: int) -> None:
        self.n_cells = np.zeros(n_features)
        self.observed = np.zeros((3, n_features))  # it sums counts, squares and zeros
        self.drawn = np.zeros((n_samples, 3, n_features))  # it does so for each sample
        self.inside = np.zeros((2, len(LEVELS), n_features))
        self.absolute_error = np.zeros(n_features)
        self.log_likelihood = np.zeros(n_features)

    def checks(self) -> FeatureChecks:
        """Return the checks of the cells so far."""
        with np.errstate(invalid="ignore", divide="ignore"):
            observed_mean, observed_cv, observed_zeros = _moments(self.observed, self.n_cells)
            means, cvs, zeros = _moments(self.drawn.swapaxes(0, 1), self.n_cells)
            has_cv = np.isfinite(cvs)
            predicted_cv = np.where(has_cv, cvs, 0).sum(axis=0) / has_cv.sum(axis=0)
            coverage, quantile_coverage = self.inside / self.n_cells
            return FeatureChecks(
                n_cells=self.n_cells.astype(np.int64),
                observed_mean=observed_mean,
                observed_cv=observed_cv,
                observed_zero_fraction=observed_zeros,
                predicted_mean=means.mean(axis=0),
                predicted_cv=predicted_cv,
                predicted_zero_fraction=zeros.mean(axis=0),
                coverage=coverage,
                quantile_coverage=quantile_coverage,
                mae=self.absolute_error / self.n_cells,
                log_likelihood=self.log_likelihood / self.n_cells,
            )


class MinibatchTally:
    """How the observed counts of a minibatch compare with those drawn so far; see `FeatureTally`.

    Parameters
    ----------
    whole
        Sums over the cells before it, to which the minibatch is added.
    observed
        Counts, (B, F).
    measured
        Which of them count, (B, F). None: all.
    """

    def __init__(
        self, whole: FeatureTally, observed: np.ndarray, measured: np.ndarray | None = None
    ) -> None:
        self.whole, self.observed = whole, observed
        self.measured = np.ones(observed.shape, dtype=bool) if measured is None else measured
        self.n_drawn = 0
        self.below = np.zeros(observed.shape, dtype=np.int32)
        self.equal = np.zeros(observed.shape, dtype=np.int32)
        self.total = np.zeros(observed.shape, dtype=np.float32)
        self.log_density = torch.full(observed.shape, -torch.inf)

    def add(self, drawn: np.ndarray, log_prob: Tensor) -> None:
        """Compare with one more sample, and with the log-probabilities of the observed counts."""
        sums = self.whole.drawn[self.n_drawn]
        _compare(self.observed, drawn, self.measured, self.below, self.equal, self.total, sums)
        torch.logaddexp(self.log_density, log_prob.cpu(), out=self.log_density)
        self.n_drawn += 1

    def close(self) -> None:
        """Add what all samples gave to the sums over cells."""
        whole, measured, observed = self.whole, self.measured, self.observed
        whole.n_cells += measured.sum(axis=0)
        for row, values in enumerate((observed, observed**2, observed == 0)):
            whole.observed[row] += values.sum(axis=0, dtype=np.float64, where=measured)
        if self.n_drawn == 0:
            return
        for row, level in enumerate(LEVELS):
            inside = interval_coverage(self.below, self.equal, self.n_drawn, level)
            whole.inside[0, row] += inside.sum(axis=0, where=measured)
            inside = quantile_coverage(self.below, self.equal, self.n_drawn, level)
            whole.inside[1, row] += inside.sum(axis=0, where=measured)
        error = np.abs(self.total / self.n_drawn - observed)
        whole.absolute_error += error.sum(axis=0, dtype=np.float64, where=measured)
        log_density = self.log_density.numpy() - np.log(self.n_drawn)
        whole.log_likelihood += log_density.sum(axis=0, dtype=np.float64, where=measured)


def interval_coverage(
    below: np.ndarray, equal: np.ndarray, n_samples: int, level: float
) -> np.ndarray:
    """Return the probability that a count's randomised rank lies in the central ``level`` of ranks.

    Of a discrete count, no interval covers a given share: of a count that is zero in 99 of 100 cells,
    the interval [0, 0] covers 99 %. So ties are broken at random: with V uniform in (0, 1), the rank
    ``(below + V (equal + 1)) / (n_samples + 1)`` is uniform when the observed count comes from the
    distribution of the samples, however few they are and however many ties. The probability over V
    is returned in place of one draw (Czado, Gneiting and Held, 2009).

    Parameters
    ----------
    below, equal
        How many of the ``n_samples`` drawn counts are below the observed one, and equal to it.

    Examples
    --------
    >>> import numpy as np
    >>> never_above, always_equal = np.array([99, 0]), np.array([0, 99])
    >>> interval_coverage(never_above, always_equal, 99, 0.5).tolist()
    [0.0, 0.5]
    """
    tail = (1 - level) / 2
    lower = below / (n_samples + 1)
    width = (equal + 1) / (n_samples + 1)
    overlap = np.minimum(lower + width, 1 - tail) - np.maximum(lower, tail)
    inside: np.ndarray = np.maximum(overlap, 0) / width
    return inside


def quantile_coverage(
    below: np.ndarray, equal: np.ndarray, n_samples: int, level: float
) -> np.ndarray:
    """Return whether a count lies between quantiles of the samples, both of them inside.

    The quantile at q is the smallest drawn count that a share q of the samples does not exceed.
    Small counts are covered more often than ``level``, as limits can only be whole numbers.
    """
    tail = (1 - level) / 2 * n_samples
    rounding = 1e-9 * n_samples
    inside: np.ndarray = (below + equal >= tail - rounding) & (below < n_samples - tail - rounding)
    return inside


def _moments(sums: np.ndarray, n_cells: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    mean, square, zeros = sums / n_cells
    return mean, np.sqrt(np.maximum(square - mean**2, 0)) / mean, zeros


@compiled()
def _compare(
    observed: np.ndarray,
    drawn: np.ndarray,
    measured: np.ndarray,
    below: np.ndarray,
    equal: np.ndarray,
    total: np.ndarray,
    sums: np.ndarray,
) -> None:
    """Compare drawn with observed counts, and sum the drawn ones, in one pass."""
    for b in range(observed.shape[0]):
        for j in range(observed.shape[1]):
            count = drawn[b, j]
            if not measured[b, j]:
                continue
            below[b, j] += count < observed[b, j]
            equal[b, j] += count == observed[b, j]
            total[b, j] += count
            sums[0, j] += count
            sums[1, j] += np.float64(count) * count
            sums[2, j] += count == 0


class PredictiveCheck(NamedTuple):
    """How counts drawn from the model compare with those observed.

    ``coverage_95`` is the share of counts inside the central 95 % predictive interval, ties broken at
    random: 0.95 if the model is true, however small the counts (Czado, Gneiting and Held, Biometrics
    2009). ``quantile_coverage_95`` takes quantiles of the samples as limits, both inside, as
    the paper of totalVI does; it is above 0.95 for small counts even if the model is true.

    As fitted, intervals of proteins are wide: the posterior of the background, q(b | z), does not see
    the count, so the fit lowers the inverse dispersion until the negative binomial alone explains the
    spread of the background, which sampling b then adds once more. Therefore ``train(calibrate=True)``
    refits the spread of the counts on half of the validation cells; check the intervals on others,
    not on `Model.calibration_cells`.

    Parameters
    ----------
    table
        A row for each feature, with ``modality`` ("rna" or "protein"), ``n_cells`` that measured it,
        observed and predicted ``mean``, ``cv`` (coefficient of variation: standard deviation / mean
        over cells; predicted: averaged over samples that have a count above zero) and
        ``zero_fraction``; ``coverage_*`` and ``quantile_coverage_*`` at 50, 80, 95 and 99 %; ``mae``,
        the mean over cells of ``|count - predictive mean|``; ``log_likelihood``, the mean over cells of
        ``log E[p(count)]``, the expectation over the posterior, in nats per count: over samples of z,
        given which the log background of a protein is integrated over q(b | z).
    summary
        A row for each modality: the means over features of ``mae``, ``log_likelihood`` and, as
        ``cv_mae`` and ``zero_fraction_mae``, of the absolute difference of predicted and observed; and
        ``calibration_error``, the mean over features and levels of the squared difference of
        ``coverage_*`` and its level.
    calibration
        A row for each modality and level: ``coverage``, the mean over features; ``calibration_error``,
        the mean over features of its squared difference from the level; and both by quantiles.
    """

    table: pd.DataFrame
    summary: pd.DataFrame
    calibration: pd.DataFrame


@documented
class CheckQueries(Fitted):
    """Whether counts that were observed are like those that a model expects.

    Replicated counts are drawn given each cell, and their statistics compared with the observed ones.
    """

    def posterior_predictive_check(
        self,
        adata: Data | None = None,
        indices: Cells = None,
        *,
        n_samples: int = 150,
        gene_list: Sequence[str] | None = None,
        protein_list: Sequence[str] | None = None,
        batch_size: int = _CHECK_BATCH_SIZE,
        seed: int = 0,
        progress: bool | None = None,
    ) -> PredictiveCheck:
        """Compare observed counts with counts drawn as by `posterior_predictive_sample`.

        The posterior of a cell is that given its own counts, so of cells held out from the fit (those
        of ``model.split.validation`` without ``model.calibration_cells``) it says how well unseen
        cells are reconstructed, not predicted blind. Memory grows with ``batch_size``.

        Parameters
        ----------
        {cells}
        n_samples
            Counts drawn for each cell and feature. The paper of totalVI has 150.
        gene_list, protein_list
            Features to check. None: all; an empty list: none.
        {batch_size} {seed} {progress}

        Returns
        -------
        `PredictiveCheck`: a table by feature, a summary and the calibration of the intervals. A
        protein counts in the cells whose panel measured it.

        Raises
        ------
        ValueError
            When an argument has a value not allowed, or a feature is not known.

        {fitted_model}
        >>> check = model.posterior_predictive_check(n_samples=20)
        >>> len(check.table), list(check.summary.index)
        (35, ['rna', 'protein'])
        """
        question = self._question(adata, indices, batch_size, progress, seed, n_samples)
        features = {"rna": self._genes(gene_list), "protein": self._proteins(protein_list)}
        checks = predictive_checks(question, *(some.positions for some in features.values()))
        tables = {
            modality: _table(modality, some.names, check)
            for (modality, some), check in zip(features.items(), checks, strict=True)
            if len(some)
        }
        if not tables:
            raise ValueError("gene_list and protein_list are both empty; name a feature.")
        return PredictiveCheck(
            table=pd.concat(tables.values()),
            summary=pd.DataFrame({name: _summary(table) for name, table in tables.items()}).T,
            calibration=pd.concat(
                {name: _calibration(table) for name, table in tables.items()}, names=["modality"]
            ),
        )


def _table(modality: str, features: np.ndarray, checks: FeatureChecks) -> pd.DataFrame:
    columns: dict[str, object] = {"modality": modality}
    for name, values in checks._asdict().items():
        if values.ndim == 1:
            columns[name] = values
        else:
            columns |= {_at(name, level): row for level, row in zip(LEVELS, values, strict=True)}
    return pd.DataFrame(columns, index=pd.Index(features, name="feature"))


def _summary(table: pd.DataFrame) -> pd.Series:
    """Return means over the features that at least one cell measured."""
    means = {name: table[name].mean() for name in ("mae", "log_likelihood")}
    for name in ("cv", "zero_fraction"):
        difference = table[f"predicted_{name}"] - table[f"observed_{name}"]
        means[f"{name}_mae"] = difference.abs().mean()
    means["calibration_error"] = _calibration(table)["calibration_error"].mean()
    return pd.Series(means)


def _calibration(table: pd.DataFrame) -> pd.DataFrame:
    levels = pd.Index(LEVELS, name="level")
    columns = {}
    for prefix in ("", "quantile_"):
        by_level = [table[_at(f"{prefix}coverage", level)] for level in LEVELS]
        columns[f"{prefix}coverage"] = [coverage.mean() for coverage in by_level]
        columns[f"{prefix}calibration_error"] = [
            ((coverage - level) ** 2).mean()
            for level, coverage in zip(LEVELS, by_level, strict=True)
        ]
    return pd.DataFrame(columns, index=levels)


def _at(name: str, level: float) -> str:
    return f"{name}_{100 * level:.0f}"
