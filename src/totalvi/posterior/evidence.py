"""How well the model explains cells: lower bound, reconstruction error, marginal likelihood."""

import math
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from totalvi.feed import Minibatch
from totalvi.module.distributions import normal_log_prob
from totalvi.module.elbo import ElboTerms
from totalvi.module.losses import sum_measured
from totalvi.module.totalvi import TOTALVI
from totalvi.posterior.draws import Draw, draws
from totalvi.posterior.noise import CellNoise


@torch.no_grad()
def elbo_by_cell(module: TOTALVI, batches: Iterable[Minibatch], noise: CellNoise) -> np.ndarray:
    """Return each cell's evidence lower bound, (cells,), in nats, from one posterior sample a cell."""
    parts = []
    for batch in batches:
        (draw,) = draws(module, batch, 1, noise)
        terms = elbo_terms(module, batch, draw)
        parts.append(-(terms.reconstruction() + terms.divergence()))
    return torch.cat(parts).numpy()


@torch.no_grad()
def reconstruction_error_by_cell(
    module: TOTALVI, batches: Iterable[Minibatch], noise: CellNoise, *, n_samples: int
) -> np.ndarray:
    """Return -E[log p(x | z, l)] and -E[log p(y | z, b)], (cells, 2), by Monte Carlo."""
    parts = []
    for batch in batches:
        total = torch.zeros(len(batch.cells), 2, dtype=torch.float64)
        for draw in draws(module, batch, n_samples, noise):
            terms = elbo_terms(module, batch, draw)
            losses = [terms.reconst_loss_gene, terms.reconst_loss_protein]
            total += torch.stack(losses, dim=1).cpu()
        parts.append(total / n_samples)
    return torch.cat(parts).numpy()


@torch.no_grad()
def marginal_log_likelihood_by_cell(
    module: TOTALVI, batches: Iterable[Minibatch], noise: CellNoise, *, n_samples: int
) -> np.ndarray:
    """Return an estimate of each cell's log p(x, y), (cells,): the log of the mean importance weight.

    It is ``log 1/K sum_k exp(log_weight_k)``, summed sample by sample, which lies below log p(x, y) on
    average and rises to it with K (Burda, Grosse and Salakhutdinov, 2016).
    """
    parts = []
    for batch in batches:
        log_sum = torch.full((len(batch.cells),), -math.inf, dtype=torch.float64)
        for draw in draws(module, batch, n_samples, noise):
            log_sum = torch.logaddexp(log_sum, log_weight(module, batch, draw).double().cpu())
        parts.append(log_sum - math.log(n_samples))
    return torch.cat(parts).numpy()


def log_weight(module: TOTALVI, batch: Minibatch, draw: Draw) -> Tensor:
    """Return the log importance weight of a posterior sample, (B,).

    It is ``log p(x | z, l) + log p(y | z, b) + log p(z) p(l) p(b) / (q(z) q(l) q(b | z))``: of the
    library size only where it is latent, of proteins only where they were measured.
    """
    posterior, context = draw.posterior, draw.context
    log_ratio = (
        normal_log_prob(draw.untran_z, 0.0, 1.0)
        - normal_log_prob(draw.untran_z, posterior.qz_m, posterior.qz_v.sqrt())
    ).sum(dim=-1)
    if draw.log_library is not None:
        assert posterior.ql_m is not None
        assert posterior.ql_v is not None
        assert batch.library_log_mean is not None
        assert batch.library_log_variance is not None
        log_ratio += (
            normal_log_prob(
                draw.log_library, batch.library_log_mean, batch.library_log_variance.sqrt()
            )
            - normal_log_prob(draw.log_library, posterior.ql_m, posterior.ql_v.sqrt())
        ).sum(dim=-1)
    background = normal_log_prob(
        draw.log_background,
        module.background_prior_mean[context.panel],
        module.background_prior_log_scale[context.panel].exp(),
    ) - normal_log_prob(
        draw.log_background, draw.decoded.background_mean, draw.decoded.background_scale
    )
    log_ratio += sum_measured(background, module.measured(context.panel))
    return log_ratio - elbo_terms(module, batch, draw).reconstruction()


def elbo_terms(module: TOTALVI, batch: Minibatch, draw: Draw) -> ElboTerms:
    """Return the terms of the negative evidence lower bound at one posterior sample."""
    return module.elbo_terms(
        batch.x,
        batch.y,
        draw.context,
        draw.posterior,
        draw.decoded,
        draw.library_size,
        draw.log_background,
        batch.library_log_mean,
        batch.library_log_variance,
    )
