"""Inputs of a comparison: samples of the scales of cells, and sums over groups of cells.

The sums give the mean expression of groups in one pass over the cells. Besides the decoded scale, they
compare the counts that the decoder expects with the observed counts. With a group's scale
multiplied by an unknown factor f, the NB likelihood of its counts (Poisson given the weights
w = 1 / (1 + mu / r)) has sum w x as counts and f sum w mu as their mean; see
`comparison.group_level`.

A protein's count is of one of two components, whose mean varies with the background b of the cell. Its
moments integrate over b and over the component, given the count: docs/model.md has the formulas.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple, Self

import numpy as np
import torch
from numba import prange
from torch import Tensor

from totalvi.compiled import compiled
from totalvi.fit.minibatch import Minibatch
from totalvi.nn.cell import SparseCounts
from totalvi.nn.count_integrals import LARGEST_SCALE
from totalvi.nn.network import Network
from totalvi.posterior.draws import Draw, ProteinScale
from totalvi.posterior.question import Question

_GENES_AT_A_TIME = 256
_OF_PROTEINS = ("excess", "present", "prior", "informed", "missing", "noise")


class Scales(NamedTuple):
    """One sample of the scales of B cells.

    Parameters
    ----------
    own
        The sample decoded into each cell's own batch, which made its counts.
    own_rna
        Its RNA proportions, (B, G).
    rna
        RNA proportions in the batches that are averaged, (B, G); ``own_rna`` where there are none.
    foreground, background
        Protein scale (B, T) of the foreground, and of the background (0 where it does not count).
    """

    own: Draw
    own_rna: Tensor
    rna: Tensor
    foreground: Tensor
    background: Tensor


class ScaleQuery(NamedTuple):
    """The scale on which cells are compared.

    Parameters
    ----------
    protein
        Which expression of proteins.
    batch_weights
        Weight of each batch that cells are decoded into, beside their own, in the average of each
        protein, (batches, T); see `batch_weights`.
    """

    protein: ProteinScale
    batch_weights: Tensor


def batch_weights(measured_by_batch: np.ndarray, codes: tuple[int, ...]) -> Tensor:
    """Return the weight of each batch in the average of each protein over batches, (batches, T).

    Batches that did not measure a protein are left out of its average, unless none of them did.

    Parameters
    ----------
    measured_by_batch
        Which proteins each batch of the data measured, (batches of the model, T).
    codes
        Of the batches that are averaged.
    """
    measured = torch.from_numpy(measured_by_batch)[list(codes)].float()
    measured[:, ~measured.any(dim=0)] = 1
    return measured / measured.sum(dim=0)


def scales(question: Question, batch: Minibatch, query: ScaleQuery) -> Iterator[Scales]:
    """Yield the samples of the scales of a minibatch, proteins given the latent state alone.

    The question decodes into each cell's own batch first, and then into those that are averaged.
    """
    samples = question.draws(batch)
    weights = query.batch_weights.to(batch.device)
    for own in samples:
        own_rna = question.network.proportions(own.decoded)
        if not len(weights):
            parts = query.protein.parts(own._replace(given=None), question.noise, batch.keys)
            yield Scales(own, own_rna, own_rna, *parts)
            continue
        rna = torch.zeros_like(own_rna)
        n_proteins = question.network.n_input_proteins
        foreground, background = batch.zeros(n_proteins), batch.zeros(n_proteins)
        for weight in weights:
            draw = next(samples)
            rna += question.network.proportions(draw.decoded) / len(weights)
            parts = query.protein.parts(draw._replace(given=None), question.noise, batch.keys)
            foreground += weight * parts[0]
            background += weight * parts[1]
        yield Scales(own, own_rna, rna, foreground, background)


def sampled_scales(question: Question, query: ScaleQuery) -> np.ndarray:
    """Return one sample of the scales of each cell, (genes + proteins, cells), float32.

    NaN where a cell's panel did not measure the protein and it is not decoded into another batch.
    """
    network, n_cells = question.network, len(question.cells)
    n_genes = network.n_input_genes
    values = np.empty((n_genes + network.n_input_proteins, n_cells), dtype=np.float32)
    start = 0
    with question.minibatches("differential expression") as batches:
        for batch in batches:
            cells = slice(start, start + len(batch.cells))
            start = cells.stop
            (sample,) = scales(question, batch, query)
            protein = sample.foreground + sample.background
            measured = network.measured(batch.context.panel)
            if measured is not None and not len(query.batch_weights):
                protein = torch.where(measured, protein, torch.nan)
            values[:n_genes, cells] = sample.rna.T.cpu().numpy()
            values[n_genes:, cells] = protein.T.cpu().numpy()
    return values


class Moments(NamedTuple):
    """Sums over the cells of each stratum, each (strata, features), float64.

    Those of proteins are of one component (foreground, or background) alone. q is the probability
    that a count is from there, p that before the count is seen; mu is its mean and mu + mu^2 / s
    its variance, each with the log background integrated; and w = 1 / (1 + mu / s). For genes q
    and p are 1, s is r, and the last six have one column.

    Parameters
    ----------
    n_cells
        Cells that count.
    total, square
        Of the scale h: sum h, sum h^2.
    counted, expected
        sum q w y and sum q w mu.
    excess
        sum q ((w (y - mu))^2 - w mu), which is 0 on average where the model's variance is right. For
        genes 0.
    present, prior
        sum q and sum p.
    informed, missing
        sum (q - p)^2 and sum q (1 - q): what counts say of their component, and what they leave open.
    noise
        Sum of the variance of the counts. For genes 0.
    """

    n_cells: np.ndarray
    total: np.ndarray
    square: np.ndarray
    counted: np.ndarray
    expected: np.ndarray
    excess: np.ndarray
    present: np.ndarray
    prior: np.ndarray
    informed: np.ndarray
    missing: np.ndarray
    noise: np.ndarray

    @classmethod
    def zeros(cls, n_strata: int, n_features: int) -> Self:
        """Return sums over no cells."""
        return cls(*(np.zeros((n_strata, n_features)) for _ in cls._fields))

    def sum(self, strata: np.ndarray) -> Self:
        """Return the sums over the rows of ``strata``, positions (strata, batches): one row a batch."""
        return type(self)(*(part[strata].sum(axis=0) for part in self))


class StratumMoments(NamedTuple):
    """Moments of genes and of both protein components, and the sum of library sizes, (strata,)."""

    rna: Moments
    foreground: Moments
    background: Moments
    library_size: np.ndarray

    def sum(self, strata: np.ndarray) -> Self:
        """Return the sums of several strata; see `Moments.sum`."""
        return type(self)(
            self.rna.sum(strata),
            self.foreground.sum(strata),
            self.background.sum(strata),
            self.library_size[strata].sum(axis=0),
        )

    @classmethod
    def zeros(cls, n_strata: int, n_genes: int, n_proteins: int) -> Self:
        """Return sums over no cells."""
        column = np.zeros((n_strata, 1))
        genes = Moments.zeros(n_strata, n_genes)
        return cls(
            genes._replace(**{name: column.copy() for name in _OF_PROTEINS}),
            Moments.zeros(n_strata, n_proteins),
            Moments.zeros(n_strata, n_proteins),
            np.zeros(n_strata),
        )


def add_moments(
    sums: StratumMoments, question: Question, stratum: np.ndarray, query: ScaleQuery
) -> None:
    """Add cells to the sums of their strata, averaged over samples.

    Parameters
    ----------
    stratum
        Of every cell of the data, (N,).
    """
    network, question = question.network, replace(question, given_counts=True)
    with question.minibatches("differential expression") as batches:
        for batch in batches:
            of_cell = stratum[batch.cells]
            membership = np.zeros((len(sums.library_size), len(of_cell)))
            membership[of_cell, np.arange(len(of_cell))] = 1
            measured = network.measured(batch.context.panel)
            seen = torch.ones_like(batch.y) if measured is None else measured.to(batch.y.dtype)
            counts_for_mean = torch.ones_like(seen) if len(query.batch_weights) else seen
            sums.rna.n_cells[:] += membership.sum(axis=1, keepdims=True)
            for protein in (sums.foreground, sums.background):
                protein.n_cells[:] += membership @ _float64(counts_for_mean)
            for sample in scales(question, batch, query):
                share = membership / question.n_samples
                sums.library_size[:] += share @ _float64(sample.own.library_size[:, 0])
                _add_rna(sums.rna, network, batch.x, sample, of_cell, 1 / question.n_samples)
                _add_protein(sums, network, batch.y, sample, seen, counts_for_mean, share)
    sums.rna.present[:] = sums.rna.prior[:] = sums.rna.n_cells[:, :1]


def _add_rna(
    sums: Moments,
    network: Network,
    x: SparseCounts,
    sample: Scales,
    of_cell: np.ndarray,
    share: float,
) -> None:
    own = sample.own
    genes = network.genes(own.decoded, own.library_size, own.context)
    r = genes.log_r.exp().cpu().numpy()
    library = own.library_size[:, 0].cpu().numpy()
    own_rna = sample.own_rna.cpu().numpy()
    rna = own_rna if sample.rna is sample.own_rna else sample.rna.cpu().numpy()
    not_dropped = np.ones((1, 1), dtype=np.float32)
    dropout_logit = own.decoded.dropout_logit
    if dropout_logit is not None:
        not_dropped = _not_dropped(dropout_logit, sample.own_rna, own.library_size, r)
    _add_scale(rna, of_cell, share, sums.total, sums.square)
    _add_expected(own_rna, library, r, not_dropped, of_cell, share, sums.expected)
    cell, gene, counts = (part.cpu().numpy() for part in (x.cell, x.gene, x.counts))
    _add_counted(cell, gene, counts, own_rna, library, r, of_cell, share, sums.counted)


def _not_dropped(dropout_logit: Tensor, rna: Tensor, library: Tensor, r: np.ndarray) -> np.ndarray:
    """Return the probability that a zero is of the NB and not of its zero inflation, (B, G)."""
    inverse_dispersion = torch.from_numpy(r).to(rna.device)
    log_zero = -inverse_dispersion * torch.log1p(library * rna / inverse_dispersion)
    return torch.sigmoid(log_zero - dropout_logit).cpu().numpy()


def _add_protein(
    sums: StratumMoments,
    network: Network,
    y: Tensor,
    sample: Scales,
    seen: Tensor,
    counts_for_mean: Tensor,
    share: np.ndarray,
) -> None:
    own = sample.own
    if own.given is None:
        raise ValueError("sample has no posterior given counts; ask with given_counts=True.")
    mixture = network.proteins(own.decoded, own.proteins.log_background, own.context)
    before = mixture.foreground_probability()
    after = torch.sigmoid(own.given.log_bayes_factor - mixture.background_logit)
    spread = torch.expm1(own.decoded.background_scale.clamp(max=LARGEST_SCALE) ** 2)
    # squared coefficient of variation of a rate whose mean varies with the background
    relative = spread + (1 + spread) * (-mixture.log_r).exp()
    components = (
        (sums.foreground, sample.foreground, mixture.log_foreground, after, before),
        (sums.background, sample.background, mixture.log_background, 1 - after, 1 - before),
    )
    for moments, scale, log_mean, present, prior in components:
        mean = log_mean.exp()
        weight = 1 / (1 + mean * relative)
        parts = {
            "total": counts_for_mean * scale,
            "square": counts_for_mean * scale**2,
            "counted": seen * present * weight * y,
            "expected": seen * present * weight * mean,
            "excess": seen * present * ((weight * (y - mean)) ** 2 - weight * mean),
            "present": seen * present,
            "prior": seen * prior,
            "informed": seen * (present - prior) ** 2,
            "missing": seen * present * (1 - present),
            "noise": seen * mean / weight,
        }
        for name, value in parts.items():
            getattr(moments, name)[:] += share @ _float64(value)


def _float64(tensor: Tensor) -> np.ndarray:
    return tensor.double().cpu().numpy()


@compiled(parallel=True)
def _add_scale(
    scale: np.ndarray, stratum: np.ndarray, share: float, total: np.ndarray, square: np.ndarray
) -> None:
    n_genes = scale.shape[1]
    for chunk in prange((n_genes + _GENES_AT_A_TIME - 1) // _GENES_AT_A_TIME):
        first = chunk * _GENES_AT_A_TIME
        last = min(first + _GENES_AT_A_TIME, n_genes)
        for b in range(len(stratum)):
            s = stratum[b]
            for g in range(first, last):
                h = np.float64(scale[b, g])
                total[s, g] += share * h
                square[s, g] += share * h * h


@compiled(parallel=True)
def _add_expected(
    scale: np.ndarray,
    library: np.ndarray,
    r: np.ndarray,
    not_dropped: np.ndarray,
    stratum: np.ndarray,
    share: float,
    expected: np.ndarray,
) -> None:
    """Add w mu; where a count may be dropped out, times the probability that it was not.

    Rows of ``r``, and rows and columns of ``not_dropped``, are one for all or one each.
    """
    n_genes = scale.shape[1]
    by_cell = len(r) > 1
    with_dropout = not_dropped.shape[1] == n_genes and len(not_dropped) == len(stratum)
    for chunk in prange((n_genes + _GENES_AT_A_TIME - 1) // _GENES_AT_A_TIME):
        first = chunk * _GENES_AT_A_TIME
        last = min(first + _GENES_AT_A_TIME, n_genes)
        for b in range(len(stratum)):
            s, row = stratum[b], b if by_cell else 0
            for g in range(first, last):
                mu = scale[b, g] * library[b]
                value = mu * r[row, g] / (r[row, g] + mu)
                if with_dropout:
                    value *= not_dropped[b, g]
                expected[s, g] += share * value


@compiled()
def _add_counted(
    cell: np.ndarray,
    gene: np.ndarray,
    counts: np.ndarray,
    scale: np.ndarray,
    library: np.ndarray,
    r: np.ndarray,
    stratum: np.ndarray,
    share: float,
    counted: np.ndarray,
) -> None:
    """Add w x at the non-zero counts."""
    by_cell = len(r) > 1
    for i in range(len(counts)):
        b, g = cell[i], gene[i]
        dispersion = r[b if by_cell else 0, g]
        mu = scale[b, g] * library[b]
        counted[stratum[b], g] += share * counts[i] * dispersion / (dispersion + mu)
