"""What the counts of unmeasured proteins would be: their predictive distribution, streamed."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from totalvi.fit.batches import Minibatch
from totalvi.nn.v06 import TOTALVI
from totalvi.posterior.draws import CellNoise, draws
from totalvi.posterior.parameters import ProteinLikelihood, protein_likelihood
from totalvi.posterior.predictive_counts import protein_counts


class ImputationQuery(NamedTuple):
    """What is asked of imputed proteins.

    Parameters
    ----------
    proteins
        Positions of the wanted proteins, (t,).
    batches
        Codes of the batches decoded into, (batches,).
    decoded
        Which of them each protein is decoded into, bool (batches, t), at least one; averaged over.
    n_samples
        Posterior samples a cell, and counts drawn for each value.
    """

    proteins: np.ndarray
    batches: tuple[int | None, ...]
    decoded: np.ndarray
    n_samples: int


class Predicted(NamedTuple):
    """The predictive distribution of protein counts of B cells.

    Parameters
    ----------
    mean, sd
        Its mean and standard deviation, (B, t), float64; exact given the samples of z.
    counts
        Counts drawn from it, sorted, (B, t, n_samples).
    """

    mean: np.ndarray
    sd: np.ndarray
    counts: np.ndarray

    def log1p_mean(self) -> np.ndarray:
        """Return E[log(1 + count)], (B, t)."""
        return np.log1p(self.counts).mean(axis=2)

    def quantile(self, probability: np.ndarray) -> np.ndarray:
        """Return the count below which a further one is with ``probability`` (B, t).

        It lies between the samples of rank (n + 1) p, whose expected distribution function is p.
        """
        n_samples = self.counts.shape[2]
        rank = np.clip((n_samples + 1) * probability - 1, 0, n_samples - 1)[:, :, None]
        below = np.floor(rank).astype(np.int64)
        low = np.take_along_axis(self.counts, below, axis=2)
        high = np.take_along_axis(self.counts, np.minimum(below + 1, n_samples - 1), axis=2)
        quantile: np.ndarray = (low + (rank - below) * (high - low))[:, :, 0]
        return quantile

    def distribution_function(self, observed: np.ndarray) -> np.ndarray:
        """Return the probability of a count below each observed one (B, t), half of ties included."""
        below = (self.counts < observed[:, :, None]).sum(axis=2)
        up_to = (self.counts <= observed[:, :, None]).sum(axis=2)
        probability: np.ndarray = ((below + up_to) / 2 + 0.5) / (self.counts.shape[2] + 1)
        return probability


@torch.no_grad()
def predicted_proteins(
    module: TOTALVI, batches: Iterable[Minibatch], query: ImputationQuery, noise: CellNoise
) -> Iterator[tuple[Minibatch, Predicted]]:
    """Yield each minibatch with the predictive distribution of its proteins.

    The means are those of denoised expression with the background, at the same samples.
    """
    weight = query.decoded / query.decoded.sum(axis=0) / query.n_samples
    # a protein's counts come from its batches in turn
    turns = [np.resize(np.flatnonzero(column), query.n_samples) for column in query.decoded.T]
    position_of_sample = np.array(turns).reshape(len(query.proteins), query.n_samples).T
    for batch in batches:
        shape = (len(batch.cells), len(query.proteins))
        first, second = np.zeros(shape), np.zeros(shape)
        counts = np.empty((*shape, query.n_samples), dtype=np.float32)
        samples = draws(module, batch, query.n_samples, noise, query.batches)
        for number, draw in enumerate(samples):
            position = number % len(query.batches)
            parameters = protein_likelihood(module, draw, query.proteins)
            expected = protein_likelihood(module, draw.expecting_background(), query.proteins)
            variance = draw.decoded.background_scale[:, query.proteins] ** 2
            moments = mixture_moments(expected, variance)
            first += weight[position] * moments[0].cpu().numpy()
            second += weight[position] * moments[1].cpu().numpy()
            drawn = np.flatnonzero(position_of_sample[draw.sample] == position)
            counts[:, drawn, draw.sample] = protein_counts(
                module,
                ProteinLikelihood(*(part[:, drawn] for part in parameters)),
                noise,
                draw.sample,
                batch.keys,
                query.proteins[drawn],
            )
        counts.sort(axis=2)
        yield batch, Predicted(first, np.sqrt(np.maximum(second - first**2, 0)), counts)


def mixture_moments(
    expected: ProteinLikelihood, log_variance: Tensor | float = 0.0
) -> tuple[Tensor, Tensor]:
    """Return E[y] and E[y^2] of protein counts, each (B, t), float64.

    ``expected`` has the background at its expectation; its logarithm is normal with variance
    ``log_variance``. Of a part whose mean m varies, ``E[y^2] = E[m] + E[m^2] (1 + 1 / r)``, and
    ``E[m^2] = E[m]^2 exp(log_variance)``.
    """
    log_background, log_foreground, log_r, background_logit = (p.double() for p in expected)
    background, foreground = log_background.exp(), log_foreground.exp()
    pi, rest = background_logit.sigmoid(), (-background_logit).sigmoid()
    first = pi * background + rest * foreground
    spread = torch.as_tensor(log_variance, dtype=torch.float64).exp()
    square = (pi * background**2 + rest * foreground**2) * spread
    return first, first + square * (1 + (-log_r).exp())


def write_imputed(
    predictions: Iterable[tuple[Minibatch, Predicted]],
    probabilities: np.ndarray,
    targets: Mapping[str, Any],
) -> None:
    """Write predictive distributions to the rows of targets, one minibatch after the other.

    Parameters
    ----------
    probabilities
        Of a count below the lower and the upper limit of the interval, (panels, 2, t).
    targets
        Arrays or zarr arrays (cells, t): "mean", "sd", "log1p" (mean of log(1 + count)), "lower" and
        "upper". Limits are whole numbers, both in the interval.
    """
    start = 0
    for batch, predicted in predictions:
        panel = batch.context.panel.cpu().numpy()
        rows = slice(start, start + len(panel))
        start = rows.stop
        lower = np.ceil(predicted.quantile(probabilities[panel, 0]))
        upper = np.floor(predicted.quantile(probabilities[panel, 1]))
        targets["mean"][rows] = predicted.mean
        targets["sd"][rows] = predicted.sd
        targets["log1p"][rows] = predicted.log1p_mean()
        targets["lower"][rows] = np.minimum(lower, upper)  # as of a few samples both may be one gap
        targets["upper"][rows] = np.maximum(lower, upper)
