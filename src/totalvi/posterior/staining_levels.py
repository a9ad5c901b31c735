"""How strongly cells and batches are stained: a level of all their protein counts.

Another experiment counts all proteins of the same cells higher or lower: it stained them longer, with
more antibody, or sequenced more. What its batch measured says by how much, and how far single proteins
differ.
"""

from dataclasses import replace
from typing import NamedTuple, Self

import numpy as np
import pandas as pd
import torch
from scipy.stats import median_abs_deviation, t
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
_MANY_PROTEINS, _FAR = 5, 5.0  # from these on, an antibody that failed is seen
_MOST_CELLS, _FEWEST_CELLS, _FEW_BATCHES, _N_SAMPLES = 1000, 100, 10, 4
_MOST_ROUNDS, _CLOSE = 10, 0.01
_LIMIT = 0.95  # where the normal distribution of a level is as far out as Student's t
_INTERVAL = 1.6448536269514722  # its quantile


class BatchLevels(NamedTuple):
    """Log level of each batch's protein counts over those of the batches decoded into.

    Parameters
    ----------
    codes
        Of the batches decoded into; None: the cell's own.
    mean, sd
        Of the level of a protein that the batch did not measure, (batches, decoded); 0 where too few
        proteins tell, and of a batch over itself.
    n_proteins
        How many tell, isotype controls included, (batches, decoded).
    """

    codes: tuple[int | None, ...]
    mean: np.ndarray
    sd: np.ndarray
    n_proteins: np.ndarray

    @classmethod
    def unknown(cls, n_batches: int, codes: tuple[int | None, ...]) -> Self:
        """Return that no protein tells of any level."""
        mean, sd = np.zeros((2, n_batches, len(codes)))
        return cls(codes, mean, sd, np.zeros((n_batches, len(codes)), dtype=np.int64))

    def over(self, codes: tuple[int | None, ...]) -> Self:
        """Return those over some of the batches decoded into; None has no level."""
        found = self.unknown(len(self.mean), codes)
        for position, code in enumerate(codes):
            if code in self.codes and code is not None:
                for given, part in zip(self[1:], found[1:], strict=True):
                    part[:, position] = given[:, self.codes.index(code)]
        return found

    def of_cells(self, batch: Minibatch) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and standard deviation for each cell of a minibatch, each (B, decoded)."""
        own = batch.context.batch.cpu().numpy()
        return self.mean[own], self.sd[own]

    def of_batches(self) -> np.ndarray:
        """Return the mean log level of each batch over all that it is compared with, (batches,)."""
        told = self.n_proteins >= FEWEST_PROTEINS
        mean: np.ndarray = (self.mean * told).sum(axis=1) / np.maximum(told.sum(axis=1), 1)
        return mean

    def table(self, data: CiteData) -> pd.DataFrame:
        """Return the level in each batch that lacks a protein, a row for each batch decoded into."""
        names, own = data.schema.batch_names, _lacking_some(data)[0]
        told = np.array([code is not None for code in self.codes])
        codes = [code for code in self.codes if code is not None]
        mean, sd, n = (part[np.ix_(own, told)].ravel() for part in self[1:])
        log_levels = np.stack([mean, mean - _INTERVAL * sd, mean + _INTERVAL * sd])
        known = (n >= FEWEST_PROTEINS) | (np.repeat(own, len(codes)) == np.tile(codes, len(own)))
        rows = [[names[i] for i in own], [names[code] for code in codes]]
        table = pd.DataFrame(
            np.where(known, np.exp(log_levels), np.nan).T,
            index=pd.MultiIndex.from_product(rows, names=["batch", "decoded"]),
            columns=["level", "lower", "upper"],
        )
        return table.assign(n_proteins=n)


def predictive_level(log_ratios: np.ndarray) -> tuple[float, float]:
    """Return mean and standard deviation of the log level of one protein more.

    Its 90 % interval is that of Student's t for a further observation. Of five proteins or more, those
    more than five median absolute deviations from the median do not count: their antibodies failed.

    Examples
    --------
    >>> mean, sd = predictive_level(np.log([2.9, 3.0, 3.1]))
    >>> round(float(np.exp(mean)), 2), round(sd, 3)
    (3.0, 0.068)
    """
    if len(log_ratios) >= _MANY_PROTEINS:
        away = np.abs(log_ratios - np.median(log_ratios))
        log_ratios = log_ratios[away <= _FAR * median_abs_deviation(log_ratios, scale="normal")]
    n = len(log_ratios)
    wider = t.ppf(_LIMIT, n - 1) / _INTERVAL * np.sqrt(1 + 1 / n)
    return float(log_ratios.mean()), float(log_ratios.std(ddof=1) * wider)


def batch_levels(model: Fitted, question: Question) -> BatchLevels:
    """Return at which level batches that lack proteins count the others, over all batches.

    It is that of a batch's cells in the model's data, or else in the question's, whichever are asked
    about. The level of a protein is the log ratio of its counts, in cells that measured it, to those
    expected of the same cells in another batch that measured it; less the same of that batch's own
    cells, which says how far the model is off; that of an isotype control is the log ratio of its mean
    counts. A mapped query has no cells of the other batch. Its encoder is that of the reference, so it
    is given counts at the level of the reference, which follows from the levels; both are found in
    turn.
    """
    data = model._data or question.data
    measured = measured_in_batches(model, data)
    mapping, n_batches = model._mapping, len(measured)
    codes = tuple(range(n_batches if mapping is None else mapping.n_reference_batches))
    levels = BatchLevels.unknown(n_batches, codes)
    asked = replace(
        question,
        data=data, transform_batch=codes, n_samples=_N_SAMPLES, progress=False, given_counts=False,
        imputing=(), shares=None,
    )  # fmt: skip
    at_most = max(_FEWEST_CELLS, _MOST_CELLS * _FEW_BATCHES // max(n_batches, _FEW_BATCHES))
    wrong = np.zeros((len(codes), measured.shape[1]))
    for code in codes if mapping is None else ():
        own_cells = evenly_spaced(np.flatnonzero(data.batch == code), at_most)
        if len(own_cells):
            of_code = replace(asked, cells=own_cells, transform_batch=(code,))
            wrong[code] = _log_ratios(model, of_code, levels.of_batches())[0]
    of_controls = _control_ratios(data)[:, : len(codes)]
    own_batches, cells = _lacking_some(data)
    for own in own_batches:
        of_own = asked.about(evenly_spaced(cells[data.batch[cells] == own], at_most))
        for _ in range(_MOST_ROUNDS):
            before = levels.of_batches()
            ratios = _log_ratios(model, of_own, before) - np.nan_to_num(wrong)
            ratios = np.hstack([np.where(measured[: len(codes)], ratios, np.nan), of_controls[own]])
            for code in set(codes) - {own}:
                told = ratios[code][np.isfinite(ratios[code])]
                levels.n_proteins[own, code] = len(told)
                if len(told) >= FEWEST_PROTEINS:
                    found = predictive_level(told)
                    levels.mean[own, code], levels.sd[own, code] = found
            if mapping is None or np.allclose(before, levels.of_batches(), atol=_CLOSE):
                break
    return levels


def _lacking_some(data: CiteData) -> tuple[np.ndarray, np.ndarray]:
    """Return the codes of the batches of cells that lack a protein, and these cells."""
    lacking = ~np.array(data.schema.panel_measured, dtype=bool)
    cells = np.flatnonzero(np.any(lacking, axis=1)[data.panel])
    return np.unique(data.batch[cells]), cells


def _control_ratios(data: CiteData) -> np.ndarray:
    """Return the log ratios of each batch's mean isotype controls to each other's.

    (batches, batches, controls); not finite where either batch lacks the control, or all its counts.
    """
    means = data.controls.groupby(data.batch).mean()
    by_batch = means.reindex(range(len(data.schema.batch_names))).to_numpy(np.float64)
    logs = np.log(by_batch, out=np.full_like(by_batch, np.nan), where=by_batch > 0)
    ratios: np.ndarray = logs[:, None] - logs[None]
    return ratios


def _log_ratios(model: Fitted, question: Question, log_level: np.ndarray) -> np.ndarray:
    """Return the log ratio of counts to those expected in each batch decoded into, (decoded, T).

    Both are sums over the question's cells that measured the protein. NaN where there is no count.
    """
    network = question.network
    proteins = np.arange(network.n_input_proteins)
    by_panel = np.array(question.data.schema.panel_measured, dtype=float)
    observed = np.zeros(len(proteins))
    expected = np.zeros((len(question.transform_batch), len(proteins)))
    with question.minibatches("levels") as batches:
        for batch in batches:
            measured = by_panel[batch.context.panel.cpu().numpy()]
            observed += (measured * batch.y.cpu().numpy()).sum(axis=0)
            seen = as_reference_counts(model, question, batch, log_level)
            for number, draw in enumerate(question.draws(seen, genes=False)):
                mixture = protein_mixture(network, draw.expecting_background(), proteins)
                mean = mixture.background_mean() * mixture.mean_over_background()
                position = number % len(question.transform_batch)
                expected[position] += (measured * mean.cpu().numpy()).sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.log(observed / (expected / question.n_samples))
    return np.where(observed > 0, ratios, np.nan)


def as_reference_counts(
    model: Fitted, question: Question, batch: Minibatch, log_level: np.ndarray
) -> Minibatch:
    """Return cells of a mapped query with the counts that the reference would have measured.

    Proteins that are filled in for the encoder are so given these counts. ``log_level`` is that of
    each batch, (batches,).
    """
    own = torch.from_numpy(log_level).to(batch.y)[batch.context.batch]
    if model._mapping is None or not own.any():
        return batch
    filled = filled_proteins(question.network, question.data, model._mapping)[batch.cells]
    scaled = batch._replace(y=batch.y / own.exp()[:, None])
    return scaled._replace(y=with_expected(question.network, scaled, filled))


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
