"""Differential expression: what differs between groups of cells, and how sure that is.

Two units can be compared. "groups" compares the mean expression of the groups (`levels`), with an
error that shrinks with their cells and counts. "cells" compares random pairs of a cell of each, as
the totalVI paper does: its spread is that between cells, so much that varies within a group counts
against a difference between groups, and an effect that the decoder shrinks stays shrunk. On
simulated counts with known effects (benchmarks/differential_truth.py) groups found nearly all 2-fold
changes at about the false discovery rate asked for, and effects came out in the right size; pairs
found six in ten, and effects were a quarter too small. So groups is the default.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from totalvi.posterior.differential.cell_pairs import draw_pairs, pair_effects
from totalvi.posterior.differential.effects import (
    LEAST_DELTA,
    Effects,
    fit_prior,
    posterior_effects,
    robust_delta,
)
from totalvi.posterior.differential.moments import StratumMoments, pair_levels

Unit = Literal["groups", "cells"]
_COUNTS_AT_PSEUDOCOUNT = 10


class Comparison(NamedTuple):
    """Two groups of cells, each made of disjoint parts of the cells, by number."""

    first: tuple[int, ...]
    second: tuple[int, ...]


class Pseudocounts(NamedTuple):
    """What is added to a scale before its logarithm is taken.

    Parameters
    ----------
    rna
        To RNA proportions. None: the proportion at which the smaller group of a comparison, by RNA
        counts, would hold 10 of them. Ratios of genes below that are noise, and are drawn to 0.
    protein
        To the protein scale.
    """

    rna: float | None
    protein: float

    def of(self, sizes: Sequence[float], n_genes: int, n_proteins: int) -> np.ndarray:
        """Return c of each feature, for groups of these total library sizes."""
        rna = _COUNTS_AT_PSEUDOCOUNT / min(sizes) if self.rna is None else self.rna
        return np.repeat([rna, self.protein], [n_genes, n_proteins])


class Differences(NamedTuple):
    """Answers to comparisons, each (comparisons, features), genes first; ``delta`` (comparisons,)."""

    effects: Effects
    first_scale: np.ndarray
    second_scale: np.ndarray
    pseudocount: np.ndarray
    delta: np.ndarray


def compare_groups(
    sums: StratumMoments,
    comparisons: Sequence[Comparison],
    n_batches: int,
    pseudocounts: Pseudocounts,
    delta: float | None,
    *,
    within_batches: bool,
    scale_protein: bool,
) -> Differences:
    """Compare the mean expression of groups.

    Parameters
    ----------
    sums
        Of strata, which are a part of the cells and a batch: stratum = part * n_batches + batch.
    delta
        Smallest effect of interest. None: estimated; see `robust_delta`.
    within_batches
        Whether to compare cells of the same batch; see `shared_batch_weights`.
    """
    n_genes, n_proteins = sums.rna.total.shape[1], sums.foreground.total.shape[1]
    means, variances, effects, pseudo = [], [], [], []
    for comparison in comparisons:
        groups = [
            _group(sums, parts, n_batches, within_batches=within_batches) for parts in comparison
        ]
        levels = pair_levels(*groups, scale_protein=scale_protein)
        sizes = [float(group.library_size.sum()) for group in groups]
        c = pseudocounts.of(sizes, n_genes, n_proteins)
        log_ratio = np.log2(levels[0].mean + c) - np.log2(levels[1].mean + c)
        error = [level.variance / (level.mean + c) ** 2 for level in levels]
        means.append([level.mean for level in levels])
        effects.append(log_ratio)
        variances.append((error[0] + error[1]) / np.log(2) ** 2)
        pseudo.append(c)
    estimate, variance = np.array(effects), np.array(variances)
    first_scale, second_scale = np.array(means).transpose(1, 0, 2)
    posterior, deltas = _posterior(estimate, variance, n_genes, delta)
    return Differences(posterior, first_scale, second_scale, np.array(pseudo), deltas)


def _group(
    sums: StratumMoments, parts: tuple[int, ...], n_batches: int, *, within_batches: bool
) -> StratumMoments:
    """Return the sums of a group, one row a batch, or a single row."""
    strata = np.add.outer(np.array(parts) * n_batches, np.arange(n_batches))
    if not within_batches:
        strata = strata.reshape(-1, 1)
    return sums.sum(strata)


def _posterior(
    estimate: np.ndarray, variance: np.ndarray, n_genes: int, delta: float | None
) -> tuple[Effects, np.ndarray]:
    """Return the effects under a prior for genes and one for proteins, and each delta."""
    genes = fit_prior(estimate[:, :n_genes], variance[:, :n_genes], free_mode=True)
    proteins = fit_prior(estimate[:, n_genes:], variance[:, n_genes:], free_mode=False)
    deltas = robust_delta(genes) if delta is None else np.full(len(estimate), float(delta))
    both = (
        posterior_effects(estimate[:, some], variance[:, some], prior, deltas)
        for some, prior in ((slice(n_genes), genes), (slice(n_genes, None), proteins))
    )
    return Effects(*(np.hstack(parts) for parts in zip(*both, strict=True))), deltas


def compare_cells(
    values: np.ndarray,
    part: np.ndarray,
    batch: np.ndarray,
    comparisons: Sequence[Comparison],
    library_size: np.ndarray,
    pseudocounts: Pseudocounts,
    delta: float | None,
    n_pairs: int,
    n_genes: int,
    seed: int,
) -> Differences:
    """Compare random pairs of a cell of each group.

    Parameters
    ----------
    values
        Scales, (features, cells); see `sampled_scales`.
    part, batch, library_size
        Of these cells, each (cells,); pairs are of cells of the same ``batch`` where there are any.
    """
    rows = []
    for number, comparison in enumerate(comparisons):
        rng = np.random.default_rng((seed, number))
        groups = [np.isin(part, parts) for parts in comparison]
        first, second = (
            [np.flatnonzero(group & (batch == code)) for code in np.unique(batch)]
            for group in groups
        )
        pairs = draw_pairs(first, second, n_pairs, rng)
        sizes = [float(library_size[group].sum()) for group in groups]
        c = pseudocounts.of(sizes, n_genes, len(values) - n_genes)
        least = delta
        if least is None:
            medians = pair_effects(values, *pairs, c, 0.0).effects.median[:n_genes]
            spread = 1.4826 * np.nanmedian(np.abs(medians - np.nanmedian(medians)))
            least = max(3 * float(spread), LEAST_DELTA)
        found = pair_effects(values, *pairs, c, least)
        rows.append((found, c, least))
    effects = zip(*(found.effects for found, _, _ in rows), strict=True)
    return Differences(
        Effects(*(np.stack(part) for part in effects)),
        np.stack([found.first_mean for found, _, _ in rows]),
        np.stack([found.second_mean for found, _, _ in rows]),
        np.stack([c for _, c, _ in rows]),
        np.array([least for _, _, least in rows], dtype=float),
    )
