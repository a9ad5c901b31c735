"""The level at which a batch counts all its proteins, beside the batches that predict what it lacks.

Another experiment counts all proteins of the same cells higher or lower: it stained them longer, with
more antibody, or sequenced more. What its batch measured says by how much, and how far single proteins
differ.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy.stats import median_abs_deviation
from scipy.stats import t as student_t

from totalvi.data.cells import CiteData
from totalvi.data.counts import evenly_spaced
from totalvi.fit.minibatch import Minibatch
from totalvi.nn.likelihoods import ProteinMixture
from totalvi.posterior.draws import protein_mixture
from totalvi.posterior.question import Fitted, Question
from totalvi.posterior.unmeasured import filled_proteins, measured_in_batches, with_expected

FEWEST_PROTEINS = 3  # with fewer, nothing says how far single proteins differ
_MANY_PROTEINS, _FAR = 10, 5.0  # from these on, antibodies that failed are seen
_MOST_CELLS, _N_SAMPLES = 1000, 4
_MOST_ROUNDS, _CLOSE = 10, 0.01
_NO_LEVEL, _OVER_ITSELF = (0.0, 0.0, 1.0, 0), (0.0, 0.0, np.inf, 0)
Level = tuple[float, float, float, int]  # middle, scale, degrees of freedom, number of proteins


class BatchLevels(NamedTuple):
    """Log level of each batch's protein counts over those of the batches decoded into.

    Each is (batches, decoded). The level of a protein that the batch did not measure has Student's t
    distribution.

    Parameters
    ----------
    mean, scale, df
        Of the distribution: middle, scale and degrees of freedom. Mean and scale are 0 where a level
        is not known, and of a batch over itself, whose degrees of freedom are infinite.
    """

    mean: np.ndarray
    scale: np.ndarray
    df: np.ndarray

    def differ(self) -> bool:
        """Return whether a batch is known to count otherwise than one decoded into."""
        return bool(self.mean.any() or self.scale.any())

    def quantile(self, batch: Minibatch, position: int, probability: np.ndarray) -> np.ndarray:
        """Return quantiles (t,) of the levels of the cells of a minibatch, (B, t)."""
        own = batch.context.batch.cpu().numpy()
        mean, scale, df = (part[own, position][:, None] for part in self)
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
        Level, limits of its 90 % interval, and number of proteins that tell, isotype controls included,
        by batch and batch decoded into.
    as_reference
        Gives a minibatch of a mapped query with the counts that its reference would have measured.
    """

    batches: BatchLevels
    table: pd.DataFrame
    as_reference: Callable[[Minibatch], Minibatch]


def predictive_level(log_ratios: np.ndarray) -> tuple[float, float, float]:
    """Return middle, scale and degrees of freedom of the log level of one protein more.

    It is that of a further normal observation. Of ten proteins or more, those more than five median
    absolute deviations from the median do not count: their antibodies failed.

    Examples
    --------
    >>> mean, scale, df = predictive_level(np.log([2.9, 3.0, 3.1]))
    >>> round(float(np.exp(mean)), 2), round(scale, 3), df
    (3.0, 0.039, 2.0)
    """
    if len(log_ratios) >= _MANY_PROTEINS:
        away = np.abs(log_ratios - np.median(log_ratios))
        log_ratios = log_ratios[away <= _FAR * median_abs_deviation(log_ratios, scale="normal")]
    n = len(log_ratios)
    return float(log_ratios.mean()), float(log_ratios.std(ddof=1) * np.sqrt(1 + 1 / n)), n - 1.0


def batch_levels(
    model: Fitted, question: Question, held_out: Mapping[int, CiteData] | None = None
) -> Levels:
    """Return at which level the batches of a question's cells count proteins.

    They are those of batches of which some cells lack a protein, by their cells in the model's data,
    or else in the question's. The level of a protein is the log ratio of its counts, in cells that
    measured it, to those expected of the same cells in another batch that measured it; less the same
    of that batch's own cells, which says how far the model is off; that of an isotype control is the
    log ratio of its mean counts. A mapped query has no cells of the other batch, for which ``held_out``
    may stand: cells of its reference as if they were of its panels. The encoder of one that was not
    trained is the reference's, so it is given counts at the level of the reference, which
    follows from the levels; both are found in turn.
    """
    own_data = model._data
    data = question.data if own_data is None or own_data.posterior is not None else own_data
    codes = question.transform_batch
    levels, rows = no_levels(question).batches, []
    asked = replace(
        question,
        data=data, n_samples=_N_SAMPLES, progress=False, given_counts=False, imputing=(),
        shares=None,
    )  # fmt: skip
    ratios = _Ratios(model, asked, held_out or {})
    to_reference = np.zeros(len(data.schema.batch_names))
    lacking = ~np.array(data.schema.panel_measured, dtype=bool)
    has_counts = data.posterior is None
    cells = np.flatnonzero(np.any(lacking, axis=1)[data.panel] & has_counts)
    for own in np.intersect1d(data.batch[cells], question.data.batch[question.cells]):
        own_cells = evenly_spaced(cells[data.batch[cells] == own], _MOST_CELLS)
        to_reference[own] = ratios.of_encoder(own, own_cells)
        told = ratios.of_batches(own, own_cells, to_reference[own])
        for position, (code, level) in enumerate(zip(codes, told, strict=True)):
            for part, value in zip(levels, level[:3], strict=True):
                part[own, position] = value
            rows.append((own, own if code is None else code, *level))
    return Levels(levels, _table(rows, data), _as_reference(model, question, to_reference))


class _Ratios:
    """Log ratios of protein counts to those expected in other batches, of one model."""

    def __init__(self, model: Fitted, question: Question, held_out: Mapping[int, CiteData]) -> None:
        self.question, self.mapping, self.held_out = question, model._mapping, held_out
        self.model, self.data = model, question.data
        self.measured = measured_in_batches(model, model._data or question.data)
        self.trained = self.mapping is None or not _as_mapped(model)
        self.controls = _control_ratios(question.data)
        self.wrong: dict[tuple[int, int], np.ndarray] = {}

    def of_encoder(self, own: int, cells: np.ndarray) -> float:
        """Return the log level of a mapped query over what its encoder learned; 0 where trained."""
        level = 0.0
        for _ in range(0 if self.trained else _MOST_ROUNDS):
            (told,), _ = self._log_ratios([own], cells, level)
            told = told - self._off(own, self._panel_of(cells))
            before, (level, *_) = level, _level_of(told[np.isfinite(told)])
            if abs(level - before) < _CLOSE:
                break
        return level

    def of_batches(self, own: int, cells: np.ndarray, to_reference: float) -> list[Level]:
        """Return the level over each batch decoded into: middle, scale, degrees of freedom, proteins.

        That of a batch over itself is 0, but where its weights are those of the reference. Where too
        few proteins tell, a level follows from that over another batch and from what the model expects
        in both.
        """
        codes = [own if code is None else code for code in self.question.transform_batch]
        told, expected = self._log_ratios(codes, cells, to_reference)
        levels = []
        for code, ratios in zip(codes, told, strict=True):
            if code == own and self.trained:
                levels.append(_OVER_ITSELF)
                continue
            ratios = ratios - self._off(code, self._panel_of(cells))
            if self.mapping is None:
                ratios = np.append(ratios, self.controls[own, code])
            levels.append(_level_of(ratios[np.isfinite(ratios)]))
        known = [i for i, level in enumerate(levels) if level[3] >= FEWEST_PROTEINS]
        for i, code in enumerate(codes):
            if i not in known and code != own:
                others = [_through(levels[k], expected[k], expected[i]) for k in known]
                through = [level for level in others if level is not None]
                if through:
                    mean, scale = np.mean([level[:2] for level in through], axis=0)
                    df = min(level[2] for level in through)
                    levels[i] = (float(mean), float(scale), df, levels[i][3])
        return levels

    def _panel_of(self, cells: np.ndarray) -> int:
        return int(self.data.panel[cells[0]])

    def _off(self, code: int, panel: int) -> np.ndarray:
        """Return the log ratios of the cells of a batch to what is expected of them in it, (T,).

        Of a mapped query they are of cells of its reference, as if they were of a panel of the query;
        for a batch of the query, of those of the batch from which it started.
        """
        if self.mapping is not None and code >= self.mapping.n_reference_batches:
            started = self.mapping.reference_batches[code - self.mapping.n_reference_batches]
            known = self.data.schema.batch_names[: self.mapping.n_reference_batches]
            codes = [known.index(started)] if started in known else range(len(known))
            return np.asarray(np.mean([self._off(each, panel) for each in codes], axis=0))
        if (code, panel) not in self.wrong:
            data = self.data if self.mapping is None else self.held_out.get(panel)
            cells = np.flatnonzero(data.batch == code) if data is not None else np.array([], int)
            ratios = np.zeros(len(self.measured[code]))
            if data is not None and len(cells):
                some = evenly_spaced(cells, _MOST_CELLS)
                ratios = self._log_ratios([code], some, 0.0, data)[0][0]
            self.wrong[code, panel] = np.nan_to_num(ratios)
        return self.wrong[code, panel]

    def _log_ratios(
        self, codes: list[int], cells: np.ndarray, log_level: float, data: CiteData | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return log ratios of counts to those expected of cells in batches, and these, (codes, T).

        Cells are of ``data``, or of the question's. Ratios are over those that measured the protein,
        what is expected over all. NaN where they have no count, or the batch did not measure it.
        """
        asked = self.question if data is None else replace(self.question, data=data)
        question = replace(asked, transform_batch=tuple(codes)).about(cells)
        by_panel = np.array(self.data.schema.panel_measured, dtype=float)
        proteins = [np.flatnonzero(self.measured[code]) for code in codes]
        observed = np.zeros(by_panel.shape[1])
        expected, where_measured = np.zeros((2, len(codes), len(observed)))
        as_reference = _as_reference(
            self.model, question, np.full(len(self.data.schema.batch_names), log_level)
        )
        with question.minibatches("levels") as batches:
            for batch in batches:
                measured = by_panel[batch.context.panel.cpu().numpy()]
                observed += (measured * batch.y.cpu().numpy()).sum(axis=0)
                for number, draw in enumerate(question.draws(as_reference(batch), genes=False)):
                    i = number % len(codes)
                    some = proteins[i]
                    if len(some):
                        mixture = protein_mixture(
                            question.network, draw.expecting_background(), some
                        )
                        mean = mixture.background_mean() * mixture.mean_over_background()
                        of_draw = mean.cpu().numpy() / question.n_samples
                        expected[i, some] += of_draw.sum(axis=0)
                        where_measured[i, some] += (of_draw * measured[:, some]).sum(axis=0)
        ratios = np.full(expected.shape, np.nan)
        np.divide(observed, where_measured, out=ratios, where=(observed > 0) & (where_measured > 0))
        return np.log(ratios), np.where(expected > 0, expected, np.nan)


def _level_of(log_ratios: np.ndarray) -> Level:
    """Return what log ratios of proteins say of a level; 0 where they are too few."""
    n = len(log_ratios)
    return (*(predictive_level(log_ratios) if n >= FEWEST_PROTEINS else _NO_LEVEL[:3]), n)


def _through(
    level: Level, expected: np.ndarray, of_other: np.ndarray
) -> tuple[float, float, float] | None:
    """Return a level over another batch, from that over one and from the counts expected in both.

    None where no protein is expected in both.
    """
    ratios = np.log(expected / of_other)
    ratios = ratios[np.isfinite(ratios)]
    if not len(ratios):
        return None
    mean, scale, df = level[:3]
    if len(ratios) < FEWEST_PROTEINS:
        return mean + float(ratios.mean()), scale, df
    of_ratios = predictive_level(ratios)
    return mean + of_ratios[0], float(np.hypot(scale, of_ratios[1])), min(df, of_ratios[2])


def _table(rows: Sequence[tuple[float, ...]], data: CiteData) -> pd.DataFrame:
    """Return levels as factors, with limits of 90 %; NaN where not known. A batch has 1 over itself."""
    own, decoded, mean, scale, df, n_proteins = np.array([*dict.fromkeys(rows)]).reshape(-1, 6).T
    distance = scale * student_t.ppf(0.95, df)
    logs = np.array([mean, mean - distance, mean + distance])
    known = (scale > 0) | (n_proteins >= FEWEST_PROTEINS) | np.isinf(df)
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
    batches = BatchLevels(np.zeros(shape), np.zeros(shape), np.ones(shape))
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
