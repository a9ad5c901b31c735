"""Archetypes: what cells at the corners of a logistic-normal latent space would express."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from totalvi.data.cite import CiteData
from totalvi.feed import Minibatch
from totalvi.module.decoder import Decoded
from totalvi.module.totalvi import TOTALVI
from totalvi.posterior.draws import plausible_background


def distinct_contexts(data: CiteData, cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return one of ``cells`` for each combination of batch and covariates, and the share of each.

    Continuous covariates are left out.
    """
    columns = [data.batch[cells, None]]
    if data.categorical is not None:
        columns.append(data.categorical[cells])
    _, first, counts = np.unique(np.hstack(columns), axis=0, return_index=True, return_counts=True)
    return cells[first], counts / len(cells)


@torch.no_grad()
def archetype_expression(
    module: TOTALVI,
    batches: Iterable[Minibatch],
    shares: np.ndarray,
    transform_batches: Sequence[int | None],
    continuous: np.ndarray | None,
    *,
    include_protein_background: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Return RNA proportions and protein means at each corner, (n_latent, features).

    Parameters
    ----------
    batches
        One cell for each context to decode in, whose counts do not matter.
    shares
        Weight of each context; they sum to 1.
    transform_batches
        Codes of the batches to decode into, averaged over; (None,): each context's own.
    continuous
        Continuous covariates that all contexts are given, (covariates,).
    """
    rna = torch.zeros(module.n_latent, module.n_input_genes, dtype=torch.float64)
    protein = torch.zeros(module.n_latent, module.n_input_proteins, dtype=torch.float64)
    corners = torch.eye(module.n_latent)
    start = 0
    for batch in batches:
        n_contexts = len(batch.cells)
        weight = torch.from_numpy(shares[start : start + n_contexts]) / len(transform_batches)
        start += n_contexts
        own = batch.context
        if continuous is not None:
            own = own._replace(continuous=torch.from_numpy(continuous).repeat(n_contexts, 1))
        for code in transform_batches:
            context = module.in_batch(own, code)
            for k, corner in enumerate(corners):
                decoded = module.decode(corner.repeat(n_contexts, 1), context)
                rna[k] += weight @ module.proportions(decoded).double()
                protein[k] += weight @ _protein_mean(decoded, include_protein_background).double()
    return rna.numpy(), protein.numpy()


def _protein_mean(decoded: Decoded, include_background: bool) -> Tensor:
    """Return (1 - pi) E[beta] alpha [+ pi E[beta]], with E[beta] = exp(m + s^2 / 2)."""
    log_rate = decoded.background_mean + 0.5 * decoded.background_scale**2
    background_rate = plausible_background(log_rate).exp()
    background = torch.sigmoid(decoded.background_logit)
    value = (1 - background) * background_rate * decoded.foreground_factor
    return value + background * background_rate if include_background else value


def z_scores(by_archetype: np.ndarray) -> np.ndarray:
    """Return each feature's standard scores over the archetypes; 0 where all are the same."""
    deviation = by_archetype - by_archetype.mean(axis=0)
    scale = by_archetype.std(axis=0)
    rounding = np.finfo(np.float32).eps * np.abs(by_archetype).max(axis=0)
    varies = scale > rounding
    return np.where(varies, deviation / np.where(varies, scale, 1), 0.0)
