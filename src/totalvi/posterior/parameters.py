"""Parameters of the counts' distributions: at one posterior sample, and their posterior means."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from totalvi.feed import Minibatch
from totalvi.module.totalvi import TOTALVI
from totalvi.posterior.draws import Draw, draws, plausible_background
from totalvi.posterior.noise import CellNoise


class GeneLikelihood(NamedTuple):
    """Parameters of the RNA counts of B cells and g genes.

    Parameters
    ----------
    log_mean
        Of the negative binomial, (B, g).
    log_r
        Log inverse dispersion, (1, g) or (B, g).
    dropout_logit
        Of the zero inflation, (B, g); None without.
    """

    log_mean: Tensor
    log_r: Tensor
    dropout_logit: Tensor | None


class ProteinLikelihood(NamedTuple):
    """Parameters of the protein counts of B cells and t proteins.

    Parameters
    ----------
    log_background, log_foreground
        Log means of both parts, the batch's protein efficiency included, (B, t).
    log_r
        Log inverse dispersion, (1, t) or (B, t).
    background_logit
        Of the probability of background, (B, t).
    """

    log_background: Tensor
    log_foreground: Tensor
    log_r: Tensor
    background_logit: Tensor


def gene_likelihood(module: TOTALVI, draw: Draw, genes: np.ndarray) -> GeneLikelihood:
    """Return the parameters of the genes at positions ``genes`` at one posterior sample."""
    some = _selection(genes, module.n_input_genes)
    dropout = draw.decoded.dropout_logit
    return GeneLikelihood(
        log_mean=module.gene_log_mean(draw.decoded.gene_logit, draw.library_size)[:, some],
        log_r=module.gene_log_inverse_dispersion(draw.context)[:, some],
        dropout_logit=None if dropout is None else dropout[:, some],
    )


def protein_likelihood(module: TOTALVI, draw: Draw, proteins: np.ndarray) -> ProteinLikelihood:
    """Return the parameters of the proteins at positions ``proteins`` at one posterior sample."""
    some = _selection(proteins, module.n_input_proteins)
    log_background = draw.log_background + module.protein_log_efficiency(draw.context)
    log_background = plausible_background(log_background[:, some], proteins)
    return ProteinLikelihood(
        log_background=log_background,
        log_foreground=log_background + draw.decoded.foreground_factor[:, some].log(),
        log_r=module.protein_log_inverse_dispersion(draw.context)[:, some],
        background_logit=draw.decoded.background_logit[:, some],
    )


def _selection(positions: np.ndarray, n: int) -> slice | np.ndarray:
    """Return a slice when all features are wanted, which spares a copy."""
    return slice(None) if np.array_equal(positions, np.arange(n)) else positions


@torch.no_grad()
def mean_parameters(
    module: TOTALVI,
    batches: Iterable[Minibatch],
    noise: CellNoise,
    genes: np.ndarray,
    proteins: np.ndarray,
    targets: Mapping[str, Any],
    *,
    n_samples: int,
    transform_batches: Sequence[int | None] = (None,),
) -> None:
    """Write the posterior mean of each parameter to the rows of its target.

    Parameters
    ----------
    targets
        Arrays or zarr arrays (cells, features): "mean" and, for "zinb", "dropout" of RNA;
        "protein_background_mean", "protein_foreground_mean" and "protein_mixing".
    transform_batches
        Codes of the batches to decode into, averaged over; (None,): each cell's own.
    """
    n_draws = n_samples * len(transform_batches)
    start = 0
    for batch in batches:
        totals: dict[str, Tensor] = {}
        for draw in draws(module, batch, n_samples, noise, transform_batches):
            for name, value in _parameters(module, draw, genes, proteins).items():
                totals[name] = totals[name].add_(value) if name in totals else value
        rows = slice(start, start + len(batch.cells))
        for name, total in totals.items():
            targets[name][rows] = (total / n_draws).cpu().numpy()
        start = rows.stop


def _parameters(
    module: TOTALVI, draw: Draw, genes: np.ndarray, proteins: np.ndarray
) -> dict[str, Tensor]:
    protein = protein_likelihood(module, draw, proteins)
    values = {
        "protein_background_mean": protein.log_background.exp(),
        "protein_foreground_mean": protein.log_foreground.exp(),
        "protein_mixing": protein.background_logit.sigmoid(),
    }
    if len(genes):
        gene = gene_likelihood(module, draw, genes)
        values["mean"] = gene.log_mean.exp()
        if gene.dropout_logit is not None:
            values["dropout"] = gene.dropout_logit.sigmoid()
    return values
