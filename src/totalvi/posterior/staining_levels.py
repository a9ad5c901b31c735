"""How strongly cells and batches are stained: a level of all their protein counts.

Another experiment counts all proteins of the same cells higher or lower: it stained them longer, with
more antibody, or sequenced more. What its batch measured says by how much, and how far single proteins
differ.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy.stats import median_abs_deviation
from scipy.stats import t as student_t
from torch import Tensor

from totalvi.data.cells import CiteData
from totalvi.data.counts import evenly_spaced
from totalvi.data.describe import Data
from totalvi.fit.minibatch import Minibatch
from totalvi.nn.likelihoods import ProteinMixture
from totalvi.posterior.arguments import Cells, documented
from totalvi.posterior.draws import protein_mixture
from totalvi.posterior.question import QUERY_BATCH_SIZE, Fitted, Question
from totalvi.posterior.unmeasured import filled_proteins, measured_in_batches, with_expected

FEWEST_PROTEINS = 3  # with fewer, nothing says how far single proteins differ
_MANY_PROTEINS, _FAR = 10, 5.0  # from these on, antibodies that failed are seen
_MOST_CELLS, _N_SAMPLES = 1000, 4
_MOST_ROUNDS, _CLOSE = 10, 0.01
_UNKNOWN = (0.0, 0.0, 1, 0)
_COLUMNS = ["mean", "scale", "df", "n_proteins"]


class BatchLevels(NamedTuple):
    """Log level of each batch's protein counts over those of the batches decoded into.

    Each is (batches, decoded). The level of a protein that the batch did not measure has Student's t
    distribution.

    Parameters
    ----------
    mean, scale, df
        Of the distribution: middle, scale and degrees of freedom; mean and scale are 0 where a level
        is not known, and of a batch over itself.
    n_proteins
        How many proteins tell, isotype controls included.
    """

    mean: np.ndarray
    scale: np.ndarray
    df: np.ndarray
    n_proteins: np.ndarray

    def quantile(self, batch: Minibatch, position: int, probability: np.ndarray) -> np.ndarray:
        """Return quantiles (t,) of the levels of the cells of a minibatch, (B, t)."""
        own = batch.context.batch.cpu().numpy()
        mean, scale, df = (part[own, position][:, None] for part in self[:3])
        quantile: np.ndarray = mean + scale * student_t.ppf(probability, df)
        return quantile

    def middle(self, batch: Minibatch) -> np.ndarray:
        """Return the middle of the level of each cell of a minibatch, (B, decoded)."""
        middle: np.ndarray = self.mean[batch.context.batch.cpu().numpy()]
        return middle


class Levels(NamedTuple):
    """The levels of a question's batches, over those that it decodes into.

    Parameters
    ----------
    batches
        Of these.
    table
        Level, limits of its 90 % interval, and number of proteins, by batch and batch decoded into.
    as_reference
        Gives a minibatch of a mapped query with the counts that its reference would have measured.
    """

    batches: BatchLevels
    table: pd.DataFrame
    as_reference: Callable[[Minibatch], Minibatch]


def predictive_level(log_ratios: np.ndarray) -> tuple[float, float, int]:
    """Return middle, scale and degrees of freedom of the log level of one protein more.

    It is that of a further normal observation. Of ten proteins or more, those more than five median
    absolute deviations from the median do not count: their antibodies failed.

    Examples
    --------
    >>> mean, scale, df = predictive_level(np.log([2.9, 3.0, 3.1]))
    >>> round(float(np.exp(mean)), 2), round(scale, 3), df
    (3.0, 0.039, 2)
    """
    if len(log_ratios) >= _MANY_PROTEINS:
        away = np.abs(log_ratios - np.median(log_ratios))
        log_ratios = log_ratios[away <= _FAR * median_abs_deviation(log_ratios, scale="normal")]
    n = len(log_ratios)
    return float(log_ratios.mean()), float(log_ratios.std(ddof=1) * np.sqrt(1 + 1 / n)), n - 1


def batch_levels(model: Fitted, question: Question) -> Levels:
    """Return at which level the batches of a question's cells count proteins.

    They are those of batches of which some cells lack a protein, by their cells in the model's data,
    or else in the question's. The level of a protein is the log ratio of its counts, in cells that
    measured it, to those expected of the same cells in another batch that measured it; less the same
    of that batch's own cells, which says how far the model is off; that of an isotype control is the
    log ratio of its mean counts. A mapped query has no cells of the other batch. The encoder of one
    that was not trained is the reference's, so it is given counts at the level of the reference, which
    follows from the levels; both are found in turn.
    """
    data = question.data if model._data is None or model._data.posterior else model._data
    codes = question.transform_batch
    found = {name: np.zeros((len(data.schema.batch_names), len(codes))) for name in _COLUMNS}
    found["df"] += 1
    rows = []
    asked = replace(
        question,
        data=data, n_samples=_N_SAMPLES, progress=False, given_counts=False, imputing=(),
        shares=None,
    )  # fmt: skip
    ratios = _Ratios(model, asked)
    to_reference = np.zeros(len(data.schema.batch_names))
    lacking = ~np.array(data.schema.panel_measured, dtype=bool)
    has_counts = data.posterior is None
    cells = np.flatnonzero(np.any(lacking, axis=1)[data.panel] & has_counts)
    for own in np.intersect1d(data.batch[cells], question.data.batch[question.cells]):
        own_cells = evenly_spaced(cells[data.batch[cells] == own], _MOST_CELLS)
        to_reference[own] = ratios.of_encoder(own, own_cells)
        told = ratios.of_batches(own, own_cells, to_reference[own])
        for position, (code, level) in enumerate(zip(codes, told, strict=True)):
            for name, value in zip(_COLUMNS, level, strict=True):
                found[name][own, position] = value
            rows.append((own, own if code is None else code, code == own, *level))
    levels = BatchLevels(**found)
    return Levels(levels, _table(rows, data), _as_reference(model, question, to_reference))


class _Ratios:
    """Log ratios of protein counts to those expected in other batches, of one model."""

    def __init__(self, model: Fitted, question: Question) -> None:
        self.question, self.mapping = question, model._mapping
        self.model, self.data = model, question.data
        self.measured = measured_in_batches(model, question.data)
        self.trained = self.mapping is None or not _as_mapped(model)
        self.controls = _control_ratios(question.data)
        self.wrong: dict[int, np.ndarray] = {}

    def of_encoder(self, own: int, cells: np.ndarray) -> float:
        """Return the log level of a mapped query over what its encoder learned; 0 where trained."""
        level = 0.0
        for _ in range(0 if self.trained else _MOST_ROUNDS):
            told = self._log_ratios(own, cells, level)[0]
            before, (level, *_) = level, _level_of(told[np.isfinite(told)])
            if abs(level - before) < _CLOSE:
                break
        return level

    def of_batches(
        self, own: int, cells: np.ndarray, to_reference: float
    ) -> list[tuple[float, float, int, int]]:
        """Return the level over each batch decoded into: middle, scale, degrees of freedom, proteins.

        Where too few proteins tell, it follows from that over another batch and from what the model
        expects in both.
        """
        codes = self.question.transform_batch
        levels, expected = [], np.empty((len(codes), self.measured.shape[1]))
        for position, code in enumerate(codes):
            if code == own or (code is None and self.trained):
                levels.append(_UNKNOWN)
                continue
            other = own if code is None else code
            ratios, expected[position] = self._log_ratios(other, cells, to_reference)
            if self.mapping is None:
                ratios = np.append(ratios - self._off(other), self.controls[own, other])
            levels.append(_level_of(ratios[np.isfinite(ratios)]))
        known = [i for i, level in enumerate(levels) if level[3] >= FEWEST_PROTEINS]
        for i, code in enumerate(codes):
            if known and i not in known and code is not None and code != own:
                through = [_through(levels[k], expected[k], expected[i]) for k in known]
                mean, scale = np.mean([level[:2] for level in through], axis=0)
                levels[i] = (mean, scale, min(level[2] for level in through), levels[i][3])
        return levels

    def _off(self, code: int) -> np.ndarray:
        """Return the log ratios of the cells of a batch to what is expected of them in it, (T,)."""
        if code not in self.wrong:
            own = evenly_spaced(np.flatnonzero(self.data.batch == code), _MOST_CELLS)
            ratios = self._log_ratios(code, own, 0.0)[0] if len(own) else np.zeros(1)
            self.wrong[code] = np.nan_to_num(ratios)
        return self.wrong[code]

    def _log_ratios(
        self, code: int, cells: np.ndarray, log_level: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return log ratios of counts to those expected of cells in a batch, and those expected, (T,).

        Ratios are over cells that measured the protein, NaN where they have no count, or the batch did
        not measure it.
        """
        question = replace(self.question, transform_batch=(code,)).about(cells)
        by_panel = np.array(self.data.schema.panel_measured, dtype=float)
        proteins = np.flatnonzero(self.measured[code])
        observed, expected, of_same = np.zeros((3, by_panel.shape[1]))
        as_reference = _as_reference(
            self.model, question, np.full(len(self.data.schema.batch_names), log_level)
        )
        with question.minibatches("levels") as batches:
            for batch in batches if len(proteins) else ():
                measured = by_panel[batch.context.panel.cpu().numpy()]
                observed += (measured * batch.y.cpu().numpy()).sum(axis=0)
                for draw in question.draws(as_reference(batch), genes=False):
                    mixture = protein_mixture(
                        question.network, draw.expecting_background(), proteins
                    )
                    mean = mixture.background_mean() * mixture.mean_over_background()
                    of_draw = mean.cpu().numpy() / question.n_samples
                    expected[proteins] += of_draw.sum(axis=0)
                    of_same[proteins] += (of_draw * measured[:, proteins]).sum(axis=0)
        ratio = np.full(len(observed), np.nan)
        np.divide(observed, of_same, out=ratio, where=(observed > 0) & (of_same > 0))
        return np.log(ratio), np.where(expected > 0, expected, np.nan)


def _level_of(log_ratios: np.ndarray) -> tuple[float, float, int, int]:
    """Return what log ratios of proteins say of a level; 0 where they are too few."""
    n = len(log_ratios)
    return (*(predictive_level(log_ratios) if n >= FEWEST_PROTEINS else _UNKNOWN[:3]), n)


def _through(
    level: tuple[float, float, int, int], expected: np.ndarray, of_other: np.ndarray
) -> tuple[float, float, int]:
    """Return a level over another batch, from that over one and from the counts expected in both."""
    ratios = np.log(expected / of_other)
    mean, scale, df, n = _level_of(ratios[np.isfinite(ratios)])
    return level[0] + mean, float(np.hypot(level[1], scale)), min(level[2], df if n else level[2])


def _table(rows: Sequence[tuple[float, ...]], data: CiteData) -> pd.DataFrame:
    """Return levels as factors, with limits of 90 %; NaN where not known."""
    own, decoded, same, mean, scale, df, n_proteins = np.array(rows, float).reshape(-1, 7).T
    distance = scale * student_t.ppf(0.95, df)
    logs = np.array([mean, mean - distance, mean + distance])
    known = (scale > 0) | (n_proteins >= FEWEST_PROTEINS) | (same > 0)
    names = np.array(data.schema.batch_names, dtype=object)
    index = [names[codes.astype(int)] for codes in (own, decoded)]
    table = pd.DataFrame(
        np.where(known, np.exp(logs), np.nan).T,
        index=pd.MultiIndex.from_arrays(index, names=["batch", "decoded"]),
        columns=["level", "lower", "upper"],
    )
    return table.assign(n_proteins=n_proteins.astype(int))


def no_levels(question: Question) -> Levels:
    """Return that no level is known, or asked for."""
    shape = (len(question.data.schema.batch_names), len(question.transform_batch))
    zero = np.zeros(shape)
    batches = BatchLevels(zero, zero, zero + 1, zero)
    return Levels(batches, _table([], question.data), lambda batch: batch)


def _control_ratios(data: CiteData) -> np.ndarray:
    """Return the log ratios of each batch's mean isotype controls to each other's.

    (batches, batches, controls); NaN where either batch lacks the control, or all its counts.
    """
    means = data.controls.groupby(data.batch).mean()
    by_batch = means.reindex(range(len(data.schema.batch_names))).to_numpy(np.float64)
    logs = np.log(by_batch, out=np.full_like(by_batch, np.nan), where=by_batch > 0)
    ratios: np.ndarray = logs[:, None] - logs[None]
    return ratios


def _as_mapped(model: Fitted) -> bool:
    """Return whether a query was mapped without a fit, so that its encoder is the reference's."""
    return model._result is not None and not len(model._result.history)


def _as_reference(
    model: Fitted, question: Question, log_level: np.ndarray
) -> Callable[[Minibatch], Minibatch]:
    """Give the cells of a mapped query the counts that the reference would have measured.

    Proteins that are filled in for the encoder are so given these counts. ``log_level`` is that of
    each batch, (batches,).
    """
    mapping = model._mapping
    if mapping is None or not log_level.any():
        return lambda batch: batch
    filled = filled_proteins(question.network, question.data, mapping)

    def scaled(batch: Minibatch) -> Minibatch:
        own = torch.from_numpy(log_level).to(batch.y)[batch.context.batch]
        fewer = batch._replace(y=batch.y / own.exp()[:, None])
        return fewer._replace(y=with_expected(question.network, fewer, filled[batch.cells]))

    return scaled


def at_level(mixture: ProteinMixture, log_level: np.ndarray) -> ProteinMixture:
    """Return the distribution of counts whose means are exp(``log_level``) times as large.

    ``log_level`` broadcasts to (B, t).
    """
    added = torch.from_numpy(np.asarray(log_level)).to(mixture.log_background)
    return mixture._replace(log_background=mixture.log_background + added)


def log1p_at_level(log1p: np.ndarray, log_level: np.ndarray | float) -> np.ndarray:
    """Return log(1 + count) where counts are exp(``log_level``) times as large.

    Examples
    --------
    >>> log1p_at_level(np.log1p([2.0, 0.0]), np.log(3.0)).round(4) == np.log1p([6.0, 0.0]).round(4)
    array([ True,  True])
    """
    scaled: np.ndarray = np.log1p(np.expm1(log1p) * np.exp(log_level))
    return np.where(log_level == 0, log1p, scaled)


@documented
class StainingQueries(Fitted):
    """What a model says of the technical level of each cell's protein counts."""

    def get_staining_level(
        self,
        adata: Data | None = None,
        indices: Cells = None,
        batch_size: int = QUERY_BATCH_SIZE,
        *,
        progress: bool | None = None,
    ) -> pd.Series:
        """Return the mean log staining level of each cell given its protein counts.

        Counts of its proteins, background and foreground, are expected to be exp(level) times those of
        a cell of the same state with level 0, the average: of some antibodies more and of others less;
        this is their mean. Denoised proteins and the background mean are those at level 0. A cell
        without proteins has level 0.

        Parameters
        ----------
        {cells} {batch_size} {progress}

        Returns
        -------
        Series of the cells, natural logarithms.

        Raises
        ------
        ValueError
            When the model was made without ``staining_level=True``.

        Examples
        --------
        >>> import totalvi
        >>> mdata = totalvi.simulate(n_cells=60, n_genes=30, n_proteins=5, seed=1)
        >>> model = totalvi.Model(mdata, staining_level=True, n_hidden=16, n_latent=4)
        >>> model.train(max_epochs=2)
        >>> model.get_staining_level().shape
        (60,)
        """
        question = self._question(adata, indices, batch_size, progress)
        staining = question.network.staining
        if staining is None:
            raise ValueError(
                "The model has no staining level; make it with Model(..., staining_level=True)."
            )

        def levels(batch: Minibatch) -> Tensor:
            posterior = batch.encode(question.network)
            assert posterior.level_m is not None
            return staining.log_level(posterior.level_m).mean(dim=1)

        return pd.Series(
            question.gather("staining levels", levels), index=question.cell_names, name="log_level"
        )
