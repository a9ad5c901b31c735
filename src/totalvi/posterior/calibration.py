"""Refit how far counts spread around their means, on cells that the fit held out.

The fitted inverse dispersions are those of the counts around means that were sampled while training. On
cells that did not train, the counts spread less around what the model predicts. So the log inverse
dispersion of each protein, and the log scale of its background, are moved by what predicts counts of
held-out cells best. Means stay as they are. Intervals of RNA counts need none of this.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from scipy.interpolate import CubicSpline
from scipy.special import betainc
from torch import Tensor

from totalvi.data.cells import CiteData
from totalvi.errors import BackgroundError
from totalvi.fit.minibatch import Minibatch
from totalvi.fit.model_state import CountCalibration, FitResult
from totalvi.nn.count_integrals import count_log_prob
from totalvi.nn.likelihoods import ProteinMixture
from totalvi.nn.network import Network
from totalvi.posterior.draws import Draw, protein_mixture
from totalvi.posterior.noise import CellNoise
from totalvi.posterior.question import Question

FEWEST_CELLS = 20  # with fewer held-out cells that calibrate, the fit stays as it is
MOST_CELLS = 500  # these are enough for one or two numbers a feature
N_SAMPLES = 16
LEVELS = (0.5, 0.8, 0.95, 0.99)
_LOG_R = np.linspace(-1.5, 3.0, 10)
_LOG_SCALE = np.linspace(-1.2, 0.6, 7)
_NARROWER = np.linspace(-0.5, 1.3, 7)
_FINER = 4  # points of the splines for each one that is computed
_BATCH_SIZE = 128
_PRIOR_SD, _N_ITERATIONS = 0.3, 100


def spread_of_proteins(
    mixture: ProteinMixture, scale: Tensor, noise: Tensor, log_r: Tensor, log_scale: Tensor
) -> ProteinMixture:
    """Return a mixture whose log background is at ``noise`` standard deviations, more or less spread.

    The expectation of the background stays the same.

    Parameters
    ----------
    mixture
        With the log background at ``noise`` standard deviations ``scale``, (B, T).
    log_r, log_scale
        What is added to the log inverse dispersion and to the log of ``scale``; they broadcast.
    """
    changed = scale * log_scale.exp()
    shift = (changed - scale) * noise + (scale.square() - changed.square()) / 2
    dispersion = mixture.dispersion._replace(by_group=mixture.dispersion.by_group + log_r)
    return mixture._replace(log_background=mixture.log_background + shift, dispersion=dispersion)


class Grid(NamedTuple):
    """The log-likelihood of F features where their parameters have these values.

    Parameters
    ----------
    axes
        Values of each parameter, ascending.
    log_likelihood
        Sums over cells, an axis for each parameter, and one for the features.
    """

    axes: tuple[np.ndarray, ...]
    log_likelihood: np.ndarray

    def finer(self) -> tuple[np.ndarray, np.ndarray]:
        """Return more points (K, P), and the log-likelihood at these by cubic splines, (K, F)."""
        values, axes = self.log_likelihood, []
        for number, axis in enumerate(self.axes):
            axes.append(np.linspace(axis[0], axis[-1], _FINER * (len(axis) - 1) + 1))
            values = CubicSpline(axis, values, axis=number)(axes[-1])
        return np.array(list(product(*axes))), values.reshape(-1, values.shape[-1])


def shrunken(grid: Grid) -> np.ndarray:
    """Return the posterior mean of each feature's parameters, (P, F), by empirical Bayes.

    Their prior is normal around a mean over all features. Mean and variance are estimated by
    expectation-maximisation, with one feature more whose parameters are 0 with a standard deviation
    of 0.3.

    Examples
    --------
    >>> axis = np.linspace(-1, 1, 9)
    >>> sure_of_half = Grid((axis,), -500 * (axis[:, None] - 0.5) ** 2)
    >>> shrunken(sure_of_half).round(2)
    array([[0.5]])
    """
    points, log_likelihood = grid.finer()
    mean, variance = np.zeros(points.shape[1]), np.full(points.shape[1], _PRIOR_SD**2)
    n_features = log_likelihood.shape[1]
    for _ in range(_N_ITERATIONS):
        log_prior = -0.5 * ((points - mean) ** 2 / variance).sum(axis=1)
        log_posterior = log_likelihood + log_prior[:, None]
        posterior = np.exp(log_posterior - log_posterior.max(axis=0))
        posterior /= posterior.sum(axis=0)
        expected: np.ndarray = points.T @ posterior
        mean = expected.sum(axis=1) / (n_features + 1)
        square = ((points - mean) ** 2).T @ posterior
        variance = (square.sum(axis=1) + _PRIOR_SD**2 + mean**2) / (n_features + 1)
    return expected


def predictive_proteins(question: Question, draw: Draw, proteins: np.ndarray) -> ProteinMixture:
    """Return the distribution of protein counts at ``proteins``, with the question's calibration."""
    mixture = protein_mixture(question.network, draw, proteins)
    if question.calibration is None:
        return mixture
    decoded = draw.decoded
    scale = decoded.background_scale[:, proteins]
    noise = (draw.proteins.log_background - decoded.background_mean)[:, proteins] / scale
    log_r, log_scale = (
        torch.from_numpy(column[proteins]).to(scale) for column in question.calibration[:2]
    )
    return spread_of_proteins(mixture, scale, noise, log_r, log_scale)


def predictive_log_prob(
    question: Question, draw: Draw, observed: Tensor, proteins: np.ndarray
) -> Tensor:
    """Return log E[p(y | z, b)] of counts ``observed`` (B, t), over b ~ q(b | z), as calibrated.

    Only z is sampled (Rao-Blackwell), which leaves less noise than samples of b do.
    """
    at_mean = draw.proteins._replace(log_background=draw.decoded.background_mean)
    mixture = predictive_proteins(question, draw._replace(proteins=at_mean), proteins)
    scale = background_variance(question, draw, proteins).sqrt()
    return count_log_prob(observed, mixture, scale, None, fast=question.network.fused)


def background_variance(question: Question, draw: Draw, proteins: np.ndarray) -> Tensor:
    """Return the variance of the log background as `predictive_proteins` has it, (B, t)."""
    scale = draw.decoded.background_scale[:, proteins]
    if question.calibration is not None:
        scale = scale * torch.from_numpy(question.calibration.protein_log_scale[proteins]).exp()
    return scale.square()


def calibrate_fit(
    result: FitResult, network: Network, data: CiteData, seed: np.random.SeedSequence
) -> FitResult:
    """Return the result of a fit with a calibration by half of its validation cells, if enough.

    Parameters
    ----------
    seed
        Of the choice of cells, and of the samples.
    """
    rng = np.random.default_rng(seed)
    validation = result.split.validation
    cells = np.sort(rng.permutation(validation)[: min(len(validation) // 2, MOST_CELLS)])
    has_proteins = np.any(np.array(data.schema.panel_measured), axis=1)
    cells = cells[has_proteins[data.panel[cells]]]
    noise = CellNoise(int(rng.integers(2**63)))
    question = Question(
        network, data, cells, noise, batch_size=_BATCH_SIZE, n_samples=N_SAMPLES, progress=False
    )
    said, calibration = f"{len(cells)} held-out cells", None
    if len(cells) < FEWEST_CELLS:
        said = f"none: {said} are half of the validation cells, and {FEWEST_CELLS} are needed"
    else:
        try:
            calibration = calibrated(question)
        except BackgroundError as error:
            said = f"none: {error}"
    summary = result.summary | {"calibrated_on": said}
    return replace(result, summary=summary, calibration=calibration)


def calibrated(question: Question) -> CountCalibration:
    """Return the calibration by the question's cells.

    The likelihood gives weight to the few counts far from what is expected, whose number no dispersion
    explains, so that it leaves intervals somewhat wide. One number for all proteins, t, makes them
    narrower: it is added to each log r, and minus its half to each log scale, so that both parts of
    the variance shrink alike.
    """
    axes = (_LOG_R, _LOG_SCALE)
    log_r, log_scale = shrunken(Grid(axes, log_likelihood(question)))
    t = best_narrowing(_inside(question, log_r, log_scale))
    return CountCalibration(
        (log_r + t).astype(np.float32), (log_scale - t / 2).astype(np.float32), question.cells
    )


def best_narrowing(inside: np.ndarray) -> float:
    """Return by how much intervals are made narrower so that each holds its share of the counts.

    It minimises the sum over levels of the squared differences from the level, each over its standard
    error over cells, and of ``t^2``, which few cells do not outweigh.

    Parameters
    ----------
    inside
        Share of each cell's counts inside the intervals, (values of t, levels, cells).
    """
    coverage, spread = inside.mean(axis=2), inside.std(axis=2).mean(axis=0)
    error = np.maximum(spread / np.sqrt(inside.shape[2]), 1e-3)
    z = CubicSpline(_NARROWER, (coverage - np.array(LEVELS)) / error)
    t = np.linspace(_NARROWER[0], _NARROWER[-1], 181)
    return float(t[np.argmin((z(t) ** 2).sum(axis=1) + t**2)])


def _stratified(
    question: Question, batch: Minibatch
) -> Iterator[tuple[ProteinMixture, Tensor, Tensor]]:
    """Yield the mixture of each sample, the scale of its log background, and its noise, each (B, T).

    The samples of a cell each have their own part of the normal distribution, so that few are enough.
    """
    network = question.network
    proteins = np.arange(network.n_input_proteins)
    start = question.noise.uniform("mixing", 0, batch.keys, len(proteins)).to(batch.y.device)
    for draw in question.draws(batch, genes=False):
        order = (draw.sample + torch.from_numpy(proteins)) % question.n_samples
        noise = torch.special.ndtri((start + order.to(start)) / question.n_samples)
        scale, mean = draw.decoded.background_scale, draw.decoded.background_mean
        at_noise = draw.proteins._replace(log_background=mean + scale * noise)
        yield protein_mixture(network, draw._replace(proteins=at_noise), proteins), scale, noise


def log_likelihood(question: Question) -> np.ndarray:
    """Return the predictive log-likelihood at each point of the axes, summed over cells."""
    shape = (len(_LOG_R), len(_LOG_SCALE))
    sums = np.zeros((*shape, question.network.n_input_proteins))
    with question.minibatches("calibration") as batches:
        for batch in batches:
            log_density = torch.full((*shape, *batch.y.shape), -torch.inf)
            for mixture, scale, noise in _stratified(question, batch):
                for i, j in np.ndindex(*shape):
                    added = torch.tensor([_LOG_R[i], _LOG_SCALE[j]], dtype=scale.dtype)
                    log_prob = spread_of_proteins(mixture, scale, noise, *added).log_prob(batch.y)
                    torch.logaddexp(log_density[i, j], log_prob, out=log_density[i, j])
            measured = question.network.measured(batch.context.panel)
            if measured is not None:
                log_density = log_density.masked_fill(~measured, 0.0)
            sums += log_density.sum(dim=2).double().numpy()
    return sums


def _inside(question: Question, log_r: np.ndarray, log_scale: np.ndarray) -> np.ndarray:
    """Return the share of each cell's measured counts inside central intervals.

    Ties are broken at random, as in `interval_coverage`: a count y lies inside with the probability
    that a uniform number between F(y - 1) and F(y) does.

    Returns
    -------
    (values of t, levels, N), for intervals that each value of t makes narrower.
    """
    parts = []
    with question.minibatches("calibration") as batches:
        for batch in batches:
            shape = (len(_NARROWER), *batch.y.shape)
            exactly, upper = np.zeros(shape), np.zeros(shape)
            for mixture, scale, noise in _stratified(question, batch):
                for i, t in enumerate(_NARROWER):
                    added = (torch.from_numpy(x).to(scale) for x in (log_r + t, log_scale - t / 2))
                    moved = spread_of_proteins(mixture, scale, noise, *added)
                    exactly[i] += (
                        moved.log_prob(batch.y).double().exp().numpy() / question.n_samples
                    )
                    upper[i] += mixture_distribution(moved, batch.y) / question.n_samples
            lower = np.maximum(upper - exactly, 0.0)
            measured = question.network.measured(batch.context.panel)
            counts = np.ones(shape[1:]) if measured is None else measured.numpy().astype(float)
            width = np.maximum(upper - lower, 1e-12)
            overlap = [
                np.minimum(upper, (1 + level) / 2) - np.maximum(lower, (1 - level) / 2)
                for level in LEVELS
            ]
            share = np.clip(np.stack(overlap, axis=1) / width[:, None], 0, 1)
            n_counts = counts.sum(axis=1)
            share = (share * counts).sum(axis=3) / np.maximum(n_counts, 1)
            parts.append(share[:, :, n_counts > 0])
    return np.concatenate(parts, axis=2)


def mixture_distribution(mixture: ProteinMixture, y: Tensor) -> np.ndarray:
    """Return the probability of a count of at most ``y`` (B, T)."""
    r, above = mixture.log_r.double().exp(), y.double().numpy() + 1
    pi = mixture.background_probability().double().numpy()
    background, foreground = (
        betainc(r.numpy(), above, (r / (r + mean)).numpy())
        for mean in (mixture.log_background.double().exp(), mixture.log_foreground.double().exp())
    )
    probability: np.ndarray = pi * background + (1 - pi) * foreground
    return probability
