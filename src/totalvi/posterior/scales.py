"""Samples of the scales on which cells are compared: RNA proportions and foreground protein."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from totalvi.fit.batches import Minibatch
from totalvi.nn.v06 import TOTALVI
from totalvi.posterior.draws import CellNoise, Draw, draws


class ScaleQuery(NamedTuple):
    """On which scale cells are compared.

    Parameters
    ----------
    transform_batches
        Codes of the batches that every cell is decoded into, averaged over; empty: each cell's own.
    measured_by_batch
        Which proteins each batch of the data measured, (batches, T). The average over
        ``transform_batches`` leaves out batches that did not measure a protein, unless none did.
    sample_protein_mixing, scale_protein, include_protein_background
        As in `ExpressionQuery`.
    """

    measured_by_batch: Tensor
    transform_batches: Sequence[int] = ()
    sample_protein_mixing: bool = False
    scale_protein: bool = False
    include_protein_background: bool = False


class Scales(NamedTuple):
    """One sample of the scales of B cells.

    Parameters
    ----------
    own
        The sample decoded into each cell's own batch, which made its counts.
    own_rna
        Its RNA proportions, (B, G).
    rna
        RNA proportions in the batches asked for, (B, G); ``own_rna`` where none are.
    foreground, background
        Protein scale (B, T) of the foreground, and of the background (0 where it does not count).
    """

    own: Draw
    own_rna: Tensor
    rna: Tensor
    foreground: Tensor
    background: Tensor


def scales(
    module: TOTALVI, batch: Minibatch, query: ScaleQuery, n_samples: int, noise: CellNoise
) -> Iterator[Scales]:
    """Yield ``n_samples`` samples of the scales of a minibatch."""
    codes: tuple[int | None, ...] = (None, *query.transform_batches)
    samples = draws(module, batch, n_samples, noise, codes)
    weights = _batch_weights(query).to(batch.y.device)
    protein = partial(
        protein_scale,
        noise=noise,
        keys=batch.keys,
        sample_mixing=query.sample_protein_mixing,
        scale=query.scale_protein,
        include_background=query.include_protein_background,
    )
    for own in samples:
        own_rna = module.proportions(own.decoded)
        if not query.transform_batches:
            yield Scales(own, own_rna, own_rna, *protein(own))
            continue
        rna = torch.zeros_like(own_rna)
        foreground, background = torch.zeros_like(batch.y), torch.zeros_like(batch.y)
        for weight in weights:
            draw = next(samples)
            rna += module.proportions(draw.decoded) / len(weights)
            parts = protein(draw)
            foreground += weight * parts[0]
            background += weight * parts[1]
        yield Scales(own, own_rna, rna, foreground, background)


def _batch_weights(query: ScaleQuery) -> Tensor:
    """Return the weight of each batch decoded into in the average of each protein, (batches, T)."""
    measured = query.measured_by_batch[list(query.transform_batches)].float()
    measured[:, ~measured.any(dim=0)] = 1
    return measured / measured.sum(dim=0)


def protein_scale(
    draw: Draw,
    noise: CellNoise,
    keys: np.ndarray,
    *,
    sample_mixing: bool,
    scale: bool,
    include_background: bool,
) -> tuple[Tensor, Tensor]:
    """Return (1 - pi) beta alpha and pi beta of each protein, each (B, T).

    Parameters
    ----------
    keys
        Of the cells, (B,).
    sample_mixing
        Whether each protein is drawn to be background or foreground, in place of weighting both.
    scale
        Whether the proteins of a cell are made to sum to one.
    include_background
        Whether the background counts; otherwise it is 0.
    """
    in_background = draw.background_probability()
    if sample_mixing:
        uniform = noise.uniform("mixing", draw.sample, keys, in_background.shape[1])
        in_background = (uniform.to(in_background.device) < in_background).to(in_background.dtype)
    foreground = (1 - in_background) * draw.foreground_rate()
    background = torch.zeros_like(foreground)
    if include_background:
        background = in_background * draw.background_rate()
    if scale:
        both = F.normalize(torch.cat([foreground, background], dim=1), p=1, dim=1)
        foreground, background = both.chunk(2, dim=1)
    return foreground, background
