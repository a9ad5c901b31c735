"""The predictive distribution of protein counts, of cells as they are or with counts hidden."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import numpy as np
import torch
from numba import prange
from torch import Tensor

from totalvi.compiled import compiled
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
_LEAST_SHARE = 0.5  # of the counts drawn, which keeps its weight; what is left of a move is a shift
_HIGHEST_RATE, _MOST_STEPS = 64.0, 20  # of weights, over standard deviations


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

        Counts drawn get weights exponential in their logarithm, with which the distribution of that
        mean is closest to the one before (least relative entropy): a protein more often foreground
        than the model says stays at the level of the foreground. No more than half of the counts lose
        their weight, by Kish's effective number; the rest is a shift of the logarithms, after which
        counts are rounded up or down at random, so that their expectation stays. Mean and standard
        deviation change as those of the counts do.

        Parameters
        ----------
        log1p
            The mean that is wanted, (B, t).
        uniform
            Noise between 0 and 1, (B, t), from which that of each sample follows.
        """
        shift = np.asarray(log1p - self.log1p_mean(), dtype=np.float64)
        counts, ratios = _moved(self.counts, shift, uniform.astype(np.float64))
        return type(self)(
            self.mean * ratios[0], self.sd * ratios[1], counts, log1p, self.foreground
        )

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


@compiled(parallel=True, error_model="numpy")
def _moved(
    counts: np.ndarray, shift: np.ndarray, uniform: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return sorted counts (B, t, n_samples) whose mean of log(1 + count) has moved by ``shift``.

    And by what their mean and standard deviation are then multiplied, (2, B, t).
    """
    moved, ratios = counts.copy(), np.ones((2, *shift.shape))
    for cell in prange(len(counts)):
        for protein in range(shift.shape[1]):
            if shift[cell, protein] != 0:
                own = moved[cell, protein]
                ratios[0, cell, protein], ratios[1, cell, protein] = _move(
                    own, shift[cell, protein], uniform[cell, protein]
                )
    return moved, ratios


@compiled(error_model="numpy")
def _move(counts: np.ndarray, shift: float, uniform: float) -> tuple[float, float]:
    """Move sorted counts of one protein in one cell, and return the two ratios of `_moved`."""
    n_samples, before = len(counts), counts.astype(np.float64)
    logs = np.log1p(before)
    weights, rest = _tilted(logs, shift)
    after = np.expm1(np.maximum(logs + rest, 0))
    position, below = 0, weights[0]
    for sample in range(n_samples):
        while below < (sample + 0.5) / n_samples and position < n_samples - 1:
            position += 1
            below += weights[position]
        counts[sample] = np.floor(after[position] + (uniform + sample * _GOLDEN_RATIO) % 1)
    counts.sort()
    mean, mean_before, sd_before = (weights * after).sum(), before.mean(), before.std()
    sd = np.sqrt((weights * (after - mean) ** 2).sum())
    return (
        mean / mean_before if mean_before > 0 else 1.0,
        sd / sd_before if sd_before > 0 else 1.0,
    )


@compiled(error_model="numpy")
def _tilted(logs: np.ndarray, shift: float) -> tuple[np.ndarray, float]:
    """Return weights of values whose mean moves by ``shift``, and what of it is left."""
    sd, direction = logs.std(), 1.0 if shift > 0 else -1.0
    if sd < 1e-6:
        return np.full(len(logs), 1 / len(logs)), shift
    values = direction * (logs - logs.mean()) / sd
    wanted = min(abs(shift) / sd, 1.0)  # further, fewer than half of the counts keep their weight
    rate, low, high = wanted, 0.0, _HIGHEST_RATE
    weights = _exponential_weights(values, rate)
    for _ in range(_MOST_STEPS):  # of Newton's method, or halves of what holds the rate
        mean = (weights * values).sum()
        if abs(wanted - mean) < 1e-3:
            break
        low, high = (rate, high) if mean < wanted else (low, rate)
        variance = (weights * values**2).sum() - mean**2
        rate += (wanted - mean) / max(variance, 1e-9)
        rate = rate if low < rate < high else (low + high) / 2
        weights = _exponential_weights(values, rate)
    if _effective_share(weights) < _LEAST_SHARE:
        low, high = 0.0, rate
        for _ in range(_MOST_STEPS):
            rate = (low + high) / 2
            weights = _exponential_weights(values, rate)
            enough = _effective_share(weights) >= _LEAST_SHARE
            low, high = (rate, high) if enough else (low, rate)
        weights = _exponential_weights(values, low)
    return weights, shift - direction * (weights * values).sum() * sd


@compiled(error_model="numpy")
def _effective_share(weights: np.ndarray) -> float:
    """Return Kish's effective number of values over their number."""
    share: float = 1 / (len(weights) * (weights**2).sum())
    return share


@compiled(error_model="numpy")
def _exponential_weights(values: np.ndarray, rate: float) -> np.ndarray:
    """Return weights exp(rate x) of values x, divided by their sum."""
    weights: np.ndarray = np.exp(rate * (values - values.max()))
    weights /= weights.sum()
    return weights


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
