"""Posterior draws of what gates are drawn on: rates and foreground of proteins, shares of RNA.

Given a sample of z, a protein is drawn to be foreground with P(foreground | z, y), and then its log
mean x and the rate lambda of its count y by what the model says of them,

    p(x | z, y, foreground) ~ N(x; m, s^2) NB(y; e^x, r),
    lambda | x, y ~ Gamma(r + y, (r + e^x) / e^x),

so that the mean of lambda over draws is the rate that denoised values are means of. As in these,
lambda is divided by the batch's protein efficiency and the cell's staining level, if the model has
them.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from totalvi.data.describe import Data
from totalvi.fit.minibatch import Minibatch
from totalvi.nn.count_integrals import LARGEST_SCALE, mode_of_log_mean
from totalvi.nn.likelihoods import negative_binomial_log_prob, normal_log_prob
from totalvi.posterior.draws import Draw, plausible
from totalvi.posterior.noise import Drawn, gamma_values
from totalvi.posterior.question import QUERY_BATCH_SIZE, Features, Fitted, Question
from totalvi.posterior.unmeasured import answering_for

DRAWS_A_SAMPLE = 8  # of proteins, given one sample of the latent state
_N_NODES = 97
_REACH = 7.0  # of the nodes, in standard deviations


class FeatureDraws(NamedTuple):
    """Draws from the posterior of cells, of which each is of all features of a cell at once.

    Parameters
    ----------
    share
        Of each gene in the cell's RNA, float32 (draws, cells, genes); NaN where it lacks RNA.
    rate
        Of each protein's foreground counts, 0 where it is background, float32 (draws, cells, proteins);
        NaN where it was not measured.
    foreground
        1 where the protein is foreground, 0 where it is background; NaN likewise.
    probability
        That each protein is foreground, the mean over samples of z, float32 (1, cells, proteins).
    """

    share: np.ndarray
    rate: np.ndarray
    foreground: np.ndarray
    probability: np.ndarray


def draw_features(
    model: Fitted,
    adata: Data | None,
    genes: list[str],
    proteins: list[str],
    n_samples: int,
    seed: int = 0,
) -> FeatureDraws:
    """Return posterior draws of genes and proteins, `DRAWS_A_SAMPLE` for each sample of z.

    Of genes alone there is one for each. A feature's draws do not depend on which others are asked for.

    Examples
    --------
    >>> import totalvi
    >>> mdata = totalvi.simulate(n_cells=60, n_genes=30, n_proteins=5, seed=1)
    >>> model = totalvi.Model(mdata, n_hidden=16, n_latent=4)
    >>> model.train(max_epochs=2)
    >>> drawn = draw_features(model, mdata, ["gene_0"], ["protein_0", "protein_1"], n_samples=3)
    >>> drawn.share.shape, drawn.rate.shape
    ((24, 60, 1), (24, 60, 2))
    >>> bool(((drawn.rate > 0) == (drawn.foreground == 1)).all())
    True
    """
    of_genes, of_proteins = model._genes(genes), model._proteins(proteins)
    question = model._question(
        adata, None, QUERY_BATCH_SIZE, False, seed, n_samples, given_counts=len(proteins) > 0
    )
    question = answering_for(model, question, of_proteins, genes=of_genes)
    with question.minibatches("draws of features") as batches:
        parts = [_drawn(question, batch, of_genes, of_proteins) for batch in batches]
    return FeatureDraws(*(np.concatenate(values, axis=1) for values in zip(*parts, strict=True)))


def _drawn(
    question: Question, batch: Minibatch, genes: Features, proteins: Features
) -> FeatureDraws:
    """Return draws of a minibatch."""
    shares, rates, are_foreground = [], [], []
    probability = np.zeros((1, len(batch.cells), len(proteins)), np.float32)
    for number, draw in enumerate(question.draws(batch, genes=len(genes) > 0)):
        of_genes = batch.y.new_zeros(len(batch.cells), 0)
        if len(genes):
            of_rna = question.rna_share(number, batch)
            of_genes = question.network.proportions(draw.decoded)[:, genes.positions]
            of_genes = of_genes * (torch.nan if of_rna is None else of_rna)
        shares += [of_genes.cpu().numpy()] * (DRAWS_A_SAMPLE if len(proteins) else 1)
        if not len(proteins):
            rates.append(np.zeros((len(batch.cells), 0), np.float32))
            are_foreground.append(rates[-1])
            continue
        answered = torch.as_tensor(question.share(number, batch)).expand_as(batch.y)
        weight = answered[:, proteins.positions].cpu().numpy()  # 1, or NaN where not measured
        in_background = draw.expression().background_probability()[:, proteins.positions]
        probability += weight * (1 - in_background).cpu().numpy() / question.n_samples
        for of_draw, is_foreground in _protein_draws(
            question, batch, draw, proteins.positions, in_background.double()
        ):
            rates.append(weight * of_draw)
            are_foreground.append(weight * is_foreground)
    share, rate, foreground = (np.stack(values) for values in (shares, rates, are_foreground))
    return FeatureDraws(share, rate, foreground, probability)


def _protein_draws(
    question: Question, batch: Minibatch, draw: Draw, proteins: np.ndarray, in_background: Tensor
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return draws of foreground rates, 0 for background, and of what is foreground, each (B, t)."""
    network = question.network
    counts = batch.y[:, proteins].double().nan_to_num()
    own = network.proteins(draw.decoded, draw.decoded.background_mean, draw.context).take(proteins)
    scale = draw.decoded.background_scale[:, proteins].clamp(1e-3, LARGEST_SCALE).double()
    log_mean = own.log_foreground.double()
    log_r = own.log_r.clamp(-18, 18).double()
    nodes, cumulative = _cumulative(counts, log_mean, scale, log_r)
    # denoised values leave out what multiplies the counts of a batch or a cell
    prior = plausible(draw.proteins).take(proteins)
    factor = (prior.log_foreground.double() - log_mean - scale**2 / 2).exp()
    drawn = []
    for i in range(DRAWS_A_SAMPLE):
        sample = draw.sample * DRAWS_A_SAMPLE + i
        width = int(proteins.max()) + 1
        uniform = question.noise.uniform("level", sample, batch.keys, width)[:, proteins]
        uniform = uniform.to(batch.device, torch.float64)
        is_foreground = uniform >= in_background
        rest = (uniform - in_background) / (1 - in_background).clamp(min=1e-12)
        x = _at_share(nodes, cumulative, rest.clamp(0, 1))
        shape = log_r.exp() + counts
        mean = shape * torch.sigmoid(x - log_r)  # (r + y) e^x / (r + e^x)
        of_rate = Drawn(question.noise, sample, batch.keys, proteins)
        rate = gamma_values(of_rate, *(v.cpu().numpy() for v in (mean, shape.expand_as(mean))))
        tiny = np.finfo(np.float32).tiny  # a foreground rate is above 0, as small as it may be
        rate = np.maximum(rate * factor.cpu().numpy(), tiny)
        above = is_foreground.cpu().numpy()
        drawn.append((np.where(above, rate, 0.0).astype(np.float32), above.astype(np.float32)))
    return drawn


def _cumulative(
    counts: Tensor, mean: Tensor, scale: Tensor, log_r: Tensor
) -> tuple[Tensor, Tensor]:
    """Return points x, (B, t, nodes), and the probability that the log mean is below each, given y.

    The density is log-concave, and the points lie around its mode.
    """
    variance, n = scale**2, counts + log_r.exp()
    mode = mode_of_log_mean(counts, mean, variance, log_r)
    p = torch.sigmoid(mode - log_r)
    # the curvature of the likelihood falls away from the mode, so that less of it is counted on
    reach = _REACH / (n * p * (1 - p) / 2 + 1 / variance).sqrt()
    steps = torch.linspace(-1, 1, _N_NODES, dtype=mode.dtype, device=mode.device)
    nodes = mode[..., None] + reach[..., None] * steps
    log_density = negative_binomial_log_prob(counts[..., None], nodes, log_r[..., None])
    log_density = log_density + normal_log_prob(nodes, mean[..., None], scale[..., None])
    density = (log_density - log_density.amax(dim=-1, keepdim=True)).exp()
    area = torch.cumsum((density[..., 1:] + density[..., :-1]) / 2, dim=-1)
    area = torch.nn.functional.pad(area, (1, 0))
    return nodes, area / area[..., -1:]


def _at_share(nodes: Tensor, cumulative: Tensor, share: Tensor) -> Tensor:
    """Return the point below which a share (B, t) of the probability lies."""
    last = cumulative.shape[-1] - 1
    above = torch.searchsorted(cumulative, share[..., None]).clamp(1, last)
    ends = [values.gather(-1, above + side) for values in (nodes, cumulative) for side in (-1, 0)]
    left, right, below, up_to = (end[..., 0] for end in ends)
    within = ((share - below) / (up_to - below).clamp(min=1e-300)).clamp(0, 1)
    return left + within * (right - left)
