"""Denoised expression, and other quantities of proteins: posterior means by Monte Carlo, streamed."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from totalvi.fit.batches import Minibatch
from totalvi.nn.v06 import TOTALVI
from totalvi.posterior.draws import CellNoise, Draw, draws
from totalvi.posterior.scales import protein_scale

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


@torch.no_grad()
def normalized_expression(
    module: TOTALVI,
    batches: Iterable[Minibatch],
    query: ExpressionQuery,
    noise: CellNoise,
    rna: Any,
    protein: Any,
    foreground_probability: Any = None,
    *,
    return_mean: bool,
) -> None:
    """Write denoised RNA and protein, one minibatch after the other.

    RNA is E[rho] times the library size; protein E[(1 - pi) beta alpha], plus E[pi beta] with the
    background included; the expectations are over q(z, l, b | cell). That over b given z is exact
    where the result is linear in beta: for means of proteins that are not scaled to sum to one.

    Parameters
    ----------
    rna, protein
        What takes the rows: arrays or zarr arrays of shape (cells, genes) and (cells, proteins);
        without ``return_mean`` they have a leading axis of ``n_samples``, and batches are averaged.
    foreground_probability
        Takes, with ``return_mean``, the mean of `Draw.foreground_probability` over the same draws, as
        `protein_means` would write it. None: it is not wanted.
    """
    n_kept = 1 if return_mean else query.n_samples
    n_batches = len(query.transform_batches)
    n_averaged = n_batches * query.n_samples // n_kept
    scale = 1.0 if query.library_size == "latent" else query.library_size
    all_genes = np.array_equal(query.genes, np.arange(module.n_input_genes))
    start = 0
    for batch in batches:
        rows = slice(start, start + len(batch.cells))
        start = rows.stop
        kept_rna = torch.zeros(n_kept, len(batch.cells), len(query.genes))
        kept_protein = torch.zeros(n_kept, len(batch.cells), len(query.proteins))
        total = torch.zeros(*batch.x.shape, device=batch.y.device)
        probability = torch.zeros(*batch.y.shape, device=batch.y.device)
        samples = draws(module, batch, query.n_samples, noise, query.transform_batches)
        for i, draw in enumerate(samples):
            slot = 0 if return_mean else i // n_batches
            if len(query.genes):
                latent = query.library_size == "latent"
                factor = draw.library_size if latent else torch.ones_like(draw.library_size)
                module.add_proportions(draw.decoded, factor, total)
                if (i + 1) % n_averaged == 0:  # the last draw of this average
                    wanted = total if all_genes else total[:, query.genes]
                    kept_rna[slot] = (wanted * (scale / n_averaged)).cpu()
                    total.zero_()
            if not len(query.proteins):
                continue
            foreground, background = protein_scale(
                draw.expecting_background() if return_mean and not query.scale_protein else draw,
                noise,
                batch.keys,
                sample_mixing=query.sample_protein_mixing,
                scale=query.scale_protein,
                include_background=query.include_protein_background,
            )
            kept_protein[slot] += (foreground + background)[:, query.proteins].cpu()
            if foreground_probability is not None:
                probability += draw.foreground_probability()
        kept_protein /= n_averaged
        if foreground_probability is not None:
            probability *= 1 / n_averaged
            foreground_probability[rows] = probability[:, query.proteins].cpu().numpy()
        if return_mean:
            rna[rows], protein[rows] = kept_rna[0].numpy(), kept_protein[0].numpy()
        else:
            rna[:, rows], protein[:, rows] = kept_rna.numpy(), kept_protein.numpy()


@torch.no_grad()
def protein_means(
    module: TOTALVI,
    batches: Iterable[Minibatch],
    noise: CellNoise,
    quantity: Callable[[Draw], Tensor],
    proteins: np.ndarray,
    values: Any,
    *,
    n_samples: int,
    transform_batches: Sequence[int | None],
    return_mean: bool,
) -> None:
    """Write the posterior mean of a quantity of each protein, one minibatch after the other.

    Parameters
    ----------
    quantity
        Gives it (B, T) at one sample, as do `Draw.foreground_probability` and `Draw.background_rate`;
        linear in beta, since means take beta's expectation given z.
    values
        As ``protein`` in `normalized_expression`.
    """
    n_kept = 1 if return_mean else n_samples
    n_batches = len(transform_batches)
    start = 0
    for batch in batches:
        kept = torch.zeros(n_kept, *batch.y.shape, device=batch.y.device)
        for i, draw in enumerate(draws(module, batch, n_samples, noise, transform_batches)):
            if return_mean:
                kept[0] += quantity(draw.expecting_background())
            else:
                kept[i // n_batches] += quantity(draw)
        kept *= n_kept / (n_samples * n_batches)
        rows = slice(start, start + len(batch.cells))
        start = rows.stop
        wanted = kept[:, :, proteins].cpu().numpy()
        if return_mean:
            values[rows] = wanted[0]
        else:
            values[:, rows] = wanted
