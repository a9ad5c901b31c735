"""Refit how far counts spread around their means, on cells that the fit held out.

The fitted inverse dispersions are those of the counts around means that were sampled while training. On
cells that did not train, the counts spread less around what the model predicts. So the log inverse
dispersion of each feature, and for proteins the log scale of the background, are moved by what predicts
counts of held-out cells best. Means stay as they are.
"""

from dataclasses import replace
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from scipy.interpolate import CubicSpline
from torch import Tensor

from totalvi.data.cells import CiteData
from totalvi.fit.model_state import CountCalibration, FitResult
from totalvi.nn.count_integrals import count_log_prob
from totalvi.nn.likelihoods import ProteinMixture
from totalvi.nn.network import Network
from totalvi.posterior.draws import Draw, GeneParameters, gene_parameters, protein_mixture
from totalvi.posterior.noise import CellNoise
from totalvi.posterior.question import Question

FEWEST_CELLS = 40  # with fewer held-out cells that calibrate, the fit stays as it is
MOST_CELLS = 500  # these are enough for one or two numbers a feature
N_SAMPLES, _N_SAMPLES_OF_RNA = 16, 8
_LOG_R = np.linspace(-1.5, 3.0, 10)
_LOG_SCALE = np.linspace(-1.2, 0.6, 7)
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


def predictive_genes(question: Question, draw: Draw, genes: np.ndarray) -> GeneParameters:
    """Return the distribution of RNA counts at positions ``genes``, with the question's calibration."""
    parameters = gene_parameters(question.network, draw, genes)
    if question.calibration is None:
        return parameters
    added = torch.from_numpy(question.calibration.gene_log_r[genes]).to(parameters.log_r)
    return parameters._replace(log_r=parameters.log_r + added)


def predictive_proteins(question: Question, draw: Draw, proteins: np.ndarray) -> ProteinMixture:
    """Return the distribution of protein counts at ``proteins``, with the question's calibration."""
    mixture = protein_mixture(question.network, draw, proteins)
    if question.calibration is None:
        return mixture
    decoded = draw.decoded
    scale = decoded.background_scale[:, proteins]
    noise = (draw.proteins.log_background - decoded.background_mean)[:, proteins] / scale
    log_r, log_scale = (
        torch.from_numpy(column[proteins]).to(scale) for column in question.calibration[1:3]
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
    said = f"{len(cells)} held-out cells"
    if len(cells) < FEWEST_CELLS:
        said = f"none: {said} are half of the validation cells, and {FEWEST_CELLS} are needed"
        return replace(result, summary=result.summary | {"calibrated_on": said})
    noise = CellNoise(int(rng.integers(2**63)))
    question = Question(
        network, data, cells, noise, batch_size=_BATCH_SIZE, n_samples=N_SAMPLES, progress=False
    )
    genes, proteins = grids(question)
    (gene_log_r,), (protein_log_r, log_scale) = shrunken(genes), shrunken(proteins)
    calibration = CountCalibration(
        gene_log_r.astype(np.float32),
        protein_log_r.astype(np.float32),
        log_scale.astype(np.float32),
        cells,
    )
    summary = result.summary | {"calibrated_on": said}
    return replace(result, summary=summary, calibration=calibration)


def grids(question: Question) -> tuple[Grid, Grid]:
    """Return the predictive log-likelihood of the question's cells, of RNA and of proteins."""
    network = question.network
    genes, proteins = np.arange(network.n_input_genes), np.arange(network.n_input_proteins)
    gene_sums = np.zeros((len(_LOG_R), len(genes)))
    protein_sums = np.zeros((len(_LOG_R), len(_LOG_SCALE), len(proteins)))
    with question.minibatches("calibration") as batches:
        for batch in batches:
            x, y, measured = batch.x.to_dense(), batch.y, network.measured(batch.context.panel)
            start = question.noise.uniform("mixing", 0, batch.keys, len(proteins)).to(y.device)
            rna = torch.full((len(_LOG_R), *x.shape), -torch.inf)
            protein = torch.full((*protein_sums.shape[:2], *y.shape), -torch.inf)
            for draw in question.draws(batch):
                if draw.sample < _N_SAMPLES_OF_RNA:
                    gene = gene_parameters(network, draw, genes)
                    for i, log_r in enumerate(_LOG_R):
                        moved = gene._replace(log_r=gene.log_r + log_r)
                        torch.logaddexp(rna[i], moved.log_prob(x), out=rna[i])
                # each sample has its own part of the normal distribution, so that few are enough
                noise = torch.special.ndtri((start + draw.sample) / question.n_samples)
                scale, mean = draw.decoded.background_scale, draw.decoded.background_mean
                at_noise = draw.proteins._replace(log_background=mean + scale * noise)
                mixture = protein_mixture(network, draw._replace(proteins=at_noise), proteins)
                for i, j in np.ndindex(*protein_sums.shape[:2]):
                    added = torch.tensor([_LOG_R[i], _LOG_SCALE[j]], dtype=scale.dtype)
                    log_prob = spread_of_proteins(mixture, scale, noise, *added).log_prob(y)
                    torch.logaddexp(protein[i, j], log_prob, out=protein[i, j])
            gene_sums += rna.sum(dim=1).double().numpy()
            known = protein if measured is None else protein.masked_fill(~measured, 0.0)
            protein_sums += known.sum(dim=2).double().numpy()
    return Grid((_LOG_R,), gene_sums), Grid((_LOG_R, _LOG_SCALE), protein_sums)
