"""How well the model explains cells: lower bound, reconstruction error, marginal likelihood."""

import math

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from totalvi.data.describe import Data
from totalvi.fit.minibatch import Minibatch
from totalvi.nn.config import at_least_one
from totalvi.nn.likelihoods import ElboTerms, normal_log_prob
from totalvi.nn.network import Network
from totalvi.posterior.arguments import Cells, documented
from totalvi.posterior.draws import Draw
from totalvi.posterior.question import QUERY_BATCH_SIZE, Fitted, Question


def elbo(question: Question, batch: Minibatch) -> Tensor:
    """Return each cell's lower bound as in the paper, (B,), in nats, from one posterior sample."""
    (draw,) = question.draws(batch)
    terms = elbo_terms(question.network, batch, draw)
    return -(terms.reconstruction() + terms.divergence())


def integrated_elbo(question: Question, batch: Minibatch) -> Tensor:
    """Return each cell's lower bound with the log background integrated, (B,), in nats.

    ``E[log p(x | z, l) + log p(y | z)] - KL(q(u)) - KL(q(log l))``, from one sample of z and l.
    """
    (draw,) = question.draws(batch)
    network, terms = question.network, elbo_terms(question.network, batch, draw)
    log_prob = network.protein_log_prob(batch.y, draw.decoded, draw.context).sum(dim=-1)
    divergence = terms.kl_div_z + terms.kl_div_l_gene + draw.posterior.level_kl()
    return log_prob - terms.reconst_loss_gene - divergence


def reconstruction_error(question: Question, batch: Minibatch) -> Tensor:
    """Return -E[log p(x | z, l)] and -E[log p(y | z, b)], (B, 2), by Monte Carlo."""
    total = torch.zeros(len(batch.cells), 2, dtype=torch.float64)
    for draw in question.draws(batch):
        terms = elbo_terms(question.network, batch, draw)
        losses = [terms.reconst_loss_gene, terms.reconst_loss_protein]
        total += torch.stack(losses, dim=1).cpu()
    return total / question.n_samples


def marginal_log_likelihood(question: Question, batch: Minibatch) -> Tensor:
    """Return an estimate of each cell's log p(x, y), (B,): the log of the mean importance weight.

    It is ``log 1/K sum_k exp(log_weight_k)``, summed sample by sample, which lies below log p(x, y) on
    average and rises to it with K (Burda, Grosse and Salakhutdinov, 2016).
    """
    log_sum = torch.full((len(batch.cells),), -math.inf, dtype=torch.float64)
    for draw in question.draws(batch):
        log_of_draw = log_weight(question.network, batch, draw).double().cpu()
        log_sum = torch.logaddexp(log_sum, log_of_draw)
    return log_sum - math.log(question.n_samples)


def log_weight(module: Network, batch: Minibatch, draw: Draw) -> Tensor:
    """Return the log importance weight of a posterior sample, (B,).

    It is ``log p(x | z, l) + log p(y | z) + log p(z) p(l) / (q(z) q(l))``, with the log background
    integrated in p(y | z): of the library size only where it is latent, of measured proteins alone.
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
    if draw.level is not None:
        assert posterior.level_m is not None
        assert posterior.level_v is not None
        log_ratio += (
            normal_log_prob(draw.level, 0.0, 1.0)
            - normal_log_prob(draw.level, posterior.level_m, posterior.level_v.sqrt())
        ).sum(dim=-1)
    log_ratio += module.protein_log_prob(batch.y, draw.decoded, context).sum(dim=-1)
    return log_ratio - elbo_terms(module, batch, draw).reconst_loss_gene


def elbo_terms(module: Network, batch: Minibatch, draw: Draw) -> ElboTerms:
    """Return the terms of the negative evidence lower bound at one posterior sample."""
    return module.elbo_terms(
        batch.x,
        batch.y,
        draw.context,
        draw.posterior,
        draw.decoded,
        draw.library_size,
        draw.proteins.log_background,
        batch.library_log_mean,
        batch.library_log_variance,
    )


@documented
class EvidenceQueries(Fitted):
    """What a model says of how well it explains cells.

    The evidence lower bound, its reconstruction errors, and the marginal likelihood that it bounds.
    """

    def get_elbo(
        self,
        adata: Data | None = None,
        indices: Cells = None,
        batch_size: int = QUERY_BATCH_SIZE,
        *,
        integrate_background: bool = True,
        return_mean: bool = True,
        seed: int = 0,
        progress: bool | None = None,
    ) -> float | np.ndarray:
        """Return the evidence lower bound in nats per cell: the mean, or that of each cell.

        Higher is better. It is a lower bound of log p(x, y): ``E[log p(x | z, l) + log p(y | z)]``
        less the divergences of z and of a latent library size. The log background of each protein is
        integrated over its prior (Rao-Blackwell), so nothing is lost to q(b | z). Expectations over z
        are from one posterior sample a cell, divergences in closed form.

        Parameters
        ----------
        {cells} {batch_size}
        integrate_background
            False: the bound of the paper, minus the loss of its objective, with a sample of q(b | z)
            and its divergence (with ``protein_efficiency=True``, of scvi-tools' objective, which has a
            prior term for it). It is lower, the more so the more proteins there are.
        {cell_means} {seed} {progress}

        {number_by_cell}

        {fitted_model}
        >>> model.get_elbo(return_mean=False).shape
        (60,)
        >>> model.get_elbo() > model.get_elbo(integrate_background=False)
        True
        """
        question = self._question(adata, indices, batch_size, progress, seed)
        bound = integrated_elbo if integrate_background else elbo
        values = question.gather("evidence", lambda batch: bound(question, batch))
        return float(values.mean(dtype=np.float64)) if return_mean else values

    def get_reconstruction_error(
        self,
        adata: Data | None = None,
        indices: Cells = None,
        batch_size: int = QUERY_BATCH_SIZE,
        *,
        n_samples: int = 1,
        return_mean: bool = True,
        seed: int = 0,
        progress: bool | None = None,
    ) -> pd.Series | pd.DataFrame:
        """Return how badly cells' counts are reconstructed, in nats per cell: lower is better.

        The error of the genes is -E[log p(x | z, l)], that of the proteins -E[log p(y | z, b)] over
        the proteins measured in the cell, with the expectation over the posterior.

        Parameters
        ----------
        {cells} {batch_size} {n_samples} {cell_means} {seed} {progress}

        Returns
        -------
        "gene", "protein" and their sum "total": a series, or with ``return_mean=False`` a data frame
        (cells, 3).

        {value_error}

        {fitted_model}
        >>> list(model.get_reconstruction_error().index)
        ['gene', 'protein', 'total']
        """
        question = self._question(adata, indices, batch_size, progress, seed, n_samples)
        errors = question.gather(
            "reconstruction error", lambda batch: reconstruction_error(question, batch)
        )
        table = pd.DataFrame(errors, index=question.cell_names, columns=["gene", "protein"])
        table["total"] = table["gene"] + table["protein"]
        # float32, which cells add up in otherwise, has seven digits
        return table.astype(np.float64).mean() if return_mean else table

    def get_marginal_ll(
        self,
        adata: Data | None = None,
        indices: Cells = None,
        n_mc_samples: int = 100,
        batch_size: int = QUERY_BATCH_SIZE,
        *,
        return_mean: bool = True,
        seed: int = 0,
        progress: bool | None = None,
    ) -> float | np.ndarray:
        """Return an estimate of the marginal log-likelihood log p(x, y) in nats per cell.

        It is ``log 1/K sum_k p(x|z,l) p(y|z) p(z) p(l) / (q(z) q(l))`` over K samples of the posterior
        (Burda, Grosse and Salakhutdinov, 2016): on average at or above the evidence lower bound, at or
        below log p(x, y), and nearer to it with more samples. In p(y|z) the log background of each
        protein is integrated over its prior, not sampled, so few samples are enough: one was 2 nats
        below a hundred with 60 proteins, and 11 nats with 134 proteins and few cells to fit.
        The library size counts only where it is latent; proteins that were not measured in a cell do
        not count. With ``protein_efficiency=True`` the efficiency is a parameter like the network's
        weights.

        Parameters
        ----------
        {cells}
        n_mc_samples
            K. The samples are decoded one after the other, so that memory does not grow with it.
        {batch_size} {cell_means} {seed} {progress}

        {number_by_cell}

        {fitted_model}
        >>> model.get_marginal_ll(n_mc_samples=20) > model.get_elbo()
        True
        """
        question = self._question(
            adata, indices, batch_size, progress, seed, at_least_one("n_mc_samples", n_mc_samples)
        )
        values = question.gather(
            "marginal likelihood", lambda batch: marginal_log_likelihood(question, batch)
        )
        return float(values.mean()) if return_mean else values
