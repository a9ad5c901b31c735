"""The predictive distribution of protein counts, of cells as they are or with counts hidden."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from totalvi.fit.minibatch import Minibatch
from totalvi.nn.likelihoods import ProteinMixture
from totalvi.posterior.arguments import Names
from totalvi.posterior.batch_levels import BatchLevels, at_level
from totalvi.posterior.calibration import background_variance, predictive_proteins
from totalvi.posterior.draws import protein_counts, protein_mixture
from totalvi.posterior.hidden_counts import HiddenCounts
from totalvi.posterior.question import Features, Fitted, Question
from totalvi.posterior.unmeasured import batches_to_impute_from

_GOLDEN_RATIO = 0.6180339887498949  # its multiples fill the unit interval evenly


@dataclass(frozen=True)
class ImputedBatches:
    """Which proteins are imputed, and from which batches.

    Parameters
    ----------
    proteins
        The wanted ones, by position and name.
    decoded
        Which of the batches that the question decodes into each protein is averaged over, bool
        (batches, proteins), at least one.
    levels
        Of the cells' own batches over these. None: counts are at the level of the batches decoded into.
    """

    proteins: Features
    decoded: np.ndarray
    levels: BatchLevels | None = None

    @property
    def weight(self) -> np.ndarray:
        """Share of each batch in the mean of a protein, (batches, proteins)."""
        return np.asarray(self.decoded / self.decoded.sum(axis=0))

    def log_level(self, batch: Minibatch) -> np.ndarray | float:
        """Return the mean log level at which each protein is predicted, (B, proteins) or 0."""
        return 0.0 if self.levels is None else self.levels.middle(batch) @ self.weight


class Predicted(NamedTuple):
    """The predictive distribution of protein counts of B cells.

    Parameters
    ----------
    mean, sd
        Its mean and standard deviation, (B, t), float64; exact given the samples of z.
    counts
        Counts drawn from it, sorted, (B, t, n_samples).
    stacked
        The mean of log(1 + count) where more than the counts drawn say what it is, (B, t).
    foreground
        Probability that a protein is foreground, (B, t).
    """

    mean: np.ndarray
    sd: np.ndarray
    counts: np.ndarray
    stacked: np.ndarray | None = None
    foreground: np.ndarray | None = None

    def log1p_mean(self) -> np.ndarray:
        """Return E[log(1 + count)], (B, t)."""
        if self.stacked is not None:
            return self.stacked
        return np.asarray(np.log1p(self.counts).mean(axis=2))

    def moved_to(self, log1p: np.ndarray, uniform: np.ndarray) -> Self:
        """Return the distribution moved to another mean of log(1 + count).

        Each count drawn moves by as much on that scale, and is then rounded up or down at random, so
        that its expectation stays. Mean and standard deviation change as those of the counts do.

        Parameters
        ----------
        log1p
            The mean that is wanted, (B, t).
        uniform
            Noise between 0 and 1, (B, t), from which that of each sample follows.
        """
        shift = log1p - self.log1p_mean()
        offsets = np.arange(self.counts.shape[2]) * _GOLDEN_RATIO % 1
        mean, sd, rounded = self.mean.copy(), self.sd.copy(), self.counts.copy()
        for cell, counts in enumerate(self.counts):  # one at a time stays in the processor's cache
            moves = np.flatnonzero(shift[cell])
            before = counts[moves]
            after = np.log1p(before) + shift[cell, moves, None].astype(before.dtype)
            after = np.expm1(np.maximum(after, 0))
            spread = (uniform[cell, moves, None] + offsets).astype(before.dtype)
            spread -= spread >= 1
            rounded[cell, moves] = np.sort(np.floor(after + spread), axis=1)
            for value, of in ((mean, np.mean), (sd, np.std)):
                old, new = of(before, axis=1), of(after, axis=1)
                value[cell, moves] *= np.divide(new, old, out=np.ones(len(moves)), where=old > 0)
        return type(self)(mean, sd, rounded, log1p, self.foreground)

    def quantile(self, probability: np.ndarray) -> np.ndarray:
        """Return the count below which a further one is with ``probability`` (B, t).

        It lies between the samples of rank (n + 1) p, whose expected distribution function is p.
        """
        n_samples = self.counts.shape[2]
        rank = np.clip((n_samples + 1) * probability - 1, 0, n_samples - 1)[:, :, None]
        below = np.floor(rank).astype(np.int64)
        low = np.take_along_axis(self.counts, below, axis=2)
        high = np.take_along_axis(self.counts, np.minimum(below + 1, n_samples - 1), axis=2)
        return np.asarray((low + (rank - below) * (high - low))[:, :, 0])

    def distribution_function(
        self, observed: np.ndarray, ties: np.ndarray | float = 0.5
    ) -> np.ndarray:
        """Return the probability of a count below each observed one, with a share of ties, (B, t)."""
        below = (self.counts < observed[:, :, None]).sum(axis=2)
        equal = (self.counts == observed[:, :, None]).sum(axis=2)
        return np.asarray((below + equal * ties + ties) / (self.counts.shape[2] + 1))

    def summary(self, probabilities: np.ndarray) -> dict[str, np.ndarray]:
        """Return mean, sd, mean of log(1 + count), and limits of the interval, each (B, t).

        Parameters
        ----------
        probabilities
            Of a count below the lower and the upper limit, and below the upper one where the lower is
            0, below which is no count, (B, 3, t). Limits are whole numbers, both in the interval.
        """
        lower = np.ceil(self.quantile(probabilities[:, 0]))
        below_upper = np.where(lower == 0, probabilities[:, 2], probabilities[:, 1])
        upper = np.floor(self.quantile(below_upper))
        return {
            "mean": self.mean,
            "sd": self.sd,
            "log1p": self.log1p_mean(),
            # with few samples both limits can fall between the same two whole numbers, and cross
            "lower": np.minimum(lower, upper),
            "upper": np.maximum(lower, upper),
        }


def imputed_batches(
    model: Fitted, question: Question, transform_batch: Names, protein_list: Sequence[str] | None
) -> tuple[Question, ImputedBatches]:
    """Return the question as it is decoded to impute proteins, and from which batches each is."""
    proteins = model._proteins(protein_list)
    if transform_batch is not None:
        codes = model._batch_codes(transform_batch)
        everywhere = np.ones((len(codes), len(proteins)), dtype=bool)
        return replace(question, transform_batch=codes), ImputedBatches(proteins, everywhere)
    codes, decoded = batches_to_impute_from(model, question, proteins)
    return replace(question, transform_batch=codes), ImputedBatches(proteins, decoded)


def predicted_proteins(question: Question, wanted: ImputedBatches, batch: Minibatch) -> Predicted:
    """Return the predictive distribution of the wanted proteins of a minibatch.

    The means are those of denoised expression with the background, at the same samples.
    """
    proteins, n_samples = wanted.proteins.positions, question.n_samples
    weight = wanted.weight / n_samples
    # a protein's samples are drawn from its batches in turn
    turns = [np.resize(np.flatnonzero(column), n_samples) for column in wanted.decoded.T]
    position_of_sample = np.array(turns).reshape(len(proteins), n_samples).T
    shape = (len(batch.cells), len(proteins))
    first, second, foreground = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    counts = np.empty((*shape, n_samples), dtype=np.float32)
    for number, draw in enumerate(question.draws(batch, genes=False)):
        position = number % len(question.transform_batch)
        mixture = predictive_proteins(question, draw, proteins)
        expected = protein_mixture(question.network, draw.expecting_background(), proteins)
        expected = expected._replace(dispersion=mixture.dispersion)
        if wanted.levels is not None:
            at_random = _spread_evenly(draw.sample, proteins)
            mixture = at_level(mixture, wanted.levels.quantile(batch, position, at_random))
            expected = at_level(expected, wanted.levels.middle(batch)[:, [position]])
        moments = mixture_moments(expected, background_variance(question, draw, proteins))
        first += weight[position] * moments[0].cpu().numpy()
        second += weight[position] * moments[1].cpu().numpy()
        foreground += weight[position] * expected.foreground_probability().cpu().numpy()
        drawn = np.flatnonzero(position_of_sample[draw.sample] == position)
        counts[:, drawn, draw.sample] = protein_counts(
            question.network,
            mixture.take(drawn),
            question.noise,
            draw.sample,
            batch.keys,
            proteins[drawn],
        )
    counts.sort(axis=2)
    sd = np.sqrt(np.maximum(second - first**2, 0))
    return Predicted(first, sd, counts, None, foreground)


def _spread_evenly(sample: int, proteins: np.ndarray) -> np.ndarray:
    """Return a probability for each protein, (t,), evenly spread over the samples, .005 to .995."""
    uniform = ((sample + 0.5) * _GOLDEN_RATIO + proteins * _GOLDEN_RATIO**2) % 1
    return np.asarray(np.clip(uniform, 0.005, 0.995))


def rounding_noise(question: Question, wanted: ImputedBatches, batch: Minibatch) -> np.ndarray:
    """Return the noise by which counts that moved are rounded, between 0 and 1, (B, t)."""
    width, positions = question.network.n_input_proteins, wanted.proteins.positions
    return question.noise.uniform("rounding", 0, batch.keys, width).numpy()[:, positions]


def mixture_moments(
    expected: ProteinMixture, log_variance: Tensor | float = 0.0
) -> tuple[Tensor, Tensor]:
    """Return E[y] and E[y^2] of protein counts, each (B, t), float64.

    ``expected`` has the background at its expectation; its logarithm is normal with variance
    ``log_variance``. Of a part whose mean m varies, ``E[y^2] = E[m] + E[m^2] (1 + 1 / r)``, and
    ``E[m^2] = E[m]^2 exp(log_variance)``.
    """
    background = expected.log_background.double().exp()
    foreground = expected.log_foreground.double().exp()
    logit, log_r = expected.background_logit.double(), expected.log_r.double()
    pi, rest = logit.sigmoid(), (-logit).sigmoid()
    first = pi * background + rest * foreground
    spread = torch.as_tensor(log_variance, dtype=torch.float64).exp()
    square = (pi * background**2 + rest * foreground**2) * spread
    return first, first + square * (1 + (-log_r).exp())


def as_panel(
    question: Question, batch: Minibatch, panel: int, batch_codes: np.ndarray
) -> Minibatch:
    """Return cells as if they came from a panel: its batches, in turn, and only its proteins.

    That is how a cell of that panel reaches the encoder.
    """
    shown, mask = torch.zeros_like(batch.y), question.network.protein_mask
    if mask is not None:
        shown = batch.y * mask[panel]
    code = torch.from_numpy(batch_codes[batch.cells % len(batch_codes)])
    context = batch.context._replace(
        batch=code.to(batch.context.batch), panel=torch.full_like(batch.context.panel, panel)
    )
    return batch._replace(y=shown, context=context)


def hidden_proteins(
    question: Question,
    wanted: ImputedBatches,
    observed: np.ndarray,
    shown: Callable[[Minibatch], Minibatch] = lambda batch: batch,
    stacked: np.ndarray | None = None,
) -> HiddenCounts:
    """Predict counts that the network does not see.

    Parameters
    ----------
    observed
        The counts of the question's cells, (N, t).
    shown
        Gives what the network sees of a minibatch.
    stacked
        The mean of log(1 + count) to which the predictions are moved, (N, t). None: the network's.
    """
    parts, start = [], 0
    with question.minibatches("hidden proteins") as batches:
        for batch in batches:
            rows = slice(start, start + len(batch.cells))
            counts, start = observed[rows], rows.stop
            predicted = predicted_proteins(question, wanted, shown(batch))
            if stacked is not None:
                noise = rounding_noise(question, wanted, batch)
                predicted = predicted.moved_to(stacked[rows], noise)
            below = predicted.distribution_function(counts)
            parts.append(HiddenCounts(counts, predicted.log1p_mean(), below))
    return HiddenCounts(*(np.concatenate(part) for part in zip(*parts, strict=True)))
