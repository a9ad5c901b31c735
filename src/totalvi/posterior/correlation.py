"""Correlations of features over cells, of samples around the denoised mean, in one sample's memory."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import product
from typing import Literal, NamedTuple

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor

from totalvi.fit.batches import Minibatch
from totalvi.nn.v06 import TOTALVI
from totalvi.posterior.draws import CellNoise, draws
from totalvi.posterior.predictive_counts import gamma_values

CorrelationType = Literal["spearman", "pearson"]
_FEATURES_RANKED_AT_ONCE = 256


class CorrelationQuery(NamedTuple):
    """What is asked of the correlations.

    Parameters
    ----------
    genes, proteins
        Positions of the wanted features.
    transform_batches
        Codes of the batches to decode into, averaged over; (None,): each cell's own.
    n_samples
        Posterior samples a cell and batch.
    correlation_type
        "spearman" or "pearson".
    rna_size_factor
        What RNA proportions are multiplied by.
    log_transform
        Whether log(1 + value) is correlated.
    """

    genes: np.ndarray
    proteins: np.ndarray
    transform_batches: Sequence[int | None] = (None,)
    n_samples: int = 1
    correlation_type: CorrelationType = "spearman"
    rna_size_factor: float = 1000.0
    log_transform: bool = False

    def n_passes(self) -> int:
        """Return how often all cells are decoded."""
        return self.n_samples * len(self.transform_batches)


@torch.no_grad()
def feature_correlations(
    module: TOTALVI,
    batches: Iterator[Minibatch],
    n_cells: int,
    query: CorrelationQuery,
    noise: CellNoise,
    gene_partners: Callable[[Minibatch], Minibatch] | None = None,
) -> np.ndarray:
    """Return the correlations of genes, then proteins, (features, features).

    Each sample of the posterior, in each batch, has a correlation matrix over cells; it is their mean.

    Parameters
    ----------
    batches
        All ``n_cells`` cells, ``query.n_passes()`` times.
    gene_partners
        The cells whose genes are set beside the proteins of a minibatch's; None: the same cells.
    """
    n_features = len(query.genes) + len(query.proteins)
    total = np.zeros((n_features, n_features))
    for sample, code in product(range(query.n_samples), query.transform_batches):
        parts = (
            _values(module, batch, gene_partners, sample, code, query, noise)
            for batch in _one_pass(batches, n_cells)
        )
        if query.correlation_type == "pearson":
            total += pearson(parts, n_features)
        else:
            total += spearman(parts, n_features, n_cells)
    return total / query.n_passes()


def pearson(parts: Iterable[np.ndarray], n_features: int) -> np.ndarray:
    """Correlate the columns of a matrix that comes in blocks of rows.

    Means and co-moments are updated block by block, each centred at its own mean (Chan, Golub and
    LeVeque, 1983), which loses nothing where a mean is large beside its deviation.
    """
    count, mean = 0, np.zeros(n_features)
    co_moment = np.zeros((n_features, n_features))
    for part in parts:
        part_mean = part.mean(axis=0, dtype=np.float64)
        shift = part_mean - mean
        together = count + len(part)
        deviations = np.vstack([part - part_mean, np.sqrt(count * len(part) / together) * shift])
        deviations = deviations.astype(np.float32)
        co_moment += deviations.T @ deviations
        mean += shift * (len(part) / together)
        count = together
    rounding = count * (np.finfo(np.float32).eps * mean) ** 2
    squares = np.diagonal(co_moment)
    return _normalised(co_moment, np.where(squares > rounding, squares, 0.0))


def spearman(parts: Iterable[np.ndarray], n_features: int, n_cells: int) -> np.ndarray:
    """Correlate the ranks of the columns of a matrix that comes in blocks of rows; ties share theirs.

    Ranks need all cells of a feature: features x cells are held, as float32.
    """
    ranks = np.empty((n_features, n_cells), dtype=np.float32)
    start = 0
    for part in parts:
        ranks[:, start : start + len(part)] = part.T
        start += len(part)
    for first in range(0, n_features, _FEATURES_RANKED_AT_ONCE):
        rows = slice(first, first + _FEATURES_RANKED_AT_ONCE)
        # mean ranks are halves: exact, and of no variance where all cells tie
        ranks[rows] = (rankdata(ranks[rows], axis=1) - (n_cells + 1) / 2) / n_cells
    co_moment = (ranks @ ranks.T).astype(np.float64)
    return _normalised(co_moment, np.diagonal(co_moment))


def _normalised(co_moment: np.ndarray, squares: np.ndarray) -> np.ndarray:
    """Return correlations: 0 between a constant feature and any other, 1 on the diagonal."""
    inverse = np.zeros_like(squares)
    np.divide(1.0, np.sqrt(squares), out=inverse, where=squares > 0)
    correlations = np.clip(co_moment * np.outer(inverse, inverse), -1.0, 1.0)
    np.fill_diagonal(correlations, 1.0)
    return correlations


def _one_pass(batches: Iterator[Minibatch], n_cells: int) -> Iterator[Minibatch]:
    n_done = 0
    while n_done < n_cells:
        batch = next(batches)
        n_done += len(batch.cells)
        yield batch


def _values(
    module: TOTALVI,
    batch: Minibatch,
    gene_partners: Callable[[Minibatch], Minibatch] | None,
    sample: int,
    code: int | None,
    query: CorrelationQuery,
    noise: CellNoise,
) -> np.ndarray:
    """Return the values to correlate: a sample of the wanted genes, then proteins, (B, features)."""
    genes, proteins = _denoised_sample(module, batch, sample, code, query, noise)
    if gene_partners is not None and len(query.genes):
        partners = gene_partners(batch)
        genes, _ = _denoised_sample(module, partners, sample, code, query, noise)
    values = np.hstack([genes, proteins])
    return np.log1p(values) if query.log_transform else values


def _denoised_sample(
    module: TOTALVI,
    batch: Minibatch,
    sample: int,
    code: int | None,
    query: CorrelationQuery,
    noise: CellNoise,
) -> tuple[np.ndarray, np.ndarray]:
    """Return Gamma(r, r / mean) samples of genes and proteins, whose background is set to zero."""
    (draw,) = draws(module, batch, 1, noise, (code,), first_sample=sample)

    def values(mean: Tensor, log_r: Tensor, wanted: np.ndarray, number: int) -> np.ndarray:
        return gamma_values(
            noise, sample, batch.keys, number + wanted,
            mean[:, wanted].cpu().numpy(), log_r[:, wanted].exp().cpu().numpy(),
        )  # fmt: skip

    foreground = draw.foreground_probability() * draw.foreground_rate()
    log_r = module.protein_log_inverse_dispersion(draw.context)
    proteins = values(foreground, log_r, query.proteins, module.n_input_genes)
    if not len(query.genes):
        return np.empty((len(proteins), 0), dtype=np.float32), proteins
    rna = query.rna_size_factor * module.proportions(draw.decoded)
    log_r = module.gene_log_inverse_dispersion(draw.context)
    return values(rna, log_r, query.genes, 0), proteins
