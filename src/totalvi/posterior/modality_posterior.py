"""The posterior of a cell's state given one modality alone, which no encoder has learned."""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Self

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from totalvi.data.cells import CiteData
from totalvi.data.counts import evenly_spaced
from totalvi.errors import DataError
from totalvi.fit.minibatch import Minibatch
from totalvi.nn.cell import CellContext
from totalvi.nn.likelihoods import negative_binomial_mixture_log_prob, standard_normal_kl
from totalvi.nn.network import Network
from totalvi.posterior.noise import CellNoise
from totalvi.posterior.question import Question

Modality = Literal["rna", "protein"]

_MOST_STATES = 256  # of other cells, of which the likeliest is where the search starts
_N_STEPS = 80
_LEARNING_RATE = 0.15
_STANDARD_DEVIATION = 0.3  # at the start
_PAIRS_WITHOUT_GENES = 4  # of samples in a step; decoding proteins alone takes little time
_N_BACKGROUND = 8  # equally likely values of the log background


class StatePosterior(NamedTuple):
    """Normal posterior of the state u of B cells.

    Parameters
    ----------
    mean, variance
        (B, d).
    """

    mean: Tensor
    variance: Tensor

    def nats(self) -> Tensor:
        """Return KL(q(u) || N(0, I)) of each dimension, (B, d): how much is known of it, in nats."""
        return standard_normal_kl(self.mean, self.variance)


def cells_with_both(data: CiteData) -> np.ndarray:
    """Return the positions of the cells with RNA and a measured protein."""
    has_proteins = np.array(data.schema.panel_measured, dtype=int).sum(axis=1) > 0
    return np.flatnonzero(data.has_rna & has_proteins[data.panel])


@dataclass(frozen=True)
class StatesOfCells:
    """States of some cells, and what counts are expected there: where a search may start.

    Parameters
    ----------
    network
        A fitted network whose weights need no gradient.
    u
        States, (K, d).
    context
        Contexts of these cells.
    """

    network: Network
    u: Tensor
    context: CellContext

    @classmethod
    def of(cls, question: Question) -> Self:
        """Return the states of evenly spaced cells of a question's data that have both modalities."""
        network = copy.deepcopy(question.network).requires_grad_(requires_grad=False)
        cells = cells_with_both(question.data)
        if not len(cells):
            raise DataError("No cell has both modalities, which the query starts from; give some.")
        about = question.about(evenly_spaced(cells, _MOST_STATES))
        states, contexts = [], []
        with about.minibatches("states") as batches:
            for batch in batches:
                states.append(network.encode(batch.x, batch.y, batch.context).qz_m)
                contexts.append(batch.context)
        parts = (None if a[0] is None else torch.cat(a) for a in zip(*contexts, strict=True))
        return cls(network, torch.cat(states), CellContext(*parts))  # type: ignore[arg-type]

    def likeliest(self, batch: Minibatch, given: Sequence[Modality]) -> Tensor:
        """Return for each cell the state where its counts are likeliest, (B, d).

        Of RNA this is judged by the multinomial of its proportions, of proteins by their mixture at
        the mean log background.
        """
        found = torch.empty(len(batch.cells), self.u.shape[1])
        where = torch.stack([batch.context.batch, batch.context.panel], dim=1)
        for code, panel_code in np.unique(where.numpy(), axis=0):
            cells = (where == torch.tensor([code, panel_code])).all(dim=1).nonzero()[:, 0]
            panel = batch.context.panel[cells[:1]]
            context = self.context.in_batch(int(code))
            context = context._replace(panel=panel.expand_as(self.context.panel))
            decoded = self.network.decode(self.network.transform_latent(self.u), context)
            score = torch.zeros(len(cells), len(self.u))
            if "rna" in given:
                share = self.network.proportions(decoded)
                log_share = (share / share.sum(dim=1, keepdim=True)).clamp(min=1e-12).log()
                x = batch.x
                parts = (x.counts.numpy(), x.gene.numpy(), x.cell_pointer.numpy())
                counts = sparse.csr_array(parts, shape=x.shape)
                score += torch.as_tensor(counts @ log_share.T.numpy())[cells]
            if "protein" in given:
                mixture = self.network.proteins(decoded, decoded.background_mean, context)
                log_prob = negative_binomial_mixture_log_prob(
                    batch.y[cells, None], mixture.log_background, mixture.log_foreground,
                    mixture.log_r, mixture.background_logit,
                )  # fmt: skip
                measured = self.network.measured(panel)
                score += (log_prob if measured is None else log_prob * measured).sum(dim=-1)
            found[cells] = self.u[score.argmax(dim=1)]
        return found


def known_technical(network: Network, batch: Minibatch) -> tuple[Tensor, CellContext]:
    """Return the library size (B, 1), and the context at its staining level.

    Where they are latent, they are at the mean of their posterior given all counts.
    """
    posterior = network.masks.known_library(
        network.encode(batch.x, batch.y, batch.context), batch.context.panel,
        batch.library_log_mean, batch.library_log_variance,
    )  # fmt: skip
    return posterior.library_mean(batch.context), network.at_level(batch.context, posterior.level_m)


def surprise_of(
    network: Network, batch: Minibatch, given: Sequence[Modality]
) -> Callable[[Tensor], Tensor]:
    """Return a function of states u (B, d): -log p(counts of some modalities | u), (B,)."""
    library_size, context = known_technical(network, batch)
    levels = torch.special.ndtri((torch.arange(_N_BACKGROUND) + 0.5) / _N_BACKGROUND)

    def surprise(u: Tensor) -> Tensor:
        decoded = network.decode(network.transform_latent(u), context, genes="rna" in given)
        loss = torch.zeros(len(u))
        if "rna" in given:
            loss = loss + network.gene_loss(batch.x, decoded, library_size, context)
        if "protein" in given:
            b = decoded.background_mean + decoded.background_scale * levels[:, None, None]
            loss = loss + sum(network.protein_losses(batch.y, decoded, b, context))
        return loss

    return surprise


def posterior_given(
    states: StatesOfCells, batch: Minibatch, given: Sequence[Modality], noise: CellNoise
) -> StatePosterior:
    """Return the normal posterior of the states of a minibatch given the counts of some modalities.

    It maximises ``E_q[log p(counts | u)] - KL(q(u) || N(0, I))`` for each cell by Adam, from the state
    of another cell where the counts are likeliest, so that it is not held near the state that the
    encoder finds from both modalities. Proteins have the training's objective, with their log
    background at eight equally likely values.
    """
    network = states.network
    surprise = surprise_of(network, batch, given)
    mean = states.likeliest(batch, given).requires_grad_()
    log_scale = torch.full_like(mean, math.log(_STANDARD_DEVIATION)).requires_grad_()
    optimiser = torch.optim.Adam([mean, log_scale])
    n_pairs = 1 if "rna" in given else _PAIRS_WITHOUT_GENES
    for step in range(_N_STEPS):
        optimiser.param_groups[0]["lr"] = (
            _LEARNING_RATE * (1 + math.cos(math.pi * step / _N_STEPS)) / 2
        )
        with torch.enable_grad():
            loss = standard_normal_kl(mean, (2 * log_scale).exp()).sum()
            for pair in range(n_pairs):
                normal = noise.normal("latent", step * n_pairs + pair, batch.keys, mean.shape[1])
                for deviation in (normal, -normal):  # together they have no noise of first order
                    u = mean + log_scale.exp() * deviation
                    loss = loss + surprise(u).sum() / (2 * n_pairs)
            mean.grad, log_scale.grad = torch.autograd.grad(loss, [mean, log_scale])
        optimiser.step()
    seen = _seen(network, batch.context, given)
    variance = torch.where(seen, (2 * log_scale.detach()).exp(), 1.0)
    return StatePosterior(torch.where(seen, mean.detach(), 0.0), variance)


def _seen(network: Network, context: CellContext, given: Sequence[Modality]) -> Tensor:
    """Return whether cells have any of these modalities, (B, 1); the others keep their prior."""
    seen = torch.zeros_like(context.panel, dtype=torch.bool)
    if "rna" in given:
        seen |= True if network.rna_mask is None else network.rna_mask[context.panel]
    if "protein" in given:
        measured = network.measured(context.panel)
        seen |= True if measured is None else measured.any(dim=1)
    return seen[:, None]
