"""Compare groups of cells: differential expression with its uncertainty.

There are two units of comparison. "groups" compares the mean expression of the groups (`pair_levels`).
Its error shrinks with their cells and counts. "cells" compares random pairs of a cell of each group, as
in the totalVI paper. Its spread is that between cells, so variation within a group counts against a
difference between groups. An effect that the decoder shrinks also stays shrunk.

On simulated counts with known effects (benchmarks/differential_truth.py), groups found nearly all
2-fold changes at about the target false discovery rate, with effects of the right size. Pairs found
six in ten, and their effects were a fifth too small. The default is therefore groups.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from scipy.special import polygamma

from totalvi.posterior.differential.effects import (
    LEAST_DELTA,
    Effects,
    draw_pairs,
    fit_prior,
    pair_effects,
    posterior_effects,
    robust_delta,
)
from totalvi.posterior.differential.moments import Moments, StratumMoments

Unit = Literal["groups", "cells"]
_COUNTS_AT_PSEUDOCOUNT = 10
_DETECTED = 3  # standard errors of the background above which a foreground is detected
_LEAST_PROTEIN = 0.1
_PRIOR_COUNT = 0.5  # added to counts before their ratio is taken
_PRIOR_CELLS = 10  # what the model says of the variance of counts weighs as much as these
_LEAST_DISPERSION = 0.5  # of the variance of counts, relative to the model's
_LEAST_SHARE = 1e-3  # of a log ratio that a pseudocount leaves; keeps 0 / 0 out


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
        To the protein scale. None: the foreground that a comparison detects, at least 0.1; see
        `detection_limit`. Ratios below that are noise too. For pairs of cells, and shares: 0.1.
    """

    rna: float | None
    protein: float | None

    def of(self, sizes: Sequence[float], n_genes: int, n_proteins: int) -> np.ndarray:
        """Return c of each feature, for groups of these total library sizes."""
        rna = _COUNTS_AT_PSEUDOCOUNT / min(sizes) if self.rna is None else self.rna
        protein = _LEAST_PROTEIN if self.protein is None else self.protein
        return np.repeat([rna, protein], [n_genes, n_proteins])


class Differences(NamedTuple):
    """Answers to comparisons, each (comparisons, features), genes first; ``delta`` (comparisons,).

    ``estimate`` is of r before it is shrunk, and ``error`` its standard error; None for pairs of cells.
    """

    effects: Effects
    first_scale: np.ndarray
    second_scale: np.ndarray
    pseudocount: np.ndarray
    delta: np.ndarray
    estimate: np.ndarray | None = None
    error: np.ndarray | None = None


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
    means, variances, effects, shares, pseudo = [], [], [], [], []
    for comparison in comparisons:
        groups = [
            _group(sums, parts, n_batches, within_batches=within_batches) for parts in comparison
        ]
        levels = pair_levels(*groups, scale_protein=scale_protein)
        sizes = [float(group.library_size.sum()) for group in groups]
        c = pseudocounts.of(sizes, n_genes, n_proteins)
        if pseudocounts.protein is None and not scale_protein:
            c[n_genes:] = np.maximum(c[n_genes:], detection_limit(groups))
        log_ratio = np.log2(levels[0].mean + c) - np.log2(levels[1].mean + c)
        error = [level.variance / (level.mean + c) ** 2 for level in levels]
        means.append([level.mean for level in levels])
        effects.append(log_ratio)
        variances.append((error[0] + error[1]) / np.log(2) ** 2)
        shares.append(_share(groups, levels, c))
        pseudo.append(c)
    estimate, variance = np.array(effects), np.array(variances)
    first_scale, second_scale = np.array(means).transpose(1, 0, 2)
    posterior, deltas = _posterior(estimate, variance, np.array(shares), n_genes, delta)
    return Differences(
        posterior, first_scale, second_scale, np.array(pseudo), deltas, estimate, np.sqrt(variance)
    )


def _share(
    groups: Sequence[StratumMoments], levels: Sequence["Level"], pseudocount: np.ndarray
) -> np.ndarray:
    """Return h / (h + c) with h the mean over the cells of both groups, not 0.

    The mean of both does not follow the noise of the smaller group, as its own level does.
    """
    n_cells = [
        np.concatenate([part.n_cells.sum(axis=0) for part in (group.rna, group.foreground)])
        for group in groups
    ]
    total = sum(n * level.mean for n, level in zip(n_cells, levels, strict=True))
    mean = total / np.maximum(sum(n_cells), 1)
    share: np.ndarray = np.maximum(mean / (mean + pseudocount), _LEAST_SHARE)
    return share


def detection_limit(groups: Sequence[StratumMoments]) -> np.ndarray:
    """Return the mean foreground that stands out from the background in each group, (proteins,).

    As a limit of detection (Currie, 1968) it is three standard errors of the mean of counts that are
    all background, in the group where these are largest.
    """
    limits = []
    for group in groups:
        seen = (group.foreground.present + group.background.present).sum(axis=0)
        limits.append(np.sqrt(group.background.noise.sum(axis=0)) / np.maximum(seen, 1))
    largest: np.ndarray = _DETECTED * np.maximum.reduce(limits)
    return largest


def _group(
    sums: StratumMoments, parts: tuple[int, ...], n_batches: int, *, within_batches: bool
) -> StratumMoments:
    """Return the sums of a group, one row a batch, or a single row."""
    strata = np.add.outer(np.array(parts) * n_batches, np.arange(n_batches))
    if not within_batches:
        strata = strata.reshape(-1, 1)
    return sums.sum(strata)


def _posterior(
    estimate: np.ndarray,
    variance: np.ndarray,
    share: np.ndarray,
    n_genes: int,
    delta: float | None,
) -> tuple[Effects, np.ndarray]:
    """Return the effects under a prior for genes and one for proteins, and each delta."""
    parts = [
        [values[:, some] for values in (estimate, variance, share)]
        for some in (slice(n_genes), slice(n_genes, None))
    ]
    priors = [
        fit_prior(*part, free_mode=free) for part, free in zip(parts, (True, False), strict=True)
    ]
    deltas = robust_delta(priors[0]) if delta is None else np.full(len(estimate), float(delta))
    both = (
        posterior_effects(e, v, prior, deltas, s)
        for (e, v, s), prior in zip(parts, priors, strict=True)
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


class Level(NamedTuple):
    """Mean expression of each feature in a group, (features,), and its variance. NaN: no cell.

    The variance is that of the logarithm times the squared mean, as effects are logarithms.
    """

    mean: np.ndarray
    variance: np.ndarray


class Correction(NamedTuple):
    """Factor of the decoded mean of each feature, (features,), and the variance of its logarithm."""

    factor: np.ndarray
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
    counts, presence = level_of_counts(moments, of_cell), frequency(moments, of_cell)
    factor, relative = counts.factor * presence.factor, counts.variance + presence.variance
    mean = decoded * factor
    variance = mean**2 * relative + factor**2 * (weight**2 * batch_variance).sum(axis=0)
    unseen = weight.sum(axis=0) == 0
    return Level(np.where(unseen, np.nan, mean), np.where(unseen, np.nan, variance))


def level_of_counts(moments: Moments, of_cell: np.ndarray) -> Correction:
    """Return how much higher counts are than expected, for a component those that are of it.

    ``moments`` has one row a batch; ``of_cell`` (batches, features) weighs the cells of each batch, and
    is 1 on average.
    """
    counted = _reweighted(moments.counted, of_cell)
    expected = (of_cell * moments.expected).sum(axis=0)
    # the variance of the logarithm of a gamma variable is a polygamma function
    variance = polygamma(1, counted.effective + _PRIOR_COUNT) * _dispersion(moments, of_cell)
    return Correction((counted.total + _PRIOR_COUNT) / (expected + _PRIOR_COUNT), variance)


def frequency(moments: Moments, of_cell: np.ndarray) -> Correction:
    """Return how much more frequent a component is than expected; for genes 1.

    The probabilities of the component given each count, summed, are one step of expectation
    maximisation. Counts that leave their component open keep the step short of the maximum, by the
    share of information that they lack, and the variance is larger by as much (Louis, 1982). The
    parameters are those of `level_of_counts`.
    """
    present = _reweighted(moments.present, of_cell)
    prior = (of_cell * moments.prior).sum(axis=0)
    informed, missing = ((of_cell * part).sum(0) for part in (moments.informed, moments.missing))
    complete = informed + missing  # p (1 - p), summed, on average
    known = np.divide(informed, complete, out=np.ones_like(complete), where=complete > 0)
    step = (present.total + _PRIOR_COUNT) / (prior + _PRIOR_COUNT)
    shortfall = (present.total + _PRIOR_COUNT) / (known * present.total + _PRIOR_COUNT)
    elsewhere = complete / (present.total + _PRIOR_COUNT)
    return Correction(step**shortfall, elsewhere / (known * present.effective + _PRIOR_COUNT))


def _dispersion(moments: Moments, of_cell: np.ndarray) -> np.ndarray:
    """Return the variance of counts relative to the model's, as the counts of the group show it."""
    excess, expected = ((of_cell**2 * part).sum(0) for part in (moments.excess, moments.expected))
    shown = np.divide(excess, expected, out=np.zeros_like(expected), where=expected > 0)
    n = (of_cell * moments.present).sum(axis=0)
    dispersion: np.ndarray = np.maximum(1 + shown * n / (n + _PRIOR_CELLS), _LEAST_DISPERSION)
    return dispersion


class _Reweighted(NamedTuple):
    total: np.ndarray
    effective: np.ndarray  # an unweighted sum of this size would be as uncertain


def _reweighted(part: np.ndarray, weight: np.ndarray) -> _Reweighted:
    total = (weight * part).sum(axis=0)
    square = (weight**2 * part).sum(axis=0)
    return _Reweighted(
        total, np.divide(total**2, square, out=np.zeros_like(total), where=square > 0)
    )


def shared_batch_weights(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the weight of each batch in the means of two groups, each (batches, features).

    Both groups get the same weights, n m / (n + m) for n and m cells, so that a difference between
    batches is not one between groups. If no batch has cells of both, each group keeps its own weights.

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
    normalized: np.ndarray = np.divide(weight, total, out=np.zeros_like(weight), where=total > 0)
    return normalized


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
