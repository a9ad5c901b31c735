"""Denoised expression and foreground probability: posterior means by Monte Carlo, streamed."""

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from totalvi.data.cite import CiteData
from totalvi.feed import Minibatch, minibatches
from totalvi.module.context import CellContext
from totalvi.module.totalvi import TOTALVI

ScaledLibrary = float | Literal["latent"]


class ExpressionQuery(NamedTuple):
    """What is asked of the denoised expression.

    Parameters
    ----------
    genes, proteins
        Positions of the wanted features.
    transform_batches
        Codes of the batches to decode into, averaged over; (None,): each cell's own.
    library_size
        What RNA proportions are multiplied by: a number, or "latent" for each cell's library size.
    n_samples
        Posterior samples a cell and batch.
    sample_protein_mixing
        Whether each protein is drawn to be background or foreground, in place of weighting both.
    scale_protein
        Whether the proteins of a cell are made to sum to one.
    include_protein_background
        Whether the background part counts.
    """

    genes: np.ndarray
    proteins: np.ndarray
    transform_batches: Sequence[int | None] = (None,)
    library_size: ScaledLibrary = 1.0
    n_samples: int = 1
    sample_protein_mixing: bool = False
    scale_protein: bool = False
    include_protein_background: bool = False


class Draw(NamedTuple):
    """One posterior sample of a minibatch's cells, decoded.

    Parameters
    ----------
    log_proportions
        Of RNA, (B, G).
    library_size
        (B, 1).
    background_rate, foreground_rate
        Protein means, (B, T).
    background_logit
        Logit of the probability that a count is background, (B, T).
    """

    log_proportions: Tensor
    library_size: Tensor
    background_rate: Tensor
    foreground_rate: Tensor
    background_logit: Tensor


def draws(
    module: TOTALVI,
    batch: Minibatch,
    n_samples: int,
    transform_batches: Sequence[int | None],
    generator: torch.Generator,
) -> Iterator[Draw]:
    """Yield posterior samples of a minibatch: it is encoded once, each sample decoded into each batch.

    Samples of the latent state and the library size are shared by the batches decoded into.
    """
    posterior = module.encode(batch.x, batch.y, batch.context)
    for _ in range(n_samples):
        z = module.sample_latent(posterior, generator)
        library_size = module.sample_library(posterior, batch.context, generator)[0]
        for code in transform_batches:
            context: CellContext = module.in_batch(batch.context, code)
            decoded = module.decode(z, context)
            background_rate = module.sample_log_background(decoded, generator).exp()
            yield Draw(
                log_proportions=module.log_proportions(decoded.gene_logit),
                library_size=library_size,
                background_rate=background_rate,
                foreground_rate=background_rate * decoded.foreground_factor,
                background_logit=decoded.background_logit,
            )


@torch.no_grad()
def normalized_expression(
    module: TOTALVI,
    data: CiteData,
    cells: np.ndarray,
    query: ExpressionQuery,
    *,
    return_mean: bool,
    batch_size: int,
    generator: torch.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Return denoised RNA and protein.

    RNA is E[rho] times the library size; protein E[(1 - pi) beta alpha], plus E[pi beta] with the
    background included; the expectations are over q(z, l, b | cell).

    Returns
    -------
    (cells, genes) and (cells, proteins) float32; without ``return_mean``, every sample with a leading
    axis of ``n_samples``, batches averaged.
    """
    n_kept = 1 if return_mean else query.n_samples
    rna = np.zeros((n_kept, len(cells), len(query.genes)), dtype=np.float32)
    protein = np.zeros((n_kept, len(cells), len(query.proteins)), dtype=np.float32)
    n_batches = len(query.transform_batches)
    n_averaged = n_batches * query.n_samples // n_kept
    genes = _selection(query.genes, module.n_input_genes)
    start = 0
    for batch in minibatches(data, module, cells, batch_size):
        rows = slice(start, start + len(batch.cells))
        start = rows.stop
        kept_rna = torch.from_numpy(rna[:, rows])
        kept_protein = torch.from_numpy(protein[:, rows])
        samples = draws(module, batch, query.n_samples, query.transform_batches, generator)
        for i, draw in enumerate(samples):
            slot = 0 if return_mean else i // n_batches
            proportions = draw.log_proportions[:, genes].exp_()
            if query.library_size == "latent":
                proportions *= draw.library_size
            kept_rna[slot] += proportions
            kept_protein[slot] += _protein(draw, query, generator)[:, query.proteins]
        scale = 1.0 if query.library_size == "latent" else query.library_size
        kept_rna *= scale / n_averaged
        kept_protein /= n_averaged
    return (rna[0], protein[0]) if return_mean else (rna, protein)


@torch.no_grad()
def foreground_probability(
    module: TOTALVI,
    data: CiteData,
    cells: np.ndarray,
    proteins: np.ndarray,
    *,
    n_samples: int,
    transform_batches: Sequence[int | None],
    batch_size: int,
    generator: torch.Generator,
) -> np.ndarray:
    """Return E[1 - pi], the expectation over q(z | cell), (cells, proteins)."""
    means = []
    for batch in minibatches(data, module, cells, batch_size):
        total = torch.zeros_like(batch.y)
        for draw in draws(module, batch, n_samples, transform_batches, generator):
            total += torch.sigmoid(-draw.background_logit)
        means.append((total / (n_samples * len(transform_batches)))[:, proteins])
    return torch.cat(means).numpy()


def _protein(draw: Draw, query: ExpressionQuery, generator: torch.Generator) -> Tensor:
    background = torch.sigmoid(draw.background_logit)
    if query.sample_protein_mixing:
        background = torch.bernoulli(background, generator=generator)
    value = (1 - background) * draw.foreground_rate
    if query.include_protein_background:
        value += background * draw.background_rate
    return F.normalize(value, p=1, dim=-1) if query.scale_protein else value


def _selection(positions: np.ndarray, n: int) -> slice | Tensor:
    """Return a slice when all features are wanted, which spares a copy."""
    if len(positions) == n and bool((positions == np.arange(n)).all()):
        return slice(None)
    return torch.from_numpy(positions)
