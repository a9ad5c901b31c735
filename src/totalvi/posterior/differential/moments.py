"""Sums over groups of cells that say where their mean expression lies, in one pass over the cells.

Beside the decoded scale they compare what the decoder expects with what was counted. With a group's
scale multiplied by an unknown factor f, the NB likelihood of its counts (Poisson given the weights
w = 1 / (1 + mu / r)) has sum w x as counts and f sum w mu as their mean; see `levels`.
"""

from collections.abc import Iterable
from typing import NamedTuple, Self

import numpy as np
import torch
from numba import prange
from scipy.special import polygamma
from torch import Tensor

from totalvi.compiled import compiled
from totalvi.fit.batches import Minibatch
from totalvi.nn.likelihoods import negative_binomial_log_prob
from totalvi.nn.sparse import SparseCounts
from totalvi.nn.v06 import TOTALVI
from totalvi.posterior.draws import CellNoise, plausible_background
from totalvi.posterior.scales import ScaleQuery, Scales, scales

_GENES_AT_A_TIME = 256


class Moments(NamedTuple):
    """Sums over the cells of each stratum, each (strata, features), float64.

    Parameters
    ----------
    n_cells
        Cells that count.
    total, square
        Of the scale h: sum h, sum h^2.
    counted, expected
        sum w x and sum w mu; for proteins, over the component (foreground, or background) alone:
        sum q w y and sum q w mu, with q the probability, given the count, that it is from there.
    present, prior
        sum q, and sum of the component's probability before the count is seen. For genes 1 each.
    """

    n_cells: np.ndarray
    total: np.ndarray
    square: np.ndarray
    counted: np.ndarray
    expected: np.ndarray
    present: np.ndarray
    prior: np.ndarray

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
        return cls(
            Moments.zeros(n_strata, n_genes),
            Moments.zeros(n_strata, n_proteins),
            Moments.zeros(n_strata, n_proteins),
            np.zeros(n_strata),
        )


@torch.no_grad()
def add_moments(
    sums: StratumMoments,
    module: TOTALVI,
    batches: Iterable[Minibatch],
    stratum: np.ndarray,
    query: ScaleQuery,
    n_samples: int,
    noise: CellNoise,
) -> None:
    """Add cells to the sums of their strata.

    Parameters
    ----------
    stratum
        Of every cell of the data, (N,).
    n_samples
        Posterior samples a cell, averaged.
    """
    for batch in batches:
        of_cell = stratum[batch.cells]
        membership = np.zeros((len(sums.library_size), len(of_cell)))
        membership[of_cell, np.arange(len(of_cell))] = 1
        measured = module.measured(batch.context.panel)
        seen = torch.ones_like(batch.y) if measured is None else measured.to(batch.y.dtype)
        counts_for_mean = torch.ones_like(seen) if query.transform_batches else seen
        sums.rna.n_cells[:] += membership.sum(axis=1, keepdims=True)
        for protein in (sums.foreground, sums.background):
            protein.n_cells[:] += membership @ _float64(counts_for_mean)
        for sample in scales(module, batch, query, n_samples, noise):
            share = membership / n_samples
            sums.library_size[:] += share @ _float64(sample.own.library_size[:, 0])
            _add_rna(sums.rna, module, batch.x, sample, of_cell, 1 / n_samples)
            _add_protein(sums, module, batch.y, sample, seen, counts_for_mean, share)
    sums.rna.present[:] = sums.rna.prior[:] = sums.rna.n_cells


def _add_rna(
    sums: Moments,
    module: TOTALVI,
    x: SparseCounts,
    sample: Scales,
    of_cell: np.ndarray,
    share: float,
) -> None:
    own = sample.own
    r = module.gene_log_inverse_dispersion(own.context).exp().cpu().numpy()
    library = own.library_size[:, 0].cpu().numpy()
    own_rna = sample.own_rna.cpu().numpy()
    rna = own_rna if sample.rna is sample.own_rna else sample.rna.cpu().numpy()
    kept = np.ones((1, 1), dtype=np.float32)
    dropout_logit = own.decoded.dropout_logit
    if dropout_logit is not None:
        kept = _not_dropped(dropout_logit, sample.own_rna, own.library_size, r)
    _add_scale(rna, of_cell, share, sums.total, sums.square)
    _add_expected(own_rna, library, r, kept, of_cell, share, sums.expected)
    cell, gene, counts = (part.cpu().numpy() for part in (x.cell, x.gene, x.counts))
    _add_counted(cell, gene, counts, own_rna, library, r, of_cell, share, sums.counted)


def _not_dropped(dropout_logit: Tensor, rna: Tensor, library: Tensor, r: np.ndarray) -> np.ndarray:
    """Return the probability that a zero is of the NB and not of its zero inflation, (B, G)."""
    inverse_dispersion = torch.from_numpy(r).to(rna.device)
    log_zero = -inverse_dispersion * torch.log1p(library * rna / inverse_dispersion)
    return torch.sigmoid(log_zero - dropout_logit).cpu().numpy()


def _add_protein(
    sums: StratumMoments,
    module: TOTALVI,
    y: Tensor,
    sample: Scales,
    seen: Tensor,
    counts_for_mean: Tensor,
    share: np.ndarray,
) -> None:
    own = sample.own
    log_r = module.protein_log_inverse_dispersion(own.context)
    log_efficiency = (
        torch.zeros_like(y)
        if module.log_efficiency is None
        else module.log_efficiency[own.context.batch]
    )
    log_background = plausible_background(own.log_background + log_efficiency)
    log_foreground = log_background + own.decoded.foreground_factor.log()
    in_foreground = torch.sigmoid(
        negative_binomial_log_prob(y, log_foreground, log_r)
        - negative_binomial_log_prob(y, log_background, log_r)
        - own.decoded.background_logit
    )
    pi = own.background_probability()
    components = (
        (sums.foreground, sample.foreground, log_foreground, in_foreground, 1 - pi),
        (sums.background, sample.background, log_background, 1 - in_foreground, pi),
    )
    for moments, scale, log_mean, given_count, before in components:
        weight = seen * given_count / (1 + (log_mean - log_r).exp())
        parts = {
            "total": counts_for_mean * scale,
            "square": counts_for_mean * scale**2,
            "counted": weight * y,
            "expected": weight * log_mean.exp(),
            "present": seen * given_count,
            "prior": seen * before,
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
    kept: np.ndarray,
    stratum: np.ndarray,
    share: float,
    expected: np.ndarray,
) -> None:
    """Add w mu; where a count may be dropped out, times the probability that it was not.

    Rows of ``r``, and rows and columns of ``kept``, are one for all or one each.
    """
    n_genes = scale.shape[1]
    by_cell, with_dropout = len(r) > 1, kept.shape[1] == n_genes and len(kept) == len(stratum)
    for chunk in prange((n_genes + _GENES_AT_A_TIME - 1) // _GENES_AT_A_TIME):
        first = chunk * _GENES_AT_A_TIME
        last = min(first + _GENES_AT_A_TIME, n_genes)
        for b in range(len(stratum)):
            s, row = stratum[b], b if by_cell else 0
            for g in range(first, last):
                mu = scale[b, g] * library[b]
                value = mu * r[row, g] / (r[row, g] + mu)
                if with_dropout:
                    value *= kept[b, g]
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


_PRIOR_COUNT = 0.5  # a above


class Level(NamedTuple):
    """Mean expression of each feature in a group, (features,), and its variance. NaN: no cell.

    The variance is that of the logarithm times the squared mean, as effects are logarithms.
    """

    mean: np.ndarray
    variance: np.ndarray


def group_level(moments: Moments, weight: np.ndarray) -> Level:
    """Return the level of a group whose cells are in several batches.

    Parameters
    ----------
    moments
        Sums of the group, one row a batch.
    weight
        Of each batch's mean in that of the group, (batches, features); 0 where no cell is.
    """
    n = np.maximum(moments.n_cells, 1)
    batch_mean = moments.total / n
    batch_variance = np.maximum(moments.square / n - batch_mean**2, 0) / n
    decoded = (weight * batch_mean).sum(axis=0)
    of_cell = np.where(moments.n_cells > 0, weight / n, 0) * moments.n_cells.sum(axis=0)
    counted = _reweighted(moments.counted, of_cell)
    present = _reweighted(moments.present, of_cell)
    factor = (counted.total + _PRIOR_COUNT) / ((of_cell * moments.expected).sum(0) + _PRIOR_COUNT)
    factor *= (present.total + _PRIOR_COUNT) / ((of_cell * moments.prior).sum(0) + _PRIOR_COUNT)
    elsewhere = 1 - present.total / np.maximum((of_cell * moments.n_cells).sum(axis=0), 1)
    relative = polygamma(1, counted.effective + _PRIOR_COUNT)  # variance of the log of a Gamma
    relative += np.maximum(elsewhere, 0) / (present.effective + _PRIOR_COUNT)
    mean = decoded * factor
    variance = mean**2 * relative + factor**2 * (weight**2 * batch_variance).sum(axis=0)
    unseen = weight.sum(axis=0) == 0
    return Level(np.where(unseen, np.nan, mean), np.where(unseen, np.nan, variance))


class _Reweighted(NamedTuple):
    total: np.ndarray
    effective: np.ndarray  # the unweighted sum that would be known as well


def _reweighted(part: np.ndarray, weight: np.ndarray) -> _Reweighted:
    total = (weight * part).sum(axis=0)
    square = (weight**2 * part).sum(axis=0)
    return _Reweighted(
        total, np.divide(total**2, square, out=np.zeros_like(total), where=square > 0)
    )


def shared_batch_weights(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the weight of each batch in the means of two groups, each (batches, features).

    Both groups get the same weights, n m / (n + m) for n and m cells, so that a difference between
    batches is none between groups. Where no batch has cells of both, each group keeps its own.

    Parameters
    ----------
    first, second
        Cells of the groups in each batch, (batches, features).

    Examples
    --------
    >>> import numpy as np
    >>> shared_batch_weights(np.array([[10.0], [5.0], [0.0]]), np.array([[10.0], [0.0], [9.0]]))[0].T
    array([[1., 0., 0.]])
    """
    both = first * second / np.maximum(first + second, 1)
    shared = both.sum(axis=0) > 0
    return tuple(_normalized(np.where(shared, both, own)) for own in (first, second))  # type: ignore[return-value]


def _normalized(weight: np.ndarray) -> np.ndarray:
    total = weight.sum(axis=0)
    return np.divide(weight, total, out=np.zeros_like(weight), where=total > 0)


def pair_levels(
    first: StratumMoments, second: StratumMoments, *, scale_protein: bool
) -> tuple[Level, Level]:
    """Return the levels of two groups, genes first and then proteins.

    Parameters
    ----------
    first, second
        Sums of the groups, one row a batch.
    scale_protein
        Whether proteins are shares of all proteins; the corrected shares then add up to the same.
    """
    gene_weights = shared_batch_weights(first.rna.n_cells, second.rna.n_cells)
    protein_weights = shared_batch_weights(first.foreground.n_cells, second.foreground.n_cells)
    levels = []
    for group, of_genes, of_proteins in zip(
        (first, second), gene_weights, protein_weights, strict=True
    ):
        rna = group_level(group.rna, of_genes)
        parts = [group_level(part, of_proteins) for part in (group.foreground, group.background)]
        protein = Level(*(a + b for a, b in zip(*parts, strict=True)))
        if scale_protein:
            shrink = 1 / np.maximum(np.nansum(protein.mean), np.finfo(float).tiny)
            protein = Level(protein.mean * shrink, protein.variance * shrink**2)
        levels.append(Level(*(np.concatenate(both) for both in zip(rna, protein, strict=True))))
    return levels[0], levels[1]
